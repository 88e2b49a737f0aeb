"""The processes of a run: who they are, what they agree on, and how one of them is missed.

``torchrun`` starts the same command N times and says in the environment which one this is. Everything the processes
tell each other beside gradients and weights goes through here, as numbers or JSON over gloo on the CPU: nothing is
pickled, and no GPU is waited for. A world of one process needs no torch.distributed and every call is free.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitrail.errors import UsageError, VitrailError

T = TypeVar("T")
SILENT = ("gloo", "Connection closed by peer", "Timed out waiting")  # gloo's errors have no class of their own
SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


class PeerLost(VitrailError):
    """Another process of the run is gone, or has not answered in time."""


class Elsewhere(VitrailError):
    """Another process of the run found a fault and said what it is."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class World:
    """This process among all of a run. ``restarts`` counts how often torchrun has started the group anew."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    launch: str = ""
    """torchrun's name for this launch."""

    @property
    def first(self) -> bool:
        """True for the one process that speaks and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """True where there is no other process."""
        return self.size == 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes of each number, in float64: the same on every process."""
        if self.alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with _answering(self):
            dist.all_reduce(total)
        return [float(v) for v in total]

    def add(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all processes, in place."""
        if not self.alone:
            with _answering(self):
                dist.all_reduce(tensor)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each floating tensor by its mean over all processes, in place; one message for all."""
        floating = [t for t in tensors if t.is_floating_point()]
        if self.alone or not floating:
            return
        whole = torch.cat([t.detach().reshape(-1).float() for t in floating])
        self.add(whole)
        parts = (whole / self.size).split([t.numel() for t in floating])
        for tensor, part in zip(floating, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, value: T) -> T:
        """Return the first process's ``value`` (plain JSON data) on every process."""
        shared: T = self.collect(value if self.first else None)[0]
        return shared

    def lead(self, action: Callable[[], T]) -> T:
        """Let the first process do ``action`` and return its result (plain JSON data) on every process.

        If it fails with a :class:`VitrailError`, every process fails: the others with :class:`Elsewhere`.
        """
        if self.alone:
            return action()
        if not self.first:
            told = self.share(None)
            if "fault" in told:
                raise Elsewhere(f"process 0 reported a fault and so process {self.rank} ends", told["code"])
            return told["value"]
        try:
            value = action()
        except VitrailError as error:
            self.share({"fault": str(error), "code": error.exit_code})
            raise
        self.share({"value": value})
        return value

    def collect(self, value: Any) -> list[Any]:
        """Return every process's ``value`` (plain JSON data), by rank, on every process."""
        if self.alone:
            return [value]
        return exchange(value, self.size, None, self)

    def join(self, parts: T) -> T:
        """Return a dataclass whose tensors are those of all processes end to end, by rank; on the CPU.

        The tensors of one field must have the same shape on all processes. Other fields stay this process's.
        """
        if self.alone:
            return parts
        changes = {
            field.name: self._gather(value)
            for field in dataclasses.fields(parts)  # type: ignore[arg-type]
            if isinstance(value := getattr(parts, field.name), Tensor)
        }
        return dataclasses.replace(parts, **changes)  # type: ignore[type-var]

    def _gather(self, tensor: Tensor) -> Tensor:
        own = tensor.detach().cpu().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        with _answering(self):
            dist.all_gather(found, own)
        return torch.cat(found)

    def wait(self) -> None:
        """Return when every process has come here."""
        self.sum([0.0])

    def require_divisor(self, batch: int) -> None:
        """Raise :class:`UsageError` unless ``batch`` images can be cut into equal parts, one a process."""
        if batch % self.size:
            near = max(self.size, round(batch / self.size) * self.size)
            raise UsageError(
                f"expected train.batch_size as a multiple of the {self.size} processes, got {batch}; "
                f"mend: --batch {near} (it counts the images of all processes together)"
            )


ALONE = World()


def exchange(value: Any, size: int, group: Any, world: World | None = None) -> list[Any]:
    """Return every process's ``value`` (plain JSON data) by rank, over a gloo ``group`` (None: the run's own)."""
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    with _answering(world or World(size=size)):
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(text)]), group=group)
        longest = max(int(n) for n in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        found = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(found, padded, group=group)
    return [json.loads(bytes(f[: int(n)].tolist())) for f, n in zip(found, lengths, strict=True)]


@contextmanager
def _answering(world: World) -> Iterator[None]:
    """Turn torch's word for a process that died or hangs into ours: here any error of its is one."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _lost(error, world) from error


@contextmanager
def peers_needed(world: World) -> Iterator[None]:
    """Do the same around work in which torch itself speaks to the other processes, as for slices of weights."""
    try:
        yield
    except RuntimeError as error:
        if world.alone or not (isinstance(error, dist.DistError) or any(word in str(error) for word in SILENT)):
            raise
        raise _lost(error, world) from error


def _lost(error: RuntimeError, world: World) -> PeerLost:
    return PeerLost(
        f"process {world.rank} of {world.size} got no answer from the others: one of them has died or hangs "
        f"({str(error).splitlines()[0]}); look for the first message of another process above"
    )


@contextmanager
def open_world(timeout_minutes: float = 10.0) -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    A process dies with its launcher, so that a killed torchrun leaves none behind.
    """
    env = os.environ
    world = World(
        rank=int(env.get("RANK", "0")),
        size=int(env.get("WORLD_SIZE", "1")),
        local_rank=int(env.get("LOCAL_RANK", "0")),
        local_size=int(env.get("LOCAL_WORLD_SIZE", "1")),
        restarts=int(env.get("TORCHELASTIC_RESTART_COUNT", "0")),
        launch=env.get("TORCHELASTIC_RUN_ID", ""),
    )
    if "TORCHELASTIC_RUN_ID" in env:
        die_with_launcher()
    if world.alone:
        yield world
        return
    joined_here = not dist.is_initialized()
    if joined_here:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if cuda else "cpu:gloo"
        with _answering(world):
            dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    with peers_needed(world):
        yield world
    if joined_here:  # not after an error: the others may never come
        dist.destroy_process_group()


def die_with_launcher() -> None:
    """Ask Linux to kill this process when the one that started it ends; elsewhere there is no such call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def restart_advice(world: World) -> str | None:
    """Return what to say where torchrun may restart processes and the known fault of its store is not avoided."""
    most = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if world.alone or not most or os.environ.get(SHARED_STORE) == "1":
        return None
    return (
        f"torchrun may restart this run {most} times, and its restarts often fail because the processes read stale "
        f"addresses (pytorch#135712); mend: {SHARED_STORE}=1 torchrun ..."
    )
