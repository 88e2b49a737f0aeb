"""Run a task over a whole set: numbers, details for the report, and every prediction.  N samples, K classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import DataError

from .base import Metrics, Task


@dataclass(frozen=True)
class Evaluation:
    """Numbers, the accumulator behind them, and by name what each readable sample gave, in order."""

    metrics: dict[str, float]
    accumulator: Metrics
    rows: dict[str, Tensor]

    @property
    def index(self) -> Tensor:
        """Positions in the set, (N,)."""
        return self.rows["index"]

    @property
    def labels(self) -> Tensor:
        """Labels of classification, (N,)."""
        return self.rows["labels"]

    @property
    def scores(self) -> Tensor:
        """Scores of classification, (N, K)."""
        return self.rows["scores"]

    def finite(self) -> dict[str, float | None]:
        """Return metrics that JSON can hold: numbers that are not finite become null."""
        return {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}


def evaluate(
    task: Task,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str = "cpu",
    join: Callable[[Any], Any] | None = None,
) -> Evaluation:
    """Evaluate ``model`` on ``batches`` in eval mode, and put its mode back.

    Where several processes see a part of each batch, ``join`` makes a result or a batch that of all of them.

    Raises :class:`DataError` if nothing could be read. What a result tells of each sample is kept (scores: 4 K bytes
    an image), logits are not.
    """
    accumulator, was_training = task.metrics(), model.training
    parts: list[dict[str, Tensor]] = []
    model.eval()
    try:
        for batch in batches:
            batch = batch.to(device)
            result = task.predict(model, batch)
            if join is not None:
                result, batch = join(result), join(batch.without_inputs())
            accumulator.update(result, batch)
            keep = batch.keep.cpu()
            found = {"index": batch.indices, **result.rows(batch)}
            parts.append({name: tensor.cpu()[keep] for name, tensor in found.items()})
    finally:
        model.train(was_training)
    if not sum(len(part["index"]) for part in parts):
        raise DataError(
            f"expected at least one sample to evaluate on that can be read, got none of the {task.counted}; "
            "mend: run `vitrail data check`"
        )
    rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Evaluation(accumulator.compute(), accumulator, rows)
