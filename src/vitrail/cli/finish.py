"""The last words of a training: what it reached, where it is, what to type next."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from .console import result, say

if TYPE_CHECKING:
    from ..training import RunResult


def finish(verb: str, as_json: bool, run: RunResult) -> None:
    """Say them, on stdout: whatever else a training says goes to stderr."""
    folder = run.folder.resolve()
    report = folder / "report.html"
    counted = f"{run.metrics['count']:.0f} {'test' if run.split == 'test' else 'validation'} images"
    say(f"\naccuracy  {run.metrics['top1']:.2%} on {counted} that it was not trained on")
    say(f"run       {folder}")
    if report.exists():
        say(f"report    {report}")
    say("\nNext:")
    for command, why in next_commands(folder):
        say(f"  {command:<58}  {why}")
    result(
        verb,
        as_json,
        folder=folder,
        report=report if report.exists() else None,
        split=run.split,
        metrics=run.metrics,
        best=run.best,
        summary=run.summary,
    )


def next_commands(folder: Path) -> list[tuple[str, str]]:
    """Return commands to type next, and what each does; paths are relative where that is shorter."""
    near = os.path.relpath(folder)
    run = shlex.quote(near if len(near) < len(str(folder)) else str(folder))
    return [
        (f"vitrail predict {run} IMAGE...", "classify your own images"),
        (f"vitrail explain {run}", "see where it looks"),
        (f"vitrail explain {run} --figures", "see what its weights have learnt"),
        (f"vitrail val {run}", "figures for each class"),
    ]
