"""The last words of a training: what it reached, where it is, what to type next."""

from __future__ import annotations

from typing import Any


def finish(verb: str, as_json: bool, run: Any) -> None:
    """Say them."""
