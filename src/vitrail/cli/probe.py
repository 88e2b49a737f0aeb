"""`vitrail probe`: what a model's frozen features are worth on other images, without training it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.errors import UsageError

from .console import Json, counter, result, say, table
from .heldout import recipe_of, same_source
from .settings import size_option
from .source import HUB_PREFIX, existing

if TYPE_CHECKING:
    from vitrail.training.probing import ProbeReport

Fraction = Annotated[float | None, typer.Option(help="Share to hold out where the data lack the split.")]


def probe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Run folder, model folder or hf-hub:org/name.")],
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="As for training; default: the data of the run.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="linear, knn or few-shot; may be given again. Default: all.")
    ] = None,
    img_size: Annotated[str | None, typer.Option(help="224, or height x width: 224x192. Default: the card's.")] = None,
    layer: Annotated[int | None, typer.Option(help="Read block N (-1: the last) instead of before the head.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A linear probe of every layer, and of raw pixels.")] = False,
    images: Annotated[int | None, typer.Option(help="Of --layers: training images to use.", min=1)] = None,
    neighbours: Annotated[list[int] | None, typer.Option(help="k of knn; may be given again.")] = None,
    temperature: Annotated[float | None, typer.Option(help="T of knn's votes; default 0.07.")] = None,
    shots: Annotated[list[int] | None, typer.Option(help="Images a class of few-shot; may be given again.")] = None,
    draws: Annotated[int | None, typer.Option(help="How often few-shot draws them; default 10.")] = None,
    val_fraction: Fraction = None,
    test_fraction: Fraction = None,
    seed: Annotated[int | None, typer.Option(help="Of held-out splits and of the few shots; default 0.")] = None,
    batch: Annotated[int, typer.Option(help="Images through the model at once.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    out: Annotated[str, typer.Option(help="Folder of the kept features and of results.jsonl.")] = "runs/probe",
    as_json: Json = False,
) -> None:
    """Measure frozen features: linear probe, nearest neighbours, few-shot."""
    if layers:
        idle: dict[str, Any] = {
            "method": method,
            "img_size": img_size,
            "layer": layer,
            "neighbours": neighbours,
            "shots": shots,
        }
        idle |= {"temperature": temperature, "draws": draws}
        _by_layer(model, data, idle, images, (val_fraction, test_fraction, seed), batch, device, as_json)
        return
    if images is not None:
        raise UsageError("--images has no effect without --layers; mend: leave it out")
    from vitrail.models import variants
    from vitrail.training.probing import METHODS
    from vitrail.training.probing import probe as run

    source = model if model.partition(".")[0] in variants() else existing(model)
    cuts = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    given = {key: value for key, value in {**cuts, "seed": seed}.items() if value is not None}
    chosen, title = _data(model, data, cuts)
    report = run(
        source,
        chosen,
        methods=method or METHODS,
        img_size=size_option(img_size),
        layer=layer,
        batch_size=batch,
        device=device,
        neighbours=neighbours or None,
        temperature=temperature,
        shots=shots or None,
        draws=draws,
        title=title,
        out=out,
        say=say,
        show=counter("features of image"),
        **given,  # type: ignore[arg-type]
    )
    _show(report)
    result("probe", as_json, **report.to_dict())


def _by_layer(
    model: str,
    data: str | None,
    idle: dict[str, Any],
    images: int | None,
    cuts: tuple[float | None, float | None, int | None],
    batch: int,
    device: str,
    as_json: bool,
) -> None:
    """Probe every layer; options of the other methods would have no effect."""
    from vitrail.training.probing.layers import probe_layers

    for name, value in idle.items():
        if value not in (None, []):
            raise UsageError(f"--{name.replace('_', '-')} has no effect with --layers; mend: leave it out")
    fractions = {"val_fraction": cuts[0], "test_fraction": cuts[1]}
    given = {key: value for key, value in {**fractions, "seed": cuts[2]}.items() if value is not None}
    found, title = _data(existing(model), data, fractions)
    options: dict[str, Any] = {"images": images, "batch_size": batch, "device": device, "title": title, **given}
    report = probe_layers(model, found, say=say, show=counter("features of image"), **options)
    say()
    splits = [split for split in ("val", "test") if split in report.images]
    heads = ["width", *(word for split in splits for word in (split, f"{split} 95 %"))]
    rows = [
        (entry["layer"], entry["width"], *(cell for split in splits for cell in _cells(entry[split])))
        for entry in report.results
    ]
    counts = ", ".join(f"{count:,} {split}" for split, count in report.images.items())
    say(f"{report.network}: linear probes; {report.classes} classes; {counts}\n")
    table(("layer", *heads), rows, right=heads)
    result("probe", as_json, **report.to_dict())


def _data(model: str, data: str | None, cuts: dict[str, float | None]) -> tuple[Any, str | None]:
    """Return (the source to open, None), or, for the data of the model's own run, (its splits, their name)."""
    recipe = None if model.startswith(HUB_PREFIX) else recipe_of(model)
    if data is not None and (recipe is None or not same_source(data, recipe.data.source)):
        return data, None
    if recipe is None:
        raise UsageError(f"expected DATA: {model} is not a run, so it does not say which data to probe it on")
    given = [name for name, value in cuts.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} has no effect on the run's own data, which are cut as the run cut them")
    from vitrail.training.pipeline import open_data

    return open_data(recipe), recipe.data.source


def _show(report: ProbeReport) -> None:
    height, width = report.img_size
    where = "before the head" if report.layer is None else f"of block {report.layer}"
    counts = ", ".join(f"{count:,} {split}" for split, count in report.images.items())
    say(f"{report.network} at {height} x {width}, {report.width} features {where}; {report.classes} classes; {counts}")
    say()
    splits = [split for split in ("val", "test") if split in report.images]
    heads = [word for split in splits for word in (split, f"{split} 95 %")]
    rows = [
        (
            entry["method"],
            entry["setting"] + (" (best on val)" if entry.get("best_on_val") else ""),
            *(cell for split in splits for cell in _cells(entry[split])),
        )
        for entry in report.results
    ]
    table(("method", "setting", *heads), rows, right=heads)
    if report.notes:
        say()
    for note in report.notes:
        say(note)


def _cells(figure: dict[str, float]) -> tuple[str, str]:
    return f"{figure['top1']:.2%}", f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f}"
