"""Networks that segment, as transformers, mmseg and their authors know them: UPerNet, Semantic FPN, SegFormer.

What a backbone's family knows (tables of positions, numbers of heads) is asked of it, under the names it has alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import as_size, config_of, configure
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card
from vitrail.weights.maps.segmenter import BACKBONE
from vitrail.weights.maps.swin import backbone_title
from vitrail.weights.tables import Table

from .base import Family, Shapes
from .config_json import classes_in, gelu_of, labels_of, side_or_pair

if TYPE_CHECKING:
    from vitrail.weights.source import Source


class SegmenterFamily(Family):
    """A backbone below a decoder of maps."""

    model_types = ("upernet", "segformer")
    stored_layout = "vitrail"
    first_conv = "backbone"
    fixed_input_size = False

    def cards(self) -> list[Card]:
        swin = ("tiny", "small", "base", "large")
        names = {size: f"upernet_swin_{size}{'_window12' if size in ('base', 'large') else ''}" for size in swin}
        return [
            *(_card(names[size], f"openmmlab/upernet-swin-{size}", 512, "mit") for size in swin),
            *(
                _card(
                    f"segformer_b{i}",
                    f"nvidia/segformer-b{i}-finetuned-ade-{_SIDES[i]}-{_SIDES[i]}",
                    _SIDES[i],
                    "other",
                )
                for i in range(6)
            ),
        ]

    def numbers(self, config: Any) -> dict[str, int]:
        return _family(config).numbers(config.backbone)

    def describe(self, config: Any) -> str:
        """The decoder, then the backbone."""
        told = _family(config).describe(config.built_backbone())
        width = "" if config.head == "linear" else f" of {config.channels} channels"
        return f"{_HEADS[config.head]}{width} on {type(config.backbone).__name__.removesuffix('Config')}: {told}"

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """The backbone's tables of positions are resized by its family."""
        own = {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
        made = getattr(source.config, "built_backbone", None)
        below = replace(source, config=None if made is None else made())
        backbone = model.backbone.backbone
        said = _family(model.config).fit(own, backbone, below, layout)
        tensors.update({BACKBONE + name: tensor for name, tensor in own.items()})
        return said

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        out: dict[str, Tensor] = dict(model.state_dict())
        backbone = model.backbone.backbone
        own = _family(model.config).for_export(backbone, "vitrail" if layout == "vitrail" else layout)
        return out | {BACKBONE + name: tensor for name, tensor in own.items()}

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        title = backbone_title(len(getattr(config.backbone, "depths", ())))
        fitting = [t for t in tables if title in t.title or "backbone of" not in t.title]
        return super().table_for_export(fitting, tensors, config)

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        return _from_segformer(data, shapes) if data["model_type"] == "segformer" else _from_upernet(data, shapes)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        kind = type(config.backbone).__name__
        if config.head == "upernet" and kind == "SwinConfig":
            return _to_upernet(config, names)
        if config.head == "segformer" and kind == "PVTv2Config" and not config.backbone.linear:
            return _to_segformer(config, names)
        raise WeightsError(
            f"transformers has no {_HEADS[config.head]} on {kind.removesuffix('Config')}."
            " mend: export it in the 'vitrail' or the 'original' layout."
        )


_SIDES = (512, 512, 512, 512, 512, 640)
_HEADS = {
    "upernet": "UPerNet",
    "fpn": "Semantic FPN",
    "segformer": "SegFormer's decoder",
    "linear": "a linear layer",
}


def _family(config: Any) -> Family:
    from . import family_of

    return family_of(config.backbone)


def _card(name: str, hub_id: str, side: int, licence: str) -> Card:
    return Card(
        name=f"{name}.ade20k",
        input_size=(side, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        interpolation="bilinear",
        crop_mode="squash",
        num_classes=150,
        licence=licence,
        origin="trained on ADE20K by the authors of the hub repository",
        hub_id=hub_id,
    )


# ---- transformers' config.json


def _from_upernet(data: Mapping[str, Any], shapes: Shapes) -> Any:
    inner = data.get("backbone_config")
    if not isinstance(inner, Mapping) or inner.get("model_type") != "swin":
        kind = inner.get("model_type") if isinstance(inner, Mapping) else data.get("backbone")
        raise WeightsError(
            f"expected UPerNet on a Swin backbone, got {kind!r}: Vitrail reads no other from transformers"
        )
    if data.get("auxiliary_num_convs", 1) != 1 or data.get("auxiliary_concat_input", False):
        raise WeightsError("expected an auxiliary head of one convolution, as all published UPerNets have")
    from .swin import FAMILY as SWIN

    names = {name.removeprefix("backbone."): shape for name, shape in shapes.items() if name.startswith("backbone.")}
    backbone = SWIN.from_transformers(inner, names)
    return configure(
        config_of("upernet_swin_tiny"),
        {
            "backbone": backbone,
            "channels": data.get("hidden_size", 512),
            "auxiliary": data.get("auxiliary_channels", 256) if data.get("use_auxiliary_head", True) else None,
            "pool_scales": tuple(data.get("pool_scales", (1, 2, 3, 6))),
            "img_size": _side_of(data) or as_size(inner.get("image_size", 512)),
            "in_chans": inner.get("num_channels", 3),
            "num_classes": classes_in(shapes, "decode_head.classifier.weight"),
        },
    )


def _side_of(data: Mapping[str, Any]) -> tuple[int, int] | None:
    size = data.get("image_size")
    return None if size is None else as_size(size)


def _to_upernet(config: Any, names: list[str] | None) -> dict[str, Any]:
    from .swin import FAMILY as SWIN

    inner = SWIN.to_transformers(config.built_backbone(), None)
    return {
        "architectures": ["UperNetForSemanticSegmentation"],
        "model_type": "upernet",
        "backbone_config": inner,
        "hidden_size": config.channels,
        "pool_scales": list(config.pool_scales),
        "use_auxiliary_head": config.auxiliary is not None,
        "auxiliary_channels": config.auxiliary or 256,
        "auxiliary_in_channels": None,
        **labels_of(config.num_classes, names),
    }


_SEGFORMER: dict[str, Any] = {  # config.json may leave out what is default
    "num_channels": 3,
    "depths": [2, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "hidden_sizes": [32, 64, 160, 256],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [4, 4, 4, 4],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "drop_path_rate": 0.1,
    "classifier_dropout_prob": 0.1,
    "decoder_hidden_size": 256,
}
TORCH_EPS = 1e-5
"""Of every layer norm in transformers' SegFormer, whatever its config says."""


def _from_segformer(data: Mapping[str, Any], shapes: Shapes) -> Any:
    get = {**_SEGFORMER, **data}.__getitem__
    (patch, *more), (stride, *steps) = get("patch_sizes"), get("strides")
    if set(more) != {3} or set(steps) != {2} or gelu_of(get("hidden_act")) != "erf":
        raise WeightsError("expected patch_sizes 3 and strides 2 after the first stage and the exact GELU, got others")
    own = {
        "patch_size": patch,
        "stride": stride,
        "in_chans": get("num_channels"),
        "embed_dims": tuple(get("hidden_sizes")),
        "depths": tuple(get("depths")),
        "num_heads": tuple(get("num_attention_heads")),
        "mlp_ratios": tuple(get("mlp_ratios")),
        "sr_ratios": tuple(get("sr_ratios")),
        "drop_rate": float(get("hidden_dropout_prob")),
        "drop_path_rate": float(get("drop_path_rate")),
        "numerics": {"norm_eps": TORCH_EPS, "embed_eps": TORCH_EPS},
    }
    fields = {
        "backbone": own,
        "channels": get("decoder_hidden_size"),
        "in_chans": get("num_channels"),
        "num_classes": classes_in(shapes, "decode_head.classifier.weight"),
        "drop_rate": float(get("classifier_dropout_prob")),
        "img_size": _side_of(data) or (512, 512),
    }
    return configure(config_of("segformer_b0"), fields)


def _to_segformer(config: Any, names: list[str] | None) -> dict[str, Any]:
    b = config.backbone
    stages = len(b.depths)
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        "num_channels": config.in_chans,
        "num_encoder_blocks": stages,
        "image_size": side_or_pair(config.img_size),
        "depths": list(b.depths),
        "sr_ratios": list(b.sr_ratios),
        "hidden_sizes": list(b.embed_dims),
        "patch_sizes": [b.patch_size, *[3] * (stages - 1)],
        "strides": [b.stride, *[2] * (stages - 1)],
        "num_attention_heads": list(b.num_heads),
        "mlp_ratios": list(b.mlp_ratios),
        "hidden_act": "gelu",
        "hidden_dropout_prob": b.drop_rate,
        "drop_path_rate": b.drop_path_rate,
        "classifier_dropout_prob": config.drop_rate,
        "decoder_hidden_size": config.channels,
        "reshape_last_stage": True,
        **labels_of(config.num_classes, names),
    }


FAMILY = SegmenterFamily()
