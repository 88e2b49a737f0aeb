"""Weights: strict loading and writing in the layouts of timm, transformers and the original code; cards; folders.

``load_weights`` and ``export_weights`` work on a model you have; ``load_model`` makes one from a folder or a hub id.
"""

from __future__ import annotations

from .cards import Card, card_for, cards
from .fit import HeadSwap
from .folder import Folder, load_folder, load_model, open_folder, save_folder
from .load import LoadReport, export_weights, load_pretrained, load_weights

__all__ = [
    "Card",
    "Folder",
    "HeadSwap",
    "LoadReport",
    "card_for",
    "cards",
    "export_weights",
    "load_folder",
    "load_model",
    "load_pretrained",
    "load_weights",
    "open_folder",
    "save_folder",
]
