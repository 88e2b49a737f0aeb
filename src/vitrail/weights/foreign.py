"""Foreign weight files (``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.pth.tar``, ``.npz``), read by a restricted child.

Such files are pickles or archives from strangers. They are never opened in this process: a child with a memory limit
and a time limit reads them with ``weights_only=True`` (see :mod:`vitrail.weights.foreign_child`), and hands the tensors
back as a safetensors file, which is checked again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitrail.errors import WeightsError

from .read import read_safetensors

GIB = 2**30
MEMORY_FLOOR = GIB
"""Bytes a child may add once torch is imported; the file's own size comes on top, several times."""
SECONDS_FLOOR = 120


@dataclass(frozen=True)
class Foreign:
    """What a foreign file held.

    Attributes:
        tensors: name -> tensor.
        notes: sentences to show to the user: what was unwrapped, what was left out.
    """

    tensors: dict[str, Tensor]
    notes: list[str]


def read_foreign(path: str | Path, *, key: str | None = None) -> Foreign:
    """Read the tensors of a foreign weight file in a restricted child process.

    Args:
        path: the file.
        key: which part to take if the file holds several sets of weights ("model", "model_ema", ...); default the
            first of :data:`vitrail.weights.foreign_child.WRAPPERS` that it holds.

    Raises:
        WeightsError: the file is damaged, holds code or other things than tensors, or breaks a limit.
    """
    source = Path(path).resolve()
    if not source.is_file():
        raise WeightsError(f"no weights file {path}. mend: check the path.")
    with tempfile.TemporaryDirectory(prefix="vitrail-foreign-") as scratch:
        notes = _run_child(source, Path(scratch), key)
        tensors = {k: t.clone() for k, t in read_safetensors(Path(scratch) / "tensors.safetensors").items()}
    return Foreign(tensors, notes)


def _run_child(source: Path, scratch: Path, key: str | None) -> list[str]:
    size = source.stat().st_size
    seconds = SECONDS_FLOOR + size // 20_000_000
    memory = MEMORY_FLOOR + 6 * size
    order = {
        "source": str(source),
        "out": str(scratch / "tensors.safetensors"),
        "report": str(scratch / "report.json"),
        "key": key,
        "memory": memory,
        "seconds": seconds,
    }
    keep = ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV", "LANG")
    environment = {k: v for k, v in os.environ.items() if k in keep}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", str(Path(__file__).with_name("foreign_child.py"))],
            input=json.dumps(order),
            env=environment,
            cwd=scratch,
            timeout=seconds,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"reading {source.name} took more than {seconds} s and was stopped.") from None
    report = scratch / "report.json"
    if not report.exists():
        raise WeightsError(
            f"{source.name} could not be read within its limits (the reader ended with {done.returncode}: it ran out of"
            f" its {memory / GIB:.1f} GiB, or crashed). mend: the file is damaged or made to do harm."
        )
    said = json.loads(report.read_text(encoding="utf-8"))
    if said["error"]:
        raise WeightsError(f"{source.name}: {said['error']}")
    return list(said["notes"])
