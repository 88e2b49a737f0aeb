"""Which number type a run computes in, and why.

bf16 means the whole model in bfloat16 with float32 master weights (see optim.py). Autocast is not used: on CPUs it was
measured slower than float32, since it casts every weight in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vitrail.errors import UsageError

from .world import World


def pick_device(name: str) -> torch.device:
    """Return the device of ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...; :class:`UsageError` if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"expected a device of this machine (auto, cpu, cuda), got {name!r}: {reason}") from None
    return device


def own_device(name: str, world: World) -> torch.device:
    """Return this process's device: of ``auto`` and ``cuda`` its own GPU among those of the machine."""
    device = pick_device(name)
    if device.type != "cuda" or device.index is not None or world.alone:
        return device
    count = torch.cuda.device_count()
    if world.local_size > count:
        raise UsageError(
            f"expected at most {count} processes on a machine with {count} GPU(s), got {world.local_size}; "
            f"mend: torchrun --nproc-per-node={count}, or --device cpu"
        )
    return torch.device("cuda", world.local_rank)


def fast_bf16(device: torch.device) -> bool:
    """Tell whether ``device`` multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Return (``fp32`` or ``bf16``, the reason) for ``auto``, ``fp32`` or ``bf16``."""
    if name != "auto":
        return name, "as asked"
    if not fast_bf16(device):
        return "fp32", f"this {device.type} has no bfloat16 matrix instructions"
    return "bf16", f"this {device.type} multiplies bfloat16 in hardware; float32 master weights are kept"


@contextmanager
def use_threads(count: int | str) -> Iterator[None]:
    """Compute with ``count`` CPU threads inside; ``auto`` leaves torch's number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count if isinstance(count, int) else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of the working weights."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
