"""Tables for SwinIR: the authors' ``.pth`` (JingyunLiang/SwinIR), which spandrel reads too.

The files wrap their tensors in ``params`` or, of networks trained against a critic, ``params_ema``. Their heads share
names for different layers, so there is one table a head.
"""

from __future__ import annotations

from vitrail.weights.tables import Entry, Table, module, own_table

from .swin import BUFFERS

_BLOCK, _THEIRS = "stages.{i}.blocks.{j}", "layers.{i}.residual_group.blocks.{j}"
_BODY = (
    *module("conv_first", "conv_first"),
    *module("embed_norm", "patch_embed.norm"),
    *(
        entry
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for entry in module(f"{_BLOCK}.{part}", f"{_THEIRS}.{part}")
    ),
    Entry(f"{_BLOCK}.attn.positions.table", (f"{_THEIRS}.attn.relative_position_bias_table",)),
    *module("stages.{i}.conv", "layers.{i}.conv"),
    *module("stages.{i}.conv.{j}", "layers.{i}.conv.{j}"),  # the three of "3conv"
    *module("norm", "norm"),
    *module("conv_after_body", "conv_after_body"),
    *module("conv_after_body.{i}", "conv_after_body.{i}"),
)
_BEFORE = module("reconstruct.before", "conv_before_upsample.0")
_LAST = module("reconstruct.last", "conv_last")
_HEADS: dict[str, tuple[Entry, ...]] = {
    "pixelshuffle": (
        *_BEFORE,
        *(entry for i in range(3) for entry in module(f"reconstruct.ups.{i}", f"upsample.{2 * i}")),
        *_LAST,
    ),
    "pixelshuffledirect": module("reconstruct.last", "upsample.0"),
    "nearest+conv": (
        *_BEFORE,
        *(entry for i in range(3) for entry in module(f"reconstruct.ups.{i}", f"conv_up{i + 1}")),
        *module("reconstruct.hr", "conv_hr"),
        *_LAST,
    ),
    "residual": module("reconstruct", "conv_last"),
}


def head_title(head: str) -> str:
    """Return how titles of tables call a head."""
    return f"SwinIR .pth, head {head}"


_NOTHING: tuple[str, ...] = ()
"""No part may be left out: there is no classifier."""

VITRAIL = own_table((*_BODY, *(entry for head in _HEADS.values() for entry in head)), _NOTHING)
TABLES: tuple[Table, ...] = (
    VITRAIL,
    *(Table("original", head_title(h), (*_BODY, *e), BUFFERS, head=_NOTHING) for h, e in _HEADS.items()),
)
