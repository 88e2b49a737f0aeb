"""What the one training loop knows of a task.  B batch, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vitrail.errors import require_known

Losses = dict[str, Tensor]
"""Named scalar losses (means over the real samples); their weighted total is under ``"loss"``."""

TASKS = ("classify", "multilabel")


class Metrics(Protocol):
    """A fresh accumulator: feed it results and batches, then ask for the numbers."""

    def update(self, result: Any, batch: Any) -> None:
        """Add what :meth:`Task.predict` returned for ``batch``."""

    def compute(self) -> dict[str, float]:
        """Return the numbers of everything seen."""

    def thresholds(self) -> list[float] | None:
        """Return the scores from which on a class is present, to be kept with the weights; None: the best class is."""

    def describe(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what a report draws beyond the numbers (tables, matrices), ready for JSON."""


class Task(Protocol):
    """Loss, metrics and postprocess of one job."""

    name: str
    counted: str
    """What ``count`` of the metrics counts, in words: "images", "sentences"."""
    monitor: str
    """The metric that says which weights are best; larger is better. Ties go to the lower ``loss``."""

    def step(self, model: nn.Module, batch: Any) -> Losses:
        """Return the losses of a batch."""

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """Return the typed result of a batch, in the user's units.

        Its ``rows(batch)`` returns by name what an evaluation keeps of each sample.
        """

    def metrics(self) -> Metrics:
        """Return a fresh accumulator."""


def create_task(name: str, *, num_classes: int, options: Mapping[str, Any] | None = None) -> Task:
    """Build a task by name; ``options`` are its own keywords, an unknown one is an error with a suggestion."""
    import inspect

    from .classify import Classify
    from .multilabel import MultiLabel

    require_known([name], TASKS, "task")
    kind: type[Classify] | type[MultiLabel] = Classify if name == "classify" else MultiLabel
    options = dict(options or {})
    require_known(options, set(inspect.signature(kind).parameters) - {"num_classes"}, f"option of task {name}")
    return kind(num_classes, **options)


HEADLINES = {
    "top1": "accuracy",
    "map": "mean average precision",
    "ap": "AP",
    "bleu": "sacreBLEU",
    "bits_per_pixel": "bits per pixel",
    "psnr": "PSNR in dB",
    "miou": "mIoU",
}
"""Metric -> what people call it: the number that a run is spoken of by, by kind of task."""
PLAIN = ("bleu", "bits_per_pixel", "negative_bits", "psnr")
"""Metrics that are no shares of a whole."""


def headline(metrics: Mapping[str, float | None]) -> tuple[str, float]:
    """Return the name and the value of the number that a run is spoken of by."""
    key = next(key for key in HEADLINES if key in metrics)
    return HEADLINES[key], float(metrics[key] or 0.0)


def in_words(key: str, value: float) -> str:
    """Return a metric as people write it: a share in percent, anything else as it is."""
    return f"{value:.2f}" if key in PLAIN else f"{100 * value:.2f} %"


def headline_words(metrics: Mapping[str, float | None]) -> str:
    """Return name and value of :func:`headline` as people write them: "accuracy 98.33 %"."""
    key = next(key for key in HEADLINES if key in metrics)
    return f"{HEADLINES[key]} {in_words(key, float(metrics[key] or 0.0))}"
