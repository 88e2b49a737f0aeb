"""What every rule can do, and what several of them need."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Rule(Protocol):
    """Moves the weights of one flat buffer by the gradient beside it, which it may use up."""

    def step(self, lr: float) -> None:
        """Take one step at the rate ``lr``."""

    def moments(self) -> dict[str, Tensor]:
        """Return what must be saved, by name: views of the rule's own buffers."""

    def set_updates(self, updates: int) -> None:
        """Set how many steps were taken, after loading a checkpoint."""


def one_pass(weight: Tensor) -> bool:
    """Tell whether torch updates this device's weights in one pass over memory."""
    return weight.device.type in ("cpu", "cuda", "xpu", "mps")


def matrices_in(name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """Return a weight as the matrices it is, views of it: q, k and v apart, a kernel as (out, in · k · k)."""
    return tensor.flatten(1).chunk(3 if name.endswith("qkv.weight") else 1)
