"""How many processes hold one model: a copy each (ddp), or a slice each (fsdp), or a slice each within a node (hsdp).

Fully sharded: torch's ``fully_shard`` (FSDP2; the idea is ZeRO's, Rajbhandari et al. 2020, arXiv 1910.02054, stage 3)
on each block and on the rest. A weight is cut along its first dimension; a process keeps its slice, in bf16 or float32,
beside float32 masters, moments and averages of that slice only, and gathers a block's weights while it computes with
them. Replicated: gradients are float32 sums in flat buffers already (see optim.py), so that one all-reduce a buffer
does what torch's DDP wrapper would do in buckets of bf16 (docs/decisions/0006).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from vitrail.data.memory import available_bytes
from vitrail.errors import UsageError

from .blocks import blocks_of
from .groups import batch_norms
from .recipe import Recipe
from .world import World

BYTES = 24  # a parameter of a whole copy: float32 master, gradient, two moments, average; bf16 copy and its gradient
SHARE = 0.4  # of the device's memory that all copies of the weights may take before they are cut


@dataclass(frozen=True)
class Layout:
    """The processes as ``fully_shard`` sees them: ``shards`` slices of a weight, each held by ``copies`` processes."""

    mesh: DeviceMesh
    shards: int
    copies: int

    @property
    def placements(self) -> list[Placement]:
        """Where a weight lies on the mesh."""
        return [Shard(0)] if self.mesh.ndim == 1 else [Replicate(), Shard(0)]


def choose(asked: str | None, world: World, parameters: int, memory: int) -> str:
    """Return ``ddp``, ``fsdp`` or ``hsdp``: what was asked, or whole copies while they take little of ``memory``."""
    if asked is not None:
        return asked
    if parameters * BYTES <= SHARE * memory:
        return "ddp"
    return "hsdp" if world.size > world.local_size > 1 else "fsdp"


def lay_out(how: str, world: World, device: torch.device) -> Layout:
    """Return the mesh of ``fsdp`` (all processes cut every weight) or ``hsdp`` (those of one node do)."""
    if how == "fsdp":
        return Layout(init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",)), world.size, 1)
    shards = world.local_size
    if not 1 < shards < world.size or world.size % shards:
        raise UsageError(
            f"expected several nodes with several processes each for train.parallel=hsdp, got {world.size} processes, "
            f"{shards} on this node; mend: --set train.parallel=fsdp"
        )
    copies = world.size // shards
    mesh = init_device_mesh(device.type, (copies, shards), mesh_dim_names=("replicate", "shard"))
    return Layout(mesh, shards, copies)


def require_shardable(model: nn.Module, optimizer: str) -> None:
    """Raise :class:`UsageError` if the model or its optimiser needs whole weights on every process."""
    if batch_norms(model) or not blocks_of(model):
        raise UsageError(
            f"expected a model of blocks without batch norms to cut into slices, got {type(model).__name__}; "
            "mend: --set train.parallel=ddp (such models are small)"
        )
    if not all(p.requires_grad for p in model.parameters()):
        raise UsageError(
            "train.parallel=fsdp has not been tried with frozen weights (model.lora, model.freeze); "
            "mend: --set train.parallel=ddp (frozen weights have no gradient and no moments, so copies take less)"
        )
    if optimizer in ("muon", "adafactor"):
        raise UsageError(
            f"{optimizer} needs whole matrices, and train.parallel=fsdp leaves slices of them; "
            "mend: --set optim.name=adamw, or --set train.parallel=ddp"
        )


def shard(model: nn.Module, layout: Layout, *, evaluation: bool = False) -> None:
    """Cut ``model`` in place, block by block; what is outside the blocks is one more piece.

    Gradients are summed in float32. For ``evaluation`` the outermost piece is let go after each forward pass, too.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in blocks_of(model).values():
        fully_shard(block, mesh=layout.mesh, mp_policy=policy)
    fully_shard(model, mesh=layout.mesh, mp_policy=policy, reshard_after_forward=True if evaluation else None)


@dataclass(frozen=True)
class Slices:
    """A run's model cut over its processes: how, and what must be put together again."""

    layout: Layout
    saving: DeviceMesh
    """The same processes on the CPU, for checkpoints: their messages must not mix with those of training."""
    group: Any
    skeleton: nn.Module
    """The network in one piece, without memory of its own: it holds the whole weights while they are saved."""

    @classmethod
    def of(cls, model: nn.Module, recipe: Recipe, world: World, device: torch.device) -> Slices | None:
        """Return how to cut ``model`` (still whole, on the CPU), or None where every process keeps all of it."""
        count = sum(p.numel() for p in model.parameters())
        how = world.share(choose(recipe.train.parallel, world, count, device_memory(device, world)))
        if world.alone or how == "ddp":
            return None
        require_shardable(model, recipe.optim.name)
        layout = lay_out(how, world, device)
        shape = tuple(layout.mesh.shape)
        saving = init_device_mesh("cpu", shape, mesh_dim_names=layout.mesh.mesh_dim_names)
        return cls(layout, saving, dist.new_group(backend="gloo"), skeleton_of(model))

    def label(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Return this process's slices by name as parts of whole tensors, on the CPU; nothing is sent.

        A name is a parameter's, or that behind a word of the optimiser (``exp_avg.head.weight``).
        """
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            shape = shapes[name if name in shapes else name.partition(".")[2]]
            stride = torch.empty(shape, device="meta").stride()
            found[name] = DTensor.from_local(
                tensor.cpu(), self.saving, self.layout.placements, run_check=False, shape=shape, stride=stride
            )
        return found

    def whole(self, shown: nn.Module) -> nn.Module:
        """Return the network in one piece with the weights of ``shown``: on the first process; the others only help."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(shown, options=options)
        if dist.get_rank() == 0:
            self.skeleton.load_state_dict(state, assign=True)
        return self.skeleton

    def forget(self) -> None:
        """Give back the memory of :meth:`whole`."""
        self.skeleton.to("meta")

    def spread(self, whole: Mapping[str, Tensor], shown: nn.Module) -> None:
        """Fill ``shown`` with slices of the first process's ``whole`` state dict; the others give an empty one."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(shown, dict(whole), options=options)


def skeleton_of(model: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device, without ever copying its weights."""
    light: dict[int, Any] = {id(b): b.detach().to("meta") for b in model.buffers()}
    light |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, light)


def device_memory(device: torch.device, world: World) -> int:
    """Return the bytes of memory a process may use: its GPU's, or its part of what is free on the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return available_bytes() // world.local_size
