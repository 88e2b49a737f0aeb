"""`vitrail scaling`: what twice the data, a larger model or more compute would bring, from a family of small runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.errors import UsageError

from .console import Json, result, say
from .settings import gather, split_pairs

if TYPE_CHECKING:
    from vitrail.metrics.laws import Study


def scaling(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA | RUNS...", help="Data to train a family of runs on; or folders of runs there are."
        ),
    ],
    models: Annotated[str | None, typer.Option(help="Train these, names with commas between; default: auto.")] = None,
    shares: Annotated[str | None, typer.Option(help="Train on these shares of the images: 0.1,0.3,1.")] = None,
    epochs: Annotated[str | None, typer.Option(help="Train for so long: 20, or several: 10,20,40.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Train each so many times; 3 measure how much runs scatter.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, of every run.")
    ] = None,
    times: Annotated[float, typer.Option(help="Ask for so many times as much.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder of the results, and of the runs that are trained.")] = Path(
        "runs/scaling"
    ),
    as_json: Json = False,
) -> None:
    """Fit scaling laws to a family of runs: what would more data, a larger model, more compute bring?"""
    if not 1 < times < float("inf"):
        raise UsageError(f"expected --times above 1, got {times:g}")
    sources, pairs = split_pairs(words)
    asked: dict[str, Any] = {"--models": models, "--shares": shares, "--epochs": epochs, "--seeds": seeds}
    asked |= {"settings": [*pairs, *(settings or [])] or None}
    if any(value is not None for value in asked.values()):
        folders = _train(sources, asked, out)
    else:
        from vitrail.training.points import find_runs

        folders = find_runs(sources)
    _study(folders, times, out, as_json)


def _train(sources: list[str], asked: dict[str, Any], out: Path) -> list[Path]:
    """Train the family that was asked for."""
    if len(sources) != 1:
        raise UsageError(f"expected one data set to train a family on, got {len(sources)}: {', '.join(sources)}")
    if asked["--models"] is None and asked["--shares"] is None and asked["--epochs"] is None:
        given = ", ".join(key for key, value in asked.items() if value is not None)
        raise UsageError(f"{given} needs what is to vary; mend: --shares 0.1,0.2,0.5,1, --models or --epochs")
    if any((Path(sources[0]) / name).is_file() for name in ("recipe.yaml", "family.json")):
        raise UsageError(
            f"expected data to train on, got the runs in {sources[0]}; mend: leave the options out to read them"
        )
    from vitrail.training.family import Family, run_family

    family = Family(
        sources[0],
        out,
        models=tuple(_parts("--models", asked["--models"] or "auto", str)),
        shares=tuple(_parts("--shares", asked["--shares"] or "1", float)),
        epochs=tuple(_parts("--epochs", asked["--epochs"] or "auto", lambda t: t if t == "auto" else int(t))),
        seeds=1 if asked["--seeds"] is None else asked["--seeds"],
        settings=gather({}, asked["settings"] or []),
    )
    import sys

    return run_family(family, say=lambda line: say(line, stream=sys.stderr))


def _parts(option: str, text: str, kind: Any) -> list[Any]:
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        what = "numbers" if kind is float else "whole numbers"
        raise UsageError(f"expected {option} as {what} with commas between, got {text!r}") from None


def _study(folders: list[Path], times: float, out: Path, as_json: bool) -> None:
    from vitrail.explain.scaling import write_study
    from vitrail.metrics.answers import to_data
    from vitrail.metrics.laws import study
    from vitrail.training.folder import write_json
    from vitrail.training.points import read_points

    points, notes = read_points(folders)
    found = study(points)
    _show(found, notes, times)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = {name: path.resolve() for name, path in write_study(found, out, times).items()}
        data = to_data(found, times)
        data["notes"] = [*notes, *data["notes"]]
        files["json"] = (out / "scaling.json").resolve()
        write_json(files["json"], data)
    except OSError as error:
        raise UsageError(f"the results cannot be written to {out}: {error}; mend: --out <writable>") from None
    say()
    for name, path in files.items():
        say(f"{name:<9}{path}")
    result("scaling", as_json, files=files, **data)


def _show(found: Study, notes: list[str], times: float) -> None:
    from vitrail.metrics.answers import answer, joint_answer

    for series in found.series:
        first, *rest = answer(series, times)
        say(f"\n{series.question}: {series.label}, {len(series.points)} runs")
        say(f"  {first}")
        for sentence in rest:
            say(f"  - {sentence}")
    for label, law in found.joint.items():
        say("\nsize and data together:")
        for sentence in joint_answer(label, law, times):
            say(f"  {sentence}")
    for question, why in found.unanswered.items():
        say(f"\n{question}: no answer: {why}")
    for note in [*notes, *found.notes]:
        say(note)
