"""Tables for image GPT: transformers (whose Hub names are its names in memory) and OpenAI's TensorFlow names.

Sources of the names: transformers 5 ``ImageGPTForCausalImageModeling``, ``ImageGPTForImageClassification``; the
variables of openai/image-gpt, ``src/model.py``. transformers keeps the palette in ``preprocessor_config.json``,
OpenAI in ``kmeans_centers.npy``: both are read here as one more tensor, which a file may lack.
"""

from __future__ import annotations

import torch

from vitrail.weights.tables import SAME, TRANSPOSE, Entry, Table, Transform, own_table

BUFFERS = ("*.attn.bias", "*.attn.masked_bias")
"""The causal mask, which files of old versions hold."""
HEAD = ("head.*", "pixel_head.*")
"""A classifier may start from a painter's weights, and a painter leaves a classifier's head."""

ROWS = Transform("a table without batch", lambda parts, n: parts[0][None], lambda t, count, n: [t[0]])
START = Transform(
    "colours and start token",
    lambda parts, n: torch.cat([parts[0], parts[1][None]]),
    lambda t, count, n: [t[:-1], t[-1]],
)
IN_HEADS = Transform(
    "three (heads, head width, width) tensors",
    lambda parts, n: torch.cat([p.flatten(0, 1) for p in parts]),
    lambda t, count, n: [p.reshape(n["num_heads"], -1, t.shape[1]) for p in t.chunk(3)],
)
OUT_OF_HEADS = Transform(
    "a (heads, head width, width) tensor",
    lambda parts, n: parts[0].flatten(0, 1).T,
    lambda t, count, n: [t.T.reshape(n["num_heads"], -1, t.shape[0])],
)

_BLOCK = "blocks.{i}"
_LAYERS = {"attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def _transformers(base: str) -> tuple[Entry, ...]:
    layer = f"{base}h.{{i}}"
    return (
        Entry("palette", ("clusters",)),
        Entry("embed.weight", (f"{base}wte.weight",)),
        Entry("pos_embed", (f"{base}wpe.weight",), ROWS),
        Entry(f"{_BLOCK}.norm1.weight", (f"{layer}.ln_1.weight",)),
        Entry(f"{_BLOCK}.norm2.weight", (f"{layer}.ln_2.weight",)),
        *(
            Entry(f"{_BLOCK}.{ours}.{kind}", (f"{layer}.{theirs}.{kind}",), TRANSPOSE if kind == "weight" else SAME)
            for ours, theirs in _LAYERS.items()
            for kind in ("weight", "bias")
        ),
        Entry("norm.weight", (f"{base}ln_f.weight",)),
        Entry("pixel_head.weight", ("lm_head.weight",)),
        Entry("head.weight", ("score.weight",)),
    )


def _openai(*embed: str) -> tuple[Entry, ...]:
    layer = "h{i}"
    return (
        Entry("palette", ("kmeans_centers",)),
        Entry("embed.weight", embed, START if len(embed) == 2 else SAME),
        Entry("pos_embed", ("wpe",), ROWS),
        Entry(f"{_BLOCK}.norm1.weight", (f"{layer}/ln_1/g",)),
        Entry(f"{_BLOCK}.norm2.weight", (f"{layer}/ln_2/g",)),
        Entry(f"{_BLOCK}.attn.qkv.weight", tuple(f"{layer}/attn/{x}_proj" for x in "qkv"), IN_HEADS),
        Entry(f"{_BLOCK}.attn.proj.weight", (f"{layer}/attn/c_proj",), OUT_OF_HEADS),
        Entry(f"{_BLOCK}.mlp.fc1.weight", (f"{layer}/mlp/c_fc/w",), TRANSPOSE),
        Entry(f"{_BLOCK}.mlp.fc2.weight", (f"{layer}/mlp/c_proj/w",), TRANSPOSE),
        Entry("norm.weight", ("ln_f/g",)),
        Entry("pixel_head.weight", ("wtet",)),
    )


_TRAINING_STATE = ("*Adam*", "*beta?_power", "*global_step")
VITRAIL = own_table(_transformers(""), HEAD)
TRANSFORMERS = tuple(
    Table("transformers", f"transformers ImageGPT{name}", _transformers(base), BUFFERS, head=HEAD)
    for base, name in (("transformer.", "ForCausalImageModeling or ForImageClassification"), ("", "Model"))
)
OPENAI = tuple(
    Table("original", f"OpenAI image GPT{name}", _openai(*embed), _TRAINING_STATE, ("model/", ""), HEAD)
    for embed, name in ((("wte", "sos"), ""), (("wte",), ", masked"))
)

TABLES: tuple[Table, ...] = (VITRAIL, *TRANSFORMERS, *OPENAI)
