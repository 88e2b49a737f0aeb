"""The recurrent models: no other library has them."""

from __future__ import annotations

from typing import Any

from .text import TextFamily


class RNNFamily(TextFamily):
    """Cells in place of heads."""

    def describe(self, config: Any) -> str:
        words = f"cell {config.cell}, embedding {config.embed_dim}, state {config.hidden_dim}, layers {config.depth}"
        kind = getattr(config, "attention", None)
        return f"{words}, vocabulary {config.vocab_size}" + ("" if kind is None else f", attention {kind}")


FAMILY = RNNFamily()
