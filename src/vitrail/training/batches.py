"""Cut a batch into pieces whatever its fields are, and what to do about memory.  B batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import VitrailError


def pieces(batch: Any, count: int) -> Iterator[Any]:
    """Cut a batch (a dataclass whose tensors and lists have length B) into at most ``count`` pieces of equal size."""
    total = len(batch.keep)
    size = -(-total // count)
    for start in range(0, total, size):
        part = slice(start, start + size)
        changes = {
            f.name: value[part]
            for f in dataclasses.fields(batch)
            if isinstance(value := getattr(batch, f.name), Tensor | list | tuple) and len(value) == total
        }
        yield dataclasses.replace(batch, **changes)


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_advice(shape: tuple[int, int, int], accumulation: int, error: RuntimeError) -> VitrailError:
    """Return the error that says what to change, cheapest first; ``shape`` is (batch, height, width)."""
    batch, height, width = shape
    piece = -(-batch // accumulation)
    more = min(batch, accumulation * 2)
    first = (
        f"--set train.accumulation={more} (the same batch and the same result, in {more} pieces of "
        f"{-(-batch // more)} images instead of {piece})"
        if piece > 1
        else "a smaller image: --img-size"
    )
    return VitrailError(
        f"out of memory at a batch of {batch} images of {height} x {width} in {accumulation} piece(s): "
        f"{str(error).splitlines()[0]}\n"
        f"mend, in this order: {first}; --set train.recompute=true (the same result, a third more time); "
        f"--batch {max(1, batch // 2)}; --set train.precision=bf16; a smaller --img-size or --model; "
        f"`vitrail plan` in place of `vitrail train` says beforehand what fits"
    )
