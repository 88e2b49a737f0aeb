"""Settings from the command line: options, `--set a.b=value` and bare `key=value`, as one dictionary of dotted keys.

The recipe lays them over the environment (``VITRAIL_TRAIN__EPOCHS=3``), and that over the recipe file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vitrail.errors import UsageError

SHORT = {  # option of `vitrail train` -> key of the recipe
    "model": "model.name",
    "data": "data.source",
    "task": "task",
    "epochs": "train.epochs",
    "batch": "train.batch_size",
    "lr": "optim.lr",
    "img-size": "model.img_size",
    "device": "train.device",
    "seed": "train.seed",
    "name": "name",
    "out": "out",
}
_PAIR = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*([.-][A-Za-z_][A-Za-z0-9_]*)*=")
_SIZE = re.compile(r"^(\d+)(?:[x,](\d+))?$")


def split_pairs(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part bare words into paths and ``key=value`` pairs; a path that exists is a path whatever its name."""
    paths: list[str] = []
    pairs: list[str] = []
    for word in words:
        (pairs if _PAIR.match(word) and not os.path.exists(word) else paths).append(word)
    return paths, pairs


def parse_pair(pair: str) -> tuple[str, Any]:
    """Return the key and its value, read as YAML: ``true``, ``3``, ``1e-3``, ``[224, 192]``, ``word``."""
    key, _, text = pair.partition("=")
    if not _PAIR.match(pair):
        raise UsageError(f"expected a setting written key=value, got {pair!r}; mend: for example --set optim.lr=1e-3")
    return key, parse_value(text)


def parse_value(text: str) -> Any:
    """Read one value as YAML does, and 1e-3 as the number it is (YAML 1.1 would take it for a word)."""
    import yaml

    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"expected a value as YAML has it, got {text!r}; mend: put text in quotes") from None


def parse_size(text: str) -> int | list[int]:
    """Read an image size: ``224``, or height and width as ``224x192``."""
    found = _SIZE.match(text.strip())
    if not found:
        raise UsageError(f"expected an image size like 224 or 224x192 (height x width), got {text!r}")
    height, width = found.groups()
    return [int(height), int(width)] if width else int(height)


def size_option(text: str | None) -> int | tuple[int, int] | None:
    """Read ``--img-size`` for functions that take a side or (height, width); None where it was not given."""
    size = None if text is None else parse_size(text)
    return (size[0], size[1]) if isinstance(size, list) else size


def gather(options: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """Merge options given (not None) and pairs; a key given twice is an error, since one would have no effect."""
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    given = [(option, value, f"--{option} {value}") for option, value in options.items() if value is not None]
    given += [(*parse_pair(pair), pair) for pair in pairs]
    for name, value, words in given:
        key = SHORT.get(name.replace("_", "-"), name)  # epochs=3 means what --epochs 3 means
        if key == SHORT["img-size"] and isinstance(value, str):
            value = parse_size(value)
        if key in said:
            raise UsageError(f"{key} is given twice: {said[key]} and {words}; mend: keep one")
        said[key] = words
        found[key] = value
    return found
