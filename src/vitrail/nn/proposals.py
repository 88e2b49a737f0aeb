"""Where the queries of a detector begin: learned points, learned boxes, or boxes that the encoder proposes.

Sources: Zhu et al. 2021, arXiv 2010.04159, section 4.2 and appendix A.4 (two stages); Liu et al. 2022, arXiv 2201.12329
(DAB-DETR: queries are boxes, whose sines and cosines are their positions); Zhang et al. 2023, arXiv 2203.03605, section
3.4 (DINO: boxes from the encoder, contents learned).

B batch, S cells of all maps, C width, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .fused import Linear
from .levels import Maps, cell_centres, cell_sides
from .positions import sines_of
from .queries import Perceptron

SIDE = 0.05  # of a cell's first box on the finest map; twice that on each next one
INSIDE = (0.01, 0.99)  # where a first box's centre and sides must lie
EPS = 1e-5


def logit_of(share: Tensor) -> Tensor:
    """Return the inverse of the sigmoid, of numbers that are kept 1e-5 away from 0 and 1."""
    share = share.clamp(0.0, 1.0)
    return (share.clamp_min(EPS) / (1.0 - share).clamp_min(EPS)).log()


class Proposer(nn.Module):
    """What the encoder's cells propose: each a box around itself, and a number of them the queries begin with.

    Args:
        dim: width C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Return tokens (B, S, C) for a class and a box, and the logits of the boxes to start from (B, S, 4) float32.

        Logits are infinite where a cell has no box: on padding, and too near to the border.
        """
        sides, level = cell_sides(maps.grids, maps.tokens.device)
        if maps.ratios is not None:
            sides = (sides * maps.ratios[:, level]).round()
        centres = (cell_centres(maps.grids, maps.tokens.device) / sides).expand(maps.tokens.shape[0], -1, -1)
        around = (SIDE * 2.0**level)[None, :, None].expand_as(centres)
        boxes = torch.cat((centres, around), -1)
        usable = ((boxes > INSIDE[0]) & (boxes < INSIDE[1])).all(-1)
        usable = usable if maps.keep is None else usable & maps.keep
        tokens = self.norm(self.proj(maps.tokens.masked_fill(~usable[..., None], 0.0)))
        logits = (boxes / (1.0 - boxes)).log()
        return tokens, logits.masked_fill(~usable[..., None], float("inf"))


class BoxPositions(nn.Module):
    """Positions of queries that are boxes: (B, Q, 4) -> (B, Q, C).

    Args:
        dim: width C, an even number.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = Perceptron(2 * dim, (dim, dim))

    def forward(self, boxes: Tensor) -> Tensor:
        """(B, Q, 4) in 0 .. 1 -> (B, Q, C)."""
        weight = next(self.mlp.parameters())
        placed: Tensor = self.mlp(box_sines(boxes, self.dim).to(weight.dtype))
        return placed


def box_sines(boxes: Tensor, dim: int) -> Tensor:
    """Return boxes (B, Q, 4) as sines and cosines of ``dim / 2`` numbers for each of their four: (B, Q, 2·dim)."""
    return sines_of(boxes.float(), dim // 2).flatten(2)
