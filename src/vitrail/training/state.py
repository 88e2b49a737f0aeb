"""Where a run is, and how long and how often: the plain numbers that the loop works with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class State:
    """Where a run is; ``state.json`` of a checkpoint holds it whole."""

    step: int = 0
    images: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    """Step of the last evaluation: one that was cut off by a signal is made up for after resuming."""
    window: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "steps": 0, "norm": 0.0})
    best: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Pace:
    """How long, how often: the numbers of a run that the loop itself needs."""

    epochs: int
    accumulation: int
    clip_norm: float | None
    seed: int
    eval_every: int
    log_every: int
    save_every_steps: int | None
    save_every_minutes: float | None
