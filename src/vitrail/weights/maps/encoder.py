"""The table of the Transformer encoder alone: our own names."""

from __future__ import annotations

from vitrail.weights.tables import Entry, Table, module, own_table

from .transformer import VITRAIL as _BOTH

_NAMES = ("embed.weight", "cls_token", "head.output_bias")

TABLES: tuple[Table, ...] = (
    own_table(
        (
            *(Entry(name, (name,)) for name in _NAMES),
            *(e for e in _BOTH.entries if e.ours.startswith("encoder.")),
            *(e for part in ("head", "head.fc", "head.norm") for e in module(part, part)),
        )
    ),
)
