"""Checks of the numbers a network is made of, before anything is built: plain arguments, ValueError in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def require_positive(values: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError unless each of ``names`` is a number of at least 1, or holds nothing but such numbers."""
    for name in names:
        value = values[name]
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")


def require_each(values: Mapping[str, Any], stages: str, *names: str) -> None:
    """Raise ValueError unless there is at least one stage, and each of ``names`` has a value for each."""
    count = len(values[stages])
    if not count:
        raise ValueError(f"expected {stages} of at least one stage, got none")
    for name in names:
        if len(values[name]) != count:
            raise ValueError(f"expected {name} with {count} values, one for each of {stages}, got {values[name]}")


def require_heads(widths: Sequence[int], heads: Sequence[int]) -> None:
    """Raise ValueError unless each width is a multiple of its number of heads."""
    for width, count in zip(widths, heads, strict=True):
        if width % count:
            raise ValueError(f"expected num_heads that divide the width of {width}, got {count}")


def require_multiple(what: str, widths: Sequence[int], name: str, part: int) -> None:
    """Raise ValueError unless every width of ``what`` is a multiple of ``part``, which is the setting ``name``."""
    for width in widths:
        if width % part:
            raise ValueError(f"expected {what} of a multiple of {name}={part} channels, got {width}")
