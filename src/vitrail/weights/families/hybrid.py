"""Hybrid ViTs as timm and Google know them; transformers has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vitrail.models import config_of, variants
from vitrail.weights.cards import Card, timm_card
from vitrail.weights.tables import Table

from .base import Family, Shapes
from .resnet import stage_depths
from .vit import ViTFamily

_FIRST = "patch_embed.backbone.stages.{}.blocks.{}.conv1.weight"


class HybridFamily(ViTFamily):
    """A ViT behind a residual network; timm's ``patch_size`` counts cells of that network's map."""

    model_types = ()
    first_conv = "patch_embed.backbone.stem.conv"

    def cards(self) -> list[Card]:
        return _augreg()

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        if not any(name.startswith("patch_embed.backbone") for name in tensors):
            return ""
        depths = stage_depths(tensors, _FIRST, 0)
        names = [
            n
            for n, c in variants().items()
            if type(c).__name__ == "HybridConfig" and tuple(blocks for blocks, _ in c.stages) == depths
        ]
        sizes = f"the file holds a network with stages of {', '.join(map(str, depths))} blocks" if depths else ""
        sizes = sizes or "the file holds a network that is a stem alone"
        return (
            f"{sizes}: create {' or '.join(map(repr, names))}." if names else f"{sizes}: create the model with these."
        )

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        alone = [t for t in tables if ("stem alone" in t.title) == (not config.stages)]
        return Family.table_for_export(self, alone or tables, tensors, config)

    def in_timm(self, name: str) -> bool:
        return not name.startswith("test_")

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        return Family.to_transformers(self, config, names)

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        """Other transformers behind the network of a variant are written as that variant with every size given."""
        like = [n for n, c in variants().items() if self._same_network(c, config) and self.in_timm(n)]
        own = name if name in like else (like or [""])[0]
        _, args = super().to_timm(name, config)
        args["patch_size"] = config.patch_size // config.map_stride
        return (own, args) if own and config.representation_size is None else (name or "vitrail", args)

    def _same_network(self, known: Any, config: Any) -> bool:
        fields = ("stages", "stem_width", "num_groups")
        return type(known) is type(config) and all(getattr(known, f) == getattr(config, f) for f in fields)

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        args = dict(data.get("model_args") or {})
        if "patch_size" in args:
            args["patch_size"] *= config_of(str(data["architecture"])).map_stride
        return super().from_timm({**data, "model_args": args}, shapes)


def _augreg() -> list[Card]:
    tuned = "AugReg, ImageNet-21k, fine-tuned on ImageNet-1k (Google)"
    found = []
    for name in ("vit_tiny_r_s16_p8", "vit_small_r26_s32", "vit_large_r50_s32"):
        found.append(timm_card(f"{name}_224", "augreg_in21k_ft_in1k", 1000, 0.9, tuned))
        found.append(timm_card(f"{name}_224", "augreg_in21k", 21843, 0.9, "AugReg, ImageNet-21k (Google)"))
        found.append(timm_card(f"{name}_384", "augreg_in21k_ft_in1k", 1000, 1.0, tuned))
    original = "ViT, ImageNet-21k"
    found.append(timm_card("vit_base_r50_s16_224", "orig_in21k", 0, 0.9, f"{original} (Google)"))
    found.append(
        timm_card(
            "vit_base_r50_s16_384", "orig_in21k_ft_in1k", 1000, 1.0, f"{original}, fine-tuned on ImageNet-1k (Google)"
        )
    )
    return found


FAMILY = HybridFamily()
