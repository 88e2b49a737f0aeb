"""The command line is a promise: every verb and option is listed here, and changes only on purpose."""

from __future__ import annotations

import typer
from typer.main import get_command

from vitrail.cli.main import app

FROZEN = {
    "vitrail": "--help --version",
    "train": "--batch --data --device --epochs --help --img-size --json --lr --model --name --out --seed --set "
    "--task words",
    "plan": "--batch --data --device --epochs --help --img-size --json --lr --memory --model --name --out --parallel "
    "--processes --seed --set words",
    "resume": "--force --help --json --steps --verify run",
    "val": "--batch --beam --data --device --help --json --split model",
    "predict": "--batch --beam --csv --device --help --img-size --json --out --threshold --tile --top images model",
    "sample": "--batch --count --device --held-out --help --json --keep --out --seed --temperature --top-k images "
    "model",
    "probe": "--batch --device --draws --help --images --img-size --json --layer --layers --method --neighbours --out "
    "--seed --shots --temperature --test-fraction --val-fraction data model",
    "explain": "--at --data --device --figures --help --json --length --method --out --per-head images model",
    "export": "--format --help --img-size --json --out model",
    "bench": "--batch --device --engines --help --img-size --json --rounds model",
    "models": "--cost --help --img-size --json pattern",
    "convert": "--help --json --layout --model --set source target",
    "scaling": "--epochs --help --json --models --out --seeds --set --shares --times words",
    "soup": "--batch --data --device --greedy --help --json --out members",
    "data": "--help",
    "data check": "--csv --help --json --labels source",
    "data shard": "--help --json --resize --size --workers out source",
    "data bench": "--batch --device --help --img-size --json --model --seconds --workers source",
}


def found() -> dict[str, str]:
    lines = {}

    def walk(command, name):
        context = typer.Context(command)
        options = {max(p.opts, key=len) for p in command.get_params(context)}
        lines[name or "vitrail"] = " ".join(sorted(options))
        for word, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {word}".strip())

    walk(get_command(app), "")
    return lines


def test_no_option_appears_or_vanishes_unnoticed():
    assert found() == FROZEN


def test_every_verb_that_works_prints_json():
    silent = {"vitrail", "data"}  # groups
    assert all("--json" in options.split() for name, options in found().items() if name not in silent)
