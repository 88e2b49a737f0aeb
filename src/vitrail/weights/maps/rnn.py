"""Tables for the recurrent models.

Source of the names: PyTorch's example ``word_language_model``: ``encoder`` is the embedding, ``rnn`` the layers (whose
names are torch's, which are ours too), ``decoder`` the head. No library publishes weights of these; files of torch's
own modules under these names load.
"""

from __future__ import annotations

from vitrail.weights.tables import Entry, Table, module

_KINDS = tuple(f"{kind}_{part}" for part in ("ih", "hh") for kind in ("weight", "bias"))
MOST_LAYERS = 8


def _same(name: str) -> Entry:
    return Entry(name, (name,))


def _layers(name: str, ends: tuple[str, ...] = ("",)) -> tuple[Entry, ...]:
    """The tensors of torch's recurrent modules, which stand in no list: their numbers are part of the last name."""
    return tuple(_same(f"{name}.{kind}_l{i}{end}") for i in range(MOST_LAYERS) for end in ends for kind in _KINDS)


OWN = (
    _same("embed.weight"),
    _same("target_embed.weight"),
    _same("output_weight"),
    _same("output_bias"),
    *_layers("rnn"),
    *_layers("encoder", ("", "_reverse")),
    *_layers("decoder"),
    *module("bridge.hidden", "bridge.hidden"),
    *module("bridge.cell", "bridge.cell"),
    *module("attention.query", "attention.query"),
    _same("attention.key.weight"),
    _same("attention.score"),
    *module("readout", "readout"),
)
HEAD = ("output_*",)
TORCH = Table(
    "torch",
    "PyTorch's word_language_model",
    (
        Entry("embed.weight", ("encoder.weight",)),
        *_layers("rnn"),
        Entry("output_weight", ("decoder.weight",)),
        Entry("output_bias", ("decoder.bias",)),
    ),
    head=HEAD,
)

TABLES: tuple[Table, ...] = (Table("vitrail", "Vitrail", OWN, head=HEAD), TORCH)
