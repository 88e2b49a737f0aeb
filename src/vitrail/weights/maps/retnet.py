"""Tables for RetNet: torchscale's ``RetNetDecoder``, alone or inside fairseq's language model; ours for the rest.

Source of the names: torchscale 0.3.0 ``architecture/retnet.py``. No weights of it are public; what people trained with
it loads.
"""

from __future__ import annotations

from vitrail.weights.convert import Entry, Table, own_table

from .transformer import VITRAIL as TRANSFORMER

_RETENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "gate": "g_proj", "proj": "out_proj"}
_LAYER = {
    **{f"retention.{ours}": f"retention.{theirs}" for ours, theirs in _RETENTION.items()},
    "norm1": "retention_layer_norm",
    "norm2": "final_layer_norm",
    **{f"mlp.{part}": f"ffn.{part}" for part in ("fc1", "gate", "fc2")},
}
HEAD = ("output_*",)


def _weight(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}.weight", (f"{theirs}.weight",))


TORCHSCALE_ENTRIES = (
    _weight("embed_tokens", "embed_tokens"),
    *(_weight(f"blocks.{{i}}.{ours}", f"layers.{{i}}.{theirs}") for ours, theirs in _LAYER.items()),
    _weight("norm", "layer_norm"),
    _weight("output_projection", "output_projection"),
)
TORCHSCALE = Table(
    "torchscale",
    "torchscale RetNetDecoder",
    TORCHSCALE_ENTRIES,
    ("retnet_rel_pos.*", "decoder.retnet_rel_pos.*", "decoder.version"),
    prefixes=("", "decoder."),
    head=HEAD,
)


_ENCODER_DECODER = (  # a Transformer with retention for the mixer of its decoder
    *(entry for entry in TRANSFORMER.entries if ".mixer." not in entry.ours),
    *(_weight(name, name) for name in (f"decoder.layers.{{i}}.mixer.{part}" for part in _RETENTION)),
)
VITRAIL = own_table((*TORCHSCALE_ENTRIES, *_ENCODER_DECODER), HEAD)

TABLES: tuple[Table, ...] = (VITRAIL, TORCHSCALE)
