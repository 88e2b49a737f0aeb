"""Reading safetensors with the checks that its library leaves out, and files in shards.

safetensors refuses truncation, overlaps, holes and absurd headers by itself. It lets pass a name that occurs twice and
shapes without elements but with absurd sides; both are refused here. Names of tensors are never used as paths, and
names of shards must be plain file names.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_HEADER = 100_000_000
_MOST_SIDE = 2**40


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of a safetensors file without reading the tensors.

    Raises :class:`WeightsError` for a missing file, a damaged header, repeated names and impossible shapes.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER:
                raise WeightsError(f"{path} says its header has {length} bytes: not a safetensors file, or damaged.")
            header = json.loads(file.read(length), object_pairs_hook=_no_twins)
        shapes = {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
    except FileNotFoundError:
        raise WeightsError(f"no weights file {path}. mend: check the path.") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is not a readable safetensors file ({error}). mend: fetch it again.") from error
    for name, shape in shapes.items():
        if any(not isinstance(n, int) or n <= 0 or n > _MOST_SIDE for n in shape):
            raise WeightsError(f"{path} holds {name} of impossible shape {shape}. mend: fetch the file again.")
    return shapes


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [k for k, _ in pairs]
        twin = next(n for n in names if names.count(n) > 1)
        raise WeightsError(f"the header names {twin!r} twice; the file was tampered with or badly written.")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one checked safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}). mend: fetch it again.") from error


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder: the single one, or the shards its index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise WeightsError(
                    f"{folder / INDEX} names the shard {name!r}; expected a plain .safetensors file name"
                )
        return [folder / name for name in names]
    foreign = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".pt", ".npz", ".ckpt"))
    mend = (
        f"`vitrail convert {folder / foreign[0]} NEW_FOLDER --model NAME` reads {foreign[0]} safely"
        if foreign
        else "check the path; a weights folder holds model.safetensors and config.json"
    )
    raise WeightsError(f"no {WEIGHTS} in {folder}. mend: {mend}.")


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder; a name in two shards is an error."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        part = read_safetensors(path)
        twins = tensors.keys() & part.keys()
        if twins:
            raise WeightsError(f"{path} repeats {min(twins)} of another shard. mend: fetch the folder again.")
        tensors |= part
    return tensors


def read_folder_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape over all weight files of a folder."""
    return {name: shape for path in weight_files(folder) for name, shape in read_header(path).items()}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; :class:`WeightsError` says what is wrong with it."""
    try:
        if path.stat().st_size > _MOST_HEADER:
            raise WeightsError(f"{path} has {path.stat().st_size} bytes, too many for a configuration.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"no {path.name} in {path.parent}. mend: check the path.") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} is not readable JSON ({error}).") from error
    if not isinstance(data, dict):
        raise WeightsError(f"expected an object in {path}, got a {type(data).__name__}")
    return data


def sha256(paths: Iterable[Path]) -> dict[str, str]:
    """Return file name -> hex digest."""
    found = {}
    for path in paths:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
