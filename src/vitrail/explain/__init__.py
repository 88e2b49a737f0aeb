"""Explaining a model: recorded attention, rollout, relevance, distances, the known figures, the run's report.

``record`` and ``rollout`` are both modules and the functions in them, so these two are bound here; everything
else is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .record import Recording, record
from .rollout import rollout

_DOORS = {
    "METHODS": "maps",
    "AttentionMaps": "maps",
    "attention_distances": "distance",
    "attention_maps": "maps",
    "draw_figures": "figures",
    "draw_position_figures": "sinusoids",
    "deletion_insertion": "faithfulness",
    "gradients_through_time": "through_time",
    "query_attention": "queries",
    "write_report": "report",
}

if TYPE_CHECKING:
    from .distance import attention_distances as attention_distances
    from .faithfulness import deletion_insertion as deletion_insertion
    from .figures import draw_figures as draw_figures
    from .maps import METHODS as METHODS
    from .maps import AttentionMaps as AttentionMaps
    from .maps import attention_maps as attention_maps
    from .queries import query_attention as query_attention
    from .report import write_report as write_report
    from .sinusoids import draw_position_figures as draw_position_figures
    from .through_time import gradients_through_time as gradients_through_time

__all__ = [
    "METHODS",
    "AttentionMaps",
    "Recording",
    "attention_distances",
    "attention_maps",
    "deletion_insertion",
    "draw_figures",
    "draw_position_figures",
    "gradients_through_time",
    "query_attention",
    "record",
    "rollout",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
