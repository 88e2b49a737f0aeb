"""Image GPT as transformers and OpenAI know it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure
from vitrail.nn.positions import resize_positions
from vitrail.weights.cards import Card
from vitrail.weights.convert import Table
from vitrail.weights.read import read_json

from .base import Family, Shapes
from .config_json import labels_of, ratio_of

if TYPE_CHECKING:
    from vitrail.weights.source import Source

_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class IGPTFamily(Family):
    """Image GPT; timm has none."""

    model_types = ("imagegpt",)
    stored_layout = "vitrail"
    first_conv = "embed"
    fixed_input_size = False

    def cards(self) -> list[Card]:
        return [_card("igpt_s", "small"), _card("igpt_m", "medium"), _card("igpt_l", "large")]

    def numbers(self, config: Any) -> dict[str, int]:
        return {"num_heads": config.num_heads}

    def optional(self, config: Any) -> tuple[str, ...]:
        return () if config.bias else _biases(config)  # transformers has them, as zeros in the converted models

    def may_lack(self, config: Any) -> tuple[str, ...]:
        return ("palette",)

    def beside(self, path: Path) -> dict[str, Tensor]:
        processor = path / "preprocessor_config.json"
        clusters = read_json(processor).get("clusters") if processor.exists() else None
        return {} if clusters is None else {"clusters": torch.tensor(clusters, dtype=torch.float32)}

    def preprocessor(self, model: Any) -> dict[str, Any]:
        return {
            "image_processor_type": "ImageGPTImageProcessor",
            "do_color_quantize": True,
            "clusters": model.palette.float().cpu().tolist(),
        }

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        config = model.config
        if not config.bias:
            _drop_biases(tensors, config)
        table = tensors["pos_embed"]
        if table.ndim != 3 or table.shape[1:] == model.pos_embed.shape[1:] or table.shape[2] != config.embed_dim:
            return []
        old = _grid(table.shape[1], None if source.config is None else source.config.img_size)
        tensors["pos_embed"] = resize_positions(table, old, config.img_size, config.numerics.pos_resize)
        return [f"pos_embed: {old[0]}x{old[1]} -> {config.img_size[0]}x{config.img_size[1]}"]

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(model.state_dict())
        if layout == "transformers":
            _require_in_transformers(model.config)
            del tensors["palette"]  # it is in preprocessor_config.json there
            for name in () if model.config.bias else _biases(model.config):
                tensors[name] = tensors[name.replace(".bias", ".weight")].new_zeros(_rows(tensors, name))
        elif layout == "original" and model.config.bias:
            _drop_biases(tensors, model.config)
        return tensors

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        startless = tables[0].layout == "original" and config.objective == "masked"
        table: Table = tables[1 if startless else 0]
        return table

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        table = next((t for n, t in tensors.items() if n.rpartition(".")[0].endswith(("embed", "wte"))), None)
        if table is None or table.ndim != 2:
            return ""
        biased = any(n.endswith((".c_attn.bias", ".qkv.bias")) for n in tensors)
        return (
            f"the file holds width {table.shape[1]}, {table.shape[0]} rows of colours (with the start token) and"
            f" {'' if biased else 'no '}biases: create the model with these (embed_dim, colours, bias)."
        )

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        get = {**_TRANSFORMERS_DEFAULTS, **data}.__getitem__
        for key in _FIXED:
            if get(key) != _TRANSFORMERS_DEFAULTS[key]:
                raise WeightsError(f"expected {key}={_TRANSFORMERS_DEFAULTS[key]!r}, got {get(key)!r}")
        classes = shapes["score.weight"][0] if "score.weight" in shapes else 0
        if not classes and "lm_head.weight" not in shapes:
            raise WeightsError(
                "these weights are of ImageGPTModel, which has no output. mend: use a folder of"
                " ImageGPTForCausalImageModeling or ImageGPTForImageClassification."
            )
        values = {
            "img_size": _grid(get("n_positions"), None),
            "num_classes": classes,
            "colours": get("vocab_size") - 1,
            "embed_dim": get("n_embd"),
            "depth": get("n_layer"),
            "num_heads": get("n_head"),
            "mlp_ratio": ratio_of(get("n_inner") or 4 * get("n_embd"), get("n_embd")),
            "bias": True,
            "drop_rate": float(get("resid_pdrop")),
            "numerics": {"norm_eps": float(get("layer_norm_epsilon")), "shift": not classes},
        }
        return configure(config_of("igpt_s"), values)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        _require_in_transformers(config)
        return {
            "architectures": [f"ImageGPTFor{'ImageClassification' if config.num_classes else 'CausalImageModeling'}"],
            "model_type": "imagegpt",
            "vocab_size": config.colours + 1,
            "n_positions": config.img_size[0] * config.img_size[1],
            "n_embd": config.embed_dim,
            "n_layer": config.depth,
            "n_head": config.num_heads,
            "n_inner": config.hidden_dim,
            "activation_function": "quick_gelu",
            **dict.fromkeys(("resid_pdrop", "embd_pdrop"), config.drop_rate),
            "attn_pdrop": 0.0,
            "layer_norm_epsilon": config.numerics.norm_eps,
            "tie_word_embeddings": False,
            **labels_of(config.num_classes, names),
        }


_FIXED = ("activation_function", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention")
_TRANSFORMERS_DEFAULTS: dict[str, Any] = {
    "vocab_size": 513,
    "n_positions": 1024,
    "n_embd": 512,
    "n_layer": 24,
    "n_head": 8,
    "n_inner": None,
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "quick_gelu",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def _card(name: str, size: str) -> Card:
    return Card(
        name=name,
        input_size=(32, 32),
        interpolation="bilinear",
        crop_mode="squash",
        licence="modified-mit",
        origin=f"image GPT {size}, ImageNet (OpenAI)",
        hub_id=f"openai/imagegpt-{size}",
        numerics={"norm_eps": 1e-5, "shift": True},
    )


def _biases(config: Any) -> tuple[str, ...]:
    return tuple(f"blocks.{i}.{layer}.bias" for i in range(config.depth) for layer in _LAYERS)


def _rows(tensors: Mapping[str, Tensor], bias: str) -> int:
    return tensors[bias.replace(".bias", ".weight")].shape[0]


def _drop_biases(tensors: dict[str, Tensor], config: Any) -> None:
    """Take biases of zero out of the tensors; :class:`WeightsError` if one is not zero."""
    for name in _biases(config):
        bias = tensors.pop(name, None)
        if bias is not None and bool(bias.any()):
            raise WeightsError(f"{name} is not zero, and there are no biases here. mend: bias=True, or another layout.")


def _grid(count: int, known: tuple[int, int] | None) -> tuple[int, int]:
    """Return the (h, w) of a table with ``count`` positions."""
    if known is not None and known[0] * known[1] == count:
        return known
    side = math.isqrt(count)
    if side * side != count:
        raise WeightsError(f"expected the positions of a square picture, got {count} of them")
    return side, side


def _require_in_transformers(config: Any) -> None:
    """Raise unless transformers' ImageGPT computes the same."""
    if config.objective == "masked":
        raise WeightsError("transformers' ImageGPT is autoregressive; this model is masked. mend: another layout.")
    if config.joint or (config.num_classes and config.numerics.shift):
        raise WeightsError(
            "transformers' ImageGPT reads classes from the pixels themselves (numerics.shift=False) and has one output;"
            f" this model has joint={config.joint}, numerics.shift={config.numerics.shift}. mend: another layout."
        )
    if config.in_chans != 3:
        raise WeightsError(f"transformers' ImageGPT quantises RGB pixels; this model has in_chans={config.in_chans}.")


FAMILY = IGPTFamily()
