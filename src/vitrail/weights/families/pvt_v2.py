"""PVT v2, as timm, transformers and its authors know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card, timm_card

from .base import Family, Shapes
from .config_json import labels_of, timm_args, timm_size
from .pvt import hint, hub_card, read_stages, write_stages

_TIMM_FIELDS = ("in_chans", "embed_dims", "depths", "num_heads", "mlp_ratios", "sr_ratios", "linear")
_SIZES = ("b0", "b1", "b2", "b2_li", "b3", "b4", "b5")
_ORIGIN = "PVT v2, ImageNet-1k (W. Wang et al.)"


class PVTv2Family(Family):
    """PVT v2; timm builds any of them but those with another first stride."""

    model_types = ("pvt_v2",)
    fixed_input_size = False

    def cards(self) -> list[Card]:
        look: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        return [
            *(timm_card(f"pvt_v2_{size}", "in1k", 1000, 0.9, _ORIGIN, side=224, **look) for size in _SIZES),
            *(hub_card(f"OpenGVLab/pvt_v2_{size.replace('li', 'linear')}", _ORIGIN) for size in _SIZES),
        ]

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        return hint(tensors, "PVTv2Config")

    def in_timm(self, name: str) -> bool:
        return name.removeprefix("pvt_v2_") in _SIZES

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        """Sizes that timm lacks are written as one of its models with every size given."""
        args = {f: getattr(config, f) for f in _TIMM_FIELDS}
        args = {f: list(value) if isinstance(value, tuple) else value for f, value in args.items()}
        if (config.patch_size, config.stride) != (7, 4):
            return name or "vitrail", args
        return name if self.in_timm(name) else "pvt_v2_b0", args

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        args = timm_args(data, read=_TIMM_FIELDS, idle=("qkv_bias",))
        changes = {k: args[k] for k in _TIMM_FIELDS if k in args} | timm_size(data, args)
        return configure(config_of(str(data["architecture"])), changes)

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        data = {**_DEFAULTS, **data}
        get = data.__getitem__
        (patch, *more), (stride, *steps) = get("patch_sizes"), get("strides")
        if set(more) != {3} or set(steps) != {2}:
            raise WeightsError(
                f"expected patch_sizes 3 and strides 2 after the first stage, got {get('patch_sizes')} and"
                f" {get('strides')}"
            )
        own = {"patch_size": patch, "stride": stride, "sr_ratios": get("sr_ratios"), "linear": get("linear_attention")}
        return configure(config_of("test_pvt_v2"), read_stages(data, shapes) | own)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        stages = len(config.depths)
        return {
            "architectures": ["PvtV2ForImageClassification" if config.num_classes else "PvtV2Model"],
            "model_type": "pvt_v2",
            "patch_sizes": [config.patch_size, *[3] * (stages - 1)],
            "strides": [config.stride, *[2] * (stages - 1)],
            "sr_ratios": list(config.sr_ratios),
            "linear_attention": config.linear,
            **write_stages(config),
            **labels_of(config.num_classes, names),
        }


_DEFAULTS: dict[str, Any] = {  # config.json may leave out what is default
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
    "linear_attention": False,
    "hidden_sizes": [32, 64, 160, 256],
}

FAMILY = PVTv2Family()
