"""Several labels an image: every way they are written, what is detected, what is refused, and how they are split."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.making import picture, write_image
from vitrail.classes import ClassMap
from vitrail.data.augment import Normalize
from vitrail.data.doctor import check
from vitrail.data.imageset import ArrayStore, ImageSet
from vitrail.data.labels import class_counts, is_multi, label_groups, words_of
from vitrail.data.loader import Loader
from vitrail.data.mixing import Mix
from vitrail.data.order import training_order
from vitrail.data.sources import open_dataset, read_layout
from vitrail.data.splitting import iterative_split, stratified_split
from vitrail.data.transforms import EvalCrop
from vitrail.errors import DataError, UsageError


def table(folder: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("path", "label")) -> Path:
    """Write a CSV; each row's first cell is an image that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(rows):
        write_image(folder / row[0], i)
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder / "labels.csv"


def cells(folder: Path, texts: Sequence[str]) -> Path:
    return table(folder, [(f"{i}.png", text) for i, text in enumerate(texts)])


@pytest.mark.parametrize("separator", [";", "|", " | "])
def test_cells_with_a_separator_are_several_labels(tmp_path: Path, separator: str) -> None:
    source = cells(tmp_path, [separator.join(names) for names in (["cat", "dog"], ["dog"], [], ["bird", "cat"])])
    layout = read_layout(source)
    assert layout.multi_label
    assert layout.classes.names == ("bird", "cat", "dog")
    assert layout.parts["train"].labels.tolist() == [
        [False, True, True], [False, False, True], [False, False, False], [True, True, False]]  # fmt: skip
    assert layout.counts("train").tolist() == [1, 2, 2]
    assert layout.notes == [
        f"several labels an image (separated by {separator.strip()!r}): 1.2 on average, 2 at most, 1 images have none"
    ]


def test_names_that_only_look_like_lists_stay_one_class_until_told(tmp_path: Path) -> None:
    source = cells(tmp_path, ["cat; tame", "cat; tame", "dog; wild", "fox"])
    layout = read_layout(source)
    assert not layout.multi_label
    assert layout.classes.names == ("cat; tame", "dog; wild", "fox")
    assert "data.labels=multi takes them apart" in layout.notes[0]
    told = read_layout(source, labels="multi")
    assert told.classes.names == ("cat", "dog", "fox", "tame", "wild")
    single = read_layout(cells(tmp_path / "s", ["a;b", "b", "a"]), labels="single")
    assert single.classes.names == ("a", "a;b", "b")


def test_told_multi_a_comma_or_nothing_separates(tmp_path: Path) -> None:
    assert read_layout(cells(tmp_path / "c", ["a,b", "b", ""]), labels="multi").classes.names == ("a", "b")
    plain = read_layout(cells(tmp_path / "p", ["a", "b", ""]), labels="multi")
    assert plain.parts["train"].labels.sum(1).tolist() == [1, 1, 0]
    assert not read_layout(cells(tmp_path / "d", ["a,b", "b", "a"])).multi_label


def test_labels_named_twice_count_once_and_are_said(tmp_path: Path) -> None:
    layout = read_layout(cells(tmp_path, ["a;b;a", "b;", "a;b"]))
    assert layout.parts["train"].labels.sum(1).tolist() == [2, 1, 2]
    assert layout.notes[1] == "1 images name a label twice (the first: line 2); it counts once"


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a;b", "a|c", "b"], "auto", r"one separator .*'\|' in line 3 and ';' in line 2.*mend"),
        (["", "", ""], "multi", "got none in any of 3 rows"),
        (["a", "", "b"], "auto", r"a path and a label in line 3 .*data\.labels=multi"),
    ],
)
def test_cells_that_cannot_be_read(tmp_path: Path, texts: list[str], labels: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_layout(cells(tmp_path, texts), labels=labels)


FLAGS = ("path", "cat", "dog", "id", "split")


def test_columns_of_0_and_1(tmp_path: Path) -> None:
    rows = [("0.png", "1", "0", "17", "train"), ("1.png", "1.0", "1", "18", "train"), ("2.png", "0", "0", "19", "val")]
    layout = read_layout(table(tmp_path, rows, FLAGS))
    assert layout.classes.names == ("cat", "dog")
    assert layout.parts["train"].labels.tolist() == [[True, False], [True, True]]
    assert layout.parts["val"].labels.tolist() == [[False, False]]
    assert layout.notes[0] == "columns that do not hold 0 and 1 are left out: 'id'"
    with pytest.raises(DataError, match=r"one label an image .*got 2 in line 3"):
        read_layout(tmp_path / "labels.csv", labels="single")


def test_one_hot_columns_are_one_label(tmp_path: Path) -> None:
    rows = [("0.png", "1", "0", "x", "train"), ("1.png", "0", "1", "y", "train")]
    source = table(tmp_path, rows, FLAGS)
    layout = read_layout(source)
    assert layout.parts["train"].labels.tolist() == [0, 1]
    assert "one label an image" in layout.notes[1]
    assert read_layout(source, labels="multi").multi_label


def test_columns_that_cannot_be_read(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "1", "0" if i else "-1", "x", "train") for i in range(4)]
    with pytest.raises(DataError, match=r"0 or 1 in every line of column 'dog' .*got '-1' in line 2 \(1 of 4 lines"):
        read_layout(table(tmp_path / "a", rows, FLAGS))
    with pytest.raises(DataError, match="expected a column of labels"):
        read_layout(table(tmp_path / "b", [("0.png", "1", "x", "y", "train")], FLAGS))
    with pytest.raises(DataError, match="no 1 in any of 2 rows"):
        read_layout(table(tmp_path / "c", [(f"{i}.png", "0", "0", "x", "train") for i in range(2)], FLAGS))
    with pytest.raises(DataError, match="more than once: 'cat'"):
        read_layout(table(tmp_path / "d", rows[1:], ("path", "cat", "cat", "id", "split")))


def test_classes_of_val_that_train_lacks_and_empty_classes_are_refused(tmp_path: Path) -> None:
    rows = [("0.png", "a;b", "train"), ("1.png", "b", "train"), ("2.png", "a;c", "val")]
    with pytest.raises(DataError, match="every class of val in train too, got only in val: 'c'"):
        open_dataset(table(tmp_path / "v", rows, ("path", "labels", "split")))
    never = [(f"{i}.png", "1", "0", str(i % 2), "train") for i in range(6)]
    source = table(tmp_path / "n", never, ("path", "a", "never", "b", "split"))
    with pytest.raises(DataError, match=r"an image in every class .*got none in: 'never'"):
        open_dataset(source)
    assert open_dataset(source, allow_empty=True).train.counts()[1] == 0


def test_sources_of_one_label_refuse_multi(folder: Path) -> None:
    for source in (folder, "digits"):
        with pytest.raises(UsageError, match=r"a table or parquet for data\.labels=multi"):
            read_layout(source, labels="multi")
    assert not read_layout(folder, labels="single").multi_label
    with pytest.raises(UsageError, match="Did you mean 'multi'"):
        read_layout(folder, labels="multy")


# Parquet


def parquet(path: Path, labels: list[object], feature: object = None) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from tests.data.making import encoded

    made = pa.table({"image": [{"bytes": encoded(i), "path": None} for i in range(len(labels))], "labels": labels})
    if feature is not None:
        features = {"info": {"features": {"image": {"_type": "Image"}, "labels": feature}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(made, path)
    return path


NAMES = {"names": ["cat", "dog", "fox"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    "feature", [{"feature": NAMES, "_type": "Sequence"}, {"feature": NAMES, "_type": "List"}, [NAMES]]
)
def test_parquet_lists_of_class_labels(tmp_path: Path, feature: object) -> None:
    layout = read_layout(parquet(tmp_path / "train.parquet", [[0, 2], [], [1], None], feature))
    assert layout.classes.names == ("cat", "dog", "fox")
    assert layout.parts["train"].labels.astype(int).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert "(lists)" in layout.notes[0]


def test_parquet_lists_of_text_and_numbers(tmp_path: Path) -> None:
    words = read_layout(parquet(tmp_path / "w.parquet", [["b", "a"], ["b"], []]))
    assert words.classes.names == ("a", "b")
    numbers = read_layout(parquet(tmp_path / "n.parquet", [[10, 9], [9], [2]]))
    assert numbers.classes.names == ("2", "9", "10")
    assert read_layout(parquet(tmp_path / "s.parquet", ["a", "b", None]), labels="multi").multi_label
    with pytest.raises(DataError, match="one whole number or text as label"):
        read_layout(tmp_path / "w.parquet", labels="single")
    with pytest.raises(DataError, match=r"numbers 0\.\.2 \(class names\).*got \[7\] in row 1"):
        read_layout(parquet(tmp_path / "o.parquet", [[0], [7]], [NAMES]))
    with pytest.raises(DataError, match="got none in any of 2 rows"):
        read_layout(parquet(tmp_path / "e.parquet", [[], []], [NAMES]))


# What is done with them


def made(n: int = 400, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.random((n, 6)) < np.array([0.5, 0.3, 0.2, 0.1, 0.03, 0.01])


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_splits_hold_each_class_in_proportion(fraction: float) -> None:
    labels = made()
    kept, held = iterative_split(labels, fraction, seed=1)
    assert sorted([*kept, *held]) == list(range(400))
    assert abs(len(held) - 400 * fraction) <= 4
    want = np.maximum(labels.sum(0) * fraction, 1)
    assert (np.abs(labels[held].sum(0) - want) <= 2).all()
    assert (labels[kept].sum(0) > 0).all()
    none = ~labels.any(1)
    assert abs(none[held].sum() - none.sum() * fraction) <= 2
    again, other = iterative_split(labels, fraction, seed=1), iterative_split(labels, fraction, seed=2)
    assert np.array_equal(again[1], held)
    assert not np.array_equal(other[1], held)
    assert np.array_equal(stratified_split(labels, fraction, seed=1)[1], held)


def test_rare_classes_come_out_evener_than_by_chance() -> None:
    def off(labels: np.ndarray, held: np.ndarray) -> float:
        return float(np.abs(labels[held].sum(0) - 0.2 * labels.sum(0)).sum())

    ours, chance = 0.0, 0.0
    for seed in range(5):
        labels = made(seed=seed)
        ours += off(labels, iterative_split(labels, 0.2, seed=0)[1])
        chance += off(labels, np.random.default_rng(seed).permutation(400)[:80])
    assert ours < chance / 3


def test_a_class_of_one_image_stays_in_training() -> None:
    labels = np.zeros((30, 2), dtype=bool)
    labels[:, 0] = True
    labels[7, 1] = True
    kept, _ = iterative_split(labels, 0.3, seed=0)
    assert 7 in kept


def test_groups_counts_and_words() -> None:
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=bool)
    number, kinds = label_groups(labels)
    assert number[0] == number[2] != number[1]
    assert [words_of(kinds[n], "abc") for n in number] == ["a + c", "no class", "a + c"]
    assert class_counts(labels, 3).tolist() == [2, 0, 2]
    plain = np.array([2, 0, 2])
    assert label_groups(plain)[0].tolist() == [2, 0, 2]
    assert words_of(plain[0], "abc") == "c"
    assert is_multi(labels)
    assert not is_multi(plain)


def several(n: int = 12) -> ImageSet:
    labels = np.random.default_rng(0).random((n, 3)) < 0.5
    store = ArrayStore("made", np.stack([picture(i, (12, 12)) for i in range(n)]))
    return ImageSet(store, np.arange(n), labels, ClassMap.of(["a", "b", "c"]))


def test_the_loader_blends_targets_and_knows_names() -> None:
    data = several()
    settings = {"batch_size": 4, "crop": EvalCrop((12, 12), 1.0), "normalize": Normalize((0.5,) * 3, (0.5,) * 3)}
    mix = Mix(3, mixup_alpha=1.0, cutmix_alpha=0.0, label_smoothing=0.0)
    plain = next(iter(Loader(data, **settings).epoch()))  # type: ignore[arg-type]
    mixed = next(iter(Loader(data, mix=mix, **settings).epoch()))  # type: ignore[arg-type]
    assert plain.labels.dtype == torch.bool
    assert torch.equal(plain.labels, torch.from_numpy(data.labels[:4]))
    assert mixed.targets is not None
    share = mix.plan(4, (12, 12), np.ones(4, dtype=bool), np.repeat(_draws(), 4, 0))[0]
    own = plain.labels.float()
    want = own * share[0] + own.roll(1, 0) * (1 - share[0])
    torch.testing.assert_close(mixed.targets, want.float())
    assert data.subset([3, 1]).labels.tolist() == data.labels[[3, 1]].tolist()
    with pytest.raises(UsageError, match="one label an image"):
        Mix(3).targets(plain.labels, torch.ones(4))


def _draws() -> np.ndarray:
    from vitrail.data.mixing import rng_of

    return rng_of(0, 0, 0, 4)[:1]


def test_balanced_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be drawn for one alone"):
        training_order(several().labels, 0, "sqrt")


def test_the_data_check_counts_images_and_finds_what_is_particular(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "all;some" if i % 2 else "all", "train") for i in range(8)]
    rows += [("8.png", "all;some", "val"), ("9.png", "", "val")]
    source = table(tmp_path, rows, ("path", "labels", "split"))
    report = check(source, workers=0)
    assert report.images == {"train": 8, "val": 2}
    assert report.splits["train"] == {"all": 8, "some": 4}
    assert report.multi_label
    always = report.finding("always")
    assert always is not None
    assert always.examples == ("all",)
    assert report.finding("no_label") is None
    (tmp_path / "7.png").write_bytes((tmp_path / "1.png").read_bytes())
    (tmp_path / "6.png").write_bytes((tmp_path / "5.png").read_bytes())
    copies = check(source, workers=0)
    assert copies.finding("exact_copies") is not None  # same labels
    conflict = copies.finding("exact_conflict")
    assert conflict is not None
    assert "(train, all + some)" in conflict.examples[0]


def test_shards_hold_one_label(tmp_path: Path) -> None:
    from vitrail.data.pack import pack

    with pytest.raises(UsageError, match="one label an image to write shards of"):
        pack(cells(tmp_path, ["a;b", "b", "a"]), tmp_path / "out")
