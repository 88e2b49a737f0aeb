"""Model soups: the mean of the weights of several models that were fine-tuned from one start.

Wortsman et al. 2022, arXiv 2203.05482: uniform soup, equation 1; greedy soup, recipe 1. Members that share a start lie
in one valley of the loss, so that their mean lies in it too, nearer to its middle.

Batch norms keep statistics of what comes through other weights: the mean of the members' is not that of the soup.
They are measured anew, as after stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import WeightsError
from vitrail.models import config_to_dict

from .folder import Folder

Indices = tuple[int, ...]
IN_TRAINING_ONLY = ("drop_rate", "drop_path_rate")  # fields of a config that change nothing of a finished model
LOOK = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def average(members: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts, summed in float64; of counters (whole numbers) the largest.

    One at a time is taken from ``members``, so that they need not all be in memory. The mean of one is that one, bit
    for bit. Raises :class:`WeightsError` if there is none, or names or shapes differ.
    """
    total: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    count = 0
    for member in members:
        _require_same_tensors(total, member)
        for name, tensor in member.items():
            if not count:
                types[name], total[name] = tensor.dtype, _exact(tensor)
            elif tensor.is_floating_point():
                total[name] += tensor
            else:
                torch.maximum(total[name], tensor, out=total[name])
        count += 1
    if not count:
        raise WeightsError("expected at least one model to average, got none")
    return {n: (t / count if t.is_floating_point() else t).to(types[n]) for n, t in total.items()}


def _exact(tensor: Tensor) -> Tensor:
    """Return a copy that sums do not round."""
    return tensor.detach().to(torch.float64, copy=True) if tensor.is_floating_point() else tensor.detach().clone()


def _require_same_tensors(first: Mapping[str, Tensor], member: Mapping[str, Tensor]) -> None:
    if not first:
        return
    strangers = sorted(first.keys() ^ member.keys())
    if strangers:
        raise WeightsError(f"expected members with the same tensors; {strangers[0]} is not in all of them")
    for name, tensor in member.items():
        if tensor.shape != first[name].shape:
            here, there = tuple(first[name].shape), tuple(tensor.shape)
            raise WeightsError(f"expected {name} of shape {here} in every member, got {there}")


def greedy(scores: Sequence[float], measure: Callable[[Indices], float]) -> tuple[Indices, float]:
    """Return the members of the greedy soup, best first, and its score.

    Args:
        scores: one of each member alone; more is better.
        measure: gives the score of the soup of the members with these indices.

    Members are tried from the best to the worst; one stays if the soup does not get worse. So the soup is never below
    its best member.
    """
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept: Indices = (order[0],)
    best = scores[order[0]]
    for i in order[1:]:
        found = measure((*kept, i))
        if found >= best:
            kept, best = (*kept, i), found
    return kept, best


def require_alike(names: Sequence[str], folders: Sequence[Folder]) -> None:
    """Raise :class:`WeightsError` that names what differs, unless all are of one network, class map and way to be fed.

    Rates of dropout and drop path may differ: they change nothing of a finished model.
    """
    first = _description(folders[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        other = _description(folder)
        differing = [key for key in first if first[key] != other.get(key)] + [k for k in other if k not in first]
        if differing:
            lines = [f"  {key}: {first.get(key)!r} in {names[0]}, {other.get(key)!r} in {name}" for key in differing]
            raise WeightsError(
                "expected members of one architecture, fed alike, got:\n" + "\n".join(lines) + "\n"
                "  mend: soup models that were fine-tuned from one start with the same data"
            )
        mine, theirs = folders[0].classes, folder.classes
        if (mine is None) != (theirs is None):
            without = name if theirs is None else names[0]
            raise WeightsError(f"expected members with one class map, got {without}, which has none")
        if mine is not None and theirs is not None:
            mine.require_equal(theirs, mine=names[0], theirs=name)


def _description(folder: Folder) -> dict[str, Any]:
    config = {k: v for k, v in config_to_dict(folder.config).items() if k not in IN_TRAINING_ONLY}
    return {**config, **{f"card.{key}": getattr(folder.card, key) for key in LOOK}}


def has_statistics(model: nn.Module) -> bool:
    """Tell whether the model keeps running statistics, which an average of weights makes stale."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


@torch.no_grad()
def measure_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of batch norms to the plain mean over ``batches`` (B, 3, H, W) of what comes in.

    Nothing else of the model is in training mode meanwhile, so no dropout; modes and momenta are put back. The batches
    must mix the classes as training does.
    """
    modes = {module: module.training for module in model.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a plain mean
        norm.train()
    try:
        for images in batches:
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
