"""Masters: the float32 weights of a model in flat buffers, one for each group of weights that move alike.

The optimiser, the moving average and the checkpoints see only the masters. A float32 model's parameters are views of
them. A bf16 model's parameters are views of bf16 copies, written back after each update (mixed precision training,
Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). Of a model cut into slices (see sharding.py) the masters hold
this process's slices. Batch norms stay in float32 in such a model, statistics and
all: a running mean that moves by a hundredth of itself would stand still in bf16. Gradients of a step's pieces are
summed in float32 whatever the model's type.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .flat import Flat
from .groups import batch_norms, groups_of
from .rules import Rule, rule_for
from .world import ALONE, World


def to_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Move ``model`` to ``dtype``, in place; its batch norms keep float32, to the last bit."""
    exact = [(norm, {n: t.clone() for n, t in norm.state_dict().items()}) for norm in batch_norms(model)]
    model.to(dtype)
    for norm, state in exact:
        norm.float().load_state_dict(state)


class Masters:
    """Holds the float32 weights of ``model``, gathers gradients, and updates.

    ``settings`` is the ``optim`` section of a resolved recipe: the optimiser and its options, decays, ``layer_decay``.
    The model is moved to ``dtype`` (float32 or bfloat16) and its parameters become views of shared buffers (slices keep
    their own memory and are copied); buffers of the model stay its own.
    """

    def __init__(self, model: nn.Module, settings: Any, dtype: torch.dtype = torch.float32) -> None:
        self.groups = groups_of(model, settings)
        self.shapes = {name: p.shape for group in self.groups for name, p in group.members.items()}
        self.sliced = any(hasattr(p, "to_local") for group in self.groups for p in group.members.values())
        """Whether the model is cut, and these are this process's slices."""
        self.flats = [Flat({name: own(p) for name, p in group.members.items()}) for group in self.groups]
        self.weights = [nn.Parameter(flat.buffer) for flat in self.flats]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self._grad_views = [list(f.views(_grad(w)).values()) for f, w in zip(self.flats, self.weights, strict=True)]
        to_type(model, dtype)
        now = dict(model.named_parameters())
        self.model, self.parameters = model, [[now[name] for name in group.members] for group in self.groups]
        kept = [dtype == torch.float32 or group.kind == "batch_norms" for group in self.groups]
        self._working: list[Tensor] = []
        if not self.sliced:
            self._working = [f.buffer if same else f.buffer.to(dtype) for f, same in zip(self.flats, kept, strict=True)]
            self.attach(model, self._working)
        self._statistics = [buffer for norm in batch_norms(model) for buffer in norm.buffers()]
        self.copies = 1
        """Processes that hold the same slices."""
        self.updates = 0
        """Updates made so far: steps that were skipped do not count."""
        self.rules: list[Rule] = [
            rule_for(settings.name, group.kind)(flat, weight, settings, group.decay)
            for group, flat, weight in zip(self.groups, self.flats, self.weights, strict=True)
        ]

    def attach(self, model: nn.Module, buffers: list[Tensor]) -> None:
        """Make the parameters of ``model`` (same architecture) views of ``buffers``; nothing is copied.

        Slices cannot be views: :meth:`show` copies them when they are needed.
        """
        if self.sliced:
            return
        parameters = dict(model.named_parameters())
        for flat, buffer in zip(self.flats, buffers, strict=True):
            for name, view in flat.views(buffer.detach()).items():
                parameters[name].data = view

    @torch.no_grad()
    def show(self, model: nn.Module, buffers: list[Tensor]) -> None:
        """Bring the parameters of a ``model`` given to :meth:`attach` up to date with ``buffers``."""
        if self.sliced:
            parameters = dict(model.named_parameters())
            values = self.named(buffers)
            torch._foreach_copy_([own(parameters[name]) for name in values], list(values.values()))

    def gather(self) -> None:
        """Add the model's gradients to the float32 sums and drop them."""
        for views, parameters in zip(self._grad_views, self.parameters, strict=True):
            pairs = [(v, own(p.grad)) for v, p in zip(views, parameters, strict=True) if p.grad is not None]
            if pairs:
                torch._foreach_add_([v for v, _ in pairs], [g for _, g in pairs])
            for parameter in parameters:
                parameter.grad = None

    def drop_gradients(self) -> None:
        """Set the gradient sums to zero."""
        for weight in self.weights:
            _grad(weight).zero_()

    def reduce(self, world: World) -> None:
        """Make the gathered gradients those of all processes together; slices were summed in the backward pass.

        Batch norms' running statistics become the mean of all processes.
        """
        if not self.sliced:
            for weight in self.weights:
                world.add(_grad(weight))
        world.average(self._statistics)

    def norm(self, world: World = ALONE) -> float:
        """Return the 2-norm of all gathered gradients; inf or nan if any of them is."""
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(_grad(w)) for w in self.weights])))
        if not self.sliced:
            return norm
        return math.sqrt(world.sum([norm * norm])[0] / self.copies)

    @torch.no_grad()
    def update(self, lr: float, *, scale: float = 1.0) -> None:
        """Multiply the gradients by ``scale``, take one step, write working copies, zero the gradients."""
        for group, weight, rule in zip(self.groups, self.weights, self.rules, strict=True):
            if scale != 1.0:
                _grad(weight).mul_(scale)
            rule.step(lr * group.scale)
        self.updates += 1
        self.write_back()
        self.drop_gradients()

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters to the model's own type; nothing to do for a float32 model of whole weights."""
        self.show(self.model, [w.detach() for w in self.weights])
        if self.sliced:
            return
        for working, weight in zip(self._working, self.weights, strict=True):
            if working.dtype != weight.dtype:
                working.copy_(weight)

    def moments(self) -> dict[str, Tensor]:
        """Return what the optimiser must remember, by name, as views of its buffers."""
        return {name: view for rule in self.rules for name, view in rule.moments().items()}

    def set_updates(self, updates: int) -> None:
        """Set the update count, after loading a checkpoint."""
        self.updates = updates
        for rule in self.rules:
            rule.set_updates(updates)

    def named(self, buffers: list[Tensor]) -> dict[str, Tensor]:
        """Return parameter name -> its part of ``buffers``."""
        return {n: v for flat, b in zip(self.flats, buffers, strict=True) for n, v in flat.views(b).items()}


def own(tensor: Tensor) -> Tensor:
    """Return this process's slice of a tensor that is cut; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor: its import takes a second


def _grad(weight: Tensor) -> Tensor:
    assert weight.grad is not None, "masters always hold a gradient buffer"
    return weight.grad
