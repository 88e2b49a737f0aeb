"""How far a measured share or mean may be from the truth, by chance alone.

Shares: Wilson 1927, "Probable inference, the law of succession, and statistical inference" (its score interval, which
stays within 0..1 and holds near the ends, where the usual ± formula does not). Means of a few draws: Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def share_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Return (low, high) around ``hits / count``: the shares under which such a count is no surprise at ``level``."""
    if not 0 <= hits <= count or count < 1 or not 0 < level < 1:
        raise ValueError(f"expected 0 <= hits <= count, count >= 1, 0 < level < 1, got {hits}, {count}, {level}")
    from scipy.special import ndtri

    z2 = float(ndtri((1 + level) / 2)) ** 2
    share = hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return (middle - half if hits else 0.0), (middle + half if hits < count else 1.0)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return (mean, half width of the interval of the mean) over independent draws; two or more are needed."""
    count = len(values)
    if count < 2 or not 0 < level < 1:
        raise ValueError(f"expected two values or more and 0 < level < 1, got {count} values and {level}")
    from scipy.special import stdtrit

    mean = sum(values) / count
    variance = sum((v - mean) ** 2 for v in values) / (count - 1)
    return mean, float(stdtrit(count - 1, (1 + level) / 2)) * math.sqrt(variance / count)
