"""Images with a class for every pixel: splits of folders of masks, and the batches made of them.

B batch, H·W pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError

from . import rng
from .decode import BrokenImage, read_image, read_values
from .imageset import printable
from .masklayout import Pair, looks_like_masks, read_mask_layout
from .maskrules import IGNORED, MaskRules, read_names, settle_rules
from .maskscan import is_grey, scan_masks
from .samples import SampleBatch, Samples, SampleSplits


@dataclass(frozen=True)
class Masked:
    """An image uint8 (3, H, W) and its mask uint8 (H, W): class indices, :data:`~.maskrules.IGNORED` without one."""

    image: Tensor
    mask: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes it takes in memory."""
        return self.image.numel() + self.mask.numel() + 800


@dataclass(frozen=True)
class MaskBatch(SampleBatch):
    """``masks`` has one uint8 (H, W) an image, at the size that answers are compared at."""

    masks: tuple[Tensor, ...]


class MaskFolder:
    """Pairs of files; values become classes by ``rules``."""

    def __init__(self, pairs: Sequence[Pair], rules: MaskRules) -> None:
        self.pairs, self.rules = list(pairs), rules

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, i: int) -> str:
        """Path of the image."""
        return printable(str(self.pairs[i].image))

    def read(self, i: int) -> Masked:
        """Decode image and mask; raises :class:`BrokenImage`."""
        pair = self.pairs[i]
        image = read_image(pair.image)
        values, coloured = read_values(pair.mask)
        if coloured and not self.rules.coloured and is_grey(values):
            values = values & 255
        if values.shape != tuple(image.shape[1:]):
            raise BrokenImage("corrupt", f"the mask {printable(str(pair.mask))} has another size than its image")
        return Masked(image, self.rules.apply(values))

    def digest(self) -> str:
        """Return hex digits of names, sizes of the files, and what values mean."""
        found = hashlib.sha256(repr((self.rules.classes.hash, self.rules.values)).encode())
        for pair in self.pairs:
            for path in (pair.image, pair.mask):
                found.update(f"{path.name}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape"))
        return found.hexdigest()[:16]


class MaskArrays:
    """Images and masks in memory: uint8 (n, 3, H, W) and (n, H, W)."""

    def __init__(self, name: str, images: Tensor, masks: Tensor) -> None:
        self.title, self.images, self.masks = name, images, masks

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Name of the set and a number."""
        return f"{self.title}#{i}"

    def read(self, i: int) -> Masked:
        """Return views of the arrays."""
        return Masked(self.images[i], self.masks[i])

    def digest(self) -> str:
        """Return hex digits of all pixels."""
        return hashlib.sha256(self.images.numpy().tobytes() + self.masks.numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Cut:
    """Shares of the training images: to hold out where the source has no such split, and to use of what is left.

    ``seed`` is of the choice.
    """

    val: float = 0.1
    test: float = 0.0
    train: float = 1.0
    seed: int = 0


def open_masks(
    source: str,
    *,
    classes: Any = None,
    ignore: Sequence[int] | None = None,
    reduce_zero_label: bool = False,
    cut: Cut = Cut(),
) -> SampleSplits:
    """Open a data set to train on: a folder in one of the usual layouts, or the built-in set ``strokes``.

    See :func:`~.maskrules.settle_rules` and :func:`~.maskrules.read_names` for the options. Raises :class:`DataError`
    for data that cannot be learned from, with names of files.
    """
    parts, known, notes = mask_parts(
        source, classes=classes, ignore=ignore, reduce_zero_label=reduce_zero_label, cut=cut
    )
    return SampleSplits(parts["train"], parts["val"], parts.get("test"), known, notes)


def mask_parts(
    source: str,
    *,
    classes: Any = None,
    ignore: Sequence[int] | None = None,
    reduce_zero_label: bool = False,
    cut: Cut | None = None,
) -> tuple[dict[str, Samples], ClassMap, list[str]]:
    """Return (split -> images with masks, classes, sentences for people); without ``cut`` splits are the source's.

    A source without splits is all "train".
    """
    if source == "strokes" and not os.path.exists(source):
        from .strokes import open_strokes

        if classes is not None or ignore is not None or reduce_zero_label:
            raise UsageError("classes, ignore and reduce_zero_label have no effect on the built-in set 'strokes'")
        made = open_strokes()
        assert made.classes is not None, "strokes have classes"
        return made.parts(), made.classes, made.notes
    layout = read_mask_layout(source)
    parts, notes = (layout.parts, list[str]()) if cut is None else _with_cuts(layout.parts, cut)
    found = scan_masks(parts)
    names = read_names(layout.root, classes)
    rules, lines = settle_rules(found, names, ignore, reduce_zero_label=reduce_zero_label)
    seen = found.counts.get("train", found.total())
    unseen = [n for v, n in zip(rules.values, rules.classes.names, strict=True) if not seen.get(v)]
    if unseen and cut is not None:
        notes.append(f"no training mask shows {', '.join(unseen[:8])}: nothing can be learned about it")
    splits: dict[str, Samples] = {split: MaskFolder(pairs, rules) for split, pairs in parts.items()}
    return splits, rules.classes, [*layout.notes, *notes, "\n".join(lines)]


def is_masks(source: str) -> bool:
    """Whether a source is unmistakably a data set for segmentation."""
    return (source == "strokes" and not os.path.exists(source)) or looks_like_masks(source)


def _with_cuts(parts: dict[str, list[Pair]], cut: Cut) -> tuple[dict[str, list[Pair]], list[str]]:
    """Hold out what the source does not; return all splits and sentences about it."""
    if "train" not in parts:
        raise DataError("expected a training split with images and masks, got none")
    if "test" in parts and cut.test:
        raise UsageError("test_fraction has no effect: the data have a test split of their own; leave it out")
    order = rng.permutation(cut.seed, 0, len(parts["train"])).tolist()
    kept, notes = dict(parts), list[str]()
    for split, share in (("test", cut.test), ("val", cut.val)):
        if split in parts or not share:
            continue
        count = max(1, round(share * len(parts["train"])))
        chosen, order = sorted(order[:count]), order[count:]
        kept[split] = [parts["train"][i] for i in chosen]
        notes.append(f"{count} of the images were held out by chance (data.seed {cut.seed}): {split}")
    used = order[: round(cut.train * len(order))]
    if not used:
        raise DataError(f"expected more than {len(parts['train'])} images: nothing is left to train on")
    kept["train"] = [parts["train"][i] for i in sorted(used)]
    return kept, notes


def image_counts(samples: Samples, count: int) -> np.ndarray:
    """Return (2, K): pixels of each class, and labelled pixels of the images that show it."""
    total = np.zeros((2, count), dtype=np.int64)
    for i in range(len(samples)):
        try:
            mask = samples.read(i).mask
        except BrokenImage:
            continue
        own = torch.bincount(mask.flatten().int(), minlength=IGNORED + 1)[:count].numpy()
        total[0] += own
        total[1] += np.where(own > 0, own.sum(), 0)
    return total
