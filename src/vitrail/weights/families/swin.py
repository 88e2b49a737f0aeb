"""Swin, as timm, transformers and its authors know it: classifiers, and backbones of detection and segmentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import as_size, config_of, configure, variants
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card, timm_card
from vitrail.weights.maps.swin import backbone_title
from vitrail.weights.tables import Table

from .base import Family, Shapes
from .biases import fit_biases
from .config_json import classes_in, gelu_of, labels_of, side_or_pair, timm_args, timm_size

if TYPE_CHECKING:
    from vitrail.weights.source import Source

_TIMM_FIELDS = ("patch_size", "in_chans", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio")
_TIMM_READ = (*_TIMM_FIELDS, "img_size", "always_partition", "global_pool")


class SwinFamily(Family):
    """Swin Transformer."""

    model_types = ("swin",)
    classifier = "head.fc"

    def cards(self) -> list[Card]:
        return [*_timm(), *_microsoft()]

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """Tables of relative positions made for another window are resized."""
        said = fit_biases(tensors, model)
        if _of_backbone(source.tensors) and not model.config.numerics.always_shift:
            said.append(
                "such backbones were trained with windows that are always shifted: to get their numbers, create the"
                " model with numerics={'always_shift': True}"
            )
        return said

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        title = backbone_title(len(config.depths))
        fitting = [t for t in tables if ("backbone" in t.title) == config.stage_norms]
        return super().table_for_export([t for t in fitting if title in t.title] or fitting or tables, tensors, config)

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        kernel = next((t for n, t in tensors.items() if n.endswith(_PATCHES) and t.ndim == 4), None)
        if kernel is None:
            return ""
        width, patch, depths = kernel.shape[0], kernel.shape[-1], _depths(tensors)
        sizes = f"the file holds width {width}, depths {'-'.join(map(str, depths))}, patch {patch}"
        known = {n: c for n, c in variants().items() if type(c).__name__ == "SwinConfig"}
        names = [n for n, c in known.items() if (c.embed_dim, c.patch_size, c.depths) == (width, patch, depths)]
        return f"{sizes}: create {names[0]!r} or set these." if names else f"{sizes}: create the model with these."

    # ---- config.json of other libraries

    def in_timm(self, name: str) -> bool:
        return name.startswith("swin_") and "_nano_" not in name and "_micro_" not in name

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        """Sizes that timm lacks are written as one of its models with every size given.

        timm has no norms of stages, and shrinks the windows of maps that they do not fit in: such models are written as
        our own name.
        """
        args: dict[str, Any] = {f: getattr(config, f) for f in _TIMM_FIELDS}
        args = {f: list(v) if isinstance(v, tuple) else v for f, v in args.items()}
        args |= {"img_size": list(config.img_size), "always_partition": config.numerics.always_shift}
        last = min(-(-side // config.strides[-1]) for side in config.img_size)
        if config.stage_norms or (last < config.window_size and not config.numerics.always_shift):
            return "vitrail", args
        return name if name in variants() and self.in_timm(name) else "swin_tiny_patch4_window7_224", args

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        name = str(data["architecture"])
        args = timm_args(data, read=_TIMM_READ, idle=("qkv_bias",))
        if args.get("global_pool", "avg") not in ("avg", ""):
            raise WeightsError(
                f"timm's {name} was made with global_pool={args['global_pool']!r}; Vitrail's takes the mean."
            )
        changes = {k: args[k] for k in _TIMM_FIELDS if k in args} | timm_size(data, args)
        if "window_size" in changes:
            changes["window_size"] = _one_side(changes["window_size"], name)
        if "always_partition" in args:
            changes["numerics"] = {"always_shift": args["always_partition"]}
        config = configure(config_of(name), changes)
        tables = {s[0] for n, s in shapes.items() if n.endswith("relative_position_bias_table")}
        if tables - {(2 * config.window_size - 1) ** 2}:
            raise WeightsError(
                f"timm's {name} was made for images of {config.img_size[0]}x{config.img_size[1]}, where it shrinks the"
                f" windows of its smallest maps; Vitrail's keep {config.window_size}x{config.window_size} tokens."
                " mend: load the tensors into a model you create; the tables are then resized."
            )
        return config

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        get = {**_DEFAULTS, **data}.__getitem__
        fixed = {"qkv_bias": True, "use_absolute_embeddings": False, "layer_norm_eps": 1e-5}
        for key, value in fixed.items():
            if get(key) != value:
                raise WeightsError(f"expected {key}={value} as all published Swins have, got {get(key)!r}")
        if gelu_of(get("hidden_act")) != "erf":
            raise WeightsError(f"expected hidden_act 'gelu', got {get('hidden_act')!r}")
        backbone = _of_backbone(shapes)
        values = {
            "img_size": as_size(get("image_size")),
            "patch_size": get("patch_size"),
            "in_chans": get("num_channels"),
            "num_classes": classes_in(shapes, "classifier.weight"),
            "embed_dim": get("embed_dim"),
            "depths": tuple(get("depths")),
            "num_heads": tuple(get("num_heads")),
            "window_size": get("window_size"),
            "mlp_ratio": float(get("mlp_ratio")),
            "drop_rate": float(get("hidden_dropout_prob")),
            "stage_norms": backbone,
            "numerics": {"always_shift": backbone},
        }
        return configure(config_of("test_swin"), values)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        """``SwinBackbone`` shifts always and norms each stage; the others do neither."""
        if config.stage_norms != config.numerics.always_shift:
            raise WeightsError(
                "transformers' SwinBackbone always shifts windows and norms each stage, its classifier does neither;"
                f" this model has stage_norms={config.stage_norms} and always_shift={config.numerics.always_shift}."
                " mend: export it in the 'timm' or the 'original' layout."
            )
        kind = "ForImageClassification" if config.num_classes else "Model"
        stages = [f"stage{i + 1}" for i in range(len(config.depths))]
        return {
            "architectures": ["SwinBackbone" if config.stage_norms else f"Swin{kind}"],
            "model_type": "swin",
            "image_size": side_or_pair(config.img_size),
            "patch_size": config.patch_size,
            "num_channels": config.in_chans,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            "window_size": config.window_size,
            "mlp_ratio": config.mlp_ratio,
            "hidden_act": "gelu",
            "hidden_dropout_prob": config.drop_rate,
            "layer_norm_eps": 1e-5,
            "qkv_bias": True,
            "use_absolute_embeddings": False,
            **({"out_features": stages} if config.stage_norms else {}),
            **labels_of(config.num_classes, names),
        }


_DEFAULTS: dict[str, Any] = {  # config.json may leave out what is default
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}


def _of_backbone(names: Mapping[str, Any]) -> bool:
    """Whether a file is of a detection or segmentation backbone: it has a norm for its first stages."""
    return any(n.endswith(("hidden_states_norms.stage2.weight", "norm1.weight")) and ".blocks." not in n for n in names)


_PATCHES = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")
_BLOCK = re.compile(r"(?:stages|layers)\.(\d+)\.blocks\.(\d+)\.")


def _depths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the blocks of each stage, from tensors under our names or another library's."""
    depths: dict[int, int] = {}
    for stage, block in (map(int, found.groups()) for found in map(_BLOCK.search, tensors) if found):
        depths[stage] = max(depths.get(stage, 0), block + 1)
    return tuple(depths[stage] for stage in sorted(depths))


def _one_side(window: Any, name: str) -> int:
    """Return the side of timm's ``window_size``, which may be given for each stage and side."""
    sides = {s for w in (window if isinstance(window, list | tuple) else [window]) for s in as_size(w)}
    if len(sides) != 1:
        raise WeightsError(f"timm's {name} was made with window_size={window}; Vitrail's has one side for all windows.")
    return sides.pop()


# ---- public checkpoints

_ORIGINS = {
    "ms_in1k": (1000, "Swin, ImageNet-1k (Microsoft)"),
    "ms_in22k_ft_in1k": (1000, "Swin, ImageNet-22k, fine-tuned on ImageNet-1k (Microsoft)"),
    "ms_in22k": (21841, "Swin, ImageNet-22k (Microsoft)"),
}
_IN1K, _FT, _IN22K = _ORIGINS
_FILES = {  # the first tag is the default
    "swin_tiny_patch4_window7_224": (_IN1K, _FT, _IN22K),
    "swin_small_patch4_window7_224": (_FT, _IN1K, _IN22K),
    "swin_base_patch4_window7_224": (_FT, _IN1K, _IN22K),
    "swin_base_patch4_window12_384": (_FT, _IN1K, _IN22K),
    "swin_large_patch4_window7_224": (_FT, _IN22K),
    "swin_large_patch4_window12_384": (_FT, _IN22K),
}


def _timm() -> list[Card]:
    look: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "licence": "mit"}
    return [
        timm_card(name, tag, _ORIGINS[tag][0], 1.0 if name.endswith("384") else 0.9, _ORIGINS[tag][1], **look)
        for name, tags in _FILES.items()
        for tag in tags
    ]


def _microsoft() -> list[Card]:
    """The names users of transformers know; images are squashed to the input size there."""
    found = []
    for size, window, side, tags in (
        ("tiny", 7, 224, (_IN1K,)),
        ("small", 7, 224, (_IN1K,)),
        ("base", 7, 224, (_IN1K, _IN22K)),
        ("base", 12, 384, (_IN1K, _IN22K)),
        ("large", 7, 224, (_FT, _IN22K)),
        ("large", 12, 384, (_FT, _IN22K)),
    ):
        for tag in tags:
            hub = f"microsoft/swin-{size}-patch4-window{window}-{side}{'-in22k' if tag == _IN22K else ''}"
            classes, origin = _ORIGINS[tag]
            found.append(
                Card(
                    name=hub,
                    input_size=(side, side),
                    mean=IMAGENET_MEAN,
                    std=IMAGENET_STD,
                    crop_mode="squash",
                    num_classes=classes,
                    licence="apache-2.0",
                    origin=origin,
                    hub_id=hub,
                )
            )
    return found


FAMILY = SwinFamily()
