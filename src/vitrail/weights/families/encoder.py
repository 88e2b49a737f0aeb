"""The Transformer encoder alone: in Vitrail's own names only."""

from __future__ import annotations

from .text import TextFamily

FAMILY = TextFamily()
