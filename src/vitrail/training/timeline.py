"""How much memory a piece of work needs for any number of images, learnt from doing it with two small numbers.

Every allocation and release is taken down as torch's allocators report it, on a CPU and on a GPU alike. The same work
on other numbers of images allocates the same things in the same order, each with a size that is a part once and a part
for each image.
So two runs give what is alive after each event i as ``fixed[i] + slope[i] * images``, and the largest of these lines is
the peak at any number. The peaks of two small runs would not do: at few images the gradients at the end of the backward
pass weigh most, at many the activations at its start.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler_legacy, _enable_profiler_legacy

Record = list[tuple[str, int]]  # innermost operator, bytes: above 0 taken, below 0 given back
UNPAIRED = 0.02  # share of the peak that allocations without a counterpart may have in a plan that is called exact


@dataclass(frozen=True)
class Timeline:
    """Bytes alive above those at the start, after each event: ``fixed + slope * images``, float64 (events,).

    ``exact`` is False where the two runs did not allocate alike.
    """

    fixed: NDArray[np.float64]
    slope: NDArray[np.float64]
    exact: bool = True

    @classmethod
    def of(cls, small: Record, few: int, large: Record, many: int) -> Timeline:
        """Return the lines through two records of the same work on ``few`` and on ``many`` images."""
        if not 0 < few < many:
            raise ValueError(f"expected two numbers of images, the smaller first, got {few} and {many}")
        pairs, alone = _pair(small, large, few / many)
        one, two = (
            np.cumsum([0, *sizes], dtype=np.float64) for sizes in (zip(*pairs, strict=True) if pairs else ((), ()))
        )
        slope = (two - one) / (many - few)
        return cls(one - few * slope, slope, alone <= UNPAIRED * max(1.0, float(two.max())))

    def peak(self, images: float) -> int:
        """Return the most bytes alive at one time with so many images."""
        return max(0, math.ceil((self.fixed + self.slope * images).max()))

    @property
    def each(self) -> float:
        """Bytes an image adds to the peak of large batches."""
        return max(0.0, float(self.slope.max()))

    @property
    def once(self) -> float:
        """Bytes alive, whatever the images, when they weigh most: in a training step before most gradients are made."""
        heaviest = np.flatnonzero(self.slope >= self.slope.max() - 0.5)
        return max(0.0, float(self.fixed[heaviest].min()))


def _pair(small: Record, large: Record, ratio: float) -> tuple[list[tuple[float, float]], float]:
    """Return (bytes of the small run, of the large run) event by event, and the most bytes of one without a partner.

    Partners are the same operator's, in the same order. A kernel may take scratch memory from some size on: what the
    large run alone took is a part of each image, what the small run alone took is the same for all.
    """
    keys = [[(name, size > 0) for name, size in record] for record in (small, large)]
    if keys[0] == keys[1]:
        return [(x, y) for (_, x), (_, y) in zip(small, large, strict=True)], 0.0
    pairs: list[tuple[float, float]] = []
    alone = 0.0
    for kind, a, b, c, d in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += [(x, y) for (_, x), (_, y) in zip(small[a:b], large[c:d], strict=True)]
            continue
        pairs += [(x, x) for _, x in small[a:b]] + [(ratio * y, y) for _, y in large[c:d]]
        alone = max([alone, *(abs(x) for _, x in [*small[a:b], *large[c:d]])])
    return pairs, alone


def record(work: Callable[[], object], device: torch.device) -> Record:
    """Do ``work`` and return what was allocated and released on ``device`` meanwhile, in order.

    torch's profiler is read at its allocator events: they hold what kernels take for themselves, which no hook on
    tensors or operators sees. What a library takes past torch's allocators (oneDNN's scratch memory) is not in them.
    """
    config = ProfilerConfig(  # state, no shapes, memory, no stacks, no flops, no modules
        ProfilerState.CPU, False, True, False, False, False, torch._C._profiler._ExperimentalConfig()
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    collecting = gc.isenabled()
    gc.disable()  # what lay about before must not be released in the middle
    _enable_profiler_legacy(config)
    try:
        work()
    finally:
        threads = _disable_profiler_legacy()
        if collecting:
            gc.enable()
    start = next(event for thread in threads for event in thread if event.name() == "__start_profile")
    found = [item for thread in threads for item in _allocations(thread, start, device.type)]
    if len(threads) > 1:  # the backward pass of a GPU has a thread of its own
        found.sort(key=lambda item: item[0])
    return [(name, size) for _, name, size in found]


def _allocations(thread: list[Any], start: Any, kind: str) -> Iterator[tuple[float, str, int]]:
    """Yield time, innermost operator and bytes of a thread's allocator events."""
    running: list[str] = []
    for event in thread:
        if event.kind() == "push":
            running.append(event.name())
        elif event.kind() == "pop" and running:
            running.pop()
        elif event.kind() == "memory_alloc":
            size = event.cpu_memory_usage() if kind == "cpu" else event.cuda_memory_usage()
            if size:
                yield start.cpu_elapsed_us(event), running[-1] if running else "", size


def peak(found: Record) -> int:
    """Return the most bytes alive at one time, above those at the start."""
    return max(0, int(np.cumsum([size for _, size in found]).max())) if found else 0
