"""`vitrail models`: the architectures, with what each costs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, result, say, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitrail.metrics.cost import LayerCost


def models(
    pattern: Annotated[str, typer.Argument(help="A name for its details, or a wildcard pattern like 'deit*'.")] = "*",
    cost: Annotated[
        bool, typer.Option("--cost", help="Of one model: memory and attention matrices, by layer.")
    ] = False,
    img_size: Annotated[str | None, typer.Option(help="Count at 384 or 200x312; default: each model's own.")] = None,
    as_json: Json = False,
) -> None:
    """List models with parameters, GFLOPs and sizes; or one in detail, or what it costs."""
    from vitrail import models as zoo
    from vitrail.errors import UsageError, WeightsError, did_you_mean

    names = zoo.list_models(pattern)
    if not names and pattern.partition(".")[0] in zoo.variants():
        names = [pattern.partition(".")[0]]
    if not names:
        hint = did_you_mean(pattern, zoo.list_models())
        raise WeightsError(f"expected a model name or pattern, got {pattern!r}, which no model has.{hint}")
    one = not any(sign in pattern for sign in "*?[")
    if cost and not one:
        raise UsageError(f"--cost needs the name of one model, got {pattern!r}; mend: vitrail models {names[0]} --cost")
    size = None if img_size is None else _size(img_size)
    if cost:
        from .cost import show_cost

        if zoo.reads_text(zoo.config_of(names[0])):
            raise UsageError(f"--cost is counted on an image, and {names[0]} reads text; mend: leave it out")
        with _at(names[0], size):
            shown = show_cost(names[0], size)
        result("models", as_json, models=[shown])
        return
    rows, too_small = _describe_all(names, size)
    if one:
        _show_details(rows[0])
    else:
        _show_table(rows)
    for words in too_small.values():
        say(f"left out: {words}")
    result("models", as_json, models=rows, **({"left_out": too_small} if too_small else {}))


def _describe_all(names: list[str], size: tuple[int, int] | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what :func:`describe` says of models, and name -> reason of those that do not take the size."""
    from vitrail.errors import UsageError

    rows, too_small = [], {}
    for name in names:
        try:
            rows.append(describe(name, size))
        except UsageError as error:
            too_small[name] = str(error)
    if not rows:
        raise UsageError(next(iter(too_small.values())))
    return rows, too_small


@contextmanager
def _at(name: str, size: tuple[int, int] | None) -> Iterator[None]:
    """Say of a ValueError, while a model is counted at a size that the user chose, that it is the size's."""
    from vitrail.errors import UsageError

    try:
        yield
    except ValueError as error:
        if size is None or isinstance(error, UsageError):
            raise
        shown = f"{size[0]}x{size[1]}"
        raise UsageError(f"{name} cannot be counted at --img-size {shown}: {error}. mend: a larger size") from error


def _size(text: str) -> tuple[int, int]:
    from vitrail.models import as_size

    from .settings import parse_size

    return as_size(parse_size(text))


def describe(name: str, size: tuple[int, int] | None = None) -> dict[str, Any]:
    from vitrail.models import config_of, config_to_dict, reads_text

    config = config_of(name)
    if reads_text(config):
        return _describe_text(name, config, size)
    with _at(name, size):
        params, macs = count(config, size or config.img_size)
    return {
        "name": name,
        "params": params,
        "gflops": round(2e-9 * macs, 4),
        "img_size": list(size or config.img_size),
        **({"patch_size": config.patch_size} if hasattr(config, "patch_size") else {}),
        "config": config_to_dict(config),
    }


def _describe_text(name: str, config: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the same of a model that reads text: what it costs depends on the length of the text."""
    import torch

    from vitrail.errors import UsageError
    from vitrail.models import build, config_to_dict

    if size is not None:
        raise UsageError(f"--img-size has no effect on {name}, which reads text; mend: leave it out")
    with torch.device("meta"):
        params = sum(p.numel() for p in build(config).parameters())
    return {"name": name, "params": params, "vocab_size": config.vocab_size, "config": config_to_dict(config)}


def count(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return parameters and multiply-adds of one image.

    From the third on, the blocks of a stage are alike: two are counted, and the last of them for all that follow. A
    table of a hundred models in seconds instead of a minute.
    """
    from dataclasses import replace

    from vitrail.metrics.cost import cost
    from vitrail.models import build

    key = "depths" if hasattr(config, "depths") else "depth"
    depths = getattr(config, key, ())
    depths = (depths,) if isinstance(depths, int) else tuple(depths)
    short = tuple(min(depth, 2) for depth in depths)
    fewer = replace(config, **{key: short if key == "depths" else short[0]}) if short != depths else config
    found = cost(lambda: build(fewer), size, config.in_chans, training=False)
    stages: dict[str, list[LayerCost]] = {}
    for layer in found.layers:
        stage, _, number = layer.name.rpartition(".")
        if number.isdigit():
            stages.setdefault(stage, []).append(layer)
    if fewer is config or tuple(len(blocks) for blocks in stages.values()) != short:
        whole = found if fewer is config else cost(lambda: build(config), size, config.in_chans, training=False)
        return whole.params, whole.macs
    more = [(blocks[-1], depth - 2) for blocks, depth in zip(stages.values(), depths, strict=True) if depth > 2]
    return (
        found.params + sum(times * block.params for block, times in more),
        found.macs + sum(times * block.macs for block, times in more),
    )


_COLUMNS = {  # heading -> the fields of a config that say it, of which a family has at most one
    "patch": ("patch_size",),
    "width": ("embed_dim", "embed_dims", "widths"),
    "depth": ("depth", "depths", "decoder_depth"),
    "heads": ("num_heads",),
}


def table_of(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells of what :func:`describe` says of models; a column that all leave empty is left out."""
    shapes = {head: [_first(row["config"], fields) for row in rows] for head, fields in _COLUMNS.items()}
    shapes = {head: cells for head, cells in shapes.items() if any(cells)}
    columns = ("model", "parameters", "GFLOPs", "image", *shapes)
    cells = []
    for i, row in enumerate(rows):
        size = "x".join(str(side) for side in row["img_size"]) if "img_size" in row else "text"
        work = f"{row['gflops']:.2f}" if "gflops" in row else "-"
        shape = [column[i] for column in shapes.values()]
        cells.append((row["name"], f"{row['params'] / 1e6:.1f} M", work, size, *shape))
    return columns, cells


def _show_table(rows: list[dict[str, Any]]) -> None:
    columns, cells = table_of(rows)
    table(columns, cells, right=columns[1:], whole=columns[:4])
    say()
    say(f"{len(rows)} models. GFLOPs are for one image of the size shown, a multiply and an add counted as two")
    say("(many papers print half of it). Those that read images take any image that holds one patch; parameters of")
    say("those that read text are for their own vocabulary size, which training sets.")
    say("One in detail: vitrail models NAME")


def _first(config: dict[str, Any], fields: tuple[str, ...]) -> str:
    """Return the first of these fields that a config has, a value for each stage joined by dashes."""
    value = next((config[field] for field in fields if field in config), "")
    return "-".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _show_details(row: dict[str, Any]) -> None:
    say(row["name"])
    if "img_size" in row:
        say(f"  parameters  {row['params']:,} (with a head of {row['config']['num_classes']} classes)")
        height, width = row["img_size"]
        say(f"  GFLOPs      {row['gflops']:.3f} an image of {height} x {width}, a multiply and an add as two")
    else:
        say(f"  parameters  {row['params']:,} (with a vocabulary of {row['vocab_size']:,} tokens)")
    for key, value in row["config"].items():
        say(f"  {key:<22} {value}")
    _show_weights(row["name"])
    say(f"\nTrain it:  vitrail train {'FOLDER' if 'img_size' in row else 'TEXT'} --model {row['name']}")
    if "img_size" not in row:
        return
    say(f"Its cost by layer:  vitrail models {row['name']} --cost")


def _show_weights(name: str) -> None:
    """Say where public weights of this architecture come from, and under which licence."""
    from vitrail.weights import cards

    known = [card for full, card in cards().items() if full.partition(".")[0] == name]
    if known:
        say("\n  public weights (hf-hub:...):")
    for card in known:
        say(f"    {card.hub_id}  {card.licence or 'licence unknown'}  {card.origin or ''}")
