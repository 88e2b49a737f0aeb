"""Work on a network block by block: recompute activations instead of keeping them, compile one graph a kind of block.

Recomputation: Chen et al. 2016, arXiv 1604.06174 (a block's input is kept, its inside is computed again on the way
back); compilation by block: what repeats is compiled once, so that the start takes a block's time and not a network's.

Only ``forward`` of each block is replaced, on the instance. Names of weights, hooks (FSDP2 puts its own around
``forward``) and deep copies stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.errors import UsageError
from vitrail.nn.residual import DropPath

from .blocks import blocks_of
from .groups import batch_norms

Run = Callable[..., Any]


def rework(model: nn.Module, *, recompute: bool, compile: bool, backend: str = "inductor") -> None:
    """Make the blocks of ``model`` recompute their inside in the backward pass, run compiled, or both, in place.

    A network without blocks is compiled whole. The gradients are those of the plain model: bit by bit if recomputed, to
    rounding if compiled (whose drop path and dropout draw other numbers). In evaluation nothing is recomputed.

    Raises:
        UsageError: ``recompute`` for a network without blocks that learn: it would have no effect.
    """
    blocks = list(blocks_of(model).values())
    if recompute and not can_recompute(model):
        raise UsageError(
            "train.recompute has no effect: expected a network with a list of blocks that learn, got "
            f"{type(model).__name__} with {len(blocks)} blocks, all frozen; "
            "mend: leave it out, or raise train.accumulation"
        )
    if compile:
        _allow_graphs(len(blocks))
        for path in (m for m in model.modules() if type(m) is DropPath and m.drop_prob):
            _unname_rate(path)
    if compile and not blocks:
        model.compile(backend=backend, dynamic=False)  # type: ignore[no-untyped-call]
    runs = {kind: _run_of(kind, compile, backend) for kind in {type(block) for block in blocks}}
    for block in blocks if recompute or compile else []:
        run = runs[type(block)]
        block.forward = MethodType(_recomputed(run) if recompute else run, block)


def can_recompute(model: nn.Module) -> bool:
    """Tell whether recomputation would do anything: frozen blocks keep nothing for a backward pass."""
    return any(p.requires_grad for block in blocks_of(model).values() for p in block.parameters())


def _run_of(kind: type[nn.Module], compile: bool, backend: str) -> Run:
    """Return what computes a block of this class: its own ``forward``, or one compiled function for all of them.

    The batch's shape is fixed: blocks of another stage get a graph of their own, not one for any shape.
    """
    run: Run = kind.forward
    return torch.compile(run, backend=backend, dynamic=False) if compile else run


def _allow_graphs(blocks: int) -> None:
    """Let dynamo keep a graph for every block if it must: past its limit, 8, it would run the rest uncompiled."""
    import torch._dynamo.config as config

    config.recompile_limit = max(config.recompile_limit, 2 * blocks + 8)


def _unname_rate(path: DropPath) -> None:
    """Give the rate of a drop path as a tensor: as a number it would be part of the graph, and ask for one a block."""
    kept = torch.tensor(1.0 - path.drop_prob)

    def forward(self: DropPath, x: Tensor) -> Tensor:
        if not self.training:
            return x
        share = kept.to(x.device)
        drawn = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) < share
        return x * (drawn / share).to(x.dtype)

    path.forward = MethodType(forward, path)  # type: ignore[method-assign]


def _recomputed(run: Run) -> Run:
    """Return ``run`` that keeps only its inputs for the backward pass, and runs once more there.

    Random numbers are drawn again from the state they were drawn from, so that dropout and drop path are the same.
    """

    def forward(block: nn.Module, *inputs: Any, **options: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return run(block, *inputs, **options)
        again = lambda: (nullcontext(), _same_statistics(block))  # noqa: E731 - both contexts, as checkpoint asks
        return checkpoint(run, block, *inputs, use_reentrant=False, context_fn=again, **options)

    return forward


def _same_statistics(block: nn.Module) -> AbstractContextManager[None]:
    """Undo what the second run does to the running statistics of batch norms: a batch counts once."""
    buffers = [b for norm in batch_norms(block) for b in norm.buffers(recurse=False)]
    return _unchanged(buffers) if buffers else nullcontext()


@contextmanager
def _unchanged(buffers: list[Tensor]) -> Iterator[None]:
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.data.copy_(value)  # past autograd's count of changes: the graph of this very batch holds them
