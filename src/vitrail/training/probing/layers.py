"""The linear probe by layer: what each block of a network knows of the classes, beside the raw pixels.

Source: Chen et al. 2020, "Generative Pretraining from Pixels", section 4.1 and figure 2: of a generative model the
layers in the middle know most. All layers are read in one pass.

B batch, N images, L layers, C width, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.data.imageset import ImageSet
from vitrail.data.sources import Splits, open_dataset
from vitrail.data.splitting import stratified_split
from vitrail.errors import DataError, UsageError
from vitrail.training.blocks import blocks_of
from vitrail.training.precision import pick_device
from vitrail.weights import Card

from . import linear
from .features import FeatureSet, Reader, extract
from .run import open_model, share

RAW = "raw pixels"
ALL = "all layers"


@dataclass(frozen=True)
class LayersReport:
    """What a probe by layer found.

    Attributes:
        model, data: as they were given; ``network``: name on the model's card; ``img_size``: (H, W).
        images: split -> images that could be read; ``classes``: K.
        results: one entry a layer, raw pixels first and all layers together last: ``layer`` in words, ``width``,
            ``l2``, and for ``val`` and ``test`` (or None) ``top1``, ``low`` and ``high`` of the 95 % interval.
    """

    model: str
    data: str
    network: str
    img_size: tuple[int, int]
    images: dict[str, int]
    classes: int
    results: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class AllLayers:
    """Images -> what every layer gives of them, pooled, side by side: (B, sum of widths).

    An image GPT says it by itself (``pooled``: embeddings, then each block, behind the norm that follows). Of any other
    network the output of each block is caught, and pooled as the model pools.

    Attributes:
        parts: name and width of each layer, once images were seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.parts = model, list[tuple[str, int]]()
        count = len(blocks_of(model))
        if not count:
            raise UsageError(f"expected a network with blocks to probe by layer, got {type(model).__name__}")
        self.readers = [] if hasattr(model, "pooled") else [Reader(model, i) for i in range(count)]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (B, I, H, W) -> raw pixels, then all layers (B, sum of widths), float32, on the CPU."""
        found = [images.flatten(1).float().cpu()]
        names = [RAW]
        if self.readers:
            found += [reader(images) for reader in self.readers]
            names += [f"block {i}" for i in range(len(self.readers))]
        else:
            layers = self.model.pooled(images).float().cpu()
            found += list(layers.unbind(1))
            names += ["embeddings", *(f"block {i}" for i in range(layers.shape[1] - 1))]
        self.parts = [(name, part.shape[1]) for name, part in zip(names, found, strict=True)]
        return torch.cat(found, 1)


def probe_layers(
    model: str | PathLike[str],
    data: str | PathLike[str] | Splits,
    *,
    images: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    title: str | None = None,
    say: Callable[[str], None] = print,
    show: Callable[[int, int], None] | None = None,
) -> LayersReport:
    """Fit a linear classifier on the frozen features of each layer of ``model``, and on the raw pixels.

    Args:
        model: run folder, folder of Vitrail, timm or transformers, or ``hf-hub:org/name``.
        data: as for training, or splits that are open already.
        images: training images to use, as many of each class as the set has them; default all.
        batch_size: images through the model at once.
        device: of the model.
        val_fraction, test_fraction, seed: of splits the data lack, as in training.
        title: what the report calls splits that are open already.
        say: receives lines for people; ``show`` receives (images done, images in all) while features are computed.

    Raises:
        UsageError: a network without blocks.
        DataError: data that cannot be used.
    """
    network, card = open_model(str(model), None)
    source = str(data) if not isinstance(data, Splits) else title or "open splits"
    if not isinstance(data, Splits):
        data = open_dataset(data, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    for note in data.notes:
        say(note)
    read, parts = _read(network, card, data, images, seed, batch_size, pick_device(device), show)
    results = []
    for name, start, width in _places(parts):
        here = {split: _columns(part, start, width) for split, part in read.items()}
        results.append({"layer": name, "width": width, **_fit(here, len(data.classes))})
        say(f"{name}: {results[-1]['val']['top1']:.2%} on validation")
    counts = {split: len(part) for split, part in read.items()}
    return LayersReport(str(model), source, card.name, card.input_size, counts, len(data.classes), results)


def _read(
    network: nn.Module,
    card: Card,
    data: Splits,
    images: int | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    show: Callable[[int, int], None] | None,
) -> tuple[dict[str, FeatureSet], list[tuple[str, int]]]:
    """Return split -> all features side by side, and the names and widths of the layers."""
    if data.train.multi_label:
        raise DataError("expected one label an image to probe with, got several; mend: vitrail train")
    if len(data.classes) < 2:
        raise DataError("expected two classes or more to probe with, got one; mend: name data with classes")
    reader = AllLayers(network.to(device))
    splits = {"train": few(data.train, images, seed), "val": data.val, "test": data.test}
    read = {
        split: extract(reader, part, card, batch_size=batch_size, device=device, show=show)
        for split, part in splits.items()
        if part is not None
    }
    return read, reader.parts


def few(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    """Return ``count`` images, of each class in proportion; all if there are no more."""
    if count is None or count >= len(images):
        return images
    held = stratified_split(images.labels, count / len(images), seed=seed)[1]
    return images.subset(np.sort(held))


def _places(parts: list[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Return name, first column and width of each layer, and of all layers together (section 4.4 joins some)."""
    found, start = [], 0
    for name, width in parts:
        found.append((name, start, width))
        start += width
    raw = parts[0][1]
    return [*found, (ALL, raw, start - raw)]


def _columns(part: FeatureSet, start: int, width: int) -> FeatureSet:
    return FeatureSet(part.features[:, start : start + width], part.labels, part.lost)


def _fit(read: dict[str, FeatureSet], classes: int) -> dict[str, Any]:
    found = linear.sweep(read["train"], read["val"], classes)
    held = {split: part for split, part in read.items() if split != "train"}
    figures = {split: share(found.logits(part.features), part.labels) for split, part in held.items()}
    return {"l2": found.chosen.l2, "converged": found.chosen.converged, **figures}
