"""The table of the Transformer decoder alone: our own names."""

from __future__ import annotations

from vitrail.weights.tables import Entry, Table, own_table

from .transformer import VITRAIL as _BOTH

_ENTRIES = tuple(e for e in _BOTH.entries if e.ours.startswith("decoder.") and ".cross." not in e.ours)

TABLES: tuple[Table, ...] = (own_table((Entry("embed.weight", ("embed.weight",)), *_ENTRIES)),)
