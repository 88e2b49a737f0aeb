"""What may differ between a file and the model it is loaded into, in any family: the head, and the input channels.

Works on tensors that have our names already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.errors import WeightsError

SHOWN = 5  # class names in a sentence


class OtherClassCount(WeightsError):
    """Weights for ``theirs`` classes do not fit a model of ``ours``."""

    def __init__(self, message: str, ours: int, theirs: int) -> None:
        super().__init__(message)
        self.ours, self.theirs = ours, theirs


def fit_head(tensors: dict[str, Tensor], model: nn.Module, *, new_head: bool) -> list[str]:
    """Drop a classifier of another class count, so that the model keeps its fresh one; returns the dropped names.

    Raises :class:`WeightsError` with the fix unless ``new_head``.
    """
    own = model.state_dict()
    names = [n for n in tensors if n.startswith("head") and n in own]
    wrong = [n for n in names if tensors[n].shape != own[n].shape]
    if not wrong:
        return []
    theirs, ours = tensors[wrong[0]].shape[0], own[wrong[0]].shape[0]
    same_width = all(tensors[n].shape[1:] == own[n].shape[1:] for n in wrong)
    if not new_head and same_width:
        raise OtherClassCount(
            f"expected weights for {ours} classes, got {theirs}. mend: create the model with num_classes={theirs}, or"
            f" start a new classifier on these weights: create_model(..., num_classes={ours}), or load_weights(...,"
            " new_head=True).",
            ours,
            theirs,
        )
    if new_head:
        for name in names:
            del tensors[name]
        return names
    return []


@dataclass(frozen=True)
class HeadSwap:
    """What becomes of the classifier of weights that go into a model of other classes.

    ``classes`` are those of the model. ``how``: "keep" keeps the rows of classes that both name, and draws the others
    fresh; "match" does the same and fails if there are none; "new" draws all of them fresh. Weights that do not name
    their classes keep the whole classifier under "keep" if it has as many.
    """

    classes: ClassMap
    how: Literal["keep", "match", "new"] = "keep"


def swap_head(
    tensors: dict[str, Tensor], model: nn.Module, theirs: ClassMap | None, swap: HeadSwap
) -> tuple[list[str], str]:
    """Make the classifier in ``tensors`` fit ``model``, in place; returns (names left fresh, what was done in words).

    ``theirs`` are the classes of the weights. Raises :class:`WeightsError` if nothing matches though it must.
    """
    own = model.state_dict()
    names = [n for n in tensors if n.startswith("head") and n in own]
    pairs, reason = _pairs(theirs, swap.classes) if names else ([], "the weights have no head")
    if not pairs and swap.how == "match":
        raise WeightsError(
            f"expected a head whose classes can be matched, but {reason}; mend: model.head: keep, or new"
        )
    if not names:
        return [], ""
    same = all(tensors[n].shape == own[n].shape for n in names)
    if swap.how == "keep" and theirs is None and same:
        return [], "kept the head whole: it has as many classes, and does not name them"
    if swap.how != "new" and pairs and all(tensors[n].shape[1:] == own[n].shape[1:] for n in names):
        mine, other = (torch.tensor(side) for side in zip(*pairs, strict=True))
        for name in names:
            fresh = own[name].clone()
            fresh[mine] = tensors[name][other].to(fresh)
            tensors[name] = fresh
        kept = [swap.classes.names[i] for i, _ in pairs]
        shown = ", ".join(kept[:SHOWN]) + (f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else "")
        return [], f"kept the head's rows of {len(kept)} of {len(swap.classes)} classes: {shown}"
    for name in names:
        del tensors[name]
    return names, "" if swap.how == "new" else f"new head: {reason or 'its input has another width'}"


def _pairs(theirs: ClassMap | None, ours: ClassMap) -> tuple[list[tuple[int, int]], str]:
    """Return (our index, their index) of each class that both name once, and why there is none."""
    if theirs is None:
        return [], "the weights do not name their classes"
    known = {name: j for j, name in enumerate(theirs.names) if theirs.names.count(name) == 1}
    pairs = [(i, known[n]) for i, n in enumerate(ours.names) if n in known and ours.names.count(n) == 1]
    return pairs, "" if pairs else f"none of the data's classes is among those of the weights ({theirs.summary(4)})"


def hint_of_channels(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], in_chans: int, hint: str) -> str:
    """Return how to mend shapes that differ: ``hint``, unless what reads the image is at fault too."""
    wrong = [name for name, tensor in tensors.items() if tensor.shape != wanted[name]]
    theirs = {
        int(tensors[name].shape[1])
        for name in wrong
        if tensors[name].ndim == len(wanted[name]) == (2 if name == "palette" else 4)
        and wanted[name][1] == in_chans != tensors[name].shape[1]
    }
    if len(theirs) != 1:
        return hint
    (count,) = theirs
    said = f"the file is for images of {count} channels, the model for {in_chans}: create it with in_chans={count}."
    return said if len(wrong) == 1 else f"{said} {hint}".strip()
