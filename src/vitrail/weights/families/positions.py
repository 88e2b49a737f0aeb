"""Position tables of ViT-like models, between a file and the model: grids and rows of prefix tokens.

Works on tensors that have our names already. P positions, T prefix tokens, C width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.nn.positions import resize_positions

Grid = tuple[int, int]
PREFIX_TOKENS = ("cls_token", "dist_token")


def fit_positions(tensors: dict[str, Tensor], model: Any, grid: Grid | None, layout: str = "") -> list[str]:
    """Make ``pos_embed`` (1, P, C) fit the model, in place; returns sentences that say what was done.

    A table with rows for the prefix tokens, in a model whose prefix tokens have none, adds them to the tokens (and the
    other way round gets rows of zeros): the same function. A table for another grid is resized by the model's
    ``numerics.pos_resize``; rows of prefix tokens never are.

    Args:
        tensors: what was read, under our names.
        model: a ViT-like model.
        grid: the grid the file was made for, if its card says; otherwise it is worked out from the row count.
        layout: the file's layout; transformers always has rows for prefix tokens, others may not.
    """
    table = tensors.get("pos_embed")
    own = dict(model.named_parameters()).get("pos_embed")
    if table is None or own is None or table.ndim != 3 or table.shape[2] != own.shape[2]:
        return []
    config = model.config
    prefix, said = model.num_prefix_tokens, []
    rows = prefix if config.pos_embed == "learn" else 0
    choices = (prefix,) if layout == "transformers" else tuple(dict.fromkeys((rows, prefix, 0)))
    file_rows, old = _file_grid(table.shape[1], choices, grid, model.base_grid)
    head, patches = table[:, :file_rows], table[:, file_rows:]
    if file_rows and not rows:
        for row, name in enumerate(PREFIX_TOKENS[:prefix]):
            tensors[name] = tensors[name] + head[:, row : row + 1]
        said.append("positions of the prefix tokens were added to the tokens")
        head = head[:, :0]
    elif rows and not file_rows:
        head = table.new_zeros(1, rows, table.shape[2])
        said.append("prefix tokens got zero positions: the file has none for them")
    if old != model.base_grid:
        mode = config.numerics.pos_resize
        patches = resize_positions(patches, old, model.base_grid, mode)
        said.append(f"pos_embed: {old[0]}x{old[1]} -> {model.base_grid[0]}x{model.base_grid[1]} ({mode})")
    tensors["pos_embed"] = torch.cat([head, patches], dim=1)
    return said


def _file_grid(count: int, choices: tuple[int, ...], grid: Grid | None, own: Grid) -> tuple[int, Grid]:
    """Return (rows of prefix tokens, grid) of a table with ``count`` rows; likelier row counts come first."""
    for rows in choices:
        if grid is not None and count - rows == grid[0] * grid[1]:
            return rows, grid
    if grid is None and count - choices[0] == own[0] * own[1]:
        return choices[0], own
    for rows in choices:
        side = math.isqrt(max(count - rows, 0))
        if side and side * side == count - rows:
            return rows, (side, side)
    for rows in choices:
        if count - rows == own[0] * own[1]:
            return rows, own
    raise WeightsError(
        f"cannot tell the grid of a position table with {count} rows. mend: load it from a folder whose config.json"
        " gives the image size, or into a model of the image size it was trained with."
    )


def fit_fixed_positions(tensors: dict[str, Tensor], model: Any) -> None:
    """Take ``pos_embed`` out of the tensors of a model whose positions are fixed; raise if it held other ones."""
    table = tensors.pop("pos_embed", None)
    if table is None:
        return
    fixed = model.get_buffer("pos_embed")
    # a file in half precision holds the table rounded: 2**-8 is what bfloat16 makes of numbers up to 1
    if table.shape != fixed.shape or not torch.allclose(table.float(), fixed.float(), atol=2**-8):
        raise WeightsError(
            "the file holds other positions than this model's fixed sine-cosine table."
            ' mend: create the model with pos_embed="learn_patches", or "learn" if its class token has a position.'
        )


def positions_for_export(model: Any, layout: str) -> dict[str, Tensor]:
    """Return the model's tensors with the position rows that a layout asks for.

    transformers gives every prefix token a row: a model without gets rows of zeros, which is the same function. timm
    stores fixed positions too.
    """
    out: dict[str, Tensor] = dict(model.state_dict())
    config = model.config
    if layout == "timm" and config.pos_embed == "sincos2d":
        out["pos_embed"] = model.get_buffer("pos_embed")
    if layout != "transformers":
        return out
    if not config.class_token or config.global_pool != "token" or config.pos_embed == "sincos2d":
        raise WeightsError(
            "transformers' ViT has a class token, learned positions and pools by the class token; this model has"
            f" class_token={config.class_token}, global_pool={config.global_pool!r}, pos_embed={config.pos_embed!r}."
            " mend: export it in the 'timm' layout."
        )
    if config.representation_size is not None:
        raise WeightsError(
            "transformers has no classifier behind a hidden tanh layer. mend: export it in the 'timm' layout."
        )
    if config.pos_embed == "learn_patches":
        zeros = out["pos_embed"].new_zeros(1, model.num_prefix_tokens, config.embed_dim)
        out["pos_embed"] = torch.cat([zeros, out["pos_embed"]], dim=1)
    return out
