"""The encoder-decoder Transformer as transformers (Marian), fairseq, OpenNMT-py and torch know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure

from .base import Shapes
from .text import TextFamily

if TYPE_CHECKING:
    from vitrail.weights.source import Source

_ACTS = {
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class TransformerFamily(TextFamily):
    """Marian models are post-norm, and their positions are all sines, then all cosines."""

    model_types = ("marian",)

    def optional(self, config: Any) -> tuple[str, ...]:
        return () if config.head_bias else ("output_bias",)

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """Leave out a bias of zeros that the model has no place for."""
        if model.config.head_bias or "output_bias" not in tensors:
            return []
        if bool(tensors.pop("output_bias").any()):
            raise WeightsError("the file has a bias of the logits that is not zero. mend: head_bias=True")
        return ["the bias of the logits is zero and was left out"]

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(model.state_dict())
        if layout == "transformers":
            self.to_transformers(model.config, None)
            tensors.setdefault("output_bias", tensors["embed.weight"].new_zeros(model.config.vocab_size))
        return tensors

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        table = next((t for n, t in tensors.items() if t.ndim == 2 and ("embed" in n or "shared" in n)), None)
        if table is None:
            return ""
        names = ("encoder", "decoder")
        depths = [len({_number(n) for n in tensors if f"{stack}." in n} - {-1}) for stack in names]
        return (
            f"the file holds a vocabulary of {table.shape[0]}, width {table.shape[1]}, {depths[0]} + {depths[1]}"
            " layers: create the model with these (vocab_size, embed_dim, encoder_depth, decoder_depth)."
        )

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        get = {**_DEFAULTS, **data}.__getitem__
        for key, wanted in _FIXED.items():
            if data.get(key) not in (None, wanted):
                raise WeightsError(f"expected {key}={wanted!r} in config.json, got {data[key]!r}: Vitrail lacks that.")
        for a, b in _TWICE:
            if data.get(b) is not None and get(a) != get(b):
                raise WeightsError(f"expected {a} and {b} of one value in config.json, got {get(a)} and {get(b)}.")
        if get("activation_function") not in _ACTS:
            known = ", ".join(_ACTS)
            raise WeightsError(f"expected activation_function of {known}, got {get('activation_function')!r}")
        values = {
            "vocab_size": get("vocab_size"),
            "specials": {
                "pad": get("pad_token_id"),
                "bos": get("decoder_start_token_id"),
                "eos": get("eos_token_id"),
            },
            "embed_dim": get("d_model"),
            "encoder_depth": get("encoder_layers"),
            "decoder_depth": get("decoder_layers"),
            "num_heads": get("encoder_attention_heads"),
            "hidden_dim": get("encoder_ffn_dim"),
            "drop_rate": float(get("dropout")),
            "attn_drop_rate": float(get("attention_dropout")),
            "act_drop_rate": float(get("activation_dropout")),
            "share": _share(get),
            "head_bias": True,
            "numerics": {
                "norm_eps": 1e-5,
                "layout": "halves",
                "act": _ACTS[get("activation_function")],
                "scale_embedding": bool(get("scale_embedding")),
            },
        }
        return configure(config_of("transformer_base"), values)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        c, n = config, config.numerics
        if c.norm_first or c.final_norm or n.first_position or n.norm_eps != 1e-5 or n.layout != "halves":
            raise WeightsError(
                "transformers' Marian is post-norm without final norms, its norm_eps is 1e-5, and its positions are in"
                f" halves from 0 on; this model has norm_first={c.norm_first}, final_norm={c.final_norm},"
                f" norm_eps={n.norm_eps}, layout={n.layout!r}, first_position={n.first_position}."
                " mend: export it in another layout."
            )
        acts = {ours: theirs for theirs, ours in reversed(_ACTS.items())}
        return {
            "architectures": ["MarianMTModel"],
            "model_type": "marian",
            "is_encoder_decoder": True,
            "vocab_size": c.vocab_size,
            "decoder_vocab_size": c.vocab_size,
            "d_model": c.embed_dim,
            **{f"{stack}_layers": getattr(c, f"{stack}_depth") for stack in ("encoder", "decoder")},
            **{f"{stack}_attention_heads": c.num_heads for stack in ("encoder", "decoder")},
            **{f"{stack}_ffn_dim": c.hidden_dim for stack in ("encoder", "decoder")},
            "activation_function": acts[n.act],
            "dropout": c.drop_rate,
            "attention_dropout": c.attn_drop_rate,
            "activation_dropout": c.act_drop_rate,
            "scale_embedding": n.scale_embedding,
            "share_encoder_decoder_embeddings": c.share == "all",
            "tie_word_embeddings": c.share != "none",
            "pad_token_id": c.specials.pad,
            "bos_token_id": None,
            "decoder_start_token_id": c.specials.bos,
            "eos_token_id": c.specials.eos,
            "forced_eos_token_id": None,
        }


def _share(get: Any) -> str:
    if get("share_encoder_decoder_embeddings"):
        if not get("tie_word_embeddings"):
            raise WeightsError("an output layer apart from shared embeddings: Vitrail's Transformer lacks that form.")
        return "all"
    return "target" if get("tie_word_embeddings") else "none"


def _number(name: str) -> int:
    """Return the first number between the dots of a name, or -1."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


_TWICE = (
    ("vocab_size", "decoder_vocab_size"),
    ("encoder_attention_heads", "decoder_attention_heads"),
    ("encoder_ffn_dim", "decoder_ffn_dim"),
)
_FIXED = {  # what old files of Helsinki-NLP say beside; transformers has one form of each
    "add_final_layer_norm": False,
    "normalize_before": False,
    "normalize_embedding": False,
    "static_position_embeddings": True,
    "add_bias_logits": False,
}
_DEFAULTS: dict[str, Any] = {  # config.json may leave out what is default
    "vocab_size": 58101,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "d_model": 1024,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "decoder_start_token_id": 58100,
    "scale_embedding": False,
    "pad_token_id": 58100,
    "eos_token_id": 0,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
}

FAMILY = TransformerFamily()
