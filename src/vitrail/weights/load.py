"""Loading weights into a model and writing them in another library's names, strictly.

``load_weights`` takes what people have (a state dict, a file, a folder, a hub id), finds out its layout, accounts for
every tensor, and says in its report what it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError, WeightsError, did_you_mean
from vitrail.models import reads_text
from vitrail.nn.lora import merged
from vitrail.nn.pyramid import Dropped, FeaturePyramid

from . import convert, fit
from .cards import Card
from .families import family_of
from .folder import Folder
from .maps import layouts, tables_for
from .source import Source, from_folder, read_source


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did.

    Attributes:
        layout: "vitrail", "timm", "transformers" or "original".
        title: the layout in words.
        origin: where the weights came from.
        matched: tensors of the model that were filled from the file.
        resized: what was fitted to the model, in sentences.
        new: tensors of the model that keep fresh values: a new classifier.
        ignored: names in the file that were left out on purpose.
        notes: sentences to show to the user.
        card: what is known about the weights, if they came with it.
    """

    layout: str
    title: str
    origin: str
    matched: int
    resized: list[str]
    new: list[str]
    ignored: list[str]
    notes: list[str] = field(default_factory=list)
    card: Card | None = None

    def __str__(self) -> str:
        parts = [f"{self.matched} tensors from {self.origin} ({self.title})", *self.resized]
        if self.new:
            parts.append(f"new: {', '.join(self.new)}")
        if self.ignored:
            parts.append(f"ignored: {', '.join(self.ignored)}")
        return "; ".join([*parts, *self.notes])


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    new_head: bool = False,
    head: fit.HeadSwap | None = None,
) -> LoadReport:
    """Load weights into ``model``, in place, and report.

    Args:
        model: a model of ``vitrail.models``; of a :class:`~vitrail.nn.pyramid.FeaturePyramid` its backbone is filled.
        source: a state dict; a ``.safetensors`` file; a folder of Vitrail, timm or transformers; ``hf-hub:org/name``
            (``@revision`` may follow); or a local ``.pth``, ``.pt``, ``.bin``, ``.ckpt`` or ``.npz`` file, which a
            restricted child process reads.
        new_head: whether a classifier of another class count (or none) in the file leaves the model's fresh one as
            it is; otherwise that is an error that prints the fix.
        head: the classes the model is for, and what to keep of a classifier of others; then ``new_head`` is implied.

    Raises:
        WeightsError: a source that does not exist, cannot be read safely, or does not fit: the message names the first
            tensors at fault. The model is then unchanged.
    """
    if not isinstance(model, FeaturePyramid):
        return _load(model, read_source(source), new_head=new_head, head=head)
    if head is not None:
        raise UsageError("head has no effect on a feature pyramid, which has no classifier")
    report = _load(model.backbone, read_source(source), new_head=new_head)
    if model.pyramid is None:
        return report
    return replace(report, notes=[*report.notes, "the layers of the pyramid are new: train them"])


def load_into(model: nn.Module, folder: Folder, *, new_head: bool) -> LoadReport:
    """Load the weights of an opened folder into ``model``, as :func:`load_weights` does."""
    return _load(model, from_folder(folder, str(folder.path)), new_head=new_head)


def _load(model: nn.Module, read: Source, *, new_head: bool, head: fit.HeadSwap | None = None) -> LoadReport:
    ours, found, new, said = _convert(model, read, new_head=new_head or head is not None, head=head)
    with torch.no_grad():
        own = model.state_dict(keep_vars=True)
        for name, tensor in ours.items():
            own[name].copy_(tensor)
    return LoadReport(
        layout=found.table.layout,
        title=found.table.title,
        origin=read.origin,
        matched=len(ours),
        resized=said,
        new=new,
        ignored=found.ignored,
        notes=[*read.notes, *_numerics_notes(model, read)],
        card=read.card,
    )


def _convert(
    model: nn.Module, read: Source, *, new_head: bool, head: fit.HeadSwap | None
) -> tuple[dict[str, Tensor], convert.Plan, list[str], list[str]]:
    """Return (tensors under our names, plan, names left fresh, what was fitted); raises on anything that differs."""
    config = _config(model)
    tables, family = tables_for(config), family_of(config)
    wanted = {name: t.shape for name, t in model.state_dict().items() if not convert.counted(name)}
    found = convert.detect(tables, wanted, read.tensors)
    if found.faults and family.optional(config):
        more = convert.detect(tables, [*wanted, *family.optional(config)], read.tensors)
        found = min(found, more, key=lambda p: p.faults)
    new = convert.excuse_head(found, model_has_head=getattr(config, "num_classes", 1) > 0, new_head=new_head)
    convert.excuse_parts(found, [name for name, part in model.named_children() if isinstance(part, Dropped)])
    kept = convert.excuse_lacking(found, family.may_lack(config))
    convert.require_complete(found, read.origin, family.hint(read.tensors))
    ours = convert.to_ours(found, read.tensors, family.numbers(config))
    said = [f"the file has no {name}: the model's own stays" for name in kept]
    said += family.fit(ours, model, read, found.table.layout)
    if head is not None:
        fresh, words = fit.swap_head(ours, model, read.classes, head)
        new, said = new + fresh, [*said, words] if words else said
    new += fit.fit_head(ours, model, new_head=new_head)
    hint = fit.hint_of_channels(ours, wanted, getattr(config, "in_chans", 0), family.hint(ours))
    convert.require_shapes(ours, wanted, read.origin, hint)
    convert.require_finite(ours, read.origin)
    return ours, found, new, said


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None or not (hasattr(config, "num_classes") or reads_text(config)):
        raise WeightsError(f"expected a model of vitrail.models, got {type(model).__name__}")
    return config


def _numerics_notes(model: nn.Module, read: Source) -> list[str]:
    """Say where the weights were made with other numerics than the model computes with; resizing is no part of that."""
    own = getattr(_config(model), "numerics", None)
    made = {} if read.card is None or own is None else read.card.numerics
    return [
        f"the weights were made with {name}={value}, the model computes with {getattr(own, name)}"
        for name, value in made.items()
        if hasattr(own, name) and not name.endswith("_resize") and getattr(own, name) != value
    ]


def export_weights(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """Return the model's tensors under the names of ``layout``: "vitrail", "timm", "transformers" or "original".

    "transformers" gives the names of Hub files; a model without a classifier gives those of ``ViTModel``. "original"
    is the Flax ``.npz`` of vision_transformer (its big_vision form where positions or pooling ask for it), and the
    ``.pth`` of DeiT for the distilled form and DeiT III. Adapters are merged first (:mod:`vitrail.nn.lora`).

    Raises:
        UsageError: an unknown layout.
        WeightsError: the layout has no place for a part of this model.
    """
    model = merged(model)
    config = _config(model)
    known = layouts(config)
    if layout not in known:
        raise UsageError(f"unknown layout {layout!r}.{did_you_mean(layout, known)} Known: {', '.join(known)}.")
    family = family_of(config)
    tensors = {k: v.detach() for k, v in family.for_export(model, layout).items()}
    table = family.table_for_export([t for t in tables_for(config) if t.layout == layout], tensors, config)
    return convert.to_theirs(table, tensors, family.numbers(config))


def load_pretrained(model: nn.Module, name: str, source: str | Path | bool, *, new_head: bool) -> LoadReport:
    """Load what ``create_model(name, pretrained=source)`` names; True is the origin on the card of ``name``.

    Raises :class:`WeightsError` if the model has no public weights, or as :func:`load_weights` does.
    """
    if source is True:
        from .cards import card_for

        card = card_for(name, with_weights=True)
        if card.hub_id is None:
            raise WeightsError(
                f"the weights {card.name} are no hub repository but a file, {card.origin}. mend: fetch it, then "
                "pretrained='path/to/it'"
            )
        source = f"hf-hub:{card.hub_id}"
    return load_weights(model, str(source), new_head=new_head)
