"""DETR, as transformers and its authors know it, on a ResNet; on other backbones in our own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card
from vitrail.weights.maps.detr import BACKBONE
from vitrail.weights.tables import Table

from .base import Family, Shapes
from .config_json import classes_in, labels_of
from .resnet import FAMILY as RESNET
from .resnet import require_value

if TYPE_CHECKING:
    from vitrail.weights.source import Source

TIMM, NATIVE = "timm's ResNet", "their own ResNet"


class DetectorFamily(Family):
    """A backbone below queries: what is common to DETR and Deformable DETR."""

    stored_layout = "vitrail"
    first_conv = "backbone"
    fixed_input_size = False

    def numbers(self, config: Any) -> dict[str, int]:
        return _below(config).numbers(config.backbone)

    def num_features(self, model: Any) -> int:
        return int(model.config.embed_dim)

    def describe(self, config: Any) -> str:
        """The layers of the transformer, then the backbone."""
        made = replace(config.backbone, img_size=config.img_size)
        return (
            f"{config.num_queries} queries, {config.encoder_layers} + {config.decoder_layers} layers of width"
            f" {config.embed_dim} on {type(config.backbone).__name__.removesuffix('Config')}:"
            f" {_below(config).describe(made)}"
        )

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """The backbone's tables of positions are resized by its family."""
        own = {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
        made = None if source.config is None else replace(source.config.backbone, img_size=source.config.img_size)
        said = _below(model.config).fit(own, model.backbone.backbone, replace(source, config=made), layout)
        tensors.update({BACKBONE + name: tensor for name, tensor in own.items()})
        return said

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        if tables[0].layout == "transformers":
            kind = TIMM if timm_name(config.backbone) else NATIVE
            tables = [t for t in tables if kind in t.title and "Hub names" in t.title]
        return super().table_for_export(tables, tensors, config)


class DetrFamily(DetectorFamily):
    """DETR."""

    model_types = ("detr",)

    def cards(self) -> list[Card]:
        names = {"resnet50": "resnet-50", "resnet50_dc5": "resnet-50-dc5", "resnet101": "resnet-101"}
        names |= {"resnet101_dc5": "resnet-101-dc5", "resnet50_panoptic": "resnet-50-panoptic"}
        names |= {"resnet50_dc5_panoptic": "resnet-50-dc5-panoptic", "resnet101_panoptic": "resnet-101-panoptic"}
        return [coco_card(f"detr_{ours}", f"facebook/detr-{theirs}") for ours, theirs in names.items()]

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        classes = classes_in(shapes, "class_labels_classifier.weight", "detr.class_labels_classifier.weight")
        masks = any(name.startswith("mask_head.") for name in shapes)
        own = {"masks": masks, "num_classes": classes - 1}
        return configure(config_of("detr_resnet50"), common_fields(data, ffn=2048, queries=100) | own)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        kind = "DetrForSegmentation" if config.masks else "DetrForObjectDetection"
        maps = [1, 2, 3, 4]
        return {"architectures": [kind], "model_type": "detr", **to_common(config, maps, names)}


def _below(config: Any) -> Family:
    from . import family_of

    return family_of(config.backbone)


def timm_name(backbone: Any) -> str:
    """Return timm's name of a detector's ResNet, "" if it has none."""
    if type(backbone).__name__ != "ResNetConfig" or backbone.stem != "large" or backbone.stem_width != 64:
        return ""
    for layers in (18, 34, 50, 101, 152):
        known = config_of(f"resnet{layers}")
        if (known.block, known.depths, known.widths) == (backbone.block, backbone.depths, backbone.widths):
            return f"resnet{layers}"
    return ""


def common_fields(data: Mapping[str, Any], *, ffn: int, queries: int) -> dict[str, Any]:
    """Return the fields of our config that DETR and Deformable DETR share, of transformers' ``config.json``.

    ``ffn`` and ``queries`` are what the file may leave out.
    """
    defaults = {"d_model": 256, "dropout": 0.1, "num_queries": queries, "num_channels": 3}
    defaults |= {f"{part}_layers": 6 for part in ("encoder", "decoder")}
    get: dict[str, Any] = {**defaults, **data}
    for key, wanted in (("activation_function", "relu"), ("position_embedding_type", "sine")):
        require_value(key, data.get(key, wanted), wanted)
    for what, value in (("attention_heads", 8), ("ffn_dim", ffn)):
        pair = [data.get(f"{part}_{what}", value) for part in ("encoder", "decoder")]
        require_value(f"decoder_{what}", pair[1], pair[0])
    return {
        "backbone": _backbone(data),
        "in_chans": get["num_channels"],
        "embed_dim": get["d_model"],
        "num_heads": data.get("encoder_attention_heads", 8),
        "encoder_layers": get["encoder_layers"],
        "decoder_layers": get["decoder_layers"],
        "hidden_dim": data.get("encoder_ffn_dim", ffn),
        "num_queries": get["num_queries"],
        "drop_rate": float(get["dropout"]),
    }


def _backbone(data: Mapping[str, Any]) -> Any:
    """Return our config of the backbone: timm's by its name, as old and new files have it, or transformers' own."""
    inner = data.get("backbone_config") or {}
    if inner.get("model_type", "timm_backbone") == "timm_backbone":
        name = str(inner.get("backbone") or data.get("backbone") or "resnet50")
        if not RESNET.in_timm(name):
            raise WeightsError(
                f"expected a detector on a ResNet, got {name!r}: Vitrail reads no other from transformers"
            )
        stride = inner.get("output_stride") or (16 if data.get("dilation") else 32)
        return replace(config_of(name), norm="frozen", num_classes=0, output_stride=stride)
    if inner["model_type"] != "resnet":
        raise WeightsError(
            f"expected a detector on a ResNet, got {inner['model_type']!r}: Vitrail reads no other from transformers"
        )
    return replace(RESNET.from_transformers(inner, {}), norm="frozen", num_classes=0)


def to_common(config: Any, maps: list[int], names: list[str] | None) -> dict[str, Any]:
    """Return what transformers' ``config.json`` says of both: the backbone gives the maps of these stages."""
    b = config.backbone
    name = timm_name(b)
    if not name and (type(b).__name__ != "ResNetConfig" or b.stem != "large" or b.output_stride != 32):
        raise WeightsError(
            "transformers has DETRs on a ResNet with a 7x7 stem; this backbone is"
            f" {type(b).__name__.removesuffix('Config')}. mend: export it in the 'vitrail' layout."
        )
    inner: dict[str, Any] = {"model_type": "timm_backbone", "backbone": name, "features_only": True}
    inner |= {"use_pretrained_backbone": False, "num_channels": config.in_chans, "out_indices": maps}
    if not name:
        inner = RESNET.to_transformers(b, None) | {"num_channels": config.in_chans}
        inner |= {"out_features": [f"stage{i}" for i in maps], "out_indices": maps}
    elif b.output_stride != 32:
        inner["output_stride"] = b.output_stride
    both = {"layers": None, "attention_heads": config.num_heads, "ffn_dim": config.hidden_dim}
    sizes = {f"{part}_{k}": v for part in ("encoder", "decoder") for k, v in both.items() if v is not None}
    return {
        "backbone_config": inner,
        "use_timm_backbone": bool(name),
        "dilation": b.output_stride != 32,
        "num_channels": config.in_chans,
        "num_queries": config.num_queries,
        "d_model": config.embed_dim,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        **sizes,
        "dropout": config.drop_rate,
        "activation_function": "relu",
        "position_embedding_type": "sine",
        "auxiliary_loss": False,
        **labels_of(config.num_classes, names),
    }


def coco_card(name: str, hub_id: str) -> Card:
    """Return the card of a published detector."""
    return Card(
        name=f"{name}.coco",
        input_size=config_of(name).img_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bilinear",
        crop_mode="squash",
        num_classes=config_of(name).num_classes,
        licence="apache-2.0",
        origin="trained on COCO 2017 by the authors of the hub repository",
        hub_id=hub_id,
    )


FAMILY = DetrFamily()
