"""Exit codes, the one JSON line, and what a wrong command line says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from vitrail import errors
from vitrail.cli import main as entry
from vitrail.cli import models as models_verb


def test_help_lists_every_verb_and_nothing_more(vitrail):
    ran = vitrail("--help")
    assert ran.code == 0
    listed = [line.split()[0] for line in ran.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == [
        "train", "plan", "resume", "val", "predict", "sample", "probe", "explain", "export", "bench", "models",
        "scaling", "convert", "soup", "data",
    ]  # fmt: skip


def test_version(vitrail):
    ran = vitrail("--version")
    assert (ran.code, ran.out) == (0, f"vitrail {__import__('vitrail').__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits", "--epoch", "3"], "--epochs"),
        (["train", "digits", "--lrr", "3"], "--lr"),
        (["trian", "digits"], "train"),
        (["predict", "x", "y", "--tpo", "3"], "--top"),
        (["data", "chek", "x"], "check"),
        (["train", "digits", "--set", "train.epoch=3"], "train.epochs"),
        (["train", "digits", "epoch=3"], "epochs"),
        (["train", "digits", "--epochs", "many"], "--epochs"),
    ],
)
def test_an_unknown_option_names_the_nearest_one(vitrail, arguments, words):
    ran = vitrail(*arguments)
    assert ran.code == 2
    assert words in ran.err
    assert ran.out == ""


def test_usage_errors_are_one_json_line_too(vitrail):
    ran = vitrail("train", "digits", "--epoch", "3", "--json")
    assert ran.code == 2
    assert ran.json["exit_code"] == 2
    assert "--epoch" in ran.json["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.VitrailError("went wrong"), 1),
        (errors.UsageError("went wrong"), 2),
        (errors.DataError("went wrong"), 3),
        (errors.WeightsError("went wrong"), 4),
        (errors.ExportError("went wrong"), 5),
        (RuntimeError("went wrong"), 1),
        (OSError(28, "went wrong"), 1),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_error_has_its_code(vitrail, monkeypatch, error, code, as_json):
    def fail(*_):
        raise error

    monkeypatch.setattr(models_verb, "describe", fail)
    ran = vitrail("models", "vit_tiny*", *(["--json"] if as_json else []))
    assert ran.code == code
    assert "went wrong" in ran.err
    assert "Traceback" not in ran.err
    assert (code == 1 and not isinstance(error, errors.VitrailError)) == ("VITRAIL_DEBUG=1" in ran.err)
    if as_json:
        assert ran.json["exit_code"] == code
        assert ran.json["ok"] is False
    else:
        assert ran.out == ""


def test_debug_shows_where_it_happened(vitrail, monkeypatch):
    def fail(*_):
        raise RuntimeError("went wrong")

    monkeypatch.setattr(models_verb, "describe", fail)
    monkeypatch.setenv("VITRAIL_DEBUG", "1")
    with pytest.raises(RuntimeError, match="went wrong"):
        entry.main(["models", "vit_tiny*"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_code(vitrail, monkeypatch, number, code):
    def hit(*_):
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(models_verb, "describe", hit)
    handler = signal.getsignal(number)
    ran = vitrail("models", "vit_tiny*", "--json")
    assert ran.code == ran.json["exit_code"] == code
    assert signal.getsignal(number) is handler


def test_the_handler_of_a_training_wins_inside_it_and_ours_comes_back():
    """Training finishes its step on SIGTERM; it must not be cut off by the command's own handler."""
    from vitrail.training.signals import Stop

    heard = []
    with entry._terminated_politely(), Stop(heard.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == signal.SIGTERM
    assert len(heard) == 1


def test_a_reader_that_leaves_is_no_fault():
    done = subprocess.run([sys.executable, "-c", "import os; os.write(1, b'x' * 10)"], capture_output=True, check=True)
    assert done.stdout  # the shell below works on this machine
    pipe = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m vitrail models 'vit_tiny*' | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in pipe.stderr
    assert "Broken pipe" not in pipe.stderr


def test_the_real_entry_point_ends_with_the_code():
    done = subprocess.run(
        [sys.executable, "-m", "vitrail", "models", "no_such_model", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"] == "WeightsError"
