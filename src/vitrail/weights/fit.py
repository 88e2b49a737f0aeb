"""What may differ between a file and the model it is loaded into, in any family: the head.

Works on tensors that have our names already.
"""

from __future__ import annotations

from torch import Tensor, nn

from vitrail.errors import WeightsError


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
        raise WeightsError(
            f"expected weights for {ours} classes, got {theirs}. mend: pass new_head=True to start a new classifier on"
            f" these weights, or create the model with num_classes={theirs}."
        )
    if new_head:
        for name in names:
            del tensors[name]
        return names
    return []
