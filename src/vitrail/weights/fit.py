"""What may differ between a file and the model it is loaded into, in any family: the head, and the input channels.

Works on tensors that have our names already.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vitrail.errors import WeightsError


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


def hint_of_channels(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], in_chans: int, hint: str) -> str:
    """Return how to mend shapes that differ: ``hint``, unless it is the kernel on the image that does, or that too."""
    wrong = [name for name, tensor in tensors.items() if tensor.shape != wanted[name]]
    theirs = {
        int(tensors[name].shape[1])
        for name in wrong
        if tensors[name].ndim == len(wanted[name]) == 4 and wanted[name][1] == in_chans != tensors[name].shape[1]
    }
    if len(theirs) != 1:
        return hint
    (count,) = theirs
    said = f"the file is for images of {count} channels, the model for {in_chans}: create it with in_chans={count}."
    return said if len(wrong) == 1 else f"{said} {hint}".strip()
