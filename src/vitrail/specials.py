"""Token ids with a meaning of their own: carried by tokenizer, model and checkpoint alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Specials:
    """Token ids with a meaning of their own.

    Attributes:
        pad: fills rows up; never attended to, never counted in a loss.
        bos: what the decoder is given first.
        eos: what ends a sequence.
    """

    pad: int = 0
    bos: int = 2
    eos: int = 3
