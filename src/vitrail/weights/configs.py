"""Configurations of other libraries, read and written: timm's ``config.json`` and transformers'.

Nothing here runs or imports those libraries: a configuration is data. Names of classes and of remote code in it are
never looked up. What the data mean, the families know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrail.errors import WeightsError, did_you_mean
from vitrail.models import reads_text, variants

from .families import Shapes, families, family_of


def in_timm(name: str) -> bool:
    """Whether timm knows a model of ours by the same name."""
    return name in variants() and family_of(variants()[name]).in_timm(name)


def to_timm(name: str, config: Any) -> tuple[str, dict[str, Any]]:
    """Return (architecture, model arguments) with which timm builds the same network, the class count apart."""
    return family_of(config).to_timm(name, config)


def from_timm(data: Mapping[str, Any], shapes: Shapes) -> Any:
    """Return our config of a ``config.json`` that timm wrote, and of tensors of these shapes."""
    name = str(data["architecture"])
    if not in_timm(name):
        near = did_you_mean(name, filter(in_timm, variants()))
        raise WeightsError(f"{name!r} of timm is not a model Vitrail has.{near} `vitrail models` lists all.")
    return family_of(variants()[name]).from_timm(data, shapes)


def from_transformers(data: Mapping[str, Any], shapes: Shapes) -> Any:
    """Return our config of a transformers ``config.json``, and of tensors of these shapes."""
    known = {kind: family for family in families().values() for kind in family.model_types}
    kind = data.get("model_type")
    if kind not in known:
        raise WeightsError(f"expected model_type of {', '.join(sorted(known))} in config.json, got {kind!r}")
    return known[kind].from_transformers(data, shapes)


def to_transformers(config: Any, names: list[str] | None) -> dict[str, Any]:
    """Return transformers' ``config.json`` of a model that ``export_weights`` can write in that layout."""
    return family_of(config).to_transformers(config, names)


def name_of(config: Any) -> str:
    """Return the variant that a config is, whatever its image size, channels, classes and rates; "" if it is none."""
    near = [n for n in variants() if is_variant(n, config)]
    if not reads_text(config):
        near.sort(key=lambda n: _strange(variants()[n], config))
    return near[0] if near else ""


def _strange(known: Any, config: Any) -> tuple[bool, ...]:
    """Return what of a variant of the same sizes is otherwise in a config, what counts most first."""
    init = [getattr(getattr(c, "numerics", None), "init", None) for c in (known, config)]
    return known.img_size != config.img_size, known.in_chans != config.in_chans, init[0] != init[1]


def is_variant(name: str, config: Any) -> bool:
    """Whether a config has the sizes of the variant ``name``, whatever its images, classes, rates and numerics."""
    known = variants().get(name)
    if known is None or type(known) is not type(config):
        return False
    return _alike(known, config)


def _alike(one: Any, other: Any) -> bool:
    """Whether two configs of a type have the same sizes; so with their backbones."""
    if type(one) is not type(other):
        return False
    sizes = [f.name for f in fields(other) if f.name not in (*_FREE, "backbone")]
    same = all(getattr(one, name) == getattr(other, name) for name in sizes)
    return same and (not hasattr(other, "backbone") or _alike(one.backbone, other.backbone))


_FREE = {"img_size", "in_chans", "num_classes", "drop_rate", "drop_path_rate", "numerics", "vocab_size", "specials"}
_FREE |= {"colours", "objective", "joint", "bias"}  # what an image GPT reads and says, whatever its size
