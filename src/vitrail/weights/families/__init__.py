"""What the engine must know of each family beside its tables: one file a model file, found by its name.

``families/foo.py`` defines ``FAMILY``, an instance of a subclass of :class:`Family`; a model file without one gets the
defaults, which do nothing. Nothing else in ``weights`` knows the fields of a family's config.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

from vitrail.errors import WeightsError
from vitrail.models import variants

from .base import Family, Shapes

_MODELS = "vitrail.models."


def family_of(config: Any) -> Family:
    """Return the family of a model's config; :class:`WeightsError` if it is none of Vitrail's own."""
    module = type(config).__module__
    if not module.startswith(_MODELS):
        raise WeightsError(f"expected the config of one of Vitrail's own models, got a {type(config).__name__}")
    return _family(module.removeprefix(_MODELS))


def families() -> dict[str, Family]:
    """Return model file -> family, over all models."""
    names = {type(config).__module__.removeprefix(_MODELS) for config in variants().values()}
    return {name: _family(name) for name in sorted(names)}


@cache
def _family(name: str) -> Family:
    if importlib.util.find_spec(f"{__name__}.{name}") is None:
        return Family()
    family: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
    return family


__all__ = ["Family", "Shapes", "families", "family_of"]
