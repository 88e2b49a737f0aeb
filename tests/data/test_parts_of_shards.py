"""Several processes on shards, parquet and windows: their parts of an epoch are together what one process reads."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from tests.data.making import samples, write_parquet, write_tar
from vitrail.data.augment import Normalize
from vitrail.data.loader import Loader
from vitrail.data.order import windowed
from vitrail.data.sources import open_dataset
from vitrail.data.transforms import PadCrop

pytestmark = pytest.mark.skipif(
    "part" not in inspect.signature(Loader).parameters, reason="the loader has no parts: one process only"
)


def make_source(kind: str, root: Path) -> Path:
    for i in range(4):
        if kind == "shards":
            write_tar(root / f"train-{i}.tar", samples(10, first=10 * i))
        else:
            labels: list[object] = [j % 2 for j in range(10)]
            write_parquet(root / f"train-{i}.parquet", labels, first_seed=10 * i)
    if kind == "shards":
        write_tar(root / "val-0.tar", samples(2, first=90))
    else:
        write_parquet(root / "val-0.parquet", [0, 1], first_seed=90)
    return root


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kind", ["shards", "parquet"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_parts_are_the_whole(kind: str, window: int | None, world: int, tmp_path: Path) -> None:
    images = open_dataset(make_source(kind, tmp_path)).train

    def loader(rank: int, processes: int) -> Loader:
        order = None if window is None else windowed(images.shards(), 3, window)
        return Loader(
            images, batch_size=8, crop=PadCrop((8, 8), 2), normalize=Normalize((0.5,) * 3, (0.5,) * 3), seed=3,
            shuffle=True, order=order, workers=0, drop_last=True, part=(rank, processes),
        )  # fmt: skip

    for epoch, start in ((0, 0), (2, 3)):
        whole = list(loader(0, 1).epoch(epoch, start=start))
        parts = [list(loader(rank, world).epoch(epoch, start=start)) for rank in range(world)]
        assert len(whole) == 5 - start
        for i, batch in enumerate(whole):
            for name in ("indices", "images", "labels", "keep"):
                joined = torch.cat([getattr(part[i], name) for part in parts])
                assert torch.equal(joined, getattr(batch, name))
