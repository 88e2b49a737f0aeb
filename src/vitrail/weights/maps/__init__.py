"""The tables of every family, one file a model file; see :mod:`vitrail.weights.convert`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from vitrail.errors import WeightsError
from vitrail.weights.convert import Table


def tables_for(config: Any) -> tuple[Table, ...]:
    """Return the tables of a model's config, found by the name of the file that defines it."""
    family = type(config).__module__.rpartition(".")[2]
    name = f"{__name__}.{family}"
    if not type(config).__module__.startswith("vitrail.models.") or importlib.util.find_spec(name) is None:
        raise WeightsError(f"no conversion table for {type(config).__name__}: expected one of Vitrail's own models")
    tables: tuple[Table, ...] = importlib.import_module(name).TABLES
    return tables


def layouts(config: Any) -> list[str]:
    """Return the layouts a model can be written in, in the order of its tables."""
    return list(dict.fromkeys(t.layout for t in tables_for(config)))
