"""Freezing: what does not learn, and does not move in any other way either.

A frozen part runs as in evaluation while the rest trains: no dropout and no drop path in it, and its batch norms use
the statistics they have instead of gathering those of the new images.

Source of "head and last norm": Touvron et al. 2019, arXiv 1906.06423, section 3.3 (FixRes).
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def freeze_backbone(model: nn.Module, *, but: Sequence[str] = ()) -> list[str]:
    """Freeze everything but the head, and the parts whose paths are in ``but``; returns the parameters that learn.

    ``model.train()`` leaves the frozen parts in eval mode from now on.

    Raises :class:`ValueError` if the model has no head with parameters.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_within(name, but))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not any(name.startswith("head") for name in trained):
        raise ValueError(f"expected a model with a head to train, got {type(model).__name__} without")
    for path in but:
        if isinstance(part := model.get_submodule(path), nn.GroupNorm):
            part.register_forward_pre_hook(_ask_for_gradient)
    model._kept_in_train = tuple(but)  # type: ignore[assignment]
    # a bound method is copied with the model it is bound to, so that copies keep their frozen parts still too
    model.train = types.MethodType(_train, model)  # type: ignore[method-assign]
    model.train(model.training)
    return trained


def last_norm(model: nn.Module) -> str | None:
    """Return the path of the last norm before the head, or None if there is none."""
    paths = [path for path, part in model.named_modules() if isinstance(part, NORMS) and not path.startswith("head")]
    return paths[-1] if paths else None


def _ask_for_gradient(norm: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Let a gradient flow into what comes from frozen parts.

    torch 2.13's backward pass of a group norm reads memory it was not given (a segmentation fault) if its input is
    channels-last, on a CPU, and asks for none.
    """
    x = given[0]
    return given if x.requires_grad or not torch.is_grad_enabled() else (x.detach().requires_grad_(), *given[1:])


def _within(name: str, but: Sequence[str]) -> bool:
    return name.startswith("head") or any(name == path or name.startswith(f"{path}.") for path in but)


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode as ``nn.Module.train`` does, and put the frozen parts back to rest."""
    nn.Module.train(model, mode)
    if mode:
        for path, part in model.named_modules():
            if path and not _within(path, model._kept_in_train):  # type: ignore[arg-type]
                part.training = False
    return model
