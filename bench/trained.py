"""A run of the command line for a bench: trained once, read again whenever the bench is repeated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def trained(runs: Path, name: str, words: Sequence[str], settings: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Return folder and summary of ``vitrail train *words --set ...``, training it unless that was done."""
    folder = runs / "classify" / name
    if not (folder / "summary.json").exists():
        command = ["train", *words, "--name", name, "--out", str(runs)]
        command += [part for setting in settings for part in ("--set", setting)]
        log = runs / f"{name}.log"
        with log.open("w") as out:
            done = subprocess.run([sys.executable, "-m", "vitrail", *command], stdout=out, stderr=out)
        if done.returncode:
            raise SystemExit(f"{name} failed; see {log}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return folder, summary
