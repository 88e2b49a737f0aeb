"""What a network that finds objects is given beside images, and what it gives: queries, each a class and a box.

Sources: Carion et al. 2020, arXiv 2005.12872 (DETR: a set of queries); Zhu et al. 2021, arXiv 2010.04159, section 4.2
(proposals of the encoder); Li et al. 2022, arXiv 2203.01305 (DN-DETR: boxes with noise as queries).

L decoder layers, B batch, Q queries, N noised boxes, K classes, (h, w) map of masks, H·W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Detections:
    """Queries with a class and a box each, as every decoder layer has them.

    Attributes:
        logits: (L, B, Q, K); the last layer is the answer, earlier ones are for the loss. In evaluation L may be 1.
        boxes_cxcywh01: (L, B, Q, 4): centre x, centre y, width, height, relative to each image's own size.
        proposals: what a two-stage encoder proposes, L = 1: the same kind of thing, with as many queries as it has
            places, or as it chose.
        noised: what became of the noised boxes of :class:`Noise`, in their order.
        masks: (B, Q, h, w), logits of the last layer's masks.
    """

    logits: Tensor
    boxes_cxcywh01: Tensor
    proposals: Detections | None = None
    noised: Detections | None = None
    masks: Tensor | None = None

    @property
    def layers(self) -> int:
        """How many decoder layers speak here, L."""
        return len(self.logits)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the logits (B, Q, K) and boxes (B, Q, 4) of one decoder layer."""
        return self.logits[index], self.boxes_cxcywh01[index]

    def last(self) -> Detections:
        """Return the answer alone: the last layer, L = 1, with its masks."""
        return Detections(self.logits[-1:], self.boxes_cxcywh01[-1:], masks=self.masks)

    def float(self) -> Detections:
        """Return the same in float32, as losses want it."""
        return replace(
            self,
            logits=self.logits.float(),
            boxes_cxcywh01=self.boxes_cxcywh01.float(),
            proposals=None if self.proposals is None else self.proposals.float(),
            noised=None if self.noised is None else self.noised.float(),
            masks=None if self.masks is None else self.masks.float(),
        )


@dataclass(frozen=True)
class Noise:
    """Denoising queries: true boxes with noise on them, which the decoder is to set right.

    The N places of an image are ``groups`` groups of equal length. Groups do not see each other, and the queries that
    are matched see none of them; the groups see those.

    Attributes:
        labels: (B, N) int64, a class each, 0 .. num_classes - 1; anything where ``keep`` is False.
        boxes_cxcywh01: (B, N, 4), the boxes with their noise, relative to the image.
        keep: (B, N) bool, False where an image has fewer objects than the fullest of the batch.
        groups: how many groups; divides N.
    """

    labels: Tensor
    boxes_cxcywh01: Tensor
    keep: Tensor
    groups: int

    def __post_init__(self) -> None:
        if self.labels.shape[1] % max(self.groups, 1) or self.groups < 1:
            raise ValueError(f"expected groups that divide {self.labels.shape[1]} noised boxes, got {self.groups}")

    def to(self, device: torch.device | str) -> Noise:
        """Return the same on another device."""
        labels, boxes, keep = (t.to(device) for t in (self.labels, self.boxes_cxcywh01, self.keep))
        return Noise(labels, boxes, keep, self.groups)


def seen_by(noise: Noise | None, queries: int, device: torch.device) -> Tensor | None:
    """Return which query sees which, bool (1, 1, N + Q, N + Q), the noised ones first; None if all see all."""
    if noise is None:
        return None
    count = noise.labels.shape[1]
    place = torch.arange(count + queries, device=device)
    group = torch.where(place < count, place // max(count // noise.groups, 1), noise.groups)
    return ((group[:, None] == group[None]) | (group[None] == noise.groups))[None, None]


class Answer(nn.Module):
    """A network of this kind as a function of tensors alone, for exporters: (images, keep) -> (logits, boxes).

    Args:
        model: a network that gives :class:`Detections`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) -> logits (B, Q, K), boxes (B, Q, 4), and masks (B, Q, h, w) where it has them."""
        found: Detections = self.model(images, keep)
        answer = found.layer(-1)
        return answer if found.masks is None else (*answer, found.masks)
