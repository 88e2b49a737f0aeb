"""The arithmetic of training at scale: FLOPs and MFU, memory a GPU, bytes on the wire, checkpoints, lost time.

MFU: Chowdhery et al. 2022, arXiv 2204.02311, appendix B: what the model needs over what the device could do, no credit
for recomputing. Slices: Rajbhandari et al. 2020, arXiv 1910.02054 (ZeRO, stage 3), section 7 for the traffic. Rings:
Patarasuk and Yuan 2009. Checkpoint interval: Young 1974, Daly 2006.

P parameters, n processes that hold or reduce one thing together, bytes unless said otherwise. Bytes a parameter are
those of ``training/optim.py`` and ``training/sharding.py`` in bf16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .cost import BYTES, Cost

BACKWARD = 2  # forward passes that a backward pass costs: gradients of the inputs and of the weights
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bf16 with float32 sums, from NVIDIA's data sheets
GPU_MEMORY = {"A100": 80e9, "H100": 80e9, "H200": 141e9}

STATE = {  # bytes a parameter of a whole copy
    "float32 master": 4,
    "float32 gradient sum": 4,
    "two float32 moments of AdamW": 8,
    "float32 moving average": 4,
    "bf16 copy that computes": 2,
    "its gradient": 2,
}
SHOWN = 4  # float32 slices of the evaluated copy where weights are cut; of whole weights it is the average itself
SAVED = 16  # a parameter of a checkpoint: master, two moments, average
WORKING, REDUCED = 2, 4  # bytes of a weight that is gathered (bf16) and of a gradient that is summed (float32)


def train_flops(macs: int, images: int) -> float:
    """Return what training costs: forward and backward of ``images`` images, a multiply and an add as two."""
    return float(2 * macs * (1 + BACKWARD) * images)


def mfu(images_per_s: float, macs: int, peak_flops: float) -> float:
    """Return the share of a device's peak that a training of ``images_per_s`` a device puts to use."""
    return images_per_s * train_flops(macs, 1) / peak_flops


def images_per_s(utilisation: float, macs: int, peak_flops: float) -> float:
    """Return the images a second and device of a training with that MFU."""
    return utilisation * peak_flops / train_flops(macs, 1)


def state_bytes(params: int, shards: int = 1) -> float:
    """Return the memory that weights, gradients, moments and average take on each of ``shards`` processes."""
    whole = sum(STATE.values())
    return float(params * whole) if shards == 1 else params * (whole + SHOWN) / shards


def gathered_bytes(largest_block: int) -> float:
    """Return what a cut model holds for a moment: the weights of two blocks and the gradients of one."""
    return float(largest_block * (2 * WORKING + WORKING + REDUCED))


def activation_bytes(found: Cost, *, recompute: bool = False) -> float:
    """Return what training keeps of one image in bf16 for the backward pass.

    With ``recompute`` a block keeps its input alone and is computed again when its gradients are due: all inputs, and
    one block in full.
    """
    if not recompute:
        return found.kept * WORKING / BYTES
    blocks = [layer for layer in found.layers if layer.attention]
    rest = sum(layer.kept for layer in found.layers if not layer.attention)
    inputs = sum(BYTES * layer.attention[0].cells * layer.attention[0].in_dim for layer in blocks)
    return (rest + inputs + max(layer.kept for layer in blocks)) * WORKING / BYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in a step: over the links within its node, and over the network between nodes."""

    within: float
    between: float

    def seconds(self, within: float, between: float) -> float:
        """Return the time at bytes a second of the links and of a process's part of the network, nothing overlapped."""
        return self.within / within + self.between / between


def all_reduce(size: float, n: int) -> float:
    """Return the bytes a process of a ring sends to sum ``size`` bytes over n: 2 (n - 1) / n of them."""
    return 2 * size * (n - 1) / n


def all_gather(size: float, n: int) -> float:
    """Return the bytes a process of a ring sends until all n have ``size`` bytes, or a slice of their sums."""
    return size * (n - 1) / n


def traffic(how: str, params: int, processes: int, node: int = 8) -> Traffic:
    """Return what one process sends in a step of ``ddp``, ``fsdp`` or ``hsdp``; a node holds ``node`` processes.

    ddp sums float32 gradients. fsdp gathers bf16 weights in the forward and again in the backward pass, and scatters
    the sums of float32 gradients; hsdp does that within a node and sums each slice's gradients between nodes. A ring
    over several nodes runs at the pace of the network, so all of it counts as between.
    """
    cut = 2 * WORKING * params + REDUCED * params
    one_node = processes <= node
    if how == "ddp":
        sent, between = all_reduce(REDUCED * params, processes), 0.0
    elif how == "fsdp":
        sent, between = all_gather(cut, processes), 0.0
    elif how == "hsdp":
        if one_node or processes % node:
            raise ValueError(f"expected several whole nodes of {node} for hsdp, got {processes} processes")
        return Traffic(all_gather(cut, node), all_reduce(REDUCED * params / node, processes // node))
    else:
        raise ValueError(f"expected ddp, fsdp or hsdp, got {how!r}")
    return Traffic(sent, between) if one_node else Traffic(0.0, sent)


def checkpoint_bytes(params: int) -> int:
    """Return the size of a checkpoint: masters, moments and average in float32."""
    return SAVED * params


def young_daly(blocked: float, mtbf: float) -> float:
    """Return the seconds between saves that lose least: sqrt(2 x seconds a save blocks x seconds between faults)."""
    return math.sqrt(2 * blocked * mtbf)


def goodput(interval: float, blocked: float, restart: float, mtbf: float) -> float:
    """Return the share of time that trains: no saving, no starting again, nothing that a fault undoes."""
    return max(0.0, (1 - blocked / interval) * (1 - (interval / 2 + restart) / mtbf))
