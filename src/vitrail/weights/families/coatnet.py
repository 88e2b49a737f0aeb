"""CoAtNet as timm knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure, variants
from vitrail.models.coatnet import CoAtNet, CoAtNetConfig
from vitrail.nn.relative import RelativePositionBias
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card, timm_card
from vitrail.weights.source import Source
from vitrail.weights.tables import Table

from .base import Family, Shapes
from .biases import Grid, fit_biases
from .config_json import timm_args, timm_size


class CoAtNetFamily(Family):
    """The paper has no public weights; timm's own networks do."""

    first_conv = "stem.conv1"
    classifier = "head.fc"

    def cards(self) -> list[Card]:
        found = [
            timm_card(name, tag, 1000 if tag.endswith("in1k") else 11821, crop, _ORIGINS[tag])
            for name, (crop, *tags) in _PUBLISHED.items()
            for tag in tags
        ]
        return [replace(card, **_LOOKS.get(card.name.partition(".")[0], {})) for card in found]

    def numbers(self, config: CoAtNetConfig) -> dict[str, int]:
        return {"head_dim": config.head_dim}

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        return fit_biases(tensors, model, _grids(model, source.config))

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        if len(tables) == 1:
            return tables[0]
        paper, plain, early = tables
        if config.representation_size is not None:
            return paper
        return early if config.form.conv.gate_early else plain

    def in_timm(self, name: str) -> bool:
        return name.startswith("coatnet_") and name.endswith(("_224", "_384"))

    def to_timm(self, name: str, config: CoAtNetConfig) -> tuple[str, dict[str, Any]]:
        """timm builds the networks it has names for; sizes of others are written as our own name, which it refuses."""
        args = {"img_size": list(config.img_size), "in_chans": config.in_chans}
        return (name, args) if name and self.in_timm(name) else (name or "vitrail", {})

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> CoAtNetConfig:
        args = timm_args(data, read=("img_size", "in_chans", "num_classes"))
        changes = timm_size(data, args) | {k: args[k] for k in ("in_chans",) if k in args}
        config: CoAtNetConfig = configure(config_of(str(data["architecture"])), changes)
        return config

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        kernel = tensors.get("stem.conv2.weight")
        if kernel is None or kernel.ndim != 4:
            return ""
        depths = [0] * 5
        for name in tensors:
            parts = name.split(".")
            if parts[0] == "stages" and len(parts) > 3 and parts[1].isdigit() and int(parts[1]) < 5:
                depths[int(parts[1])] = max(depths[int(parts[1])], int(parts[3]) + 1)
        found, stem = tuple(d for d in depths if d), kernel.shape[0]
        names = [
            n
            for n, c in variants().items()
            if isinstance(c, CoAtNetConfig) and c.depths == found and c.stem_widths[1] == stem
        ]
        said = f"the file holds stages of {', '.join(map(str, found))} blocks behind a stem of {stem} channels"
        return f"{said}: create {' or '.join(map(repr, names))}." if names else said

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        raise WeightsError("transformers has no CoAtNet. mend: export it in the 'timm' layout.")


def _grids(model: CoAtNet, made_with: Any) -> dict[str, Grid]:
    """Return the map of each table in the model the file was made with, if that is known."""
    if not isinstance(made_with, CoAtNetConfig):
        return {}
    own, theirs = model.config, made_with
    if (own.stem_stride, own.strides) != (theirs.stem_stride, theirs.strides):
        return {}
    return {
        f"stages.{i}.{name}": grid
        for i, (stage, grid) in enumerate(zip(model.stages, theirs.grids, strict=True))
        for name, module in stage.named_modules()
        if isinstance(module, RelativePositionBias)
    }


_IN1K, _IN12K, _BOTH = "sw_in1k", "sw_in12k", "sw_in12k_ft_in1k"
_ORIGINS = {
    _IN1K: "ImageNet-1k (R. Wightman)",
    _IN12K: "ImageNet-12k (R. Wightman)",
    _BOTH: "ImageNet-12k, fine-tuned on ImageNet-1k (R. Wightman)",
}
_PUBLISHED: dict[str, tuple[Any, ...]] = {  # name -> (share of the image that evaluation crops, tags; first: default)
    "coatnet_nano_rw_224": (0.9, _IN1K),
    "coatnet_0_rw_224": (0.95, _IN1K),
    "coatnet_1_rw_224": (0.95, _IN1K),
    "coatnet_2_rw_224": (0.95, _BOTH, _IN12K),
    "coatnet_3_rw_224": (0.95, _IN12K),
    "coatnet_bn_0_rw_224": (0.95, _IN1K),
    "coatnet_rmlp_nano_rw_224": (0.9, _IN1K),
    "coatnet_rmlp_1_rw_224": (0.95, _IN1K),
    "coatnet_rmlp_1_rw2_224": (0.95, _BOTH, _IN12K),
    "coatnet_rmlp_2_rw_224": (0.95, _BOTH, _IN1K, _IN12K),
    "coatnet_rmlp_2_rw_384": (1.0, _BOTH),
}
_LOOKS: dict[str, dict[str, Any]] = {  # what is not as with the others
    "coatnet_bn_0_rw_224": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    "coatnet_rmlp_2_rw_384": {"crop_mode": "squash"},
}

FAMILY = CoAtNetFamily()
