"""The network that a predictor runs, wherever it comes from: a folder of weights, or a file that was exported.

An exported file (``.onnx``) carries its card, classes and config, so a predictor of it is made like one of a folder; it
takes the one image size that it was exported for, and any batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vitrail.classes import ClassMap
from vitrail.models import config_from_dict
from vitrail.weights import Card, load_model, open_folder

EXPORTED = ".onnx"
"""Ending of the files of `vitrail export` that can be loaded again."""


@dataclass(frozen=True)
class Network:
    """A network and what its user must know.

    Attributes:
        model: called as the network of ``config`` is.
        config: of the network.
        card: what the weights ask of images, their licence and origin.
        classes: the class map, where there are classes and names.
        extra: what the maker put beside the weights.
    """

    model: nn.Module
    config: Any
    card: Card
    classes: ClassMap | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def is_exported(source: str | Path) -> bool:
    """Tell whether a source is a file that `vitrail export` wrote, by its ending."""
    return Path(source).suffix.lower() == EXPORTED


def config_at(source: str | Path) -> Any:
    """Return the config of the network at ``source``, without reading its weights."""
    if is_exported(source):
        from .exported import read_passport

        return config_from_dict(read_passport(Path(source))["config"])
    return open_folder(source).config


def open_network(source: str | Path) -> Network:
    """Read the network at ``source``: a run, a folder, a hub id, or a file of `vitrail export`.

    Raises :class:`WeightsError` if there is no usable model.
    """
    if is_exported(source):
        from .exported import open_exported

        return open_exported(Path(source))
    model, card, classes = load_model(source)
    extra = open_folder(source).extra
    return Network(model, getattr(model, "config", None), card, classes, extra)
