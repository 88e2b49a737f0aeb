"""The repeated blocks of a network: what is compiled, recomputed and sharded piece by piece."""

from __future__ import annotations

from torch import nn

PLACES = ("blocks", "stages")  # the names under which every family keeps its blocks, nested or not


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return path -> block, in the order in which they run; empty for a network without a list of blocks.

    A block is a direct child of a list named ``blocks`` or ``stages`` that holds no such list itself.
    """
    found: dict[str, nn.Module] = {}
    for path, holder in model.named_modules():
        if path.rpartition(".")[2] not in PLACES or not isinstance(holder, nn.Sequential | nn.ModuleList):
            continue
        for name, block in holder.named_children():
            if not any(inner.rpartition(".")[2] in PLACES for inner, _ in block.named_modules()):
                found[f"{path}.{name}"] = block
    return found
