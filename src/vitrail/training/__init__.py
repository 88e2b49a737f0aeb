"""Training: recipes, one loop, checkpoints that survive. The doors are :func:`train` and :func:`resume`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recipe import Recipe as Recipe
    from .run import RunResult as RunResult
    from .run import resume as resume
    from .run import train as train

_DOORS = {"Recipe": "recipe", "RunResult": "run", "resume": "run", "train": "run"}
__all__ = ["Recipe", "RunResult", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(importlib.import_module(f"{__name__}.{_DOORS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
