"""What a predictor accepts, as one stream of named images that are read when their turn comes.

A path, a folder (walked through), a glob, a list of any of these, a PIL image, a numpy array, a torch tensor, or the
bytes of an encoded file. B batch, H rows, W columns; an image that was read is uint8 (3, H, W) RGB.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitrail.errors import DataError, UsageError

Images = Any  # see the module's docstring; a precise union would not survive lists of mixed kinds
WILDCARDS = "*?["


@dataclass(frozen=True)
class Item:
    """One image to come: the name shown to users, and how to read it (raises :class:`DataError`)."""

    name: str
    read: Callable[[], Tensor]


def is_single(source: Images) -> bool:
    """Say whether ``source`` is one image, so that one result is due and not a list."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return not path.is_dir() and (path.exists() or not _is_pattern(str(source)))
    if isinstance(source, Tensor | np.ndarray):
        return source.ndim < 4
    return isinstance(source, Image.Image | bytes)


def items_of(source: Images) -> Iterator[Item]:
    """Yield the images of ``source`` in order: files of a folder or glob sorted by path, lists as they are.

    Raises :class:`DataError` at once if a single path does not exist or a folder or glob holds no image, and
    :class:`UsageError` for a thing that is no image. Paths inside a list are not checked before they are read.
    """
    if isinstance(source, str | os.PathLike):
        return iter([_file(p) for p in _paths(source)])
    if isinstance(source, Tensor | np.ndarray) and source.ndim == 4:
        return (_one(image, f"image {i}") for i, image in enumerate(source))
    if isinstance(source, Tensor | np.ndarray | Image.Image | bytes):
        return iter([_one(source, "image")])
    if isinstance(source, Iterable):
        return _each(source)
    raise UsageError(
        f"expected images as a path, folder, glob, list, PIL image, numpy array or torch tensor, "
        f"got {type(source).__name__}"
    )


def _each(sources: Iterable[Images]) -> Iterator[Item]:
    for i, source in enumerate(sources):
        path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        if path is not None and not os.path.isdir(path) and (os.path.exists(path) or not _is_pattern(path)):
            yield _file(Path(path))
        elif isinstance(source, Image.Image | bytes) or (isinstance(source, Tensor | np.ndarray) and source.ndim < 4):
            yield _one(source, f"image {i}")
        else:
            yield from items_of(source)


def _is_pattern(text: str) -> bool:
    return any(c in text for c in WILDCARDS)


def _paths(source: str | os.PathLike[str]) -> list[Path]:
    text = os.fspath(source)
    if "://" in text:
        raise UsageError(f"expected a local path, got the address {text!r}; mend: download the file first")
    path = Path(text)
    if path.is_dir():
        found = sorted(_walk(path))
        if not found:
            raise DataError(f"expected images in the folder {text!r}, found none; known: {', '.join(_extensions())}")
        return found
    if path.exists():
        return [path]
    if _is_pattern(text):
        matches = sorted(Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
        if not matches:
            raise DataError(f"expected files that match {text!r}, found none")
        return matches
    raise DataError(f"expected an image, a folder or a glob at {text!r}, found nothing there; mend: check the path")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield image files below a folder; hidden names are skipped and links to folders are not followed."""
    known = _extensions()
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in known:
                yield Path(root, name)


def _extensions() -> tuple[str, ...]:
    from vitrail.data.decode import EXTENSIONS

    return tuple(EXTENSIONS)


def _file(path: Path) -> Item:
    def read() -> Tensor:
        from vitrail.data.decode import read_image

        return read_image(path)

    return Item(str(path), read)


def _one(image: Any, name: str) -> Item:
    if isinstance(image, bytes):
        return Item(name, lambda: _decode(image))
    if isinstance(image, Image.Image):
        return Item(getattr(image, "filename", "") or name, lambda: from_pil(image))
    return Item(name, lambda: from_array(image))


def _decode(data: bytes) -> Tensor:
    from vitrail.data.decode import read_image

    return read_image(data)


def from_pil(image: Image.Image) -> Tensor:
    """Return uint8 (3, H, W) of a PIL image, under the rules of the one reader (upright, alpha over white)."""
    if image.mode in ("RGB", "L", "1") and "transparency" not in image.info:
        return from_array(np.array(ImageOps.exif_transpose(image).convert("RGB")))
    buffer = io.BytesIO()
    try:
        image.save(buffer, "TIFF", exif=image.getexif())
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"expected a PIL image of a common mode, got {image.mode!r} ({error})") from error
    return _decode(buffer.getvalue())


def from_array(image: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """Return uint8 (3, H, W) of an array (H, W), (H, W, 1 or 3) uint8, or a tensor (1 or 3, H, W).

    Tensors may be uint8, or float in 0..1, which is rounded to 8 bits as files have it. Anything else, such as an
    image that was normalised already, is a :class:`DataError`.
    """
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.require(image, requirements=["C", "W"])) if image.dtype == np.uint8 else None
        tensor = tensor[..., None] if tensor is not None and tensor.ndim == 2 else tensor
        if tensor is None or tensor.ndim != 3 or tensor.shape[-1] not in (1, 3):
            raise DataError(
                f"expected an array of uint8 (H, W), (H, W, 1) or (H, W, 3), got {image.dtype} {image.shape}; "
                "mend: give RGB without alpha in 0..255, or the PIL image itself"
            )
        tensor = tensor.permute(2, 0, 1)
    else:
        tensor = image.detach().cpu()
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or 0 in tensor.shape:
        raise DataError(f"expected a tensor (3, H, W) or (1, H, W), got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        if not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise DataError(
                f"expected a float tensor with values in 0..1, got {tensor.min():.3g}..{tensor.max():.3g}; "
                "mend: do not normalise it, the predictor does"
            )
        tensor = (tensor * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise DataError(f"expected a tensor of uint8, or of float in 0..1, got {tensor.dtype}")
    return tensor.expand(3, -1, -1)
