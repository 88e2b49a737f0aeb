"""``metrics.jsonl``: one line a log interval, one a evaluation, one a skipped step; and TensorBoard when asked.

Lines of a run that was killed and resumed have neither a gap nor a repetition: on resume everything after the
checkpoint's step is cut off, and replayed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import require_extra

from .checkpoint import replace_bytes

TIMED = ("images_per_s", "data_s", "step_s", "seconds")
"""The only keys of a line that differ between two equal runs."""


class MetricsLog:
    """Appends lines to ``folder/metrics.jsonl``; ``track`` is "none" or "tensorboard" (events in ``tensorboard/``)."""

    def __init__(self, folder: Path, *, from_step: int = 0, track: str = "none") -> None:
        self.path = folder / "metrics.jsonl"
        cut_after(self.path, from_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board: Any = None
        if track == "tensorboard":
            require_extra("tensorboard", "track", "track: tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; it reaches the operating system before this returns."""
        line = {"kind": kind, "step": step, **{k: _plain(v) for k, v in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, float | int) and key != "epoch":
                    self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Close the file and the events."""
        self._file.close()
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
