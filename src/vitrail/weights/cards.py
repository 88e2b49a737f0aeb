"""Cards: what weights ask of their images, and where they come from.

The public ones are listed by their families (:mod:`vitrail.weights.families`), after the model cards on the hub
(``timm/...``, ``google/...``, ``facebook/...``). Only tags that exist there are listed. Numbers are those the weights
were published with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any, Literal, TypeVar

from vitrail.errors import WeightsError, did_you_mean

Triple = tuple[float, float, float]
T = TypeVar("T")
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """What weights ask of their images, and where they come from.

    Attributes:
        name: model name, with the tag of the weights after a dot where there is one.
        input_size: (H, W) in pixels.
        mean: subtracted from pixels in 0..1, one number a channel.
        std: divided by, one number a channel.
        interpolation: "bicubic", "bilinear" or "nearest".
        crop_pct: "center": the image is resized so that its shorter side is input / crop_pct, then cropped.
        crop_mode: "center", or "squash": resized to the input size without keeping proportions, no crop.
        num_classes: classes of the head.
        licence: SPDX-like name in lower case, or None if unknown.
        origin: who made the weights, from what.
        hub_id: ``org/name`` on the hub, or None.
        revision: commit of the hub repository the files were fetched at, or None.
        problem_type: what the scores are, in transformers' words: "single_label_classification" (softmax) or
            "multi_label_classification" (sigmoid: any number of classes an image).
        thresholds: (K,), from which score on a class is present (several labels an image); None: 0.5 for all.
        numerics: fields of the model's ``Numerics`` that these weights need, such as ``norm_eps``.
    """

    name: str = ""
    input_size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"
    num_classes: int = 0
    licence: str | None = None
    origin: str | None = None
    hub_id: str | None = None
    revision: str | None = None
    problem_type: str = SINGLE_LABEL
    thresholds: tuple[float, ...] | None = None
    numerics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {
            "interpolation": ("bicubic", "bilinear", "nearest"),
            "crop_mode": ("center", "squash"),
            "problem_type": (SINGLE_LABEL, MULTI_LABEL),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise WeightsError(f"expected {name} of {', '.join(values)}, got {getattr(self, name)!r}")
        if not 0 < self.crop_pct <= 1:
            raise WeightsError(f"expected crop_pct above 0 and at most 1, got {self.crop_pct}")
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise WeightsError(f"expected a mean and a positive std for each channel, got {self.mean} and {self.std}")

        if self.thresholds is not None and (not self.multi_label or len(self.thresholds) != self.num_classes):
            raise WeightsError(
                f"expected thresholds of several labels an image, one for each of {self.num_classes} classes, got "
                f"{len(self.thresholds)} with {self.problem_type}"
            )

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.problem_type == MULTI_LABEL

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Card:
        """Read what :meth:`to_json` wrote; unknown keys are an error."""
        return read_card(cls, data)


def read_card(kind: type[T], data: Mapping[str, Any]) -> T:
    """Return a card of plain data, whatever its kind; unknown keys are an error."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    strangers = sorted(data.keys() - known)
    if strangers:
        raise WeightsError(f"unknown key {strangers[0]!r} on a card.{did_you_mean(strangers[0], known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


@cache
def cards() -> dict[str, Card]:
    """Return ``model.tag`` (or a hub id) -> card of each public checkpoint listed; a model's first is its default."""
    from .families import families

    return {card.name: card for family in families().values() for card in family.cards()}


def card_for(name: str, *, with_weights: bool = False) -> Card:
    """Return the card of a model name, of ``model.tag``, or of a hub id.

    A model without public weights gets a plain card (mean and std 0.5), unless ``with_weights``: then
    :class:`WeightsError` names what there is.
    """
    known = cards()
    if name in known:
        return known[name]
    base, _, tag = name.partition(".")
    default = next((c for n, c in known.items() if n.partition(".")[0] == base), None)
    if default is not None and not tag:
        return default
    if tag and default is not None:
        tags = [n.partition(".")[2] for n in known if n.partition(".")[0] == base]
        raise WeightsError(f"no weights {name!r} known.{did_you_mean(tag, tags)} Tags of {base}: {', '.join(tags)}.")
    if with_weights:
        raise WeightsError(
            f"no public weights are known for {name!r}. mend: name the source, pretrained='hf-hub:org/name' or a path."
        )
    from vitrail.models import config_of

    config = config_of(name)
    return Card(name=base, input_size=config.img_size, num_classes=config.num_classes)


def timm_card(
    name: str,
    tag: str,
    classes: int,
    crop_pct: float,
    origin: str,
    *,
    side: int | None = None,
    mean: Triple = HALF,
    std: Triple = HALF,
    interpolation: str = "bicubic",
    licence: str = "apache-2.0",
) -> Card:
    """Return the card of weights that timm publishes as ``timm/name.tag``; by default its name ends in the side."""
    side = int(name.rpartition("_")[2]) if side is None else side
    full = f"{name}.{tag}"
    return Card(
        name=full,
        input_size=(side, side),
        mean=mean,
        std=std,
        interpolation=interpolation,
        crop_pct=crop_pct,
        num_classes=classes,
        licence=licence,
        origin=origin,
        hub_id=f"timm/{full}",
    )
