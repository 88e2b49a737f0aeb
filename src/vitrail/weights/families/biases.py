"""Tables of relative positions, between a file and the model: windows and maps of other sizes.

Works on tensors that have our names already. T = (2h - 1)(2w - 1) offsets in a grid (h, w), H heads.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from vitrail.errors import WeightsError
from vitrail.nn.relative import RelativePositionBias, resize_bias_table

Grid = tuple[int, int]


def fit_biases(tensors: dict[str, Tensor], model: nn.Module, grids: dict[str, Grid] | None = None) -> list[str]:
    """Stretch tables (T, H) made for other grids to those of the model, in place; returns a sentence if it did.

    ``grids`` says, by the name of a bias module, which grid its file was made for; a table without is taken to be of a
    square one. Raises :class:`WeightsError` for a table that is of none.
    """
    fitted: dict[tuple[Grid, Grid], int] = {}
    for name, module in model.named_modules():
        table = tensors.get(f"{name}.table")
        if table is None or not isinstance(module, RelativePositionBias) or table.shape == module.table.shape:
            continue
        if table.ndim != 2 or table.shape[1] != module.table.shape[1]:
            continue  # other heads: the check of shapes names it
        old = (grids or {}).get(name) or _square(name, table.shape[0])
        tensors[f"{name}.table"] = resize_bias_table(table, old, module.grid, module.resize)
        fitted[old, module.grid] = fitted.get((old, module.grid), 0) + 1
    return [
        f"{count} tables of relative positions: {old[0]}x{old[1]} -> {new[0]}x{new[1]}"
        for (old, new), count in fitted.items()
    ]


def _square(name: str, rows: int) -> Grid:
    side = (math.isqrt(rows) + 1) // 2
    if (2 * side - 1) ** 2 != rows:
        raise WeightsError(
            f"cannot tell the grid of {name}.table with {rows} rows. mend: load it from a folder whose config.json"
            " gives the image size, or into a model of the image size it was trained with."
        )
    return side, side
