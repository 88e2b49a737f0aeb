"""ViT and DeiT's undistilled forms, as timm, transformers and Google know them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import as_size, config_of, configure, variants
from vitrail.weights.cards import Card, timm_card
from vitrail.weights.convert import Table, plan

from .base import Family, Shapes
from .config_json import (
    classes_in,
    gelu_for_transformers,
    gelu_of,
    labels_of,
    ratio_of,
    side_or_pair,
    timm_args,
    timm_size,
)
from .positions import fit_fixed_positions, fit_positions, positions_for_export

if TYPE_CHECKING:
    from vitrail.weights.source import Source

_TIMM_FIELDS = ("patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")
_TIMM_READ = {*_TIMM_FIELDS, "img_size", "class_token", "no_embed_class", "global_pool", "fc_norm", "act_layer"}
_TIMM_READ |= {"pool_include_prefix"}
_NOT_TIMM = ("vit_pico_", "vit_nano_", "vit_micro_", "vit_enormous_", "test_")


class ViTFamily(Family):
    """ViT, and what has its parts; the distilled DeiT is :mod:`.deit`."""

    model_types: tuple[str, ...] = ("vit",)
    stand_in = "vit_tiny_patch16_224"
    """timm's model that is written, with every size given, for an architecture timm lacks."""

    def cards(self) -> list[Card]:
        return [*_augreg(), *_google()]

    def numbers(self, config: Any) -> dict[str, int]:
        return {"num_heads": config.num_heads}

    def num_features(self, model: Any) -> int:
        return int(model.config.embed_dim)

    def optional(self, config: Any) -> tuple[str, ...]:
        return ("pos_embed",) if config.pos_embed == "sincos2d" else ()  # other libraries store fixed positions too

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        if model.config.pos_embed == "sincos2d":
            fit_fixed_positions(tensors, model)
        made = source.config
        grid = None if made is None else (made.img_size[0] // made.patch_size, made.img_size[1] // made.patch_size)
        return fit_positions(tensors, model, grid, layout)

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        return positions_for_export(model, layout)

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        new_style = config.pos_embed == "learn_patches" or config.global_pool != "token"
        least = min(len(plan(t, tensors).unmapped) for t in tables)
        best = [t for t in tables if len(plan(t, tensors).unmapped) == least]
        styled = [t for t in best if new_style == ("big_vision" in t.title)]
        return super().table_for_export(styled or best, tensors, config)

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        kernel, depth = tensors.get("patch_embed.proj.weight"), 0
        if kernel is None or kernel.ndim != 4:
            return ""
        while f"blocks.{depth}.norm1.weight" in tensors:
            depth += 1
        width, patch = kernel.shape[0], kernel.shape[-1]
        distilled = "dist_token" in tensors
        names = [
            n
            for n, c in variants().items()
            if type(c).__name__ == ("DeiTConfig" if distilled else "ViTConfig")
            and (c.embed_dim, c.depth, c.patch_size) == (width, depth, patch)
        ]
        sizes = f"the file holds width {width}, depth {depth}, patch {patch}"
        return f"{sizes}: create {names[0]!r} or set these." if names else f"{sizes}: create the model with these."

    def in_timm(self, name: str) -> bool:
        own_gap = "_gap_" in name and name != "vit_base_patch16_gap_224"
        return not name.startswith(_NOT_TIMM) and "_map_" not in name and not own_gap

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        """Sizes that timm lacks are written as one of its models with every size given.

        What timm cannot express (the hidden layer of the pre-training head) is written as our own name.
        """
        args: dict[str, Any] = {f: getattr(config, f) for f in _TIMM_FIELDS if f != "num_classes"}
        args["img_size"] = list(config.img_size)
        if config.representation_size is not None:
            return name or "vitrail", args
        args |= self.timm_pooling(config)
        if config.numerics.gelu == "tanh":
            args["act_layer"] = "gelu_tanh"
        return name if name in variants() and self.in_timm(name) else self.stand_in, args

    def timm_pooling(self, config: Any) -> dict[str, Any]:
        """Return timm's arguments about tokens, positions and pooling."""
        return {
            "class_token": config.class_token,
            "no_embed_class": config.pos_embed != "learn",
            "global_pool": "avg" if config.global_pool == "gap" else config.global_pool,
            "fc_norm": config.global_pool == "avg",
        }

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        """What the tensors show (class token, positions, pooling, LayerScale) is taken from their shapes."""
        name = str(data["architecture"])
        args = timm_args(data, read=_TIMM_READ, idle=("qkv_bias",))
        changes = {k: args[k] for k in _TIMM_FIELDS if k in args} | timm_size(data, args)
        changes["numerics"] = {"gelu": "tanh" if "tanh" in str(args.get("act_layer")) else "erf", "norm_eps": 1e-6}
        base = config_of(name)
        pool = str(args.get("global_pool", data.get("global_pool", base.global_pool)))
        changes |= self.seen(shapes, configure(base, changes), pool)
        if args.get("pool_include_prefix") and changes.get("class_token") and changes["global_pool"] != "token":
            raise WeightsError(
                f"timm's {name} was made with pool_include_prefix=True: it pools the class token, Vitrail never does."
            )
        return configure(base, changes)

    def seen(self, shapes: Shapes, config: Any, pool: str) -> dict[str, Any]:
        """Return the fields that the tensors, under timm's names, show."""
        classed = "cls_token" in shapes
        rows = shapes.get("pos_embed", (1, 0, 0))[1]
        patches = (config.img_size[0] // config.patch_size) * (config.img_size[1] // config.patch_size)
        mean = "avg" if "fc_norm.weight" in shapes else "gap"
        return {
            "class_token": classed,
            "pos_embed": "learn_patches" if classed and rows == patches else "learn",
            "global_pool": "map" if "attn_pool.latent" in shapes else "token" if pool == "token" else mean,
            "init_values": (config.init_values or 1e-5) if "blocks.0.ls1.gamma" in shapes else None,
        }

    test_size = "test_vit"
    """A config whose fields that transformers does not name are as its model has them."""

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        get = {**_TRANSFORMERS_DEFAULTS, **data}.__getitem__
        if not get("qkv_bias"):
            raise WeightsError("expected qkv_bias=true, got false: Vitrail's ViT has these biases")
        patch = as_size(get("patch_size"))
        if patch[0] != patch[1]:
            raise WeightsError(f"expected square patches, got {patch[0]}x{patch[1]}")
        values = {
            "img_size": as_size(get("image_size")),
            "patch_size": patch[0],
            "in_chans": get("num_channels"),
            "num_classes": classes_in(shapes, "classifier.weight", "cls_classifier.weight"),
            "embed_dim": get("hidden_size"),
            "depth": get("num_hidden_layers"),
            "num_heads": get("num_attention_heads"),
            "mlp_ratio": ratio_of(get("intermediate_size"), get("hidden_size")),
            "drop_rate": float(get("hidden_dropout_prob")),
            "numerics": {
                "norm_eps": float(get("layer_norm_eps")),
                "gelu": gelu_of(get("hidden_act")),
                "pos_resize": "bicubic",
            },
        }
        return configure(config_of(self.test_size), values)

    transformers_class = ("ViTModel", "ViTForImageClassification")
    """transformers' classes without and with a classifier."""

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        return {
            "architectures": [self.transformers_class[config.num_classes > 0]],
            "model_type": self.model_types[0],
            "image_size": side_or_pair(config.img_size),
            "patch_size": config.patch_size,
            "num_channels": config.in_chans,
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.hidden_dim,
            "hidden_act": gelu_for_transformers(config.numerics.gelu),
            "hidden_dropout_prob": config.drop_rate,
            "layer_norm_eps": config.numerics.norm_eps,
            "qkv_bias": True,
            **labels_of(config.num_classes, names),
        }


_TRANSFORMERS_DEFAULTS: dict[str, Any] = {  # config.json of old versions leaves out what is default
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}

# ---- public checkpoints

_AUGREG = {
    "augreg2_in21k_ft_in1k": (1000, "AugReg, ImageNet-21k, fine-tuned on ImageNet-1k by R. Wightman"),
    "augreg_in21k_ft_in1k": (1000, "AugReg, ImageNet-21k, fine-tuned on ImageNet-1k (Google)"),
    "augreg_in1k": (1000, "AugReg, ImageNet-1k (Google)"),
    "augreg_in21k": (21843, "AugReg, ImageNet-21k (Google)"),
}
_A2, _A21_1, _A1, _A21 = _AUGREG
_AUGREG_FILES = {  # arXiv 2106.10270; the first tag is the default
    "vit_tiny_patch16_224": (_A21_1, _A21),
    "vit_tiny_patch16_384": (_A21_1,),
    "vit_small_patch32_224": (_A21_1, _A21),
    "vit_small_patch32_384": (_A21_1,),
    "vit_small_patch16_224": (_A21_1, _A1, _A21),
    "vit_small_patch16_384": (_A21_1, _A1),
    "vit_base_patch32_224": (_A21_1, _A1, _A21),
    "vit_base_patch32_384": (_A21_1, _A1),
    "vit_base_patch16_224": (_A2, _A21_1, _A1, _A21),
    "vit_base_patch16_384": (_A21_1, _A1),
    "vit_base_patch8_224": (_A2, _A21_1, _A21),
    "vit_large_patch16_224": (_A21_1, _A21),
    "vit_large_patch16_384": (_A21_1,),
}


def _augreg() -> list[Card]:
    return [
        timm_card(name, tag, _AUGREG[tag][0], 1.0 if name.endswith("384") else 0.9, _AUGREG[tag][1])
        for name, tags in _AUGREG_FILES.items()
        for tag in tags
    ]


def _google() -> list[Card]:
    """The names users of transformers know; images are squashed to the input size there."""
    hf: dict[str, Any] = {"interpolation": "bilinear", "crop_mode": "squash", "licence": "apache-2.0"}
    hf["numerics"] = {"norm_eps": 1e-12, "pos_resize": "bicubic"}
    found = []
    for size, patch, side, suffix, classes in (
        ("base", 16, 224, "", 1000),
        ("base", 16, 384, "", 1000),
        ("base", 32, 384, "", 1000),
        ("large", 16, 224, "", 1000),
        ("large", 16, 384, "", 1000),
        ("large", 32, 384, "", 1000),
        ("base", 16, 224, "-in21k", 0),
        ("base", 32, 224, "-in21k", 0),
        ("large", 16, 224, "-in21k", 0),
        ("large", 32, 224, "-in21k", 0),
        ("huge", 14, 224, "-in21k", 0),
    ):
        hub = f"google/vit-{size}-patch{patch}-{side}{suffix}"
        origin = "ViT, ImageNet-21k" + ("" if suffix else ", fine-tuned on ImageNet-1k") + " (Google)"
        found.append(Card(name=hub, input_size=(side, side), num_classes=classes, origin=origin, hub_id=hub, **hf))
    return found


FAMILY = ViTFamily()
