"""Finding images and their masks: the usual layouts of folders for semantic segmentation.

``train/`` beside ``trainannot/`` (CamVid); ``images/training/`` and ``annotations/training/`` (ADE20K, mmseg);
``train/images/`` and ``train/masks/``; ``images/`` and ``masks/`` without splits. An image and its mask have the same
path below their folders but for the extension, and perhaps a suffix of all masks (``_L``, ``_mask``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.errors import DataError

from .decode import EXTENSIONS
from .imageset import printable
from .layout import SPLITS, listed, split_word

IMAGE_WORDS = ("images", "image", "imgs", "img", "img_dir", "jpegimages", "rgb", "photos")
MASK_WORDS = (
    "masks", "mask", "annotations", "annotation", "annot", "ann_dir", "labels", "label", "segmentationclass", "gt",
)  # fmt: skip
SUFFIXES = ("", "_mask", "-mask", "_masks", "_label", "_labels", "_L", "_gt", "_seg", "_annot", "_labelTrainIds")


@dataclass(frozen=True)
class Pair:
    """An image and its mask, by path."""

    image: Path
    mask: Path


@dataclass
class MaskLayout:
    """Pairs of each split, sorted by name; ``notes`` say what else was there."""

    root: Path
    parts: dict[str, list[Pair]]
    notes: list[str] = field(default_factory=list)


def looks_like_masks(source: str | os.PathLike[str]) -> bool:
    """Whether a folder holds images with masks in one of the layouts; nothing is opened."""
    root = Path(source)
    return root.is_dir() and bool(_folders(root))


def read_mask_layout(source: str | os.PathLike[str]) -> MaskLayout:
    """Find the pairs of a folder.

    Raises :class:`DataError` for a folder of no known layout, an image without a mask or a mask without an image.
    """
    root = Path(source)
    if not root.is_dir():
        raise DataError(f"expected a folder of images and masks, got {printable(str(source))!r}, which is no folder")
    folders = _folders(root)
    if not folders:
        inside = listed(sorted(printable(p.name) for p in root.iterdir()))
        raise DataError(
            f"expected images and masks in {printable(str(root))}, as train/ and trainannot/, train/images and"
            f" train/masks, images/training and annotations/training, or images/ and masks/; got {inside or 'nothing'}"
        )
    parts = {split: _pairs(*folders[split]) for split in ("all", *SPLITS) if split in folders}
    if "all" in parts:
        parts = {"train": parts["all"]}
    return MaskLayout(root, {split: pairs for split, pairs in parts.items() if pairs})


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return split (or "all") -> (folder of images, folder of masks)."""
    inside = {p.name.casefold(): p for p in sorted(root.iterdir()) if p.is_dir()}
    found: dict[str, tuple[Path, Path]] = {}
    for name, folder in inside.items():
        split = split_word(name)
        if split is None:
            continue
        beside = next((inside[n] for n in _beside(name) if n in inside), None)
        below = _image_and_mask({p.name.casefold(): p for p in folder.iterdir() if p.is_dir()})
        if below is not None:
            found[split] = below
        elif beside is not None:
            found[split] = (folder, beside)
    both = _image_and_mask(inside)
    if found or both is None:
        return found
    images, masks = ({split_word(p.name): p for p in folder.iterdir() if p.is_dir()} for folder in both)
    shared = {split: (images[split], masks[split]) for split in SPLITS if split in images and split in masks}
    return shared or {"all": both}


def _beside(split: str) -> list[str]:
    return [f"{split}{joint}{word}" for word in MASK_WORDS for joint in ("", "_", "-")]


def _image_and_mask(folders: Mapping[str, Path]) -> tuple[Path, Path] | None:
    images = next((folders[w] for w in IMAGE_WORDS if w in folders), None)
    masks = next((folders[w] for w in MASK_WORDS if w in folders), None)
    return None if images is None or masks is None else (images, masks)


def _pairs(images: Path, masks: Path) -> list[Pair]:
    photos, drawn = _files(images), _files(masks)
    suffix = max(SUFFIXES, key=lambda s: sum(stem + s in drawn for stem in photos))
    bare = sorted(stem for stem in photos if stem + suffix not in drawn)
    if bare:
        raise DataError(
            f"expected a mask in {printable(str(masks))} for every image, got none for {len(bare)} of {len(photos)}:"
            f" {listed([_shown(photos[stem]) for stem in bare])}; mend: draw these masks, or move the images away"
        )
    orphans = sorted(
        stem for stem in drawn if not stem.endswith(suffix) or stem[: len(stem) - len(suffix)] not in photos
    )
    if orphans:
        raise DataError(
            f"expected an image in {printable(str(images))} for every mask, got none for {len(orphans)} of"
            f" {len(drawn)}: {listed([_shown(drawn[stem]) for stem in orphans])}; mend: add the images, or move the"
            " masks away"
        )
    return [Pair(photos[stem], drawn[stem + suffix]) for stem in sorted(photos, key=os.fsencode)]


def _files(folder: Path) -> dict[str, Path]:
    """Return path below the folder, without extension -> file, of all images; two of one name are an error."""
    found: dict[str, Path] = {}
    for path in _walk(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise DataError(f"expected one file a name, got {_shown(found[stem])} and {_shown(path)}")
        found[stem] = path
    return found


def _walk(folder: Path) -> Iterable[Path]:
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.casefold() in EXTENSIONS:
                yield Path(base) / name


def _shown(path: Path) -> str:
    return printable(str(path))
