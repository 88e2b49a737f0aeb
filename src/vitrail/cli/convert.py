"""`vitrail convert`: other people's weight files into a folder that everybody can read, and back into their names."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.errors import UsageError, WeightsError

from .console import Json, result, say
from .settings import parse_pair, parse_size
from .source import existing

if TYPE_CHECKING:
    from torch import nn

    from vitrail.classes import ClassMap
    from vitrail.weights import Card


class Layout(StrEnum):
    """Whose names the tensors of a single file get."""

    timm = "timm"
    transformers = "transformers"
    original = "original"


def convert(
    source: Annotated[
        str, typer.Argument(help="A .pth, .pt, .bin, .npz or .safetensors file, a folder, or hf-hub:org/name.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A new folder; or a .safetensors file, with --layout.")
    ],
    model: Annotated[str | None, typer.Option(help="The architecture of a file (a folder says its own).")] = None,
    layout: Annotated[Layout | None, typer.Option(help="Whose names a .safetensors file gets.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the model's config, such as num_classes=5."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn weights into a Vitrail folder, or another library's names."""
    to_file = target.suffix == ".safetensors"
    if to_file and layout is None:
        raise UsageError("expected --layout with a .safetensors target; mend: --layout timm, transformers or original")
    if layout is not None and not to_file:
        raise UsageError("--layout has no effect on a folder; mend: name a .safetensors file, or leave --layout out")
    if target.exists():
        raise UsageError(f"expected a target that does not exist yet, got {str(target)!r}; mend: another name")
    network, card, classes = _read(source, model, _settings(settings or []))
    count = _write(network, card, classes, target, layout)
    say(f"wrote {target.resolve()} ({count} tensors)")
    if not to_file and classes is None:
        say("It has no class names: answers will be called 'class 0', 'class 1', ...")
    if not to_file:
        say(f"Use it:  vitrail predict {target} IMAGE")
    result("convert", as_json, target=target.resolve(), tensors=count, model=card.name)


def _read(source: str, name: str | None, fields: dict[str, Any]) -> tuple[nn.Module, Card, ClassMap | None]:
    if not Path(existing(source)).is_file():
        from vitrail.weights import load_model

        if name is not None or fields:
            raise UsageError(
                "--model and --set are for single files; a folder says what it holds; mend: leave them out"
            )
        return load_model(source)
    if name is None:
        raise UsageError(
            "expected --model with a single file, since it does not name its architecture; see vitrail models"
        )
    from vitrail.models import create_model
    from vitrail.weights import card_for, load_weights

    network = create_model(name, **fields)
    try:
        report = load_weights(network, source)
    except WeightsError as error:
        raise _of_shell(error) from None
    say(str(report))
    card = report.card or _card(card_for(name), network)
    return network, card, None


def _of_shell(error: WeightsError) -> WeightsError:
    """Return an error of ``load_weights`` with what mends it on the command line, in place of what does in Python."""
    from vitrail.weights.fit import OtherClassCount

    if isinstance(error, OtherClassCount):
        words = f"expected weights for {error.ours} classes, got {error.theirs}; mend: --set num_classes={error.theirs}"
        return WeightsError(words)
    if "create" not in str(error):
        return error
    return WeightsError(f"{error}\n  here: another model is --model NAME, a field of it --set KEY=VALUE (in_chans=1)")


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Return the fields of a config; an image size may be written as everywhere, 50x67."""
    fields = dict(parse_pair(pair) for pair in pairs)
    size = fields.get("img_size")
    return fields if not isinstance(size, str) else {**fields, "img_size": parse_size(size)}


def _card(card: Card, network: Any) -> Card:
    """Fit the card of an architecture to this network; who made a bare file is not known."""
    from dataclasses import replace

    return replace(card, input_size=network.config.img_size, licence=None, origin=None, hub_id=None)


def _write(network: nn.Module, card: Card, classes: ClassMap | None, target: Path, layout: Layout | None) -> int:
    from vitrail.weights import export_weights, save_folder

    if layout is None:
        save_folder(target, network, card=card, classes=classes)
        return len(network.state_dict())
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous().clone() for name, tensor in export_weights(network, layout.value).items()}
    save_file(tensors, target, metadata={"format": "pt"})
    return len(tensors)
