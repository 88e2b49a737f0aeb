"""The folder of a run: made once, locked while it trains, with what is needed to say which data and machine it saw."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from vitrail import __version__
from vitrail.data.imageset import ImageSet
from vitrail.data.sources import Splits
from vitrail.errors import UsageError, VitrailError

from .checkpoint import replace_bytes
from .world import ALONE, World


def make_folder(out: str, task: str, name: str | None, model: str, world: World = ALONE) -> Path:
    """Make ``out/task/name``, or ``out/task/<model>-<n>`` with the first free n from 1; never an existing one.

    The first process makes it; under torchrun it notes which folder this launch has, see :func:`started_before`.
    """
    root = Path(out) / task

    def make() -> str:
        made = _make(root, name, model)
        if world.launch:
            replace_bytes(_note(out, world), f"{task}/{made.name}".encode())
        return made.name

    return root / world.lead(make)


def started_before(world: World, out: str) -> Path | None:
    """Return the run folder that this launch of torchrun made before it had to start its processes anew, if any."""

    def look() -> str | None:
        note = _note(out, world)
        if not world.launch or not note.is_file():
            return None
        if not world.restarts:  # left by an earlier launch of the same name
            note.unlink()
            return None
        return note.read_text()

    name = world.lead(look)
    return None if name is None else Path(out) / name


def _note(out: str, world: World) -> Path:
    return Path(out) / f".launch-{hashlib.sha256(world.launch.encode()).hexdigest()[:16]}"


def _make(root: Path, name: str | None, model: str) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if name is not None:
            return _new(root / name) or _refuse(root / name)
        stem, number = model.replace("/", "--").replace(":", "-"), 1
        while (made := _new(root / f"{stem}-{number}")) is None:
            number += 1
        return made
    except OSError as error:
        raise VitrailError(f"the run's folder cannot be made in {root}: {error}; mend: --set out=<writable>") from None


def _new(path: Path) -> Path | None:
    try:
        path.mkdir()
    except FileExistsError:
        return None
    return path


def _refuse(path: Path) -> Path:
    raise UsageError(
        f"expected a new run name, got {path.name!r}, but {path} exists; "
        f"mend: another name, or `vitrail resume {path}` to go on with it"
    )


@contextmanager
def locked(folder: Path, world: World = ALONE) -> Iterator[None]:
    """Hold the folder's lock; :class:`UsageError` names the process that holds it. A killed process holds nothing."""
    with ExitStack() as stack:
        world.lead(lambda: stack.enter_context(_lock(folder)))
        yield


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    import fcntl

    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"expected a run that nobody trains, but {folder} is in use by {_holder(file)}; "
                "mend: wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        who = json.loads(file.read())
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError):
        return "another process"


def write_json(path: Path, content: Any) -> None:
    """Write plain data in one step."""
    replace_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions and machine, for the person who must explain a number later."""
    import numpy

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "vitrail": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": str(device),
        "gpu": gpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def fingerprint(splits: Splits) -> dict[str, str]:
    """Return a hash for each split: names, labels and file sizes of its images in their order. No image is decoded."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {name: _hash(images) for name, images in parts.items() if images is not None}


def _hash(images: ImageSet) -> str:
    digest = hashlib.sha256(images.labels.tobytes())
    if images.soft is not None:
        digest.update(images.soft.table.tobytes())
    for i in range(len(images)):
        path = images.path(i)
        size = path.stat().st_size if path is not None and path.exists() else 0
        digest.update(f"{images.name(i)}\0{size}\0".encode())
    return digest.hexdigest()[:16]
