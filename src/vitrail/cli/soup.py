"""`vitrail soup`: the mean of several models that were fine-tuned from one start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitrail.errors import UsageError

from .console import Json, result, say, table
from .heldout import HeldOut, held_out, recipe_of, require_classes, same_source
from .source import existing

if TYPE_CHECKING:
    from vitrail.data.imageset import ImageSet
    from vitrail.training.soup import Soup

HELD_OUT_BY = ("data.source", "data.val_fraction", "data.test_fraction", "data.seed")


def soup(
    members: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, model folders or hf-hub:org/name.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the soup.")],
    greedy: Annotated[
        bool, typer.Option("--greedy/--uniform", help="Take a member only if the soup does not get worse, or take all.")
    ] = True,
    data: Annotated[str | None, typer.Option(help="Data with a val split; default: the runs' own.")] = None,
    batch: Annotated[int, typer.Option(help="Images through the model at once.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Average the weights of several models."""
    from vitrail.infer.predictor import pick_device
    from vitrail.training.soup import cook
    from vitrail.weights import open_folder, save_folder

    if out.exists():
        raise UsageError(f"expected a folder that does not exist yet, got {str(out)!r}; mend: another name")
    folders = [open_folder(existing(member)) for member in members]
    val, test, train = _images(members, data)
    require_classes(members[0], folders[0].classes, folders[0].card.num_classes, val)
    made = cook(
        members,
        val=val.images,
        test=test,
        train=train,
        method="greedy" if greedy else "uniform",
        batch=batch,
        device=pick_device(device),
        say=say,
    )
    save_folder(out, made.model, card=made.card, classes=made.classes, extra={"soup": made.record()})
    _show(made, val)
    say(f"\nwrote {out.resolve()}\nUse it:  vitrail predict {out} IMAGE")
    best = {"source": made.best.source, "val": made.best.val, "test": made.test and made.test[1]}
    result("soup", as_json, folder=out.resolve(), data=val.source, best=best, **made.record())


def _images(members: list[str], data: str | None) -> tuple[HeldOut, ImageSet | None, ImageSet | None]:
    """Return the images that judge, those of the final figures and those for batch norms, where the data have them."""
    if data is None or any(_trained_on(member, data) for member in members):
        _require_same_held_out(members)
        val = held_out(members[0], data, "val")
    else:
        val = held_out(members[0], data, _judging_split(data))
    return val, _part(members[0], data, "test", val), _part(members[0], data, "train", val)


def _trained_on(member: str, data: str) -> bool:
    recipe = recipe_of(member)
    return recipe is not None and same_source(data, recipe.data.source)


def _judging_split(data: str) -> str | None:
    """Return "val", or None (all images) for data that are not split at all."""
    from vitrail.data.sources import read_layout

    return None if list(read_layout(data).parts) == ["train"] else "val"


def _part(member: str, data: str | None, split: str, val: HeldOut) -> ImageSet | None:
    if val.split == split:
        return None  # these images judge already
    try:
        return held_out(member, data, split).images
    except UsageError:  # the data have no such part
        return None


def _require_same_held_out(members: list[str]) -> None:
    """Refuse runs that held out other images: the validation images of one would be training images of another."""
    recipes = [recipe_of(member) for member in members]
    for member, recipe in zip(members, recipes, strict=True):
        if recipe is None:
            raise UsageError(
                f"expected --data that no member was trained on: {member} is not a run, so it does not say which "
                "images it has not seen"
            )
        first = recipes[0]
        assert first is not None, "it was looked at before"
        for key in HELD_OUT_BY:
            here, there = first.flat()[key], recipe.flat()[key]
            if here != there and not (key == "data.source" and same_source(here, there)):
                raise UsageError(
                    f"expected runs that held out the same images, got {key} {here!r} in {members[0]} and {there!r} in "
                    f"{member}; mend: --data with a val split that none of them was trained on"
                )


def _show(made: Soup, val: HeldOut) -> None:
    rows = [(m.source, f"{m.val['top1']:.2%}", "yes" if m.kept else "no") for m in made.members]
    say(f"\n{val.words}: {made.val['count']:.0f} images")
    table(("member", "accuracy", "in the soup"), rows, right=("accuracy",))
    tested = (None, None) if made.test is None else made.test
    pairs = [(f"{made.method} soup", made.val, tested[0]), ("best member", made.best.val, tested[1])]
    lines = [(name, f"{v['top1']:.2%}", "" if t is None else f"{t['top1']:.2%}") for name, v, t in pairs]
    say()
    table(("", "validation", "test"), lines, right=("validation", "test"))
