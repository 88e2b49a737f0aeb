"""Random numbers as arithmetic: a number is a function of (seed, stream, epoch, index, counter), never of history.

Source: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", section 5): a counter
stepped by the golden ratio and passed through a 64-bit mixer. So resuming needs no state, and no worker count, batch
size or order of calls can change what happens to an image (docs/reliability.md T1, T6).
Shapes: B indices, D draws an index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Streams keep the stages apart: adding an augmentation does not move anybody's crop.
ORDER, SPLIT, CROP, AUGMENT, MIX, CYCLE, WINDOW = 1, 2, 3, 4, 5, 6, 7

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_A, _B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix_int(z: int) -> int:
    """The mixer on one Python integer, modulo 2**64."""
    z = ((z ^ (z >> 30)) * _A) & _MASK
    z = ((z ^ (z >> 27)) * _B) & _MASK
    return z ^ (z >> 31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The mixer on an array, in place (unsigned arithmetic wraps as it must)."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(_A)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_B)
    z ^= z >> np.uint64(31)
    return z


def _key(seed: int, stream: int, epoch: int) -> int:
    key = 0
    for part in (seed, stream, epoch):
        key = _mix_int((key + _GOLDEN + part) & _MASK)
    return key


def bits(
    seed: int, epoch: int, indices: NDArray[np.integer] | Sequence[int], count: int, stream: int = 0
) -> NDArray[np.uint64]:
    """Return uint64 (B, count): 64 random bits for each index and draw."""
    index = np.asarray(indices).astype(np.uint64, copy=True).reshape(-1)
    # The index is mixed before and after the key, so that neighbours share no low bits.
    index += np.uint64(_GOLDEN)
    start = _mix(_mix(index) ^ np.uint64(_key(seed, stream, epoch)))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return _mix(start[:, None] + steps[None, :])


def uniforms(
    seed: int, epoch: int, indices: NDArray[np.integer] | Sequence[int], count: int, stream: int = 0
) -> NDArray[np.float64]:
    """Return float64 (B, count) in [0, 1): ``count`` draws for each of B indices.

    Row ``i`` depends on ``indices[i]`` alone, not on its neighbours; draw ``j`` is the same for every ``count > j``.
    """
    return (bits(seed, epoch, indices, count, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return int64 (n,): the order in which an epoch visits ``n`` images."""
    keys = bits(seed, epoch, np.arange(n), 1, ORDER).reshape(-1)
    return np.argsort(keys, kind="stable").astype(np.int64)
