"""Configurations of other libraries, read and written: timm's ``config.json``, transformers' ViT and DeiT.

Nothing here runs or imports those libraries: a configuration is data. Names of classes and of remote code in it are
never looked up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrail.errors import WeightsError, did_you_mean
from vitrail.models import as_size, config_of, configure, variants

Shapes = Mapping[str, tuple[int, ...]]

_TIMM_FIELDS = ("patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")
_TIMM_READ = {*_TIMM_FIELDS, "img_size", "class_token", "no_embed_class", "global_pool", "fc_norm", "act_layer"}
_TIMM_READ |= {"pool_include_prefix"}
_TIMM_IDLE = {  # arguments without effect on what the weights compute, or on by default here
    "drop_rate",
    "drop_path_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "dynamic_img_size",
    "strict_img_size",
    "weight_init",
    "fix_init",
    "qkv_bias",
}
_NOT_TIMM = ("vit_pico_", "vit_nano_", "vit_micro_", "vit_enormous_", "test_")


def in_timm(name: str) -> bool:
    """Whether timm knows a model of ours by the same name."""
    return name in variants() and not name.startswith(_NOT_TIMM) and "_map_" not in name and not _own_gap(name)


def _own_gap(name: str) -> bool:
    return "_gap_" in name and name != "vit_base_patch16_gap_224"


def to_timm(name: str, config: Any) -> tuple[str, dict[str, Any]]:
    """Return (architecture, model arguments) with which timm builds the same network, the class count apart.

    An architecture that timm lacks is written as one of its models with every size given. What timm cannot express (the
    hidden layer of the pre-training head) is written as our own name, which timm refuses.
    """
    distilled = type(config).__name__ == "DeiTConfig"
    args: dict[str, Any] = {f: getattr(config, f) for f in _TIMM_FIELDS if f != "num_classes"}
    args["img_size"] = list(config.img_size)
    if config.representation_size is not None:
        return name or "vitrail", args
    if not distilled:
        args["class_token"] = config.class_token
        args["no_embed_class"] = config.pos_embed != "learn"
        args["global_pool"] = "avg" if config.global_pool == "gap" else config.global_pool
        args["fc_norm"] = config.global_pool == "avg"
    if config.numerics.gelu == "tanh":
        args["act_layer"] = "gelu_tanh"
    stand_in = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    return name if in_timm(name) else stand_in, args


def from_timm(data: Mapping[str, Any], shapes: Shapes) -> Any:
    """Return our config of a ``config.json`` that timm wrote.

    What the tensors show (class token, positions, pooling, LayerScale) is taken from their shapes.
    """
    name = str(data["architecture"])
    if not in_timm(name):
        near = did_you_mean(name, filter(in_timm, variants()))
        raise WeightsError(f"{name!r} of timm is not a model Vitrail has.{near} `vitrail models` lists all.")
    args = dict(data.get("model_args") or {})
    strangers = sorted(args.keys() - _TIMM_READ - _TIMM_IDLE)
    if strangers:
        raise WeightsError(f"timm's {name} was made with {strangers[0]}={args[strangers[0]]!r}, which Vitrail's lacks.")
    look = data.get("pretrained_cfg") or data
    changes = {k: args[k] for k in _TIMM_FIELDS if k in args}
    size = args.get("img_size") or list(look.get("input_size", ()))[-2:]
    if size:
        changes["img_size"] = as_size(size)
    changes["num_classes"] = data.get("num_classes", look.get("num_classes", 1000))
    changes["numerics"] = {"gelu": "tanh" if "tanh" in str(args.get("act_layer")) else "erf", "norm_eps": 1e-6}
    base = config_of(name)
    if type(base).__name__ != "DeiTConfig":
        pool = args.get("global_pool", data.get("global_pool", base.global_pool))
        changes |= _seen(shapes, configure(base, changes), str(pool))
        if args.get("pool_include_prefix") and changes["class_token"] and changes["global_pool"] != "token":
            raise WeightsError(
                f"timm's {name} was made with pool_include_prefix=True: it pools the class token, Vitrail never does."
            )
    return configure(base, changes)


def _seen(shapes: Shapes, config: Any, pool: str) -> dict[str, Any]:
    """Return the fields that a ViT's tensors, under timm's names, show."""
    classed = "cls_token" in shapes
    rows = shapes.get("pos_embed", (1, 0, 0))[1]
    patches = (config.img_size[0] // config.patch_size) * (config.img_size[1] // config.patch_size)
    own = "learn_patches" if classed and rows == patches else "learn"
    norm_after = "fc_norm.weight" in shapes
    mean: str = "avg" if norm_after else "gap"
    scaled = "blocks.0.ls1.gamma" in shapes
    return {
        "class_token": classed,
        "pos_embed": own,
        "global_pool": "map" if "attn_pool.latent" in shapes else "token" if pool == "token" else mean,
        "init_values": (config.init_values or 1e-5) if scaled else None,
    }


_GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}


def from_transformers(data: Mapping[str, Any], shapes: Shapes) -> Any:
    """Return our config of a transformers ``config.json`` of ``model_type`` "vit" or "deit"."""
    kind = data.get("model_type")
    if kind not in ("vit", "deit"):
        raise WeightsError(f"expected model_type 'vit' or 'deit' in config.json, got {kind!r}")
    if kind == "deit" and "classifier.weight" in shapes:
        raise WeightsError(
            "these weights are of DeiTForImageClassification, which has the class head only: not the distilled model."
            " mend: use a DeiTForImageClassificationWithTeacher folder."
        )
    get = {**_TRANSFORMERS_DEFAULTS, **data}.__getitem__
    if get("hidden_act") not in _GELUS:
        raise WeightsError(f"expected hidden_act of {', '.join(_GELUS)}, got {get('hidden_act')!r}")
    if not get("qkv_bias"):
        raise WeightsError("expected qkv_bias=true, got false: Vitrail's ViT has these biases")
    patch = as_size(get("patch_size"))
    if patch[0] != patch[1]:
        raise WeightsError(f"expected square patches, got {patch[0]}x{patch[1]}")
    heads = [shapes[n][0] for n in ("classifier.weight", "cls_classifier.weight") if n in shapes]
    values = {
        "img_size": as_size(get("image_size")),
        "patch_size": patch[0],
        "in_chans": get("num_channels"),
        "num_classes": heads[0] if heads else 0,
        "embed_dim": get("hidden_size"),
        "depth": get("num_hidden_layers"),
        "num_heads": get("num_attention_heads"),
        "mlp_ratio": _ratio(get("intermediate_size"), get("hidden_size")),
        "drop_rate": float(get("hidden_dropout_prob")),
        "numerics": {
            "norm_eps": float(get("layer_norm_eps")),
            "gelu": _GELUS[get("hidden_act")],
            "pos_resize": "bicubic",
        },
    }
    return configure(config_of("test_deit_distilled" if kind == "deit" else "test_vit"), values)


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


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio that gives exactly ``hidden`` again when it is multiplied and cut off."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def to_transformers(config: Any, names: list[str] | None) -> dict[str, Any]:
    """Return transformers' ``config.json`` of a model that :func:`export_weights` can write in that layout."""
    kind = "deit" if type(config).__name__ == "DeiTConfig" else "vit"
    head = "ForImageClassificationWithTeacher" if kind == "deit" else "ForImageClassification"
    labels = names or [f"LABEL_{i}" for i in range(config.num_classes)]
    return {
        "architectures": [("DeiT" if kind == "deit" else "ViT") + (head if config.num_classes else "Model")],
        "model_type": kind,
        "image_size": config.img_size[0] if config.img_size[0] == config.img_size[1] else list(config.img_size),
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_dim,
        "hidden_act": "gelu" if config.numerics.gelu == "erf" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": config.drop_rate,
        "layer_norm_eps": config.numerics.norm_eps,
        "qkv_bias": True,
        **({"id2label": dict(enumerate(labels))} if config.num_classes else {}),
        **({"label2id": {n: i for i, n in enumerate(labels)}} if config.num_classes else {}),
    }


def name_of(config: Any) -> str:
    """Return the variant that a config is, whatever its image size, channels, classes and rates; "" if it is none."""
    near = [n for n in variants() if is_variant(n, config)]
    near.sort(
        key=lambda n: (variants()[n].img_size != config.img_size, variants()[n].numerics.init != config.numerics.init)
    )
    return near[0] if near else ""


def is_variant(name: str, config: Any) -> bool:
    """Whether a config is the variant ``name``, whatever its image size, channels, classes, rates and numerics."""
    known = variants().get(name)
    if known is None or type(known) is not type(config):
        return False
    free = ("img_size", "in_chans", "num_classes", "drop_rate", "drop_path_rate", "numerics")
    return all(getattr(known, f.name) == getattr(config, f.name) for f in fields(config) if f.name not in free)
