"""What each optimiser can be told, and what is usual for it where the user says nothing.

AdamW: the defaults of torch. Muon: Jordan et al. 2024. SGD: He et al. 2016, arXiv 1512.03385, section 3.4;
for fine-tuning Dosovitskiy et al. 2021, arXiv 2010.11929, appendix B.1.1. Lion: Chen et al. 2023, arXiv 2302.06675,
section 5: a rate three to ten times smaller than AdamW's, a decay as much larger. Adafactor: Zhai et al. 2022, arXiv
2106.04560, section 3.4: AdamW's numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

REFERENCE_BATCH = 128
ALL_OPTIONS = ("betas", "eps", "momentum", "nesterov")


@dataclass(frozen=True)
class Habit:
    """The options of an optimiser with their usual values, and its rate and decay beside those of AdamW."""

    options: dict[str, Any] = field(default_factory=dict)
    reason: str = "the usual value"
    rate: float = 1.0
    """Times AdamW's rate."""
    decay: float = 1.0
    """Times AdamW's decay."""


HABITS = {
    "adamw": Habit({"betas": (0.9, 0.999), "eps": 1e-8}),
    "muon": Habit({"betas": (0.9, 0.999), "eps": 1e-8, "momentum": 0.95}),
    "sgd": Habit({"momentum": 0.9, "nesterov": False}),
    "lion": Habit({"betas": (0.9, 0.99)}, "Lion's own values", rate=0.2, decay=5.0),
    "adafactor": Habit({"betas": (0.9, 0.999)}, "as for AdamW: of the momentum, and what the squares' decay ends at"),
}
SGD_RATE = {False: 0.1, True: 0.01}  # at REFERENCE_BATCH; fine-tuning or not
SGD_DECAY = {False: 1e-4, True: 0.0}


def usual_rate(name: str, adamw: float, batch: int, *, tuned: bool) -> tuple[float, str]:
    """Return a learning rate and its reason; ``adamw`` is that of AdamW at REFERENCE_BATCH."""
    if name == "sgd":
        base, words = (
            SGD_RATE[tuned],
            f"{SGD_RATE[tuned]:g} at a batch of {REFERENCE_BATCH}, in proportion to the batch",
        )
        return float(f"{base * batch / REFERENCE_BATCH:.2g}"), words
    base = adamw * HABITS[name].rate
    words = f"{base:g} at a batch of {REFERENCE_BATCH}, with the square root of the batch"
    if name == "lion":
        words += f"; a fifth of AdamW's {adamw:g}"
    return float(f"{base * math.sqrt(batch / REFERENCE_BATCH):.2g}"), words


def usual_decay(name: str, *, tuned: bool) -> tuple[float, str]:
    """Return a weight decay and its reason."""
    if name == "sgd":
        return SGD_DECAY[tuned], "ViT fine-tunes without" if tuned else "ResNet's value"
    deit = 0.05
    if name == "lion":
        return deit * HABITS[
            name
        ].decay, "five times DeiT's value, as its rate is a fifth: what decays is their product"
    return deit, "DeiT's value"
