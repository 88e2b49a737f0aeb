"""Keeping decoded images in memory, up to a share of what is free, so that later epochs decode nothing.

What is kept is exactly what reading gives (or, for a crop that is not random, what the crop gives), so a run with a
cache equals one without, bit for bit; images past the budget are read anew each time.
Shapes: an image is uint8 (3, H, W).
"""

from __future__ import annotations

import os
import threading

from torch import Tensor

from vitrail.errors import UsageError, did_you_mean

from .memory import available_bytes

CACHE_MODES = ("auto", "none", "all")
CACHE_SHARE = 0.25  # of the memory that is free when the loader is made, shared by the processes of one machine


def cache_budget(mode: str) -> int:
    """Bytes a cache may hold: ``auto`` a quarter of the free memory, ``none`` nothing, ``all`` without limit."""
    if mode not in CACHE_MODES:
        raise UsageError(
            f"expected cache {', '.join(CACHE_MODES[:-1])} or {CACHE_MODES[-1]}, got {mode!r}."
            f"{did_you_mean(str(mode), CACHE_MODES)}"
        )
    if mode == "auto":
        return int(CACHE_SHARE * available_bytes()) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 0 if mode == "none" else 1 << 62


class ImageCache:
    """Images by position, first come first kept, until ``budget`` bytes are full."""

    def __init__(self, count: int, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._images: list[Tensor | None] = [None] * (count if budget else 0)
        self._lock = threading.Lock()

    def get(self, i: int) -> Tensor | None:
        """The image at a position, or None."""
        return self._images[i] if self._images else None

    def put(self, i: int, image: Tensor) -> None:
        """Keep an image if there is room for it."""
        size = image.numel() + 400  # what Python and torch need for a tensor of their own
        with self._lock:
            if not self._images or self._images[i] is not None or self.used + size > self.budget:
                return
            self.used += size
        # A view would keep alive what it was cut from.
        own = image.numel() == image.untyped_storage().nbytes()
        self._images[i] = image if own else image.clone()

    def __len__(self) -> int:
        """How many images are held."""
        return sum(image is not None for image in self._images)
