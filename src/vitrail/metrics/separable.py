"""Least squares for curves that are linear in some parameters, all >= 0, and not in others; with likelihood intervals.

A curve is ``columns(theta) @ beta``: theta few and bounded, beta >= 0. For each theta of a grid the best beta is known
in closed form (variable projection: Golub and Pereyra 1973), so that the grid finds the optimum wherever it lies, with
no start to choose. What cannot be told apart stays apart: an interval holds every value that some curve has whose
weighted squares are at most ``rise`` above the least (profile likelihood).

Non-negative betas are handled face by face: the optimum under beta >= 0 is the plain optimum of those betas that are
not 0, so all their subsets are solved and those kept whose betas are positive. The same holds for the extremes of a
linear function over the ellipsoid of good betas.

G cells of the grid, n points, p betas, q thetas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Columns = Callable[[Array], Array]
"""From thetas (G, q) to columns (G, n, p)."""
Linear = Callable[[Array], Array]
"""From thetas (G, q) to the weights (G, p) that a quantity gives the betas."""

ZOOMS = 12  # of the search for the optimum: each narrows every axis at least threefold
SINGULAR = 1e-13  # of a normal matrix scaled to ones on its diagonal: its columns are then the same


@dataclass(frozen=True)
class Face:
    """The solutions in which only the betas in ``active`` are not 0."""

    active: tuple[int, ...]
    beta: Array
    """(G, len(active))"""
    squares: Array
    """(G,) weighted sum of squares; infinite where the columns cannot be told apart."""
    inverse: Array
    """(G, k, k) inverse of the normal matrix."""

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(G,) whether the solution has no negative beta."""
        allowed: NDArray[np.bool_] = (self.beta >= 0).all(1) & np.isfinite(self.squares)
        return allowed


def faces(columns: Array, target: Array, weights: Array) -> list[Face]:
    """Solve for every subset of the betas: columns (G, n, p), target (n,), weights (n,)."""
    normal = np.einsum("gnp,n,gnq->gpq", columns, weights, columns)
    right = np.einsum("gnp,n->gp", columns, weights * target)
    count = columns.shape[2]
    found = []
    for active in (s for k in range(1, count + 1) for s in combinations(range(count), k)):
        part = normal[:, active][:, :, active]
        scale = np.sqrt(np.einsum("gii->gi", part))
        unit = part / (scale[:, :, None] * scale[:, None, :])
        known = np.linalg.det(unit) > SINGULAR
        unit[~known] = np.eye(len(active))
        inverse = np.linalg.inv(unit) / (scale[:, :, None] * scale[:, None, :])
        beta = np.einsum("gij,gj->gi", inverse, right[:, active])
        rest = target - np.einsum("gnk,gk->gn", columns[:, :, active], beta)
        squares = np.where(known, (weights * rest**2).sum(1), np.inf)
        found.append(Face(active, beta, squares, inverse))
    return found


def least(found: Sequence[Face]) -> Array:
    """Return the least squares (G,) under beta >= 0."""
    result: Array = np.min([np.where(face.allowed, face.squares, np.inf) for face in found], axis=0)
    return result


@dataclass(frozen=True)
class Optimum:
    """The best curve: theta (q,), beta (p,) and its weighted squares."""

    theta: Array
    beta: Array
    squares: float


def best(columns: Columns, axes: Sequence[Array], target: Array, weights: Array) -> Optimum:
    """Return the optimum over the box that ``axes`` (values of each theta, rising) span."""
    while True:
        for _ in range(ZOOMS):
            cells = _mesh(axes)
            solved = faces(columns(cells), target, weights)
            squares = least(solved)
            at = int(squares.argmin())
            where = np.unravel_index(at, [len(axis) for axis in axes])
            axes = [_around(axis, int(i)) for axis, i in zip(axes, where, strict=True)]
        beta = np.zeros(columns(cells[:1]).shape[2])
        face = min((f for f in solved if f.allowed[at]), key=lambda f: float(f.squares[at]))
        beta[list(face.active)] = face.beta[at]
        return Optimum(cells[at], beta, float(squares[at]))


def _around(axis: Array, at: int) -> Array:
    """Return as many values, at least 13, closely around one of an axis."""
    return np.linspace(axis[max(0, at - 2)], axis[min(len(axis) - 1, at + 2)], 13) if len(axis) > 1 else axis


def _mesh(axes: Sequence[Array]) -> Array:
    """Return all combinations of the values of axes: (G, q)."""
    return np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")], 1)


class Region:
    """All curves whose squares are at most ``rise`` above the least."""

    def __init__(
        self, columns: Columns, axes: Sequence[Array], target: Array, weights: Array, optimum: Optimum, rise: float
    ) -> None:
        self.limits = [(float(axis[0]), float(axis[-1])) for axis in axes]
        for margin in (8.0, 3.0, 1.5):  # narrow the grid step by step to where good curves are
            cells = np.concatenate([_mesh(axes), optimum.theta[None]])
            above = least(faces(columns(cells), target, weights)) - optimum.squares
            near = cells[above <= margin * rise]
            axes = [_spanning(axis, near[:, i]) for i, axis in enumerate(axes)]
        self.cells = np.concatenate([_mesh(axes), optimum.theta[None]])
        self.faces = faces(columns(self.cells), target, weights)
        self.slack = [rise - (face.squares - optimum.squares) for face in self.faces]

    def theta(self, which: int) -> tuple[float, float]:
        """Return the interval of one theta."""
        inside = np.zeros(len(self.cells), dtype=bool)
        for face, slack in zip(self.faces, self.slack, strict=True):
            inside |= face.allowed & (slack >= 0)
        values = self.cells[inside, which]
        return float(values.min()), float(values.max())

    def zero(self, which: int) -> bool:
        """Whether one beta may be 0."""
        return any(
            which not in face.active and bool((face.allowed & (slack >= 0)).any())
            for face, slack in zip(self.faces, self.slack, strict=True)
        )

    def interval(self, quantity: Linear) -> tuple[float, float]:
        """Return the interval of a quantity that is linear in the betas."""
        wanted = quantity(self.cells)
        low, high = np.inf, -np.inf
        for face, slack in zip(self.faces, self.slack, strict=True):
            g = wanted[:, face.active]
            along = np.einsum("gij,gj->gi", face.inverse, g)
            length = np.sqrt(np.maximum((g * along).sum(1), 1e-300))
            with np.errstate(invalid="ignore"):  # cells out of the region
                step = (np.sqrt(slack) / length)[:, None] * along
            for beta in (face.beta - step, face.beta + step):
                fits = (slack >= 0) & (beta >= 0).all(1)
                if fits.any():
                    values = (g * beta).sum(1)[fits]
                    low, high = min(low, float(values.min())), max(high, float(values.max()))
        return low, high


def _spanning(axis: Array, values: Array) -> Array:
    """Return as many values as the axis has, from just below to just above those given, within the axis."""
    low = axis[max(0, int(np.searchsorted(axis, values.min())) - 1)]
    high = axis[min(len(axis) - 1, int(np.searchsorted(axis, values.max(), side="right")))]
    if low > 0:
        return np.geomspace(low, high, len(axis))
    return np.linspace(low, high, len(axis))
