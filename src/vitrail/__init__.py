"""Vitrail: vision transformers, from the lecture to production.

Importing this package is light: torch loads when a door is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_DOORS = {
    "create_model": "vitrail.models",
    "list_models": "vitrail.models",
    "load_weights": "vitrail.weights",
    "export_weights": "vitrail.weights",
    "load": "vitrail.infer",
    "probe": "vitrail.training.probing",
    "train": "vitrail.training",
}

if TYPE_CHECKING:
    from .infer import load as load
    from .models import create_model as create_model
    from .models import list_models as list_models
    from .training import train as train
    from .training.probing import probe as probe
    from .weights import export_weights as export_weights
    from .weights import load_weights as load_weights

__all__ = ["__version__", "create_model", "export_weights", "list_models", "load", "load_weights", "probe", "train"]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(importlib.import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'vitrail' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "errors", "classes", "nn", "models"])
