"""Deformable DETR, as transformers and its authors know it, on a ResNet; on other backbones in our own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure
from vitrail.weights.cards import Card
from vitrail.weights.maps.deformable import LAYERS
from vitrail.weights.tables import Table

from .base import Shapes
from .config_json import classes_in
from .detr import DetectorFamily, coco_card, common_fields, to_common

if TYPE_CHECKING:
    from vitrail.weights.source import Source

_HEADS = {(False, False): "one head", (True, False): "heads that refine", (True, True): "two stages"}
_KINDS = ("weight", "bias")


class DeformableFamily(DetectorFamily):
    """Deformable DETR."""

    model_types = ("deformable_detr",)
    classifier = "heads"

    def cards(self) -> list[Card]:
        names = {"": "", "_refine": "-with-box-refine", "_two_stage": "-with-box-refine-two-stage"}
        names |= {"_single_scale": "-single-scale", "_single_scale_dc5": "-single-scale-dc5"}
        return [
            coco_card(f"deformable_detr_resnet50{ours}", f"SenseTime/deformable-detr{theirs}")
            for ours, theirs in names.items()
        ]

    def may_lack(self, config: Any) -> tuple[str, ...]:
        """transformers 5 shares the first head of classes among all layers, and saves it once."""
        count = config.decoder_layers if config.form.refine and not config.form.two_stage else 1
        return tuple(f"heads.{i}.{kind}" for i in range(1, count) for kind in _KINDS)

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """A head that a file holds once for all layers becomes that of each."""
        lacking = [name for name in self.may_lack(model.config) if name not in tensors]
        if lacking and (layout != "transformers" or len(lacking) < len(self.may_lack(model.config))):
            raise WeightsError(f"expected a head of classes for each decoder layer, got none as {lacking[0]}")
        for name in lacking:
            tensors[name] = tensors[f"heads.0.{name.rpartition('.')[2]}"].clone()
        said = super().fit(tensors, model, source, layout)
        return (
            [*said, "the first head of classes was taken for every layer: the file holds it once"] if lacking else said
        )

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        layout = tables[0].layout
        if layout == "transformers":
            tables = [t for t in tables if _HEADS[config.form.refine, config.form.two_stage] in t.title]
        elif layout == "original":
            shared = not config.form.refine
            if shared and config.decoder_layers != LAYERS:
                raise WeightsError(
                    f"the authors' files hold {LAYERS} decoder layers without refinement, this model has"
                    f" {config.decoder_layers}. mend: export it in the 'transformers' layout."
                )
            tables = [t for t in tables if ("one head" in t.title) == shared]
        return super().table_for_export(tables, tensors, config)

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        levels, two_stage = data.get("num_feature_levels", 4), bool(data.get("two_stage", False))
        points = [data.get(f"{part}_n_points", 4) for part in ("encoder", "decoder")]
        if points[0] != points[1]:
            raise WeightsError(f"expected as many points in the encoder as in the decoder, got {points}")
        own: dict[str, Any] = {
            "num_classes": classes_in(shapes, "class_embed.0.weight", "model.decoder.class_embed.0.weight"),
            "levels": levels,
            "out_indices": (-3, -2, -1) if levels > 1 else (-1,),
            "num_points": points[0],
            "form": {"refine": bool(data.get("with_box_refine", False)), "two_stage": two_stage},
        }
        fields = common_fields(data, ffn=1024, queries=300)
        if two_stage:
            fields["num_queries"] = data.get("two_stage_num_proposals", 300)
        return configure(config_of("deformable_detr_resnet50"), fields | own)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        form = config.form
        if form.anchors or form.look_twice:
            raise WeightsError(
                "transformers has no Deformable DETR whose queries are boxes. mend: export it in the 'vitrail' layout."
            )
        maps = [2, 3, 4] if config.levels > 1 else [4]
        return {
            "architectures": ["DeformableDetrForObjectDetection"],
            "model_type": "deformable_detr",
            **to_common(config, maps, names),
            "num_feature_levels": config.levels,
            "encoder_n_points": config.num_points,
            "decoder_n_points": config.num_points,
            "with_box_refine": form.refine,
            "two_stage": form.two_stage,
            "two_stage_num_proposals": config.num_queries,
        }


FAMILY = DeformableFamily()
