"""Write a safetensors file in one pass, hashing as it goes, and never holding a second copy in memory.

Format: https://github.com/huggingface/safetensors#format (8 bytes of header length, JSON header, raw little-endian
data). Written here and not with the library because a full disk must come back as an OSError with its errno, and
because hashing the bytes on their way out finds what the disk loses later. Reading uses the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

_TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
PIECE = 1 << 24  # bytes a write; between two of them another thread may run


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write ``tensors`` to ``path``, flush to disk, and return the sha256 of the file. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for piece in _pieces(tensors, metadata or {}):
            digest.update(piece)
            _write_all(file.fileno(), piece)
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, t in tensors.items():
        start, end = end, end + t.numel() * t.element_size()
        header[name] = {"dtype": _TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for t in tensors.values():
        data = memoryview(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        for i in range(0, len(data), PIECE):
            yield data[i : i + PIECE]
