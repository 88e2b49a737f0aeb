"""Nearest neighbours on frozen features, each vote weighted by how near it is.

Sources: Wu et al. 2018, arXiv 1805.01978, section 3.4 (the weights exp(sim / T), T = 0.07); Caron et al. 2021, arXiv
2104.14294, section 4.1 (as the measure of a representation: nothing is trained, nothing tuned).

N images, C width, K classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .features import FeatureSet

NEIGHBOURS = (5, 10, 20, 50)
TEMPERATURE = 0.07
AT_ONCE = 2**24  # similarities held at a time: 64 MiB


def votes(
    train: FeatureSet, features: Tensor, classes: int, neighbours: Sequence[int], temperature: float = TEMPERATURE
) -> dict[int, Tensor]:
    """Return k -> shares of the vote (N, K), rows sum to 1, of ``features`` (N, C) for each k of ``neighbours``.

    Similarity is the cosine. The weight of the nearest is divided out, so that no temperature overflows.
    """
    known, asked = F.normalize(train.features, dim=1), F.normalize(features, dim=1)
    most = max(neighbours)
    found: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for piece in torch.split(asked, max(1, AT_ONCE // len(known))):
        near, index = (piece @ known.t()).topk(most, dim=1)
        weight = ((near - near[:, :1]) / temperature).exp()
        label = train.labels[index]
        for k in neighbours:
            total = torch.zeros(len(piece), classes).scatter_add_(1, label[:, :k], weight[:, :k])
            found[k].append(total / total.sum(1, keepdim=True))
    return {k: torch.cat(pieces) for k, pieces in found.items()}
