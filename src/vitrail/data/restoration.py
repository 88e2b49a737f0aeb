"""Pairs of a bad and a good picture, to learn restoration from: made of photos on the fly, or given as two folders.

Source: Liang et al. 2021, arXiv 2108.10257, section 4.1 (random patches, flips and quarter turns).

A folder holds photos, ``HR/`` and ``LR/`` with pictures of the same names (``bird.png`` and ``bird.png`` or
``birdx2.png``; ``LR_bicubic/X2/`` is read too, where bicubic pictures are asked for), or ``train/``, ``val/`` and
``test/`` with either. What cannot be a pair is named before training.
B batch, C channels (1 or 3), s scale, (h, w) a patch of the bad picture, (s h, s w) of the good one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import DataError

from . import rng
from .decode import BrokenImage, probe_image, read_image
from .degrade import Degradation, Downscale, Draws, unit
from .imageset import printable
from .layout import listed
from .pseudo import find_images
from .samples import SampleBatch, SampleSplits

HIGH, LOW = "HR", "LR"
SMALLEST = 8
"""Pixels of a bad picture's side, at least."""


@dataclass(frozen=True)
class Photo:
    """A good picture uint8 (C, s H, s W), and the bad one uint8 (C, H, W) where that is given or always the same."""

    high: Tensor
    low: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.high.numel() + (0 if self.low is None else self.low.numel())


@dataclass(frozen=True)
class Photos:
    """Photos, each cut to a multiple of the scale; with ``lows``, pairs as they lie on the disk.

    Attributes:
        highs: files of the good pictures.
        lows: files of the bad ones, in the same order; None: made of the good ones.
        degrade: what makes a picture bad.
        channels: C; 1 takes the luminance of colour pictures (ITU-R BT.601, full range).
        edge: sides are cut to multiples of this; the scale, or more where a network is trained with whole windows.
    """

    highs: tuple[str, ...]
    lows: tuple[str, ...] | None
    degrade: Degradation
    channels: int = 3

    def __len__(self) -> int:
        return len(self.highs)

    def name(self, i: int) -> str:
        """The file of the good picture."""
        return printable(self.highs[i])

    def read(self, i: int) -> Photo:
        """Return the pair, or the good picture alone where what makes it bad is random."""
        high, s = in_channels(read_image(self.highs[i]), self.channels), self.degrade.scale
        if self.lows is not None:
            low = in_channels(read_image(self.lows[i]), self.channels)
            if tuple(high.shape[1:]) != (s * low.shape[1], s * low.shape[2]):
                raise BrokenImage("wrong_pair", _misfit(high.shape[2], high.shape[1], low.shape[2], low.shape[1], s))
            return Photo(high, low)
        high = high[:, : high.shape[1] // s * s, : high.shape[2] // s * s].contiguous()
        return Photo(high, self.degrade.whole(high) if isinstance(self.degrade, Downscale) else None)

    def digest(self) -> str:
        """Return hex digits of names and sizes of the files, and of what makes them bad."""
        found = hashlib.sha256(f"{self.degrade} {self.channels}".encode())
        for path in (*self.highs, *(self.lows or ())):
            size = os.stat(path).st_size if os.path.exists(path) else -1
            found.update(f"{os.path.basename(path)} {size}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def subset(self, rows: Sequence[int]) -> Photos:
        """Return those at ``rows``."""
        lows = None if self.lows is None else tuple(self.lows[i] for i in rows)
        return replace(self, highs=tuple(self.highs[i] for i in rows), lows=lows)


def is_pairs(source: str) -> bool:
    """Whether a folder, or its ``train``, unmistakably holds pairs of pictures: ``HR/`` and ``LR/``."""
    root = os.path.expanduser(source)
    return any(all(os.path.isdir(os.path.join(root, part, n)) for n in (HIGH, LOW)) for part in ("", "train"))


def in_channels(picture: Tensor, channels: int) -> Tensor:
    """uint8 (3, H, W) -> (C, H, W), contiguous: itself, or its luminance rounded."""
    if channels == 3:
        return picture.contiguous()
    red, green, blue = picture.to(torch.int32)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)[None]


def _misfit(width: int, height: int, low_width: int, low_height: int, scale: int) -> str:
    return (
        f"expected a good picture {scale} times as wide and high as the bad one, got {width} x {height} and "
        f"{low_width} x {low_height}"
    )


def open_photos(source: str, degrade: Degradation, *, channels: int = 3, patch: int = SMALLEST) -> Photos:
    """Return the photos or pairs of one folder, checked by their headers.

    Args:
        source: a folder of photos, or one with ``HR/`` and ``LR/``.
        degrade: what makes a photo bad; of pairs its scale counts.
        channels: C.
        patch: side of the patches of the bad picture that will be cut; smaller pictures are named.

    Raises:
        DataError: nothing there, bad pictures without a good one or of a size that does not fit, pictures that are
            too small: the first of them by name.
    """
    root = os.path.expanduser(source)
    apart = os.path.isdir(os.path.join(root, HIGH))
    store, _ = find_images(os.path.join(root, HIGH) if apart else root)
    highs = tuple(os.path.join(store.root, name) for name in store.names)
    places = (os.path.join(root, LOW), os.path.join(root, f"{LOW}_bicubic", f"X{degrade.scale}"))
    given = next(
        (place for place in places[: 2 if isinstance(degrade, Downscale) else 1] if os.path.isdir(place)), None
    )
    lows = _partners(store.root, highs, given, degrade.scale) if apart and given else None
    photos = Photos(highs, lows, degrade, channels)
    _require_sizes(photos, patch)
    return photos


def _partners(folder: str, highs: Sequence[str], low_folder: str, scale: int) -> tuple[str, ...]:
    """Return the bad picture of each good one: of the same name, with or without ``x2`` behind it."""
    store, _ = find_images(low_folder)
    lows = {os.path.splitext(name)[0]: os.path.join(store.root, name) for name in store.names}
    found, without = [], []
    for path in highs:
        stem = os.path.splitext(os.path.relpath(path, folder))[0]
        low = lows.pop(stem, None) or lows.pop(f"{stem}x{scale}", None)
        found.append(low or "")
        without += [] if low else [printable(path)]
    if without or lows:
        lacking = f"{len(without)} of {HIGH} without one in {LOW}: {listed(without)}" if without else ""
        spare = f"{len(lows)} of {LOW} without one in {HIGH}: {listed([printable(p) for p in lows.values()])}"
        told = "; ".join(t for t in (lacking, spare if lows else "") if t)
        raise DataError(
            f"expected each picture in {HIGH} to have one of the same name in {LOW} (or with x{scale} behind it); "
            f"{told}. mend: rename or remove them"
        )
    return tuple(found)


def _require_sizes(photos: Photos, patch: int) -> None:
    """Raise :class:`DataError` that names pictures too small for a patch, and pairs whose sizes do not fit."""
    scale, small, wrong = photos.degrade.scale, [], []
    for i, path in enumerate(photos.highs):
        try:
            high = probe_image(path)
            low = None if photos.lows is None else probe_image(photos.lows[i])
        except BrokenImage:
            continue  # the loader lists what cannot be read
        if min(high.width, high.height) < patch * scale:
            small.append(f"{printable(path)} ({high.width} x {high.height})")
        if low is not None and (high.width, high.height) != (scale * low.width, scale * low.height):
            told = _misfit(high.width, high.height, low.width, low.height, scale)
            wrong.append(f"{printable(path)}: {told}")
    if wrong:
        raise DataError(
            f"{len(wrong)} of {len(photos)} pairs do not fit a scale of {scale}: {wrong[0]}; mend: set the scale of "
            "the model, or make the bad pictures anew"
        )
    if small:
        raise DataError(
            f"expected pictures of at least {patch * scale} x {patch * scale} pixels (patches of {patch} times the "
            f"scale {scale}), got {len(small)} smaller ones: {listed(small)}; mend: remove them, or smaller patches"
        )


def open_splits(
    source: str,
    degrade: Degradation,
    *,
    channels: int,
    patch: int,
    val_fraction: float,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> SampleSplits:
    """Return the splits of a folder: its ``train``, ``val`` and ``test``, or shares of its photos held out.

    Raises :class:`DataError` as :func:`open_photos` does, and where too few photos are left to hold any out.
    """
    root = os.path.expanduser(source)
    parts = {name: os.path.join(root, name) for name in ("train", "val", "test")}
    own = {name: path for name, path in parts.items() if os.path.isdir(path)}
    first = open_photos(own.get("train", root), degrade, channels=channels, patch=patch)
    found = {n: open_photos(p, degrade, channels=channels) for n, p in own.items() if n != "train" and "train" in own}
    notes = [f"{len(first)} pictures, {'pairs given' if first.lows else 'made bad on the fly'}: {degrade}"]
    order = np.argsort(rng.uniforms(seed, 0, np.arange(len(first)), 1, rng.SPLIT)[:, 0], kind="stable")
    shares = {"val": val_fraction, "test": test_fraction}
    wanted = {n: max(1, round(share * len(first))) for n, share in shares.items() if n not in found and share > 0}
    if sum(wanted.values()) >= len(first):
        raise DataError(
            f"expected more than {sum(wanted.values())} pictures in {printable(root)!r}, of which that many are held "
            f"out, got {len(first)}; mend: more pictures, or a folder val/ beside train/"
        )
    for name, count in wanted.items():
        found[name], order = first.subset(sorted(order[:count].tolist())), order[count:]
        notes.append(f"{count} pictures held out for {name}")
    return SampleSplits(first.subset(sorted(order.tolist())), found["val"], found.get("test"), None, notes)


@dataclass(frozen=True)
class Pair:
    """A prepared pair: ``low`` float32 (C, h, w) in about 0..1, ``high`` float32 (C, s h, s w)."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class RestoreBatch(SampleBatch):
    """``images`` float32 (B, C, h, w), the bad pictures in about 0..1; ``targets`` float32 (B, C, s h, s w)."""

    targets: Tensor = field(default_factory=lambda: torch.zeros(0))


def collate(pairs: Sequence[Pair | None], indices: Tensor) -> RestoreBatch:
    """Batch pairs of one size; zeros stand for what could not be read."""
    like = next((p for p in pairs if p is not None), Pair(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)))
    full = [p or Pair(torch.zeros_like(like.low), torch.zeros_like(like.high)) for p in pairs]
    keep = torch.tensor([p is not None for p in pairs])
    low, high = torch.stack([p.low for p in full]), torch.stack([p.high for p in full])
    return RestoreBatch(images=low, keep=keep, indices=indices, targets=high)


@dataclass(frozen=True)
class RandomPatch:
    """Cut a patch at random, make it bad if it is not given, and turn it one of eight ways.

    Attributes:
        size: side of the bad patch.
        degrade: what makes a picture bad.
        turn: whether to flip and turn by quarters.
    """

    size: int
    degrade: Degradation
    turn: bool = True

    @property
    def draws(self) -> int:
        """Place, turn, and what the degradation takes."""
        return 3 + self.degrade.draws

    def __call__(self, sample: Photo, draws: Draws) -> Pair:
        s, size = self.degrade.scale, self.size
        height, width = sample.high.shape[1] // s, sample.high.shape[2] // s
        top, left = int(draws[0] * (height - size + 1)), int(draws[1] * (width - size + 1))
        high = sample.high[:, s * top : s * (top + size), s * left : s * (left + size)]
        if sample.low is not None:
            low = unit(sample.low[:, top : top + size, left : left + size])
        else:
            low = self._degraded(sample.high, s * top, s * left, draws[3:])
        pair = Pair(low, unit(high))
        return turned(pair, int(8 * draws[2])) if self.turn else pair

    def _degraded(self, picture: Tensor, top: int, left: int, draws: Draws) -> Tensor:
        """Make a region along the degradation's grid bad, and cut the patch out of it."""
        grid, s, side = self.degrade.grid, self.degrade.scale, self.size * self.degrade.scale
        above, before = top % grid, left % grid
        region = picture[:, top - above : -(-(top + side) // grid) * grid, left - before :]
        region = region[:, :, : -(-(before + side) // grid) * grid]
        low = self.degrade(region, draws)
        above, before = above // s, before // s
        return low[:, above : above + self.size, before : before + self.size]


def turned(pair: Pair, way: int) -> Pair:
    """Turn both pictures the same one of eight ways: by ``way // 2`` quarters, flipped if it is odd."""

    def turn(x: Tensor) -> Tensor:
        x = torch.rot90(x, way // 2, (1, 2))
        return x.flip(2) if way % 2 else x

    return Pair(turn(pair.low), turn(pair.high))


@dataclass(frozen=True)
class Whole:
    """The whole picture, made bad as evaluation has it; nothing is random.

    Attributes:
        degrade: what makes a picture bad.
        most: sides of the bad picture are cut to this many pixels around its middle; None: not at all.
    """

    degrade: Degradation
    most: int | None = None
    draws = 0

    def __call__(self, sample: Photo, draws: Draws) -> Pair:
        low = self.degrade.fixed(sample.high) if sample.low is None else unit(sample.low)
        pair = Pair(low, unit(sample.high))
        return pair if self.most is None else _middle(pair, self.most, self.degrade.scale)


def _middle(pair: Pair, most: int, scale: int) -> Pair:
    height, width = (min(most, n) for n in pair.low.shape[1:])
    top, left = (pair.low.shape[1] - height) // 2, (pair.low.shape[2] - width) // 2
    high = pair.high[:, scale * top : scale * (top + height), scale * left : scale * (left + width)]
    return Pair(pair.low[:, top : top + height, left : left + width], high)


def sets_in(source: str) -> dict[str, Path]:
    """Return name -> folder of the sets in a folder: itself if it holds pictures or pairs, else its sub-folders."""
    root = Path(os.path.expanduser(source))
    if not root.is_dir():
        raise DataError(f"expected a folder of pictures, got {printable(str(root))!r}; mend: check the path")
    below = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    plain = any(p.is_file() and p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".tif") for p in root.iterdir())
    if plain or (root / HIGH).is_dir() or not below:
        return {root.name: root}
    return {p.name: p for p in below}
