"""PVT v1, as transformers and its authors know it, and what it shares with PVT v2; timm has none.

P positions of a stage, T class token (0 or 1), C width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import as_size, config_of, configure, variants
from vitrail.nn.positions import Grid, resize_positions
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card

from .base import Family, Shapes
from .config_json import classes_in, gelu_of, labels_of, side_or_pair

if TYPE_CHECKING:
    from vitrail.weights.source import Source


class PVTFamily(Family):
    """PVT v1: a position table a stage, and a class token in the last one."""

    model_types = ("pvt",)
    stored_layout = "vitrail"
    first_conv = "stages.0.patch_embed.proj"

    def cards(self) -> list[Card]:
        origin = "PVT, ImageNet-1k (W. Wang et al.)"
        ids = {f"pvt_{size}.in1k": f"Zetatech/pvt-{size}-224" for size in ("tiny", "small", "medium", "large")}
        return [hub_card(hub, origin, name) for name, hub in ids.items()] + [hub_card(h, origin) for h in ids.values()]

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """Each stage's table is resized from the grid it has in the file to the stage's own.

        Other layouts have a row for a class token in the last stage, whether there is one or not.
        """
        said = []
        made, last = source.config, len(model.stages) - 1
        for index, stage in enumerate(model.stages):
            name = f"stages.{index}.pos_embed"
            prefix = int(index == last) if layout != "vitrail" else stage.num_prefix_tokens
            tensors[name], old = _fit_table(tensors[name], stage, prefix, None if made is None else made.grid(index))
            if old != stage.base_grid:
                new, mode = stage.base_grid, stage.pos_resize
                said.append(f"{name}: {old[0]}x{old[1]} -> {new[0]}x{new[1]} ({mode})")
        return said

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        """Others give the last table a row for the class token even where there is none: a row of zeros."""
        out: dict[str, Tensor] = dict(model.state_dict())
        if layout != "vitrail" and not model.config.class_token:
            if layout == "transformers":
                raise WeightsError(
                    "transformers' PVT has a class token, this model has none."
                    " mend: export it in the 'original' layout."
                )
            name = f"stages.{len(model.stages) - 1}.pos_embed"
            out[name] = torch.cat([torch.zeros_like(out[name][:, :1]), out[name]], dim=1)
        return out

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        return hint(tensors, "PVTConfig")

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        data = {**_DEFAULTS, **data}
        get = data.__getitem__
        (patch, *more), strides = get("patch_sizes"), get("strides")
        if set(more) != {2} or list(strides) != [patch, *more]:
            raise WeightsError(
                f"expected patch_sizes of 2 after the first stage and strides like them, got {get('patch_sizes')} and"
                f" {strides}"
            )
        own = {"patch_size": patch, "sr_ratios": get("sequence_reduction_ratios")}
        return configure(config_of("test_pvt"), read_stages(data, shapes) | own)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        squares = [config.patch_size, *[2] * (len(config.depths) - 1)]
        return {
            "architectures": ["PvtForImageClassification" if config.num_classes else "PvtModel"],
            "model_type": "pvt",
            "patch_sizes": squares,
            "strides": squares,
            "sequence_reduction_ratios": list(config.sr_ratios),
            **write_stages(config),
            **labels_of(config.num_classes, names),
            "num_labels": config.num_classes,  # its config counts labels apart, 1000 by default
        }


_DEFAULTS: dict[str, Any] = {  # config.json may leave out what is default
    "patch_sizes": [4, 2, 2, 2],
    "strides": [4, 2, 2, 2],
    "sequence_reduction_ratios": [8, 4, 2, 1],
    "hidden_sizes": [64, 128, 320, 512],
}


def _fit_table(table: Tensor, stage: Any, prefix: int, grid: Grid | None) -> tuple[Tensor, Grid]:
    """Return a file's table (1, prefix + P', C) as the stage has it, (1, T + P, C), and the file's grid.

    Without a ``grid`` it is the stage's own if the count of rows fits, else a square.
    """
    rows = table.shape[1] - prefix
    side = math.isqrt(max(rows, 0))
    fits = [g for g in (grid, stage.base_grid, (side, side)) if g is not None and g[0] * g[1] == rows > 0]
    if not fits:
        raise WeightsError(
            f"cannot tell the grid of a position table with {rows} rows. mend: load it from a folder whose config.json"
            " gives the image size, or into a model of the image size it was trained with."
        )
    patches = resize_positions(table[:, prefix:], fits[0], stage.base_grid, stage.pos_resize)
    return torch.cat([table[:, : stage.num_prefix_tokens], patches], dim=1), fits[0]


# ---- what both versions share


def hub_card(hub_id: str, origin: str, name: str = "") -> Card:
    """Return the card of weights in transformers' form, which are squashed to the input size there."""
    return Card(
        name=name or hub_id,
        input_size=(224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_mode="squash",
        num_classes=1000,
        licence="apache-2.0",
        origin=origin,
        hub_id=hub_id,
        numerics={"norm_eps": 1e-6, "embed_eps": 1e-6},
    )


def hint(tensors: Mapping[str, Tensor], kind: str) -> str:
    """Say which variant of a config type has the widths and depths of tensors under our names."""
    widths: list[int] = []
    depths: list[int] = []
    while (norm := tensors.get(f"stages.{len(widths)}.patch_embed.norm.weight")) is not None:
        stage, depth = len(widths), 0
        while f"stages.{stage}.blocks.{depth}.norm1.weight" in tensors:
            depth += 1
        widths.append(len(norm))
        depths.append(depth)
    if not widths:
        return ""
    sizes = f"the file holds widths {tuple(widths)}, depths {tuple(depths)}"
    own = {n: c for n, c in variants().items() if type(c).__name__ == kind}
    names = [n for n, c in own.items() if (c.embed_dims, c.depths) == (tuple(widths), tuple(depths))]
    return f"{sizes}: create {names[0]!r} or set these." if names else f"{sizes}: create the model with these."


_STAGES: dict[str, Any] = {
    "image_size": 224,
    "num_channels": 3,
    "depths": [2, 2, 2, 2],
    "num_attention_heads": [1, 2, 5, 8],
    "mlp_ratios": [8, 8, 4, 4],
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}


def read_stages(data: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Return the fields of our configs that both of transformers' classes name alike."""
    get = {**_STAGES, **data}.__getitem__
    if not get("qkv_bias") or gelu_of(get("hidden_act")) != "erf":
        raise WeightsError(
            f"expected qkv_bias=true and hidden_act='gelu', got {get('qkv_bias')} and {get('hidden_act')!r}:"
            " Vitrail's PVT has these biases and the exact GELU"
        )
    return {
        "img_size": as_size(get("image_size")),
        "in_chans": get("num_channels"),
        "num_classes": classes_in(shapes, "classifier.weight"),
        "embed_dims": get("hidden_sizes"),
        "depths": get("depths"),
        "num_heads": get("num_attention_heads"),
        "mlp_ratios": get("mlp_ratios"),
        "drop_rate": float(get("hidden_dropout_prob")),
        "drop_path_rate": float(get("drop_path_rate")),
        "numerics": {"norm_eps": float(get("layer_norm_eps")), "embed_eps": float(get("layer_norm_eps"))},
    }


def write_stages(config: Any) -> dict[str, Any]:
    """Return what :func:`read_stages` reads; transformers has one epsilon only, the blocks' is written."""
    return {
        "image_size": side_or_pair(config.img_size),
        "num_channels": config.in_chans,
        "num_encoder_blocks": len(config.depths),
        "depths": list(config.depths),
        "hidden_sizes": list(config.embed_dims),
        "num_attention_heads": list(config.num_heads),
        "mlp_ratios": list(config.mlp_ratios),
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.drop_rate,
        "drop_path_rate": config.drop_path_rate,
        "layer_norm_eps": config.numerics.norm_eps,
        "qkv_bias": True,
    }


FAMILY = PVTFamily()
