"""CSV and parquet: columns, labels, splits, and errors that name the line or the row."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.data.making import encoded, picture, write_image, write_parquet
from vitrail.data import parquet as parquet_module
from vitrail.data.decode import BrokenImage
from vitrail.data.parquet import TableStore
from vitrail.data.sources import open_dataset, read_layout
from vitrail.errors import DataError


def refused(source: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(source)
    return str(caught.value)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(8):
        write_image(tmp_path / "images" / f"{i}.png", i)
    return tmp_path


def write_csv(root: Path, header: str, rows: list[str], name: str = "labels.csv") -> Path:
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    return root / name


ROWS = [f"images/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(8)]


@pytest.mark.parametrize("header", ["path,label", "File Name,Class", "image,target", "filename,category", "IMG,y"])
def test_usual_column_names(images: Path, header: str) -> None:
    data = open_dataset(write_csv(images, header, ROWS), val_fraction=0.25)
    assert data.classes.names == ("cat", "dog")
    assert (len(data.train), len(data.val)) == (6, 2)
    for i in range(len(data.train)):
        number = int(Path(data.train.name(i)).stem)
        assert np.array_equal(data.train.read(i).permute(1, 2, 0).numpy(), picture(number))
        assert data.classes.names[data.train.labels[i]] == ("cat" if number % 2 else "dog")


def test_split_column_and_other_columns(images: Path) -> None:
    words = ["train"] * 4 + ["Validation", "val", "TEST", "test"]
    rows = [f"{i},images/{i}.png,{i % 2},{words[i]}" for i in range(8)]
    data = open_dataset(write_csv(images, "id,path,label,split", rows))
    assert (len(data.train), len(data.val), len(data.test or ())) == (4, 2, 2)
    assert data.classes.names == ("0", "1")


def test_separators_quotes_and_the_spreadsheet_mark(images: Path) -> None:
    rows = [row.replace(",", ";") for row in ROWS]
    assert len(open_dataset(write_csv(images, "path;label", rows)).train) == 6
    rows = [row.replace(",", "\t") for row in ROWS]
    assert len(open_dataset(write_csv(images, "path\tlabel", rows, "x.tsv")).train) == 6
    rows = [f'"images/{i}.png","big, cat"' if i % 2 else f"images/{i}.png,dog" for i in range(8)]
    assert open_dataset(write_csv(images, "\ufeffpath,label", rows)).classes.names == ("big, cat", "dog")


def test_names_that_are_not_utf8(images: Path) -> None:
    name = "n\udce9.png"
    write_image(images / name, 3)
    with open(images / "x.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([["path", "label"], [name, "a"], ["images/1.png", "b"], ["images/2.png", "b"]])
    layout = read_layout(images / "x.csv")
    assert layout.parts["train"].store.read(0).shape == (3, 12, 10)
    assert layout.parts["train"].store.name(0) == "n\\xe9.png"


@pytest.mark.parametrize(
    ("header", "rows", "said"),
    [
        ("where,label", ROWS, "column of image paths"),
        ("path,colour", ROWS, "column of labels"),
        ("path,label", [*ROWS, "images/1.png,"], "line 10"),
        ("path,label", [*ROWS, "images/1.png,cat,extra"], "line 10"),
        ("path,label,split", [f"{r},elsewhere" for r in ROWS], "'elsewhere'"),
        ("path,label,split", [f"{r},test" for r in ROWS], "only 'test'"),
        ("path,label", [], "rows below the header"),
        ("path,label", [f"img/{i}.png,{i % 2}" for i in range(4)], "relative to the table's folder"),
        ("path,label", [f"images/{i}.png,cat" for i in range(4)], "two classes"),
    ],
)
def test_refusals_say_where(images: Path, header: str, rows: list[str], said: str) -> None:
    assert said in refused(write_csv(images, header, rows))


def test_an_empty_table(images: Path) -> None:
    (images / "labels.csv").write_text("")
    assert "empty" in refused(images / "labels.csv")


def test_some_missing_files_are_said_and_break_when_read(images: Path) -> None:
    data = open_dataset(write_csv(images, "path,label", [*ROWS, "images/99.png,cat"]))
    assert any("1 of 9 files" in note for note in data.notes)
    everything = read_layout(images / "labels.csv").parts["train"].store
    with pytest.raises(BrokenImage) as caught:
        everything.read(8)
    assert caught.value.reason == "missing"


# Parquet

LABELS: list[object] = [0, 1, 2, 0, 1, 2, 0, 1]
NAMES = ["ape", "bee", "cow"]


def test_hugging_face_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", LABELS, NAMES)
    write_parquet(tmp_path / "test.parquet", LABELS[:3], NAMES, first_seed=100)
    data = open_dataset(tmp_path, val_fraction=0.4)
    assert data.classes.names == tuple(NAMES)
    assert (len(data.train), len(data.val), len(data.test or ())) == (5, 3, 3)
    assert data.test is not None
    assert np.array_equal(data.test.read(2).permute(1, 2, 0).numpy(), picture(102))
    assert data.test.name(2) == "test.parquet#2 (2.png)"
    assert data.test.path(2) is None
    assert data.test.blob(2) == encoded(102)


@pytest.mark.parametrize("place", ["", "data"])
def test_shards(tmp_path: Path, place: str) -> None:
    for shard in range(3):
        write_parquet(tmp_path / place / f"train-0000{shard}-of-00003.parquet", LABELS, NAMES, first_seed=10 * shard)
    write_parquet(tmp_path / place / "validation-00000-of-00001.parquet", LABELS[:3], NAMES, first_seed=50)
    data = open_dataset(tmp_path)
    assert (len(data.train), len(data.val)) == (24, 3)
    for i in range(24):
        expected = picture(10 * (i // 8) + i % 8)
        assert np.array_equal(data.train.read(i).permute(1, 2, 0).numpy(), expected)
        assert data.train.labels[i] == LABELS[i % 8]


def test_split_folders_and_single_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train" / "0000.parquet", LABELS, NAMES)
    write_parquet(tmp_path / "test" / "0000.parquet", LABELS, NAMES)
    assert len(open_dataset(tmp_path).test or ()) == 8
    alone = open_dataset(tmp_path / "test" / "0000.parquet")
    assert len(alone.train) + len(alone.val) == 8
    assert alone.test is None


def test_labels_without_names_and_text_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [10, 2, 10, 2])
    assert open_dataset(tmp_path / "a.parquet").classes.names == ("2", "10")
    write_parquet(tmp_path / "b.parquet", ["x", "y", "x", "y"], image="binary")
    data = open_dataset(tmp_path / "b.parquet")
    assert data.classes.names == ("x", "y")
    assert data.train.read(0).shape == (3, 12, 10)


def test_a_class_without_rows_is_an_empty_class(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [0, 1, 0, 1], NAMES)
    assert "'cow'" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("labels", "names", "said"),
    [
        ([0, 1, -1, 0], NAMES, "got -1 in row 2"),
        ([0, 1, 7, 0], NAMES, "labels 0..2"),
        ([0, 1, None, 0], NAMES, "row 2"),
        ([0.5, 1.0], None, "0.5"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, labels: list[object], names: list[str] | None, said: str) -> None:
    write_parquet(tmp_path / "a.parquet", labels, names)
    assert said in refused(tmp_path / "a.parquet")


def test_parquet_refusals(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"pixels": [1], "label": [1]}), tmp_path / "a.parquet")
    assert "column of images" in refused(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [1], "label": [1]}), tmp_path / "b.parquet")
    assert "encoded images" in refused(tmp_path / "b.parquet")
    pq.write_table(pa.table({"image": [b""], "text": ["a"]}), tmp_path / "c.parquet")
    assert "column of labels" in refused(tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 not really")
    assert "expected a parquet file" in refused(tmp_path / "d.parquet")
    (tmp_path / "only").mkdir()
    write_parquet(tmp_path / "only" / "test.parquet", LABELS, NAMES)
    assert "train split" in refused(tmp_path / "only")
    write_parquet(tmp_path / "only" / "extra.parquet", LABELS, NAMES)
    write_parquet(tmp_path / "only" / "train.parquet", LABELS, NAMES)
    assert "'extra.parquet'" in refused(tmp_path / "only")
    (tmp_path / "only" / "extra.parquet").unlink()
    write_parquet(tmp_path / "only" / "test.parquet", LABELS, NAMES[::-1])
    assert "same class names" in refused(tmp_path / "only")


def test_rows_without_bytes(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_image(tmp_path / "near.png", 7)
    cells = [
        {"bytes": None, "path": "near.png"},
        None,
        {"bytes": b"junk", "path": None},
        {"bytes": encoded(1), "path": None},
    ]
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    store = read_layout(tmp_path / "a.parquet").parts["train"].store
    assert np.array_equal(store.read(0).permute(1, 2, 0).numpy(), picture(7))
    reasons = []
    for row in (1, 2):
        with pytest.raises(BrokenImage) as caught:
            store.read(row)
        reasons.append(caught.value.reason)
    assert reasons == ["missing", "not_an_image"]
    assert store.name(3) == "train#3"


def test_a_table_too_large_for_memory_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train.parquet", LABELS, NAMES)
    inside = read_layout(tmp_path).parts["train"].store
    monkeypatch.setattr(parquet_module, "available_bytes", lambda: 0)
    outside = read_layout(tmp_path).parts["train"].store
    assert isinstance(inside, TableStore)
    assert isinstance(outside, TableStore)
    assert inside.holder is None
    folder = Path(outside.holder.name)
    assert list(folder.iterdir())
    assert [inside.blob(i) for i in range(8)] == [outside.blob(i) for i in range(8)]
    assert inside.name(5) == outside.name(5)
    outside.holder.cleanup()
    assert not folder.exists()


def test_a_folder_of_class_folders_is_not_parquet(folder: Path) -> None:
    assert read_layout(folder).kind == "folder"
