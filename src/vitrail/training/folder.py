"""The folder of a run: made once, locked while it trains, with what is needed to say which data and machine it saw."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch

from vitrail import __version__
from vitrail.data.imageset import ImageSet
from vitrail.data.sources import Splits
from vitrail.errors import UsageError, VitrailError

from .checkpoint import replace_bytes


def make_folder(out: str, task: str, name: str | None, model: str) -> Path:
    """Make ``out/task/name``, or ``out/task/<model>-<n>`` with the first free n from 1; never an existing one."""
    root = Path(out) / task
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
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; :class:`UsageError` names the process that holds it. A killed process holds nothing."""
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
