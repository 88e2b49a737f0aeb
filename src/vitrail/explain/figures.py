"""The known figures of a ViT. Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7.

- Left: the first principal components of the patch-embedding filters, as RGB tiles.
- Centre: cosine similarity of each patch position's embedding with all others, a grid of grids.
- Right (and figure 11): mean attention distance of every head, by depth; see :mod:`.distance`.

P patch side, C width, h x w positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.nn.relative import LogRelativePositionBias, RelativePositionBias

from .charts import Plot, Series, span_of
from .colors import BLUE, MUTED, ORANGE, colorize
from .distance import attention_distances, uniform_distance
from .draw import Bar, Picture, Tile, enlarged, sheet
from .geometry import patch_layout

MOST_POSITIONS = 16  # rows and columns of the grid of grids; a finer grid shows evenly spaced ones


def filter_components(weight: Tensor, count: int = 28) -> tuple[Tensor, Tensor]:
    """Return the first principal components of patch-embedding filters and their shares of the variance.

    Args:
        weight: (C, I, P, P) filters.
        count: how many; fewer come back if there are not that many.

    The mean filter is taken out first. Each component (I, P, P) has unit norm; its sign, which is arbitrary, is set
    so that its largest value in size is positive.
    """
    flat = weight.detach().cpu().double().flatten(1)
    centred = flat - flat.mean(0)
    _, sizes, components = torch.linalg.svd(centred, full_matrices=False)
    shares = sizes.square() / sizes.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    components = components[:count]
    peaks = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * torch.where(peaks < 0, -1.0, 1.0)
    return components.unflatten(1, weight.shape[1:]).float(), shares[:count].float()


def filters_figure(model: nn.Module, *, count: int = 28, text: float = 17) -> Image.Image:
    """Draw the principal components of the patch embedding, or of the first convolution of a model without one.

    ``text`` is the height of letters in pixels. Raises :class:`UsageError` if the model has neither.
    """
    weight, name = _first_filters(model)
    components, shares = filter_components(weight, count)
    side = weight.shape[-1]
    factor = max(1, round(5.6 * text / side))
    tiles = [
        Tile(enlarged(_filter_picture(c), factor), f"{100 * s:.1f} %")
        for c, s in zip(components, shares.tolist(), strict=True)
    ]
    total = 100 * float(shares.sum())
    return sheet(
        tiles,
        columns=7,
        title=f"{name} filters: first {len(tiles)} principal components",
        note=f"Share of the variance above each; together {total:.0f} % of {weight.shape[0]} filters, "
        f"{side} x {side} pixels. Mid grey is zero.",
        size=text,
    )


def _first_filters(model: nn.Module) -> tuple[Tensor, str]:
    """Return the filters that read the image, and what they are."""
    weight = getattr(getattr(getattr(model, "patch_embed", None), "proj", None), "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 4:
        return weight, "Patch-embedding"
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        raise UsageError(f"expected a model that reads images by a convolution, got {type(model).__name__}")
    return first.weight, "First-convolution"


def _filter_picture(component: Tensor) -> Picture:
    """Turn (I, P, P) into (P, P, 3): zero is mid grey; three channels are RGB, any other number their mean in grey."""
    rgb = component if component.shape[0] == 3 else component.mean(0, keepdim=True).expand(3, -1, -1)
    scaled = 0.5 + 0.5 * rgb / rgb.abs().amax().clamp(min=1e-12)
    return cast(Picture, (255 * scaled.permute(1, 2, 0) + 0.5).to(torch.uint8).numpy())


def position_similarity(model: nn.Module) -> Tensor:
    """Return the cosine similarity (h, w, h, w) of each patch position's embedding with all others.

    Rows of class and distillation tokens are left out. Of a model that adds a table in each stage (PVT) it is the first
    stage's, whose patches are those of the picture. :class:`UsageError` if the model adds no position table.
    """
    part = cast(Any, _position_tables(model)[0])
    grid: tuple[int, int] = part.base_grid
    with torch.no_grad():
        table = part.positions(grid)[0, -grid[0] * grid[1] :].cpu().double()
    table = nn.functional.normalize(table, dim=-1)
    return (table @ table.T).float().reshape(*grid, *grid)


def _position_tables(model: nn.Module) -> list[nn.Module]:
    """Return the parts that add a position table: the model itself, or its stages."""
    stages = getattr(model, "stages", ())
    parts = [part for part in (model, *stages) if hasattr(part, "positions") and hasattr(part, "base_grid")]
    if not parts:
        relative = any(isinstance(p, RelativePositionBias | LogRelativePositionBias) for p in model.modules())
        has = "positions are relative, biases of attention by offset" if relative else "layers add none"
        raise UsageError(f"expected a model that adds a position table, got {type(model).__name__}, whose {has}")
    return parts


def positions_figure(model: nn.Module, *, text: float = 16) -> Image.Image:
    """Draw the grid of grids; ``text`` is the height of letters in pixels.

    A grid finer than 16 shows evenly spaced positions, each against all others. Of a model that adds several tables it
    is the first, and the title says so.
    """
    similarity = position_similarity(model)
    several = len(_position_tables(model)) > 1
    rows, columns = similarity.shape[:2]
    shown = [np.linspace(0, n - 1, min(n, MOST_POSITIONS)).round().astype(int) for n in (rows, columns)]
    factor = max(1, round(760 / (max(len(shown[0]), len(shown[1])) * max(rows, columns))))
    tiles = [Tile(enlarged(colorize((similarity[r, c].numpy() + 1) / 2), factor)) for r in shown[0] for c in shown[1]]
    which = "every position" if similarity.shape[:2] == (len(shown[0]), len(shown[1])) else "evenly spaced positions"
    return sheet(
        tiles,
        columns=len(shown[1]),
        title="Position-embedding similarity" + (" of the first stage" if several else ""),
        note=f"A tile for {which} of the {rows} x {columns} grid: its similarity with all positions.",
        bar=Bar("-1", "1", "cosine similarity"),
        axes=("column of the patch", "row of the patch"),
        gap=5,
        size=text,
    )


def distance_figure(distances: Tensor, *, uniform: float, size: tuple[int, int] = (560, 360)) -> str:
    """Draw (depth, H) mean attention distances in pixels as SVG: a dot a head, their mean, and the uniform head's."""
    depth, heads = distances.shape
    rows = distances.tolist()
    dots = Series("head", [(i + 1, d) for i, row in enumerate(rows) for d in row], BLUE, dots=True)
    mean = Series("mean", [(i + 1, sum(row) / heads) for i, row in enumerate(rows)], ORANGE)
    even = Series("uniform attention", [(0.5, uniform), (depth + 0.5, uniform)], MUTED, dashed=True)
    plot = Plot(
        "Mean attention distance",
        "Network depth (layer)",
        "Mean attention distance (pixels)",
        (0.5, depth + 0.5),
        span_of([*(d for row in rows for d in row), uniform], zero=True, pad=0.08),
        size=size,
        x_whole=True,
    )
    return plot.svg([even, mean, dots])


def draw_figures(
    model: nn.Module,
    folder: str | Path,
    *,
    images: Tensor | Iterable[Tensor] | None = None,
    left_out: list[str] | None = None,
) -> list[Path]:
    """Write the known figures of a model into ``folder`` and return their paths.

    ``filters.png`` and ``positions.png`` need the weights only. ``attention_distance.svg`` needs ``images``, a
    normalised batch (B, C, H, W) or an iterable of them; the paper averages 128. The model is left in its mode.
    A figure that this architecture does not have is left out, and ``left_out`` gets a sentence that says why; if none
    is left, that is a :class:`UsageError`.
    """
    makers: dict[str, Callable[[], Image.Image | str]] = {
        "filters.png": lambda: filters_figure(model),
        "positions.png": lambda: positions_figure(model),
    }
    if images is not None:
        batches: Sequence[Tensor] = [images] if isinstance(images, Tensor) else list(images)
        makers["attention_distance.svg"] = lambda: _distances(model, batches)
    out, paths, why = Path(folder), [], []
    out.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        try:
            drawn = make()
        except UsageError as error:
            why.append(f"{name} is left out: {error}")
            continue
        paths.append(out / name)
        if isinstance(drawn, str):
            paths[-1].write_text(drawn, encoding="utf-8")
        else:
            drawn.save(paths[-1])
    if not paths:
        raise UsageError("\n".join(why))
    if left_out is not None:
        left_out += why
    return paths


def _distances(model: nn.Module, batches: Sequence[Tensor]) -> str:
    layout = patch_layout(model, batches[0])
    return distance_figure(
        attention_distances(model, batches), uniform=uniform_distance(layout.grid, layout.patch_size)
    )
