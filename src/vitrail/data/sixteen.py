"""Pictures of 16 bits a channel, PNG and TIFF: read whole, and written.

Sources: PNG (Second Edition), W3C 2003, sections 5, 9 and 11 (chunks, filters, IHDR); TIFF 6.0, Adobe 1992, sections 2,
3 and 6. Pillow decodes such files but keeps the upper byte of a colour only. It is asked twice: once for the bytes that
its 16-bit modes of either byte order would keep, so that both bytes of each number come out, decoded by its own fast
code with its own checks.

Pictures are numpy arrays (H, W) or (H, W, 3).
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError, UsageError

from .decode import MAX_PIXELS, BrokenImage, _opened, _upright

Deep = NDArray[np.uint16]
_SWAPPED = {"16B": "16L", "16L": "16B"}


def is_deep(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a PNG or TIFF of 16 bits a channel. Raises :class:`BrokenImage` for what is no image."""
    with _opened(path, MAX_PIXELS) as image:
        return _rawmode(image) is not None


def read_deep(path: str | os.PathLike[str]) -> Deep:
    """Return uint16 (H, W) or (H, W, 3) of a file of 16 bits a channel, upright; alpha is laid over white.

    Raises :class:`BrokenImage` for a damaged file, and for one of another depth.
    """
    rawmode = None
    parts = []
    for swap in (False, True):
        with _opened(path, MAX_PIXELS) as image:
            rawmode = _rawmode(image)
            if rawmode is None:
                raise BrokenImage("unsupported_mode", "expected a PNG or TIFF of 16 bits a channel")
            if image.mode.startswith("I;16"):
                return np.array(_upright(image)).astype(np.uint16)
            if swap:
                _ask_for(image, rawmode[:-3] + _SWAPPED[rawmode[-3:]])
            image.load()
            parts.append(np.array(_upright(image)).astype(np.uint16))
    found = 256 * parts[0] + parts[1]
    channels = found.shape[2]
    if channels in (2, 4):
        alpha = found[:, :, -1:].astype(np.float64) / 65535
        found = (found[:, :, :-1] * alpha + 65535 * (1 - alpha) + 0.5).astype(np.uint16)
    return found[:, :, 0] if found.shape[2] == 1 else found


def _rawmode(image: Any) -> str | None:
    """Return how the file's decoder names the bytes it gives, if they are of 16 bits a channel."""
    if image.mode.startswith("I;16"):
        return str(image.mode)
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return None
    args = image.tile[0].args
    mode = str(args[0] if isinstance(args, tuple) else args)
    if mode.endswith("16N"):
        mode = mode[:-1] + ("L" if sys.byteorder == "little" else "B")
    return mode if mode[-3:] in _SWAPPED else None


def _ask_for(image: Any, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def save_picture(path: str | os.PathLike[str], picture: NDArray[Any]) -> Path:
    """Write uint8 or uint16 (H, W) or (H, W, 3) as the name says: ``.png``, ``.tif`` (both depths), or ``.jpg`` (8).

    Raises :class:`UsageError` for another ending or type, :class:`DataError` if it cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if picture.dtype not in (np.uint8, np.uint16) or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise UsageError(f"expected uint8 or uint16 (H, W) or (H, W, 3), got {picture.dtype} {picture.shape}")
    deep = picture.dtype == np.uint16
    known = (".png", ".tif", ".tiff") if deep else (".png", ".tif", ".tiff", ".jpg", ".jpeg")
    if ending not in known:
        raise UsageError(f"expected a name that ends in {', '.join(known)} for {picture.dtype}, got {path.name!r}")
    try:
        if not deep:
            from PIL import Image

            Image.fromarray(picture).save(path)
        else:
            path.write_bytes(_png(picture) if ending == ".png" else _tiff(picture))
    except OSError as error:
        raise DataError(f"expected to write {path}, got: {error}") from error
    return path


def _png(picture: Deep) -> bytes:
    """Encode as PNG of 16 bits: rows filtered by their left neighbour, which suits photographs."""
    height, width = picture.shape[:2]
    rows = picture.astype(">u2").reshape(height, -1).view(np.uint8)
    step = 2 * (picture.shape[2] if picture.ndim == 3 else 1)
    filtered = np.empty((height, rows.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = 1
    filtered[:, 1 : 1 + step] = rows[:, :step]
    filtered[:, 1 + step :] = rows[:, step:] - rows[:, :-step]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if picture.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 4)), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _tiff(picture: Deep) -> bytes:
    """Encode as little-endian TIFF of 16 bits in one strip, not compressed."""
    height, width = picture.shape[:2]
    channels = picture.shape[2] if picture.ndim == 3 else 1
    short, long = 3, 4
    data = picture.astype("<u2").tobytes()
    start = 8 + 2 + 12 * 10 + 4
    bits = struct.pack("<HH", 16, 0) if channels == 1 else struct.pack("<I", start)
    tags = [
        (256, long, 1, struct.pack("<I", width)),
        (257, long, 1, struct.pack("<I", height)),
        (258, short, channels, bits),
        (259, short, 1, struct.pack("<HH", 1, 0)),
        (262, short, 1, struct.pack("<HH", 2 if channels == 3 else 1, 0)),
        (273, long, 1, struct.pack("<I", start + 6)),
        (277, short, 1, struct.pack("<HH", channels, 0)),
        (278, long, 1, struct.pack("<I", height)),
        (279, long, 1, struct.pack("<I", len(data))),
        (284, short, 1, struct.pack("<HH", 1, 0)),
    ]
    entries = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack("<HHH", 16, 16, 16) + data
