"""The parts of a batch that several processes load are, together, the batch that one would load."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.data.augment import Augment, Normalize, RandomErasing
from vitrail.data.imageset import ArrayStore, ImageSet
from vitrail.data.loader import Batch, Loader
from vitrail.data.mixing import Mix
from vitrail.data.transforms import EvalCrop, TrainCrop

COUNT, K = 26, 3
PIXELS = np.random.default_rng(0).integers(0, 255, (COUNT, 12, 12, 3)).astype(np.uint8)
IMAGES = ImageSet(
    ArrayStore("noise", PIXELS), np.arange(COUNT), np.arange(COUNT) % K, ClassMap(("a", "b", "c"), ("a", "b", "c"))
)
NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def training(part: tuple[int, int], **mix: float | bool) -> Loader:
    return Loader(
        IMAGES,
        batch_size=8,
        crop=TrainCrop((8, 8)),
        augment=Augment(erasing=RandomErasing(0.5)),
        mix=Mix(K, **mix) if mix else None,  # type: ignore[arg-type]
        normalize=NORMALIZE,
        seed=5,
        shuffle=True,
        drop_last=True,
        workers=0,
        part=part,
    )


def joined(parts: list[Batch]) -> Batch:
    fields = {n: v for n, v in vars(parts[0]).items() if v is not None}
    return replace(parts[0], **{n: torch.cat([getattr(p, n) for p in parts]) for n in fields})


def same(a: Batch, b: Batch) -> bool:
    return all(v is None or torch.equal(v, getattr(b, n)) for n, v in vars(a).items())


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize(
    "mix", [{}, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}, {"mixup_alpha": 0.8, "per_sample": True}]
)
def test_parts_make_the_whole_batch(processes: int, mix: dict[str, float | bool]) -> None:
    for epoch in (0, 3):
        parts = [list(training((rank, processes), **mix).epoch(epoch, start=1)) for rank in range(processes)]
        for i, whole in enumerate(training((0, 1), **mix).epoch(epoch, start=1)):
            assert same(whole, joined([part[i] for part in parts]))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_in_evaluation_every_image_comes_once_and_fillers_are_marked(processes: int) -> None:
    loaders = [
        Loader(IMAGES, batch_size=8, crop=EvalCrop((8, 8)), normalize=NORMALIZE, workers=0, part=(rank, processes))
        for rank in range(processes)
    ]
    batches = [list(loader.epoch(0)) for loader in loaders]
    assert len({len(b) for b in batches}) == 1, "all must compute equally often"
    assert len({tuple(len(batch) for batch in b) for b in batches}) == 1, "and equally many"
    seen = [joined([b[i] for b in batches]) for i in range(len(batches[0]))]
    assert torch.cat([b.indices[b.keep] for b in seen]).tolist() == list(range(COUNT))
    assert not any(loader.problems for loader in loaders), "a filler is no broken image"
