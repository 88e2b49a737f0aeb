"""Distillation: a student learns what a teacher answers, beside the labels.

Sources: soft - Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2; hard, and the distillation token - Touvron et
al. 2021, arXiv 2012.12877 (DeiT), section 4.
With w the weight of the teacher, T the temperature, s the student's logits and t the teacher's:

    soft:  (1 - w) CE(s, label) + w T² KL(softmax(t / T) || softmax(s / T))
    hard:  (1 - w) CE(s, label) + w CE(s, argmax t)

A student with two heads learns the label with its class head and the teacher with its distillation head.
B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Losses
from .classify import Classification, Classify, ClassifyMetrics, LabelledImages, mean_of_kept

Teacher = Callable[[LabelledImages], Tensor]
"""The logits (B, K) of a batch, in the order of the student's classes."""

KINDS = ("soft", "hard")


class Distil:
    """Classification with a teacher; prediction and metrics are those of ``task``."""

    def __init__(
        self, task: Classify, teacher: Teacher, *, how: str = "soft", weight: float = 0.5, temperature: float = 1.0
    ) -> None:
        """``how``: "soft" or "hard"; ``weight`` in (0, 1]: of the teacher; ``temperature`` above 0, of soft answers."""
        if how not in KINDS:
            raise ValueError(f"expected how of {', '.join(KINDS)}, got {how!r}")
        if not 0 < weight <= 1:
            raise ValueError(f"expected weight above 0 and at most 1, got {weight}")
        if temperature <= 0 or (how == "hard" and temperature != 1):
            raise ValueError(f"expected temperature above 0 (of soft answers alone), got {temperature} for {how}")
        self.task, self.teacher = task, teacher
        self.how, self.weight, self.temperature = how, weight, temperature
        self.name, self.counted, self.monitor = task.name, task.counted, task.monitor

    def step(self, model: nn.Module, batch: LabelledImages) -> Losses:
        """Return the weighted sum as "loss", its parts as "label" and "teacher"."""
        with torch.no_grad():
            told = self.teacher(batch).float()
        out = model(batch.images)
        by_label, by_teacher = out if isinstance(out, tuple) else (out, out)
        label = self.task.loss(by_label, batch)
        if told.shape != by_teacher.shape:
            raise ValueError(f"expected logits {tuple(by_teacher.shape)} of the teacher, got {tuple(told.shape)}")
        taught = mean_of_kept(self.answers(by_teacher.float(), told), batch.keep)
        return {"loss": (1 - self.weight) * label + self.weight * taught, "label": label, "teacher": taught}

    def answers(self, logits: Tensor, told: Tensor) -> Tensor:
        """Return how far each row of ``logits`` (B, K) is from the teacher's, (B,)."""
        if self.how == "hard":
            return F.cross_entropy(logits, told.argmax(1), reduction="none")
        t = self.temperature
        ours, theirs = (logits / t).log_softmax(1), (told / t).log_softmax(1)
        return t**2 * F.kl_div(ours, theirs, log_target=True, reduction="none").sum(1)

    def predict(self, model: nn.Module, batch: LabelledImages) -> Classification:
        """Return softmax scores (B, K), as the task without a teacher does."""
        return self.task.predict(model, batch)

    def metrics(self) -> ClassifyMetrics:
        """Return a fresh accumulator over K classes."""
        return self.task.metrics()
