"""``metrics.jsonl``: one line a log interval, one a evaluation, one a skipped step; and TensorBoard when asked.

Lines of a run that was killed and resumed have neither a gap nor a repetition: on resume everything after the
checkpoint's step is cut off, and replayed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import require_extra

from .checkpoint import replace_bytes

TIMED = ("images_per_s", "data_s", "step_s", "seconds")
"""The only keys of a line that differ between two equal runs."""


class MetricsLog:
    """Appends lines to ``folder/metrics.jsonl``; ``track`` is "none" or "tensorboard" (events in ``tensorboard/``).

    On a full disk lines are kept and written later: the log is never the reason that a training ends.
    """

    def __init__(
        self, folder: Path, *, from_step: int = 0, track: str = "none", warn: Callable[[str], None] = print
    ) -> None:
        self.path, self.warn = folder / "metrics.jsonl", warn
        cut_after(self.path, from_step)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._waiting = b""
        self._board: Any = None
        if track == "tensorboard":
            require_extra("tensorboard", "track", "track: tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; it reaches the operating system before this returns, if there is room for it."""
        line = {"kind": kind, "step": step, **{k: _plain(v) for k, v in values.items()}}
        quiet = not self._waiting
        self._waiting += (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            if quiet:
                self.warn(f"{self.path} cannot be written: {error}; its lines wait in memory, training goes on")
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, float | int) and key != "epoch":
                    self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Close the file and the events."""
        os.close(self._file)
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a metrics file; a last line cut by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of later steps."""
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        replace_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
