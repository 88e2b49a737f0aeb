"""Which of a teacher's answers become training images, and how soft targets reach a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.data.augment import Normalize
from vitrail.data.imageset import ArrayStore, FileStore, ImageSet, JoinedStore, Soft
from vitrail.data.loader import Loader
from vitrail.data.mixing import Mix
from vitrail.data.pseudo import Answers, account, choose, find_images, join, real_paths
from vitrail.data.transforms import EvalCrop
from vitrail.errors import DataError

CLASSES = ClassMap.of(["a", "b", "c"])
#           a 0.9            a 0.5            b 0.8            unreadable       a 0.6            b 0.4
SCORES = [[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0], [0.6, 0.2, 0.2], [0.3, 0.4, 0.3]]
ANSWERS = Answers(np.array(SCORES, dtype=np.float32), np.array([True, True, True, False, True, True]))


@pytest.mark.parametrize(
    ("confidence", "balance", "rows"),
    [
        (0.0, None, [0, 1, 2, 4, 5]),
        (0.45, None, [0, 1, 2, 4]),
        (0.5, None, [0, 1, 2, 4]),  # at least, not more than
        (0.95, None, []),
        (0.0, 2, [0, 4, 2, 5]),  # the surest of each class
        (0.45, 2, [0, 4, 2, 2]),  # a class of fewer is repeated; one of none stays so
        (0.0, 5, [0, 4, 1, 0, 4, 2, 5, 2, 5, 2]),
    ],
)
def test_the_surest_are_chosen_and_small_classes_repeated(
    confidence: float, balance: int | None, rows: list[int]
) -> None:
    assert choose(ANSWERS, confidence, balance).tolist() == rows


def test_every_image_is_accounted_for() -> None:
    rows = choose(ANSWERS, 0.45, 2)
    said = account(ANSWERS, rows, CLASSES)
    assert said["classes"] == {
        "a": {"answered": 3, "used": 2, "shown_an_epoch": 2},
        "b": {"answered": 2, "used": 1, "shown_an_epoch": 2},
        "c": {"answered": 0, "used": 0, "shown_an_epoch": 0},
    }
    assert (said["images"], said["used"], said["left_out"], said["unreadable"]) == (6, 3, 2, 1)
    assert said["used"] + said["left_out"] + said["unreadable"] == said["images"]
    assert said["shown_an_epoch"] == len(rows)


def test_sub_folders_mean_nothing(photos: Path, tmp_path: Path) -> None:
    store, ignored = find_images(str(photos))
    assert len(store) == 40
    assert store.names == sorted(store.names)
    assert ignored == []
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="images below"):
        find_images(str(tmp_path))
    with pytest.raises(DataError, match="folder of images without labels"):
        find_images(str(tmp_path / "none"))


def arrays(n: int, title: str) -> ArrayStore:
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    return ArrayStore(title, pixels + (100 if title == "two" else 0))


def joined(soft: bool = True) -> ImageSet:
    labelled = ImageSet(arrays(4, "one"), np.array([3, 1]), np.array([2, 0]), CLASSES)
    table = np.array([[0.5, 0.5, 0], [0, 0.25, 0.75]], dtype=np.float32) if soft else None
    return join(labelled, arrays(3, "two"), np.array([2, 0]), np.array([1, 2]), table)  # type: ignore[arg-type]


def test_two_stores_are_read_as_one() -> None:
    images = joined()
    assert [images.name(i) for i in range(4)] == ["one#3", "one#1", "two#2", "two#0"]
    assert [int(images.read(i)[0, 0, 0]) for i in range(4)] == [3, 1, 102, 100]
    assert images.blob(2) == arrays(3, "two").blob(2)
    assert images.path(3) is None
    assert len(images.store) == 7
    assert images.counts().tolist() == [1, 1, 2]
    files = JoinedStore(arrays(2, "one"), FileStore("root", ["x.png"]))
    assert files.path(2) == Path("root/x.png")
    assert real_paths(ImageSet(files, np.arange(3), np.zeros(3, dtype=np.int64), CLASSES)) == {
        str(Path("root/x.png").resolve())
    }


def load(images: ImageSet, mix: Mix | None = None) -> Loader:
    half = Normalize((0.5,) * 3, (0.5,) * 3)  # type: ignore[arg-type]
    return Loader(images, batch_size=4, crop=EvalCrop((4, 4), 1.0), normalize=half, mix=mix, workers=0)


def test_soft_targets_reach_the_batch_and_labels_stay_labels() -> None:
    (batch,) = load(joined()).epoch()
    want = [[0, 0, 1], [1, 0, 0], [0.5, 0.5, 0], [0, 0.25, 0.75]]
    assert batch.targets is not None
    assert batch.targets.tolist() == want
    assert next(iter(load(joined(soft=False)).epoch())).targets is None
    turned = joined().subset([3, 0])
    assert isinstance(turned.soft, Soft)
    assert turned.soft.of(np.arange(2), turned.labels).tolist() == [want[3], want[0]]


def test_soft_targets_are_mixed_as_labels_are() -> None:
    for alpha, smoothing in ((1.0, 0.0), (1.0, 0.3)):
        mix = Mix(3, mixup_alpha=alpha, cutmix_alpha=0, label_smoothing=smoothing)
        plain, soft = (next(iter(load(joined(s), mix).epoch())) for s in (False, True))
        assert torch.equal(plain.images, soft.images)
        assert plain.targets is not None
        assert soft.targets is not None
        torch.testing.assert_close(soft.targets.sum(1), torch.ones(4))
        torch.testing.assert_close(soft.targets[1], plain.targets[1])  # mixed of two labelled images
        assert not torch.allclose(soft.targets[2], plain.targets[2])
    same = torch.nn.functional.one_hot(torch.tensor([2, 0, 1, 2]), 3).float()
    share = torch.tensor([0.3, 0.6, 1.0, 0.0])
    labels = torch.tensor([2, 0, 1, 2])
    torch.testing.assert_close(mix.targets(labels, share, same), mix.targets(labels, share))
