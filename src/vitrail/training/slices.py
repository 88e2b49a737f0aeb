"""Slices of tensors on the disk: torch.distributed.checkpoint over safetensors, every process its own file.

A file says in its header which part of each tensor it holds, so that any number of processes can read what another
number wrote. Only the Hugging Face reader and writer are used: the default ones pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import VitrailError


def save_slices(folder: Path, tensors: Mapping[str, Tensor], group: Any) -> None:
    """Write this process's slices of ``tensors`` (DTensors; others by one process), with all of ``group``.

    Raises OSError on every process if one of them could not write.
    """
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=group)
    except dcp.api.CheckpointException as error:
        raise OSError(_reason(error)) from error


def _reason(error: Any) -> str:
    """Return the first process's fault, not the tree of traces that torch prints."""
    rank, fault = next(iter(error.failures.items()))
    return f"process {rank}: {fault[0] if isinstance(fault, tuple) else fault}"


def read_slices(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors named in ``wanted``, whole or (for DTensors) this process's slice, from any slicing."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    held = reader.read_metadata().state_dict_metadata
    for name, target in wanted.items():
        require_shape(name, held[name].size if name in held else None, target)
    found = {name: torch.empty_like(target, device="cpu") for name, target in wanted.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
        dcp.load(found, storage_reader=reader, no_dist=not _cut(wanted))
    return {name: t.to_local() if hasattr(t, "to_local") else t for name, t in found.items()}


def _cut(tensors: Mapping[str, Tensor]) -> bool:
    return any(hasattr(t, "to_local") for t in tensors.values())


def require_shape(name: str, shape: Sequence[int] | None, target: Tensor) -> None:
    """Raise :class:`VitrailError` unless a saved tensor has the (whole) shape of the one it is for."""
    if shape is None or tuple(shape) != tuple(target.shape):
        got = "nothing" if shape is None else f"shape {tuple(shape)}"
        raise VitrailError(f"expected {name} of shape {tuple(target.shape)} in the checkpoint, got {got}")


def rows_of(target: Tensor) -> slice | None:
    """Return the rows of the whole tensor that this process holds; None for all of a tensor that is not cut."""
    if not hasattr(target, "to_local"):
        return None
    mesh, count = target.device_mesh, target.shape[0]  # type: ignore[attr-defined]
    each = -(-count // mesh.size(mesh.ndim - 1))
    start = min(count, mesh.get_local_rank(mesh.ndim - 1) * each)
    return slice(start, min(count, start + each))
