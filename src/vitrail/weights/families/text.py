"""What the families of models that read texts have in common: no cards, no timm, and their own names in folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vitrail.weights.convert import Table, plan

from .base import Family


class TextFamily(Family):
    """A family of models that read texts."""

    stored_layout = "vitrail"

    def describe(self, config: Any) -> str:
        names = ("encoder_depth", "decoder_depth", "depth")
        depths = [str(getattr(config, name)) for name in names if hasattr(config, name)]
        words = f"width {config.embed_dim}, {config.num_heads} heads, layers {' and '.join(depths)}"
        return f"{words}, hidden {config.hidden_dim}, vocabulary {config.vocab_size}"

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        """Return the table of a layout to write with: the first of those with the fewest tensors without a name."""
        return min(tables, key=lambda table: len(plan(table, tensors).unmapped))
