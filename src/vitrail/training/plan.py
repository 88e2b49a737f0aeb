"""What a run needs, by arithmetic: memory of a process, alone or one of several, and time.

P parameters, N processes, m images in a piece of a batch (the micro-batch), B images a step, k = B / (N m) pieces.
Sharding: Rajbhandari et al. 2020, arXiv 1910.02054, section 3 (ZeRO, stage 3), as torch's FSDP2 does it. Recomputation:
Chen et al. 2016, arXiv 1604.06174. Nothing here measures: probe.py does, with two small batches.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from torch import nn

from vitrail.errors import UsageError

from .blocks import blocks_of
from .groups import batch_norms

HEADROOM = 0.9  # of the free memory that may be planned for: allocators leave holes, libraries take scratch memory
Parallel = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Network:
    """Numbers of weights: those that are trained, those of batch norms among them (always float32), all of each block
    and all there are; bytes of buffers, and of ``others``: weights that are not trained, such as a teacher's.
    """

    params: int
    exact: int
    blocks: tuple[int, ...]
    whole: int
    buffers: int
    others: int = 0

    @classmethod
    def of(cls, model: nn.Module, others: int = 0) -> Network:
        """Count a model."""
        return cls(
            params=sum(p.numel() for p in model.parameters() if p.requires_grad),
            exact=sum(p.numel() for norm in batch_norms(model) for p in norm.parameters() if p.requires_grad),
            blocks=tuple(sum(p.numel() for p in block.parameters()) for block in blocks_of(model).values()),
            whole=sum(p.numel() for p in model.parameters()),
            buffers=sum(b.nbytes for b in model.buffers()),
            others=others,
        )

    def working(self, precision: str) -> int:
        """Bytes of the weights that the model computes with."""
        size = {"fp32": 4, "bf16": 2}[precision]
        return size * (self.params - self.exact) + 4 * self.exact


@dataclass(frozen=True)
class Memory:
    """Bytes on a process's device, by what they are for."""

    weights: int
    masters: int
    gradients: int
    moments: int
    average: int
    shown: int
    buffers: int
    others: int
    gathered: int
    data: int
    work: int
    process: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


def predict_memory(
    network: Network,
    *,
    precision: str,
    moments: int,
    ema: bool,
    work: int,
    data: int = 0,
    parallel: Parallel = "ddp",
    processes: int = 1,
    process: int = 0,
) -> Memory:
    """Return what one process needs at its peak.

    ``moments`` are the bytes that the optimiser remembers of the whole network (8 P of AdamW, 4 P of Muon), ``work``
    those that a step takes beyond what is always there, ``data`` those of batches and cached images, ``process`` those
    of Python and its libraries, where they count (on a CPU). With w bytes a working weight (4, or 2 in bf16):

    =========  =========================  ==================================================================
    ..         alone, or ``ddp``          ``fsdp`` (each block one group, all the rest R one more)
    =========  =========================  ==================================================================
    weights    w P; float32: 0 (views)    w P / N, also in float32: a slice cannot be a view of the masters
    masters    4 P                        4 P / N
    gradients  4 P (sums of all pieces)   4 P / N
    moments    8 P (AdamW)                8 P / N
    average    4 P, if there is one       4 P / N
    shown      0 (views of the average)   4 P / N (the copy that is evaluated)
    gathered   0                          see :func:`gathered`
    work       the step's peak, with the  activations alone: gradients of whole weights are in ``gathered``,
               model's own gradients w P  and their slices, w P / N, are added here
    =========  =========================  ==================================================================

    In ``ddp`` the float32 sums are reduced in place, so that N changes nothing but the images of a process.
    Raises :class:`UsageError` where ``fsdp`` does not go with the network or with one process.
    """
    alone: int = 4 * network.params
    if parallel == "ddp":
        kept = network.working(precision) if precision != "fp32" else 0
        return Memory(
            weights=kept, masters=alone, gradients=alone, moments=moments, average=alone if ema else 0, shown=0,
            buffers=3 * network.buffers if ema else 2 * network.buffers, others=network.others, gathered=0,
            data=data, work=work, process=process,
        )  # fmt: skip
    if processes < 2 or not network.blocks or network.exact:
        raise UsageError(
            "expected several processes and a network of blocks without batch norms for --parallel fsdp, got "
            f"{processes} process(es), {len(network.blocks)} blocks, {network.exact} weights in batch norms; "
            "mend: --parallel ddp"
        )
    part = -(-alone // processes)
    own = -(-network.working(precision) // processes)
    return Memory(
        weights=own, masters=part, gradients=part, moments=-(-moments // processes), average=part if ema else 0,
        shown=part, buffers=3 * network.buffers if ema else 2 * network.buffers, others=network.others,
        gathered=gathered(network, precision), data=data, work=work + own, process=process,
    )  # fmt: skip


def gathered(network: Network, precision: str) -> int:
    """Return the bytes of whole weights and gradients that a process of ``fsdp`` holds for a moment.

    With b weights in the largest block, r outside the blocks and w bytes each: the rest stays whole from the start of
    the forward to the end of the backward pass, w r. In a block's backward pass there are its own weights and those of
    the next, gathered ahead, 2 w b; its gradients, w b; and their float32 copy on its way to be summed, 4 b. At the end
    the gradients of the rest take w r and 4 r, and no block is whole any more. The larger of both moments counts.
    """
    w = {"fp32": 4, "bf16": 2}[precision]
    block = max(network.blocks)
    rest = network.whole - sum(network.blocks)
    return w * rest + max((3 * w + 4) * block, (w + 4) * rest)


@dataclass(frozen=True)
class Choice:
    """One way to compute the recipe's batch: ``micro`` images at a time, ``accumulation`` times."""

    micro: int
    accumulation: int
    recompute: bool
    memory: Memory
    fits: bool
    step_s: float | None = None

    @property
    def settings(self) -> list[str]:
        """What to add to the command line to get it."""
        return [f"train.accumulation={self.accumulation}", f"train.recompute={str(self.recompute).lower()}"]


def cuts(images: int) -> list[tuple[int, int]]:
    """Return (images a piece, pieces) of a process's share of the batch: halved until one image is left.

    Pieces are rounded up, as the loop rounds them; the number of pieces is that which the loop makes of it.
    """
    found: list[tuple[int, int]] = []
    pieces = 1
    while True:
        micro = -(-images // pieces)
        count = -(-images // micro)
        if (micro, count) not in found:
            found.append((micro, count))
        if micro == 1:
            return found
        pieces *= 2


def rank(choices: list[Choice]) -> list[Choice]:
    """Return the choices, best first: those that fit, by time, then the simpler one; then the others, by memory."""
    return sorted(
        choices,
        key=lambda c: (not c.fits, (c.step_s or 0.0) if c.fits else c.memory.total, c.recompute, c.accumulation),
    )
