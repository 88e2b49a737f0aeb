"""Tables for the encoder-decoder Transformer: transformers' Marian, fairseq, OpenNMT-py and ``torch.nn.Transformer``.

Sources of the names: transformers 5 ``MarianMTModel`` (Hub names are its names in memory); facebookresearch/fairseq
``models/transformer``; OpenNMT/OpenNMT-py 2 and 3 ``onmt/encoders/transformer.py``, ``onmt/decoders/transformer.py``;
torch 2 ``nn.Transformer``, which has no embeddings: they are expected beside it under our own names, in a module that
holds it as ``transformer``.

Where one matrix has several names in a file, all of them are read, and must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.tables import CONCAT, Entry, Numbers, Table, Transform, module, own_table

_NORMS = tuple(f"{stack}.norm" for stack in ("encoder", "decoder"))


def _same(parts: Sequence[Tensor], numbers: Numbers) -> Tensor:
    if not all(torch.equal(parts[0], part) for part in parts[1:]):
        raise WeightsError(
            f"expected one matrix under {len(parts)} names (embeddings that are shared), got different ones."
            ' mend: create the model with share="target" or share="none".'
        )
    return parts[0]


TIED = Transform(
    "one matrix under several names", _same, lambda t, count, n: [t, *(t.clone() for _ in range(count - 1))]
)
ROW = Transform("one row", lambda parts, n: parts[0].flatten(), lambda t, count, n: [t[None]])


def _embeddings(source: str, target: str, output: str) -> tuple[tuple[Entry, ...], ...]:
    """The entries of each way to share the three matrices, with and without a name for the output of its own."""
    apart = Entry("embed.weight", (source,))
    return (
        (Entry("embed.weight", (source, target, output), TIED),),
        (Entry("embed.weight", (source, target), TIED),),
        (apart, Entry("target_embed.weight", (target, output), TIED)),
        (apart, Entry("target_embed.weight", (target,))),
        (apart, Entry("target_embed.weight", (target,)), Entry("output.weight", (output,))),
    )


def _tables(
    layout: str,
    title: str,
    body: tuple[Entry, ...],
    tables: Sequence[tuple[Entry, ...]],
    ignored: tuple[str, ...] = (),
    prefixes: tuple[str, ...] = ("",),
) -> tuple[Table, ...]:
    return tuple(Table(layout, title, (*body, *own), ignored, prefixes) for own in tables)


# ---- transformers and fairseq, which Marian's names come from


def _fairseq(base: str) -> tuple[Entry, ...]:
    """The layers of both stacks, below the prefix ``base``, and what stands behind them."""

    def attention(ours: str, theirs: str) -> tuple[Entry, ...]:
        qkv = (f"{theirs}.{part}_proj" for part in "qkv")
        return *module(f"{ours}.qkv", *qkv, transform=CONCAT), *module(f"{ours}.proj", f"{theirs}.out_proj")

    def layer(stack: str, parts: dict[str, str], norms: dict[str, str]) -> Iterator[Entry]:
        for ours, theirs in parts.items():
            yield from attention(f"{stack}.layers.{{i}}.{ours}", f"{base}{stack}.layers.{{i}}.{theirs}")
        for ours, theirs in {**norms, "mlp.fc1": "fc1", "mlp.fc2": "fc2"}.items():
            yield from module(f"{stack}.layers.{{i}}.{ours}", f"{base}{stack}.layers.{{i}}.{theirs}")
        yield from module(f"{stack}.norm", f"{base}{stack}.layer_norm")

    first, last = {"norm1": "self_attn_layer_norm"}, "final_layer_norm"
    return (
        *layer("encoder", {"attn": "self_attn"}, {**first, "norm2": last}),
        *layer(
            "decoder",
            {"mixer.attn": "self_attn", "cross": "encoder_attn"},
            {**first, "norm2": "encoder_attn_layer_norm", "norm3": last},
        ),
    )


_PAIR = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_MARIAN = ("model.shared.weight", *(f"model.{name}" for name in _PAIR), "lm_head.weight")
TRANSFORMERS = _tables(
    "transformers",
    "transformers MarianMTModel",
    (*_fairseq("model."), Entry("output_bias", ("final_logits_bias",), ROW)),
    (
        *((Entry("embed.weight", _MARIAN[:count], TIED),) for count in (1, 3, 4)),
        *_embeddings(*_MARIAN[1:])[3:],  # as transformers writes them, then as old files hold them
        *_embeddings(*_MARIAN[1:])[:3],
    ),
    ignored=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
)
FAIRSEQ = _tables(
    "fairseq",
    "fairseq Transformer",
    (*_fairseq(""), Entry("output_bias", ("decoder.output_projection.bias",))),
    _embeddings(*_PAIR, "decoder.output_projection.weight"),
    ignored=("*.embed_positions._float_tensor", "*.version"),
)

# ---- OpenNMT-py: pre-norm, a norm at the end of each stack, the generator apart


def _opennmt() -> tuple[Entry, ...]:
    def attention(ours: str, theirs: str) -> tuple[Entry, ...]:
        qkv = (f"{theirs}.linear_{part}" for part in ("query", "keys", "values"))
        return *module(f"{ours}.qkv", *qkv, transform=CONCAT), *module(f"{ours}.proj", f"{theirs}.final_linear")

    ours_in, theirs_in = "encoder.layers.{i}", "encoder.transformer.{i}"
    ours_out, theirs_out = "decoder.layers.{i}", "decoder.transformer_layers.{i}"
    mlp = {"mlp.fc1": "feed_forward.w_1", "mlp.fc2": "feed_forward.w_2"}
    inner = {"norm1": "layer_norm", "norm2": "feed_forward.layer_norm", **mlp}
    outer = {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "norm3": "feed_forward.layer_norm", **mlp}
    return (
        *attention(f"{ours_in}.attn", f"{theirs_in}.self_attn"),
        *attention(f"{ours_out}.mixer.attn", f"{theirs_out}.self_attn"),
        *attention(f"{ours_out}.cross", f"{theirs_out}.context_attn"),
        *(entry for a, b in inner.items() for entry in module(f"{ours_in}.{a}", f"{theirs_in}.{b}")),
        *(entry for a, b in outer.items() for entry in module(f"{ours_out}.{a}", f"{theirs_out}.{b}")),
        *(entry for name in _NORMS for entry in module(name, name.replace(".norm", ".layer_norm"))),
    )


_LUTS = tuple(f"{stack}.embeddings.make_embedding.emb_luts.0.weight" for stack in ("encoder", "decoder"))
OPENNMT = tuple(
    table
    for generator in ("generator.0", "generator")
    for table in _tables(
        "opennmt",
        "OpenNMT-py Transformer",
        (*_opennmt(), Entry("output_bias", (f"{generator}.bias",))),
        _embeddings(_LUTS[0], _LUTS[1], f"{generator}.weight"),
        ignored=("*.make_embedding.pe.pe",),
    )
)

# ---- torch.nn.Transformer


def _torch() -> tuple[Entry, ...]:
    def layer(stack: str, parts: dict[str, str], norms: int) -> Iterator[Entry]:
        ours, theirs = f"{stack}.layers.{{i}}", f"transformer.{stack}.layers.{{i}}"
        for mine, name in parts.items():
            for kind in ("weight", "bias"):
                yield Entry(f"{ours}.{mine}.qkv.{kind}", (f"{theirs}.{name}.in_proj_{kind}",))
            yield from module(f"{ours}.{mine}.proj", f"{theirs}.{name}.out_proj")
        for number in (1, 2):
            yield from module(f"{ours}.mlp.fc{number}", f"{theirs}.linear{number}")
        for number in range(1, norms + 1):
            yield from module(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        yield from module(f"{stack}.norm", f"transformer.{stack}.norm")

    return (
        *layer("encoder", {"attn": "self_attn"}, 2),
        *layer("decoder", {"mixer.attn": "self_attn", "cross": "multihead_attn"}, 3),
    )


_OUTSIDE = ("embed.weight", "target_embed.weight", "output.weight", "output_bias")
TORCH = Table("torch", "torch.nn.Transformer", (*_torch(), *(Entry(name, (name,)) for name in _OUTSIDE)))

VITRAIL = own_table(TORCH.entries)
TABLES: tuple[Table, ...] = (VITRAIL, *TRANSFORMERS, *FAIRSEQ, *OPENNMT, TORCH)
