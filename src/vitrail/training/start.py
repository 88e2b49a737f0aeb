"""Where a run starts from: the network that a folder of weights names, and which weights exactly they are."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, WeightsError
from vitrail.models import config_to_dict, variants
from vitrail.weights import Folder, card_for, open_folder
from vitrail.weights.configs import is_variant
from vitrail.weights.read import sha256, weight_files

from .baserecipe import merge
from .sections import HUB_PREFIX, Model

SET_APART = (
    "img_size",
    "num_classes",
    "drop_path_rate",
    "drop_rate",
)  # a recipe has places of their own for these, or the data


def source_of(model: Model) -> str | None:
    """Return what the first weights are read from: a file, a folder or a hub id; None for fresh ones."""
    if model.name.startswith(HUB_PREFIX):
        return model.name
    if model.pretrained is True:
        return f"{HUB_PREFIX}{card_for(model.name, with_weights=True).hub_id}"
    return model.pretrained or None


def folder_of(model: Model) -> Folder | None:
    """Return the opened folder of the first weights; None if they are fresh, or a file that says nothing more."""
    source = source_of(model)
    if source is None or Path(source).expanduser().is_file():
        return None
    return open_folder(source)


def digest(source: str) -> str:
    """Return sixteen hex digits that change with any byte of the weights at ``source``."""
    path = Path(source).expanduser()
    files = [path] if path.is_file() else weight_files(open_folder(source).path)
    return hashlib.sha256("".join(sha256(files).values()).encode()).hexdigest()[:16]


def require_start(model: Model) -> None:
    """Raise :class:`UsageError` unless the weights a run starts from are those that its recipe names."""
    source = source_of(model)
    if source is None or model.sha256 in ("auto", found := digest(source)):
        return
    raise UsageError(
        f"expected the weights with model.sha256 {model.sha256}, got {found} in {source}; mend: put the first ones "
        "back, or, in a new run, set model.sha256=auto"
    )


def adopt(model: Model) -> dict[str, Any]:
    """Return ``name`` and ``options`` of the network that ``model.pretrained`` is the weights of, as a recipe has them.

    Whatever its folder says of the network and its variant's name does not is an option; options that were asked for
    come after them. Raises :class:`UsageError` if the source does not say which network it is.
    """
    folder = None if model.pretrained is True else folder_of(model)
    if folder is None:
        raise UsageError(
            f"expected model.name with model.pretrained: {model.pretrained}: which network are the weights for? mend: "
            "--model NAME, or a folder with config.json, which says it"
        )
    config = folder.config
    name = folder.name or _nearest(folder)
    own, base = config_to_dict(config), config_to_dict(variants()[name])
    told = {k: v for k, v in own.items() if v != base[k] and k not in SET_APART}
    for key, value in told.items():  # of a group of fields only those that differ
        if isinstance(value, dict):
            told[key] = {k: v for k, v in value.items() if v != base[key][k]}
    return {"name": name, "options": merge(_plain(told), model.options)}


def _nearest(folder: Folder) -> str:
    """Return the variant that the card names, or any of the same architecture: the options say the rest."""
    kind = type(folder.config)
    known = [n for n, config in variants().items() if type(config) is kind]
    carried = folder.card.name.partition(".")[0]
    if not known:
        raise WeightsError(f"expected weights of a known architecture, got {kind.__name__}")
    close = [n for n in known if n == carried] or [n for n in known if is_variant(n, folder.config)]
    return min(close or known, key=lambda n: _differences(variants()[n], folder.config))


def _differences(one: Any, other: Any) -> int:
    return sum(getattr(one, f.name) != getattr(other, f.name) for f in dataclasses.fields(one))


def _plain(value: Any) -> Any:
    """Return a value as YAML and JSON hold it: tuples as lists."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
