"""How one flat buffer of weights moves: one file an optimiser.

AdamW, SGD and Muon are torch's own; Lion and the vision transformers' Adafactor torch does not have.
"""

from __future__ import annotations

from .adafactor import Adafactor
from .adamw import AdamW
from .base import Rule
from .lion import Lion
from .muon import Muon
from .sgd import SGD

__all__ = ["SGD", "Adafactor", "AdamW", "Lion", "Muon", "Rule", "rule_for"]

RULES: dict[str, type[AdamW] | type[SGD] | type[Lion] | type[Adafactor]] = {
    "adamw": AdamW,
    "sgd": SGD,
    "lion": Lion,
    "adafactor": Adafactor,
}


def rule_for(optimizer: str, kind: str) -> type[AdamW] | type[SGD] | type[Lion] | type[Adafactor] | type[Muon]:
    """Return the rule of an optimiser for a kind of weights: Muon moves matrices and leaves the rest to AdamW."""
    if optimizer == "muon":
        return Muon if kind == "matrices" else AdamW
    return RULES[optimizer]
