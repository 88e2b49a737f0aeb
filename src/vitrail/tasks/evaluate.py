"""Run a task over a whole set: numbers, details for the report, and every prediction.  N images, K classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import DataError

from .base import Metrics, Task


@dataclass(frozen=True)
class Evaluation:
    """Numbers, the accumulator behind them, and ``index``, ``labels`` (N,), ``scores`` (N, K) of readable images."""

    metrics: dict[str, float]
    accumulator: Metrics
    index: Tensor
    labels: Tensor
    scores: Tensor


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

    Raises :class:`DataError` if no image could be read. Scores are kept (4 K bytes an image), logits are not.
    """
    accumulator, was_training = task.metrics(), model.training
    index, labels, scores = [], [], []
    model.eval()
    try:
        for batch in batches:
            batch = batch.to(device)
            result = task.predict(model, batch)
            if join is not None:
                result, batch = join(result), join(dataclasses.replace(batch, images=batch.images[:, :0]))
            accumulator.update(result, batch)
            keep = batch.keep.cpu()
            index.append(batch.indices.cpu()[keep])
            labels.append(batch.labels.cpu()[keep])
            scores.append(result.scores.cpu()[keep])
    finally:
        model.train(was_training)
    if not sum(len(i) for i in index):
        raise DataError("expected at least one readable image to evaluate on, got none; mend: run `vitrail data check`")
    return Evaluation(accumulator.compute(), accumulator, torch.cat(index), torch.cat(labels), torch.cat(scores))
