"""Which weights move alike: by kind, by depth (layer-wise rate decay), and the head apart where it decays otherwise.

No decay on biases, norms, position tables and learned tokens: the groups of ViT (AugReg) and DeiT. A rate that falls
towards the input: Bao et al. 2022 (BEiT), arXiv 2106.08254, appendix; He et al. 2022 (MAE), arXiv 2111.06377, section
A.1. A stronger decay of the head alone: Zhai et al. 2022, arXiv 2106.04560, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitrail.errors import UsageError

from .blocks import blocks_of

UNDECAYED = ("pos_embed", "cls_token", "dist_token", "latent", "gamma", "table")  # by the last part of the name
DECAYED = ("matrices", "decayed")


@dataclass(frozen=True)
class Group:
    """Parameters under one rule: their kind, the factor on the learning rate, the weight decay."""

    kind: str
    scale: float
    decay: float
    members: dict[str, nn.Parameter]


def groups_of(model: nn.Module, settings: Any) -> list[Group]:
    """Return the trained parameters in groups.

    ``settings`` needs ``name``, ``weight_decay``, ``layer_decay`` and ``head_weight_decay`` (both None where unused).
    """
    scales = layer_scales(model, settings.layer_decay) if settings.layer_decay is not None else {}
    found: dict[tuple[str, float, float], dict[str, nn.Parameter]] = {}
    for kind, members in split(model, settings.name).items():
        for name, parameter in members.items():
            own = settings.head_weight_decay if in_head(name) else None
            decay = (settings.weight_decay if own is None else own) if kind in DECAYED else 0.0
            found.setdefault((kind, scales.get(name, 1.0), decay), {})[name] = parameter
    return [Group(*key, members) for key, members in found.items()]


def split(model: nn.Module, optimizer: str) -> dict[str, dict[str, nn.Parameter]]:
    """Return the trained parameters by kind.

    ``matrices`` (Muon's, if it is the optimiser: linear layers but the head, and convolutions that mix channels; not
    embeddings, of which a step moves a few rows),
    ``decayed``, ``plain``, and ``batch_norms``, which are not decayed either.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {"matrices": {}, "decayed": {}, "plain": {}, "batch_norms": {}}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    exact = {id(p) for norm in batch_norms(model) for p in norm.parameters()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in exact:
            kind = "batch_norms"
        elif not decays(name, parameter):
            kind = "plain"
        else:
            mixes = (
                parameter.ndim in (2, 4)
                and parameter.shape[1] > 1
                and not in_head(name)
                and not name.startswith("pixel_head")
                and id(parameter) not in tables
            )
            kind = "matrices" if optimizer == "muon" and mixes else "decayed"
        groups[kind][name] = parameter
    return {kind: group for kind, group in groups.items() if group}


def in_head(name: str) -> bool:
    """Tell whether a parameter belongs to a classifier (``head``, ``head_dist``)."""
    return name.startswith("head")


def decays(name: str, parameter: Tensor) -> bool:
    """Tell whether weight decay applies: not to vectors, tables of positions, learned tokens or LayerScale."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers that keep running statistics of their batches."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def layers_of(model: nn.Module) -> dict[str, int]:
    """Return parameter name -> layer: 0 the stem, positions and tokens, 1..L the blocks, L + 1 final norm and head.

    What stands between two blocks (a stage's patch merging) goes with the block before it.
    """
    numbers = {path: i for i, path in enumerate(blocks_of(model), start=1)}
    if not numbers:
        raise UsageError(
            f"layer_decay has no effect: {type(model).__name__} has no blocks to number; mend: leave it out"
        )
    found, passed = {}, 0
    for name, _ in model.named_parameters():
        inside = next((i for path, i in numbers.items() if name.startswith(f"{path}.")), None)
        passed = passed if inside is None else inside
        found[name] = len(numbers) + 1 if inside is None and passed == len(numbers) else passed
    return found


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return parameter name -> factor on the learning rate: decay ** (L + 1 - layer), 1 for the head."""
    layers = layers_of(model)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def sentences(groups: Sequence[Group]) -> list[str]:
    """Return lines for people: parameters under each rate and decay, where there is more than the usual one rate."""
    sizes: dict[tuple[float, float], int] = {}
    for group in groups:
        key = (group.scale, group.decay)
        sizes[key] = sizes.get(key, 0) + sum(p.numel() for p in group.members.values())
    return [
        f"rate x {scale:.3g}, decay {decay:g}: {size:,} parameters" for (scale, decay), size in sorted(sizes.items())
    ]
