"""ResNet as timm, torchvision and transformers know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure, variants
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card, timm_card

from .base import Family, Shapes
from .config_json import classes_in, labels_of, timm_args, timm_size

_TIMM_READ = ("in_chans", "num_classes", "layers", "channels", "output_stride", "global_pool")
_IDLE = ("zero_init_last",)


class ResNetFamily(Family):
    """ResNet-18 to 152; timm builds any depths and widths behind its 7x7 stem of 64 channels."""

    model_types = ("resnet",)
    first_conv = "conv1"
    classifier = "fc"
    fixed_input_size = False

    def cards(self) -> list[Card]:
        return [*_timm(), *_microsoft()]

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        return hint_of_stages(tensors, "layer{}.{}.conv1.weight", 1, "ResNetConfig") or hint_of_stages(
            tensors, OWN_FIRST, 0, "ResNetConfig"
        )

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        c = model.config
        if layout == "transformers" and (c.stem != "large" or c.output_stride != 32):
            raise WeightsError(
                "transformers' ResNet has a 7x7 stem and does not dilate; this model has"
                f" stem={c.stem!r}, output_stride={c.output_stride}. mend: export it in the 'timm' layout."
            )
        return super().for_export(model, layout)

    def in_timm(self, name: str) -> bool:
        return name.removeprefix("resnet").isdigit()

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        """Sizes that timm lacks are written as one of its models; a stem it cannot build as our own name."""
        args: dict[str, Any] = {"in_chans": config.in_chans, "output_stride": config.output_stride}
        if name and self.in_timm(name):
            return name, args
        if config.stem != "large" or config.stem_width != 64:
            return name or "vitrail", args
        basic = config.block == "basic"
        args["layers"] = list(config.depths)
        args["channels"] = [w if basic else w // 4 for w in config.widths]
        return "resnet18" if basic else "resnet50", args

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        args = timm_args(data, read=_TIMM_READ, idle=_IDLE)
        require_mean_pool(data, args)
        base = config_of(str(data["architecture"]))
        changes = timm_size(data, args) | {k: args[k] for k in ("in_chans", "output_stride") if k in args}
        if "layers" in args:
            changes["depths"] = tuple(args["layers"])
        if "channels" in args:
            changes["widths"] = tuple(c if base.block == "basic" else 4 * c for c in args["channels"])
        return configure(base, changes)

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        get = {**_TRANSFORMERS_DEFAULTS, **data}.__getitem__
        for key in ("hidden_act", "downsample_in_first_stage", "downsample_in_bottleneck"):
            require_value(key, get(key), _TRANSFORMERS_DEFAULTS[key])
        values = {
            "in_chans": get("num_channels"),
            "num_classes": classes_in(shapes, "classifier.1.weight"),
            "block": get("layer_type"),
            "depths": tuple(get("depths")),
            "widths": tuple(get("hidden_sizes")),
            "stem_width": get("embedding_size"),
        }
        return configure(config_of("resnet50"), values)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        return {
            "architectures": ["ResNetForImageClassification" if config.num_classes else "ResNetModel"],
            "model_type": "resnet",
            "num_channels": config.in_chans,
            "embedding_size": config.stem_width,
            "hidden_sizes": list(config.widths),
            "depths": list(config.depths),
            "layer_type": config.block,
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
            **labels_of(config.num_classes, names),
        }


_TRANSFORMERS_DEFAULTS: dict[str, Any] = {  # config.json may leave out what is default
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}

OWN_FIRST = "stages.{}.blocks.{}.conv1.weight"
"""Our name of the first convolution of a block, in ResNet and BiT."""


def stage_depths(names: Mapping[str, Tensor], first: str, start: int) -> tuple[int, ...]:
    """Return the blocks of each stage; ``first`` names a tensor that every block has, stages counted from ``start``."""
    depths: list[int] = []
    while first.format(len(depths) + start, 0) in names:
        count = 0
        while first.format(len(depths) + start, count) in names:
            count += 1
        depths.append(count)
    return tuple(depths)


def hint_of_stages(tensors: Mapping[str, Tensor], first: str, start: int, config_type: str) -> str:
    """Say which variants have the depths and widths of a file, or "" if it has no such stages."""
    depths = stage_depths(tensors, first, start)
    if not depths:
        return ""
    widths = tuple(_width(tensors, first.format(i + start, 0)) for i in range(len(depths)))
    known = {n: c for n, c in variants().items() if type(c).__name__ == config_type}
    names = [n for n, c in known.items() if (c.depths, c.widths) == (depths, widths)]
    said = f"the file holds stages of {', '.join(map(str, depths))} blocks, {', '.join(map(str, widths))} channels wide"
    return f"{said}: create {' or '.join(map(repr, names))}." if names else f"{said}: create the model with these."


def _width(tensors: Mapping[str, Tensor], first: str) -> int:
    """Return the channels that a block gives: those of the last of its convolutions ("...conv1.weight")."""
    names = [first.replace("conv1.weight", f"conv{k}.weight") for k in (3, 2, 1)]
    return next(sum(tensors[name].shape[:1]) for name in names if name in tensors)


def require_value(key: str, value: Any, wanted: Any) -> None:
    """Raise :class:`WeightsError` unless a setting of another library is the one that Vitrail's model has."""
    if value != wanted:
        raise WeightsError(f"expected {key}={wanted!r} in config.json, got {value!r}: Vitrail's model lacks that form.")


def require_mean_pool(data: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raise :class:`WeightsError` unless timm's model takes the mean over the last map."""
    require_value("global_pool", args.get("global_pool", data.get("global_pool") or "avg"), "avg")


_TAGS: dict[str, tuple[str, dict[str, Any]]] = {  # tag -> (origin, what its card says); the first is the default
    "a1_in1k": ("ResNet strikes back (arXiv 2110.00476), recipe A1, ImageNet-1k (timm)", {"crop_pct": 0.95}),
    "a2_in1k": ("ResNet strikes back (arXiv 2110.00476), recipe A2, ImageNet-1k (timm)", {"crop_pct": 0.95}),
    "a3_in1k": (
        "ResNet strikes back (arXiv 2110.00476), recipe A3, ImageNet-1k (timm)",
        {"crop_pct": 0.95, "side": 160},
    ),
    "tv_in1k": (
        "ImageNet-1k (torchvision, V1)",
        {"crop_pct": 0.875, "interpolation": "bilinear", "licence": "bsd-3-clause"},
    ),
    "tv2_in1k": (
        "ImageNet-1k (torchvision, V2)",
        {"crop_pct": 0.875, "interpolation": "bilinear", "licence": "bsd-3-clause", "side": 176},
    ),
}


def _timm() -> list[Card]:
    look: dict[str, Any] = {"classes": 1000, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return [
        timm_card(f"resnet{layers}", tag, origin=origin, **{"side": 224, **look, **own})
        for layers in (18, 34, 50, 101, 152)
        for tag, (origin, own) in _TAGS.items()
        if not (tag == "tv2_in1k" and layers < 50)
    ]


def _microsoft() -> list[Card]:
    """The names users of transformers know."""
    return [
        Card(
            name=f"microsoft/resnet-{layers}",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            crop_pct=0.875,
            num_classes=1000,
            licence="apache-2.0",
            origin="ResNet strikes back (arXiv 2110.00476), ImageNet-1k (timm), converted by Microsoft",
            hub_id=f"microsoft/resnet-{layers}",
        )
        for layers in (18, 34, 50, 101, 152)
    ]


FAMILY = ResNetFamily()
