"""Architectures: one file each, found by their names; ``create_model`` and ``list_models`` are the doors.

A file here holds a frozen config, a module that takes it, ``MODELS`` (config type -> module) and ``VARIANTS`` (name ->
config). Names that begin with ``test_`` are sizes for tests and stay out of listings. A network of another task than
classification says so by ``answers`` of its config's class; its backbone is a config within its config.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from vitrail.errors import UsageError, WeightsError, did_you_mean, require_known
from vitrail.fields import fits, hints, require_fit
from vitrail.nn.pyramid import FeaturePyramid

HUB_PREFIX = "hf-hub:"


@cache
def _families() -> dict[str, Any]:
    """Return file name -> module of every architecture file."""
    return {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}


@cache
def variants() -> dict[str, Any]:
    """Return model name -> config, over all files; the test sizes too."""
    found: dict[str, Any] = {}
    for family, module in _families().items():
        twice = found.keys() & module.VARIANTS.keys()
        if twice:
            raise RuntimeError(f"models/{family}.py defines names that exist already: {sorted(twice)}")
        found |= module.VARIANTS
    return found


def reads_text(config: Any) -> bool:
    """Whether a model reads sequences of tokens, by :mod:`vitrail.nn.steps`, and not images."""
    return hasattr(config, "specials")


def translates(config: Any) -> bool:
    """Whether a model maps a source text to a target text, and is no decoder or encoder alone."""
    kind = next(module.MODELS[type(config)] for module in _families().values() if type(config) in module.MODELS)
    return reads_text(config) and {"source", "target"} <= inspect.signature(kind.forward).parameters.keys()


def answers(config: Any) -> str:
    """Return what a model says of an image: "classes", or what its config's class names.

    "boxes" (detection), "masks" (semantic segmentation), "pictures" (restoration); "text" of what reads tokens.
    """
    return "text" if reads_text(config) else getattr(config, "answers", "classes")


@cache
def variants_that(answer: str) -> dict[str, Any]:
    """Return those of :func:`variants` whose :func:`answers` are of a kind."""
    return {name: config for name, config in variants().items() if answers(config) == answer}


@cache
def image_variants() -> dict[str, Any]:
    """Return those of :func:`variants` that classify images: each config has ``img_size`` and ``num_classes``."""
    return variants_that("classes")


@cache
def text_variants() -> dict[str, Any]:
    """Return those of :func:`variants` that read tokens: each config has ``vocab_size`` and ``specials``."""
    return {name: config for name, config in variants().items() if reads_text(config)}


def list_models(pattern: str = "*") -> list[str]:
    """Return the model names that match a wildcard pattern (``"vit_*"``), sorted; sizes for tests left out."""
    return sorted(n for n in variants() if fnmatch.fnmatchcase(n, pattern) and not n.startswith("test_"))


def config_of(name: str) -> Any:
    """Return the config of a model name; :class:`WeightsError` suggests the nearest one.

    A tag after a dot, which names the origin of weights (``vit_base_patch16_224.augreg_in21k``), is left aside.
    """
    base = name.partition(".")[0]
    if base not in variants():
        hint = did_you_mean(base, list_models())
        raise WeightsError(f"unknown model {name!r}.{hint} `vitrail models` lists all names.")
    return variants()[base]


def build(config: Any) -> nn.Module:
    """Return the module of a config, in train mode, with fresh weights; :class:`UsageError` if it cannot be built."""
    for module in _families().values():
        if type(config) in module.MODELS:
            try:
                model: nn.Module = module.MODELS[type(config)](config)
            except ValueError as error:
                raise UsageError(str(error)) from error
            return model
    raise WeightsError(f"expected the config of a model, got a {type(config).__name__}")


def create_model(
    name: str,
    pretrained: str | Path | bool | None = None,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **overrides: Any,
) -> nn.Module:
    """Return the model ``name`` in train mode, float32.

    Args:
        name: a name of :func:`list_models`, or ``hf-hub:org/name`` for the architecture and weights found there.
        pretrained: a path, a folder, ``hf-hub:org/name``, or True for the origin that the model's card names.
        features_only: whether to return a :class:`~vitrail.nn.pyramid.FeaturePyramid` instead: images -> list of maps.
        out_indices: with ``features_only``, which maps to give, in increasing order, counted from the finest (below 0
            from the coarsest); default all.
        overrides: fields of the model's config, such as ``num_classes``, ``in_chans``, ``img_size`` (int or (H, W)),
            ``drop_path_rate``, ``global_pool``. With ``pretrained``, another ``num_classes`` than the weights'
            starts a new head.

    Raises:
        UsageError: an unknown keyword, with the nearest name.
        WeightsError: an unknown model, or weights that do not fit.
    """
    if features_only:
        return _pyramid(create_model(name, pretrained, **{"num_classes": 0, **overrides}), out_indices)
    if out_indices is not None:
        raise UsageError("out_indices has no effect without features_only=True")
    if name.startswith(HUB_PREFIX):
        if pretrained is not None and pretrained is not True:
            raise UsageError(
                f"pretrained={pretrained!r} has no effect on {name}, which names the weights too. mend: leave"
                " pretrained out, or create a model by its own name."
            )
        loader = importlib.import_module("vitrail.weights")
        model: nn.Module = loader.load_model(name, **overrides)[0]
        return model
    model = build(configure(config_of(name), overrides))
    if pretrained:
        loader = importlib.import_module("vitrail.weights")
        loader.load_pretrained(model, name, pretrained, new_head="num_classes" in overrides)
    return model


def _pyramid(backbone: nn.Module, out_indices: Sequence[int] | None) -> nn.Module:
    try:
        return FeaturePyramid(backbone, out_indices)
    except ValueError as error:
        raise UsageError(str(error)) from error


def configure(config: Any, overrides: Mapping[str, Any], of: str = "model") -> Any:
    """Return ``config`` with the fields in ``overrides`` replaced; an int ``img_size`` becomes a square.

    A mapping for a field that is itself a group of fields (``numerics``, ``form``, ``backbone``) replaces those it
    names; a backbone may also be given by its name. ``of`` is what errors call the config. Raises :class:`UsageError`
    for an unknown field and for a value that its type has not: every choice is looked up.
    """
    fields = [f.name for f in dataclasses.fields(config)]
    require_known(overrides, fields, f"{of} keyword")
    changes = {k: _tuples(v) for k, v in overrides.items()}  # JSON has lists only
    if "img_size" in changes:
        changes["img_size"] = as_size(changes["img_size"])
    for name, value in changes.items():
        own = getattr(config, name)
        if name == "backbone":
            changes[name] = _backbone(own, value)
        elif isinstance(value, Mapping) and dataclasses.is_dataclass(own):
            changes[name] = configure(own, value, name)
        else:
            require_fit(name if of == "model" else f"{of}.{name}", value, hints(type(config))[name])
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _backbone(own: Any, value: Any) -> Any:
    """Return a backbone's config by the name of a variant, as :func:`config_to_dict` wrote it, or with fields changed.

    It has no classifier. Raises :class:`UsageError` for a network that gives no maps.
    """
    if isinstance(value, Mapping):
        found = config_from_dict(value) if "type" in value else configure(own, value, "backbone")
    else:
        found = config_of(value) if isinstance(value, str) else value
    if answers(found) != "classes" or hasattr(found, "colours"):
        raise UsageError(
            f"expected a backbone that gives feature maps, such as swin_tiny_patch4_window7_224, got {value!r}"
        )
    return dataclasses.replace(found, num_classes=0)


def _tuples(value: Any) -> Any:
    """Return a value with every list in it, and in its lists, as a tuple."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def as_size(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return (H, W) of an int or a pair; :class:`UsageError` for anything else."""
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(fits(n, int) and n > 0 for n in pair):
        raise UsageError(f"expected an image size as a positive int or (height, width), got {size!r}")
    return pair[0], pair[1]


def config_to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON data, with the name of its type under ``"type"``; so with its backbone's."""
    own = {"backbone": config_to_dict(config.backbone)} if hasattr(config, "backbone") else {}
    return {"type": type(config).__name__, **dataclasses.asdict(config), **own}


def config_from_dict(data: Mapping[str, Any]) -> Any:
    """Return the config that :func:`config_to_dict` wrote; a field that is not there has its class's default."""
    types = {type(config).__name__: type(config) for config in variants().values()}
    if data.get("type") not in types:
        raise WeightsError(f"expected a config type of {', '.join(sorted(types))}, got {data.get('type')!r}")
    return configure(types[data["type"]](), {k: v for k, v in data.items() if k != "type"})


__all__ = [
    "answers",
    "as_size",
    "build",
    "config_from_dict",
    "config_of",
    "config_to_dict",
    "configure",
    "create_model",
    "image_variants",
    "list_models",
    "reads_text",
    "text_variants",
    "translates",
    "variants",
    "variants_that",
]
