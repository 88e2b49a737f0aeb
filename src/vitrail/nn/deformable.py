"""Deformable attention: each query reads a few points of each map, and says itself where they are and what they count.

Source: Zhu et al. 2021, arXiv 2010.04159, section 4.1, equations 2 and 3.

A point between four cells is their mean, weighted by its distance to each (bilinear), and cells outside a map are zero.
So each query's result is a weighted sum of a few rows of the values, and on a CPU it is computed as that, by the kernel
of tables of embeddings. Elsewhere, compiled and exported, it is ``grid_sample`` of each map. The numbers agree to
rounding.

B batch, Q queries, C width, H heads, D width of one head, L maps (levels), P points, S cells of all maps, Z of these
with a border of zeros around each map, n = 4·L·P corners of the points of one head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .fused import Linear
from .positions import Grid
from .shortcuts import at_once

ROWS = 2**13  # gathered at a time in a backward pass: they stay in the processor's cache
DENSE = 32  # cells for each corner up to which a backward pass is faster by the whole matrix
MOST_WEIGHTS = 2**26  # of such a matrix: 256 MiB in float32


class Points(NamedTuple):
    """Where queries look, and what each point counts.

    ``places`` (B, Q, H, L, P, 2): x and y relative to the padded image; may lie outside. ``weights`` (B, Q, H, L, P),
    which add up to 1 over levels and points.
    """

    places: Tensor
    weights: Tensor


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: ``attn(x, memory, reference, grids)``.

    Args:
        dim: width C.
        num_heads: H; divides ``dim``.
        levels: how many maps are read, L.
        points: points of each head on each map, P.

    Attributes:
        points: gives the offsets of the points, rows (H, L, P, 2), and then their weights, rows (H, L, P).
        tape: None, or a list to which each call appends the weight of each cell for each query (B, H, Q, S);
            :func:`vitrail.explain.record` sets it.
        looked: None, or a list to which each call appends its :class:`Points`.
    """

    tape: list[Tensor] | None
    looked: list[Points] | None

    def __init__(self, dim: int, num_heads: int, *, levels: int, points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected num_heads to divide the width {dim}, got {num_heads}")
        self.num_heads, self.levels, self.num_points = num_heads, levels, points
        self.tape = self.looked = None
        self.value = Linear(dim, dim)
        self.points = Linear(dim, 3 * num_heads * levels * points)
        self.proj = Linear(dim, dim)

    def forward(
        self, x: Tensor, memory: Tensor, reference: Tensor, grids: Sequence[Grid], keep: Tensor | None = None
    ) -> Tensor:
        """Queries (B, Q, C), cells of all maps (B, S, C) -> (B, Q, C).

        Args:
            x: queries, with their positions.
            memory: the maps, one after the other, each in raster order.
            reference: (B, Q, L or 1, 2) points, x and y, or (B, Q, L or 1, 4) boxes, centre and size; relative to each
                padded map; float32.
            grids: (h, w) of each map.
            keep: (B, S) bool, False where the image is padding, which counts as zero.
        """
        values = self.value(memory)
        if keep is not None:
            values = values.masked_fill(~keep[..., None], 0.0)
        heads = values.view(*values.shape[:2], self.num_heads, -1)
        looked = self.look(x, reference, grids)
        if self.looked is not None:
            self.looked.append(looked)
        if self.tape is not None:
            matrix = unpad(whole_matrix(*corners(looked, grids), grids, heads.dtype), grids)
            self.tape.append(matrix)
            mixed = (matrix @ heads.transpose(1, 2)).transpose(1, 2).flatten(2)
        else:
            mixed = sample(heads, looked, grids)
        out: Tensor = self.proj(mixed)
        return out

    def look(self, x: Tensor, reference: Tensor, grids: Sequence[Grid]) -> Points:
        """Return the points that queries look at; see :meth:`forward`."""
        count = self.num_heads * self.levels * self.num_points
        raw = self.points(x).float()
        shape = (*x.shape[:2], self.num_heads, self.levels, self.num_points)
        offsets, weights = raw[..., : 2 * count].view(*shape, 2), raw[..., 2 * count :]
        weights = weights.view(*shape[:3], -1).softmax(-1).view(shape)
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 4:
            reach = reference[..., 2:] * (0.5 / self.num_points)
        else:
            reach = _layout(tuple(grids), x.device).sides.reciprocal()
        return Points(torch.addcmul(reference[..., :2], offsets, reach), weights)


def start_points(attn: DeformableAttention) -> None:
    """Set the offsets as the paper does: head by head in another direction, point by point a cell further."""
    angles = torch.arange(attn.num_heads) * (2.0 * math.pi / attn.num_heads)
    ways = torch.stack((angles.cos(), angles.sin()), -1)
    ways = ways / ways.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, attn.num_points + 1)
    bias = (ways[:, None, None] * steps[:, None]).expand(-1, attn.levels, -1, -1)
    with torch.no_grad():
        attn.points.weight.zero_()
        attn.points.bias.zero_()
        attn.points.bias[: bias.numel()] = bias.reshape(-1)


def sample(values: Tensor, looked: Points, grids: Sequence[Grid]) -> Tensor:
    """Return the weighted sum of the values at the points: (B, S, H, D) -> (B, Q, H·D)."""
    if values.device.type != "cpu" or not at_once():
        return _by_grid_sample(values, looked, grids)
    found: Tensor = Sampled.apply(pad(values, grids), *looked, tuple(grids))  # type: ignore[no-untyped-call]
    return found.flatten(2)


def corners(looked: Points, grids: Sequence[Grid]) -> tuple[Tensor, Tensor]:
    """Return the four cells around each point, and what each counts: int32 and float32 (B, Q, H, n).

    Cells are counted over maps with a border of zeros. A point further out than that is drawn onto it.
    """
    index, right, down = _around(looked.places, _layout(tuple(grids), looked.places.device))
    return index.flatten(3), _shares(looked.weights, right, down).flatten(3)


def _around(places: Tensor, layout: _Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return the four cells around each place (..., L, P, 2, 2), and how far it is from the first of them (..., L, P).

    The distances are to the right and down, 0 to 1.
    """
    xy = torch.addcmul(layout.half, places, layout.sides)  # in cells, from the centre of the first
    xy = torch.minimum(xy.clamp_min_(-1.0), layout.sides)
    first = torch.minimum(xy.floor(), layout.last)
    right, down = xy.sub_(first).unbind(-1)
    cell = torch.addcmul(first[..., 0] + layout.start, first[..., 1], layout.width).to(torch.int32)
    return cell[..., None, None] + layout.around, right, down


def _shares(weights: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return what each of the four cells counts: (..., L, P) -> (..., L, P, 2, 2)."""
    lower = weights * down
    upper = weights - lower
    upper_right, lower_right = upper * right, lower * right
    parts = (upper - upper_right, upper_right, lower - lower_right, lower_right)
    return torch.stack(parts, -1).view(*weights.shape, 2, 2)


class _Layout(NamedTuple):
    """Numbers of maps with a border of one cell: (L, 1, 2) the first three, then (L, 1), then (L, 1, 2, 2) int32."""

    half: Tensor
    sides: Tensor
    last: Tensor
    start: Tensor
    width: Tensor
    around: Tensor


def _layout(grids: tuple[Grid, ...], device: torch.device) -> _Layout:
    """Return the numbers, from a cache that serves training too."""
    if not at_once():
        return _make_layout(grids, device)
    with torch.inference_mode(False):
        return _kept_layout(grids, device)


def _make_layout(grids: tuple[Grid, ...], device: torch.device) -> _Layout:
    sides = torch.tensor([(w, h) for h, w in grids], dtype=torch.float32, device=device)[:, None]
    width = sides[..., 0] + 2
    cells = [(h + 2) * (w + 2) for h, w in grids]
    before = torch.tensor([sum(cells[:i]) for i in range(len(cells))], dtype=torch.float32, device=device)[:, None]
    around = torch.tensor([[[0, 1], [w + 2, w + 3]] for _, w in grids], dtype=torch.int32, device=device)[:, None]
    return _Layout(torch.full_like(sides, -0.5), sides, sides - 1, before + width + 1, width, around)


_kept_layout = lru_cache(maxsize=32)(_make_layout)


def pad(values: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Put a border of zeros around each map: (B, S, H, D) -> (B, Z, H, D)."""
    b, _, *heads = values.shape
    maps = torch.split(values.flatten(2), [h * w for h, w in grids], 1)
    framed = [
        F.pad(m.view(b, *grid, -1), (0, 0, 1, 1, 1, 1)).flatten(1, 2) for m, grid in zip(maps, grids, strict=True)
    ]
    return torch.cat(framed, 1).view(b, -1, *heads)


def unpad(matrix: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Leave out the borders: (..., Z) -> (..., S)."""
    maps = torch.split(matrix, [(h + 2) * (w + 2) for h, w in grids], -1)
    inner = [
        m.view(*m.shape[:-1], h + 2, w + 2)[..., 1:-1, 1:-1].flatten(-2) for m, (h, w) in zip(maps, grids, strict=True)
    ]
    return torch.cat(inner, -1)


def whole_matrix(index: Tensor, weights: Tensor, grids: Sequence[Grid], dtype: torch.dtype) -> Tensor:
    """Return what each cell counts for each query, (B, H, Q, Z), of what :func:`corners` gives."""
    b, q, h, _ = index.shape
    cells = sum((rows + 2) * (columns + 2) for rows, columns in grids)
    empty = weights.new_zeros(b, h, q, cells, dtype=dtype)
    return empty.scatter_add(-1, index.transpose(1, 2).long(), weights.transpose(1, 2).to(dtype))


def _by_grid_sample(values: Tensor, looked: Points, grids: Sequence[Grid]) -> Tensor:
    """The same, map by map: (B, S, H, D) -> (B, Q, H·D)."""
    b, _, h, d = values.shape
    at = (2 * looked.places - 1).to(values.dtype).transpose(1, 2)  # (B, H, Q, L, P, 2)
    weights = looked.weights.to(values.dtype).transpose(1, 2).flatten(0, 1)[:, None]
    found: Tensor | None = None
    for i, part in enumerate(torch.split(values, [rows * columns for rows, columns in grids], 1)):
        picture = part.permute(0, 2, 3, 1).reshape(b * h, d, *grids[i])
        read = F.grid_sample(picture, at[:, :, :, i].flatten(0, 1), align_corners=False)  # (B·H, D, Q, P)
        mixed = (read * weights[:, :, :, i]).sum(-1)
        found = mixed if found is None else found + mixed
    assert found is not None
    return found.view(b, h * d, -1).transpose(1, 2)


class Sampled(torch.autograd.Function):
    """Values with a border (B, Z, H, D), places (B, Q, H, L, P, 2) and weights (B, Q, H, L, P) -> (B, Q, H, D).

    torch's own backward pass of a weighted sum of rows walks over them one by one. Here, where maps are small, it is
    two products with the whole matrix of weights; where they are large, the gradient of the values is a weighted sum of
    rows again, in the order of the values, and that of the weights a product of gathered rows, a few at a time.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, weights: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return the sums."""
        index, right, down = _around(places, _layout(grids, values.device))
        index = index.flatten(3)
        shares = _shares(weights, right, down).flatten(3).to(values.dtype)
        ctx.save_for_backward(values, places, weights, index, right, down, shares)
        ctx.grids = grids
        table, rows = values.reshape(-1, values.shape[-1]), _rows(index, values)
        found = F.embedding_bag(rows, table, mode="sum", per_sample_weights=shares.view(rows.shape))
        return found.view(*index.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Return the gradients of the values, the places and the weights."""
        values, places, weights, index, right, down, shares = ctx.saved_tensors
        cells, n = values.shape[1], index.shape[3]
        small = cells <= DENSE * n and index.shape[:3].numel() * cells <= MOST_WEIGHTS
        of_values, of_shares = (_by_whole_matrix if small else _by_rows)(values, index, shares, grad)
        a, b, c, d = of_shares.float().view(*weights.shape, 4).unbind(-1)  # the four cells, in raster order
        b, d = b - a, d - c
        upper, lower = torch.addcmul(a, b, right), torch.addcmul(c, d, right)
        of_weights = torch.lerp(upper, lower, down)
        steps = torch.stack((torch.lerp(b, d, down), lower - upper), -1).mul_(weights[..., None])
        layout = _layout(ctx.grids, values.device)
        xy = torch.addcmul(layout.half, places, layout.sides)
        inside = (xy >= -1.0) & (xy <= layout.sides)  # further out nothing changes
        return of_values, steps.mul_(layout.sides).mul_(inside), of_weights, None


def _by_rows(values: Tensor, index: Tensor, shares: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values and of the shares, row by row."""
    table, flat, n = values.reshape(-1, values.shape[-1]), _rows(index, values), index.shape[3]
    grad = grad.reshape(-1, grad.shape[-1])
    order = flat.view(-1).sort(stable=True)
    counts = torch.bincount(order.values, minlength=len(table))
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)[:-1]))
    bags = order.indices.div(n, rounding_mode="floor")
    by_row = shares.view(-1).index_select(0, order.indices)
    of_table = F.embedding_bag(bags, grad, offsets, mode="sum", per_sample_weights=by_row)
    step = max(1, ROWS // n)
    parts = []
    for rows, given in zip(torch.split(flat, step), torch.split(grad, step), strict=True):
        read = table.index_select(0, rows.view(-1)).view(*rows.shape, -1)
        parts.append(torch.bmm(read, given[..., None])[..., 0])
    return of_table.view(values.shape), torch.cat(parts)


def _rows(index: Tensor, values: Tensor) -> Tensor:
    """Return the row of each cell among those of all images and heads: (B, Q, H, n) -> (B·Q·H, n)."""
    b, cells, h, _ = values.shape
    first = torch.arange(b, dtype=index.dtype).mul_(cells * h).view(-1, 1, 1, 1)
    first = first + torch.arange(h, dtype=index.dtype).view(-1, 1)
    return torch.add(first, index, alpha=h).view(-1, index.shape[-1])


def _by_whole_matrix(values: Tensor, index: Tensor, shares: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the matrix of what each cell counts for each query."""
    rows, cells = grad.transpose(1, 2), values.transpose(1, 2)  # (B, H, Q, D), (B, H, Z, D)
    where = index.transpose(1, 2).long()
    matrix = rows @ cells.mT
    of_shares = matrix.gather(-1, where).transpose(1, 2).contiguous()
    matrix = matrix.zero_().scatter_add_(-1, where, shares.transpose(1, 2))
    return (matrix.mT @ rows).transpose(1, 2), of_shares
