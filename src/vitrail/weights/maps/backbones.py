"""Backbones within networks of other tasks: the tables of their own families, under the names they have there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vitrail.weights.tables import Entry, Table

FAMILIES = ("swin", "pvt", "pvt_v2", "resnet", "bit", "vit", "deit", "hybrid", "coatnet")
"""Those that give maps; each is a file here."""


def below(entries: Iterable[Entry], ours: str, theirs: str) -> tuple[Entry, ...]:
    """Return entries with a prefix before each of our names, and another before each of theirs."""
    return tuple(replace(e, ours=ours + e.ours, theirs=tuple(theirs + t for t in e.theirs)) for e in entries)


def tables_of(family: str) -> Sequence[Table]:
    """Return the tables of a family."""
    found: Sequence[Table] = importlib.import_module(f"vitrail.weights.maps.{family}").TABLES
    return found


def own_entries(prefix: str) -> tuple[Entry, ...]:
    """Return an entry for every tensor of every backbone, under our own names below ``prefix`` on both sides."""
    names = dict.fromkeys(e.ours for family in FAMILIES for table in tables_of(family) for e in table.entries)
    return tuple(Entry(prefix + name, (prefix + name,)) for name in names)
