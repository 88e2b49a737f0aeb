"""Restoring pictures as people have them: any size, 8 or 16 bits, in tiles where they are large.

C channels, (H, W) a picture, s scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitrail.data.restoration import in_channels
from vitrail.data.sixteen import is_deep, read_deep, save_picture
from vitrail.errors import DataError, UsageError, require_known
from vitrail.explain.draw import Tile, sheet
from vitrail.metrics.images import Channel, psnr, ssim
from vitrail.models import answers
from vitrail.nn.upsample import reflect_to
from vitrail.weights.cards import Card

from .inputs import Images, Item, is_single, items_of
from .network import open_network
from .predictor import DTYPES, Precision, pick_device
from .results import SCHEMA
from .tile import LEVELS, Tiling, restore_tiled, tiling_for

Picture = NDArray[Any]
SHOWN = 480
"""Pixels of a side of what a before-and-after picture shows."""


@dataclass(frozen=True)
class RestorationResult:
    """A restored picture.

    Attributes:
        name: path of the file, or "image 3" for the fourth of several arrays.
        image: uint8 or uint16, as the picture that came, (s H, s W) grey or (s H, s W, 3); None after an error.
        source: the picture that came, (H, W) or (H, W, 3).
        scale: s.
        tiling: how it was cut, into ``tiles``.
        measure: border and channel that its figures are measured with.
        error: what went wrong with this picture, or None; ``reason`` is its stable code.
    """

    name: str
    image: Picture | None
    source: Picture | None
    scale: int
    tiling: Tiling | None = None
    measure: tuple[int, Channel] = (0, "rgb")
    tiles: int = 0
    error: str | None = None
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a picture."""
        return self.error is None

    def figures(self, reference: Picture) -> dict[str, float]:
        """Return PSNR in dB and SSIM against the good picture (s H, s W[, 3]) of the same type.

        Raises :class:`DataError` for one of another size or type.
        """
        image = self._image()
        if reference.shape != image.shape or reference.dtype != image.dtype:
            raise DataError(
                f"expected a reference {image.dtype} {image.shape} as the restored picture, got {reference.dtype} "
                f"{reference.shape}"
            )
        one, other = as_tensor(image), as_tensor(reference)
        border, channel = self.measure
        how: Any = {"border": border, "channel": channel, "levels": LEVELS[image.dtype]}
        return {"psnr": psnr(one, other, **how), "ssim": ssim(one, other, **how)}

    def _image(self) -> Picture:
        if self.image is None:
            raise DataError(f"expected a restored picture, got {self.name!r}: {self.error}")
        return self.image

    def save(self, path: str | Path) -> Path:
        """Write the picture, as the name says: .png and .tif in 8 or 16 bits, .jpg in 8; returns the path."""
        return save_picture(path, self._image())

    def plot(self, path: str | Path | None = None, *, reference: Picture | None = None) -> Image.Image:
        """Draw the middle before, after and, if it is given, as it should be; also save it if ``path`` is given."""
        after, before = self._image(), self.source
        assert before is not None, "a picture that was restored came from one"
        shown = [_repeated(before, self.scale), after, *([] if reference is None else [reference])]
        titles = [f"before, {before.shape[1]} x {before.shape[0]}", f"after, {after.shape[1]} x {after.shape[0]}"]
        tiles = [Tile(_middle(p), t) for p, t in zip(shown, [*titles, "reference"], strict=False)]
        drawn = sheet(tiles, columns=len(tiles), title=Path(self.name).name)
        if path is not None:
            drawn.save(path)
        return drawn

    def to_json(self, *, reference: Picture | None = None) -> dict[str, Any]:
        """Return plain data for ``json.dumps``; with a reference, its figures too."""
        size = None if self.image is None else [self.image.shape[1], self.image.shape[0]]
        border, channel = self.measure
        measured = {} if reference is None or not self.ok else self.figures(reference)
        return {
            "schema": SCHEMA,
            "task": "restore",
            "name": self.name,
            "width_height": size,
            "bits": None if self.image is None else 8 * self.image.dtype.itemsize,
            "scale": self.scale,
            "tiles": self.tiles,
            "tile": None if self.tiling is None else self.tiling.side,
            **measured,
            **({"border": border, "channel": channel} if measured else {}),
            "error": None if self.ok else {"reason": self.reason, "message": self.error},
        }


def as_tensor(picture: Picture) -> Tensor:
    """uint8 or uint16 (H, W[, C]) -> float64 (C, H, W) in 0..1."""
    values = torch.from_numpy(picture.astype(np.float64) / LEVELS[picture.dtype])
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _repeated(picture: Picture, scale: int) -> Picture:
    return picture.repeat(scale, 0).repeat(scale, 1)


def _middle(picture: Picture) -> NDArray[np.uint8]:
    """Return the middle of a picture in 8 bits and three channels, at most SHOWN pixels a side."""
    top, left = (max(0, (n - SHOWN) // 2) for n in picture.shape[:2])
    cut = picture[top : top + SHOWN, left : left + SHOWN]
    eight = cut if cut.dtype == np.uint8 else ((cut.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.ascontiguousarray(eight if eight.ndim == 3 else np.repeat(eight[:, :, None], 3, axis=2))


class Restorer:
    """Restores pictures. Made by :func:`vitrail.load`.

    Attributes:
        model: the network, on ``device`` in the precision asked for.
        card: where the weights come from.
        scale: how much larger pictures come out.
        tile: pixels of a tile's side; None: as large as the free memory holds, up to 512.
        fixed: (H, W) of the tiles that an exported file takes, which smaller ones are mirrored up to; None of others.
        measure: border and channel that its figures are measured with.
    """

    def __init__(
        self,
        model: Any,
        card: Card,
        *,
        device: str | torch.device = "auto",
        dtype: Precision = "float32",
        tile: int | None = None,
        measure: tuple[int, Channel] | None = None,
    ) -> None:
        if answers(model.config) != "pictures":
            raise UsageError(f"expected a model that restores pictures, got {type(model).__name__}")
        require_known([dtype], DTYPES, "dtype")
        self.device, self.dtype = pick_device(device), DTYPES[dtype]
        self.model, self.card, self.tile = model.to(self.device, self.dtype).eval(), card, tile
        self.fixed: tuple[int, int] | None = getattr(model, "size", None)
        if self.fixed is not None and tile is not None:
            height, width = self.fixed
            raise UsageError(f"tile has no effect on a file exported for {height} x {width}; mend: leave it out")
        self.scale: int = model.config.upscale
        self.channels: int = model.config.in_chans
        self.measure = measure or ((self.scale, "y") if self.scale > 1 else (0, "rgb"))
        self.tiling()  # an impossible tile is told at once

    def __repr__(self) -> str:
        return f"Restorer({self.card.name or type(self.model).__name__}, x{self.scale})"

    def tiling(self) -> Tiling:
        """Return how pictures are cut now: by the tile asked for, or by the memory that is free."""
        side = self.tile if self.fixed is None else min(self.fixed)
        return tiling_for(self.model.config, side, bytes_each=self.dtype.itemsize)

    def run(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in 0..1 -> (B, C, s H, s W), not clamped, in the model's precision."""
        height, width = pictures.shape[-2:]
        given = pictures if self.fixed is None else reflect_to(pictures, self.fixed)
        with torch.inference_mode():
            made: Tensor = self.model(given.to(self.device, self.dtype))
        return made[:, :, : self.scale * height, : self.scale * width]

    def with_gradients(self, pictures: Tensor) -> Tensor:
        """As :meth:`run` in float32, for whoever asks for gradients of it."""
        if self.fixed is not None:
            raise UsageError("an exported network gives no gradients; mend: explain the run it was exported from")
        made: Tensor = self.model(pictures.to(self.device, self.dtype))
        return made.float().cpu()

    def __call__(self, images: Images) -> RestorationResult | list[RestorationResult]:
        """Restore ``images``: see :mod:`.inputs` for what they may be; files and arrays of 16 bits keep them.

        Returns one result for one picture, and a list for a folder, a glob, a list or a batch. A picture that cannot be
        used comes back as a result with ``error`` set. A path that does not exist at all is a :class:`DataError`.
        """
        results = list(self.stream(images))
        return results[0] if is_single(images) else results

    def stream(self, images: Images) -> Iterator[RestorationResult]:
        """Yield results in order; one picture is held at a time."""
        if isinstance(images, np.ndarray) and images.dtype == np.uint16:
            yield self._restored("image", lambda: images)
            return
        for item in items_of(images):
            yield self._restored(item.name, lambda item=item: _read(item))  # type: ignore[misc]

    def _restored(self, name: str, read: Callable[[], Picture]) -> RestorationResult:
        try:
            source = self._in_channels(read())
        except DataError as error:
            reason = str(getattr(error, "reason", "unusable"))
            return RestorationResult(name, None, None, self.scale, error=str(error), reason=reason)
        tiling = self.tiling()
        made = restore_tiled(self.run, source, tiling, dtype=source.dtype)
        tiles = len(tiling.cuts(source.shape[0])) * len(tiling.cuts(source.shape[1]))
        grey = self.channels == 1
        shown = (made[:, :, 0], source[:, :, 0]) if grey else (made, source)
        return RestorationResult(name, *shown, self.scale, tiling, self.measure, tiles=tiles)

    def _in_channels(self, picture: Picture) -> Picture:
        """Return (H, W, C) with the channels of the model; of colour a grey model sees the luminance."""
        if picture.ndim == 2:
            picture = picture[:, :, None]
        if picture.ndim != 3 or picture.shape[2] not in (1, 3):
            raise DataError(f"expected a picture (H, W) or (H, W, 3), got {picture.shape}")
        if picture.shape[2] == self.channels:
            return picture
        if self.channels == 3:
            return np.repeat(picture, 3, axis=2)
        if picture.dtype == np.uint8:
            return in_channels(torch.from_numpy(picture).permute(2, 0, 1), 1).permute(1, 2, 0).numpy()
        return ((picture @ np.array([299, 587, 114], dtype=np.uint32) + 500) // 1000).astype(picture.dtype)[:, :, None]


def _read(item: Item) -> Picture:
    """Return uint8 (H, W, 3), or uint16 where a file has it."""
    if Path(item.name).is_file() and is_deep(item.name):
        return read_deep(item.name)
    return np.ascontiguousarray(item.read().permute(1, 2, 0).numpy())


def load_restorer(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: Precision = "float32",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
    tile: int | None = None,
) -> Restorer:
    """Load a restorer: a run (its ``best/`` weights), a folder of Vitrail, or an exported file.

    Args:
        source: see above; weights of the authors become a folder by ``vitrail convert``.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "float32", or "bfloat16" for speed, at the cost of the last bits of a picture.
        img_size: has no effect: a picture keeps its size; anything else is an error.
        batch_size: not used: tiles run one by one.
        tile: pixels of a tile's side; None: as large as the free memory holds, up to 512.

    Raises :class:`WeightsError` if there is no usable model at ``source``, :class:`UsageError` for an option without
    effect.
    """
    if img_size is not None:
        raise UsageError("img_size has no effect: pictures keep their size; mend: tile, or leave it out")
    network = open_network(source)
    told = network.extra.get("measure")
    measure = None if told is None else (int(told["border"]), told["channel"])
    return Restorer(network.model, network.card, device=device, dtype=dtype, tile=tile, measure=measure)
