"""`vitrail models`: the architectures, with what each costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Json, result, say, table

if TYPE_CHECKING:
    from vitrail.metrics.cost import Cost


def models(
    pattern: Annotated[str, typer.Argument(help="A name for its details, or a wildcard pattern like 'deit*'.")] = "*",
    as_json: Json = False,
) -> None:
    """List models with parameters, GFLOPs and sizes; or one in detail."""
    from vitrail import models as zoo
    from vitrail.errors import WeightsError, did_you_mean

    names = zoo.list_models(pattern)
    if not names and pattern.partition(".")[0] in zoo.variants():
        names = [pattern.partition(".")[0]]
    if not names:
        hint = did_you_mean(pattern, zoo.list_models())
        raise WeightsError(f"expected a model name or pattern, got {pattern!r}, which no model has.{hint}")
    rows = [_describe(name) for name in names]
    if "*" not in pattern and "?" not in pattern and "[" not in pattern:
        _show_details(rows[0])
    else:
        _show_table(rows)
    result("models", as_json, models=rows)


def _describe(name: str) -> dict[str, Any]:
    from vitrail.models import config_of, config_to_dict

    config = config_of(name)
    params, gflops = _cost(name)
    return {
        "name": name,
        "params": params,
        "gflops": round(gflops, 4),
        "img_size": list(config.img_size),
        "patch_size": config.patch_size,
        "config": config_to_dict(config),
    }


def _cost(name: str) -> tuple[int, float]:
    """Return parameters and GFLOPs of one image.

    All blocks of a network with one ``depth`` are alike, so that depths 1 and 2 tell the rest: a table of fifty models
    in two seconds instead of ten.
    """
    from dataclasses import replace

    from vitrail.models import config_of

    config = config_of(name)
    depth = getattr(config, "depth", None)
    if not isinstance(depth, int) or depth <= 2:
        found = _count(config)
        return found.params, found.gflops
    one, two = _count(replace(config, depth=1)), _count(replace(config, depth=2))
    params = one.params + (depth - 1) * (two.params - one.params)
    return params, one.gflops + (depth - 1) * (two.gflops - one.gflops)


def _count(config: Any) -> Cost:
    from vitrail.metrics.cost import cost
    from vitrail.models import build

    return cost(lambda: build(config), config.img_size, config.in_chans)


def _show_table(rows: list[dict[str, Any]]) -> None:
    columns = ("model", "parameters", "GFLOPs", "image", "patch", "width", "depth", "heads")
    cells = []
    for row in rows:
        config = row["config"]
        shape = (config["embed_dim"], config["depth"], config["num_heads"])
        size = "x".join(str(side) for side in row["img_size"])
        cells.append(
            (row["name"], f"{row['params'] / 1e6:.1f} M", f"{row['gflops']:.2f}", size, row["patch_size"], *shape)
        )
    table(columns, cells, right=columns[1:])
    say()
    say(f"{len(rows)} models. GFLOPs are for one image of the size shown, a multiply and an add counted as two")
    say("(many papers print half of it). Every model takes any image size. One in detail: vitrail models NAME")


def _show_details(row: dict[str, Any]) -> None:
    say(row["name"])
    say(f"  parameters  {row['params']:,} (with a head of {row['config']['num_classes']} classes)")
    height, width = row["img_size"]
    say(f"  GFLOPs      {row['gflops']:.3f} an image of {height} x {width}, a multiply and an add as two")
    for key, value in row["config"].items():
        say(f"  {key:<22} {value}")
    _show_weights(row["name"])
    say(f"\nTrain it:  vitrail train FOLDER --model {row['name']}")


def _show_weights(name: str) -> None:
    """Say where public weights of this architecture come from, and under which licence."""
    from vitrail.weights import cards

    known = [card for full, card in cards().items() if full.partition(".")[0] == name]
    if known:
        say("\n  public weights (hf-hub:...):")
    for card in known:
        say(f"    {card.hub_id}  {card.licence or 'licence unknown'}  {card.origin or ''}")
