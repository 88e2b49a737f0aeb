"""Using a trained model: load it, predict, explain.

Everything is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_DOORS = {
    "ClassificationResult": "results",
    "Explanation": "explanation",
    "MultiLabelResult": "labels",
    "Painted": "pixels",
    "Painter": "pixels",
    "Predictor": "predictor",
    "TranslatedSentence": "translator",
    "Translator": "translator",
    "load": "loading",
    "results_to_csv": "results",
    "table_rows": "results",
}

if TYPE_CHECKING:
    from .explanation import Explanation as Explanation
    from .labels import MultiLabelResult as MultiLabelResult
    from .loading import load as load
    from .pixels import Painted as Painted
    from .pixels import Painter as Painter
    from .predictor import Predictor as Predictor
    from .results import ClassificationResult as ClassificationResult
    from .results import results_to_csv as results_to_csv
    from .results import table_rows as table_rows
    from .translator import TranslatedSentence as TranslatedSentence
    from .translator import Translator as Translator

__all__ = [
    "ClassificationResult",
    "Explanation",
    "MultiLabelResult",
    "Painted",
    "Painter",
    "Predictor",
    "TranslatedSentence",
    "Translator",
    "load",
    "results_to_csv",
    "table_rows",
]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
