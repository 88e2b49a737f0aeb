"""Packing into shards: what was read before is read after, byte for byte, and the same data give the same files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.making import encoded, picture, write_image, write_parquet
from vitrail.data import pack as pack_module
from vitrail.data.imageset import ImageSet
from vitrail.data.pack import pack, parse_bytes
from vitrail.data.sources import open_dataset, read_layout
from vitrail.errors import DataError, UsageError, VitrailError


def content(source: str | Path) -> dict[str, list[tuple[bytes, int]]]:
    """Every image's pixels and class, by split, in an order that does not matter."""
    layout = read_layout(source)
    return {
        split: sorted(
            (part.store.read(row).numpy().tobytes(), int(label)) for row, label in enumerate(part.labels.tolist())
        )
        for split, part in layout.parts.items()
    }


def tree(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(root.iterdir()) if p.suffix != ".vitrail-index"}


@pytest.mark.parametrize("kind", ["folder", "parquet", "shards", "digits"])
def test_what_is_packed_reads_back_equal(kind: str, split_folder: Path, tmp_path: Path) -> None:
    source: str | Path = split_folder
    if kind == "parquet":
        source = tmp_path / "table"
        write_parquet(source / "train.parquet", [0, 1, 2, 0], ["ape", "bee", "cow"])
        write_parquet(source / "test.parquet", [2, 1], ["ape", "bee", "cow"], first_seed=9)
    elif kind == "shards":
        source = pack(split_folder, tmp_path / "first", shard_bytes=8000, workers=0).folder
    elif kind == "digits":
        source = "digits"
    made = pack(source, tmp_path / "out", shard_bytes=8_000 if kind != "digits" else 1 << 20, workers=2)
    assert content(made.folder) == content(source)
    before, after = read_layout(source).classes, read_layout(made.folder).classes
    assert before.hash == after.hash, "a model trained on one is at home with the other"
    assert sum(made.shards.values()) == sum(made.images.values())
    assert len(made.shards) > len(made.images)
    assert not (tmp_path / "out.partial").exists()


def test_the_same_data_give_the_same_bytes(split_folder: Path, tmp_path: Path) -> None:
    one = pack(split_folder, tmp_path / "a", shard_bytes=9000, short_side=8, workers=0)
    two = pack(split_folder, tmp_path / "b", shard_bytes=9000, short_side=8, workers=3)
    assert tree(one.folder) == tree(two.folder)
    assert all(path.stat().st_size <= 9000 for path in one.folder.glob("*.tar"))


def test_other_tools_can_read_what_was_written(split_folder: Path, tmp_path: Path) -> None:
    made = pack(split_folder, tmp_path / "out", workers=0)
    with tarfile.open(made.folder / "val-000000.tar") as archive:
        names = archive.getnames()
        assert names == sorted(names)
        assert [Path(name).suffix for name in names] == [".cls", ".png"] * 4
        assert "cat_0" in names[0]
    info = json.loads((made.folder / "dataset_info.json").read_text())
    assert info["features"]["cls"]["names"] == ["cat", "dog"]
    assert info["splits"]["train"]["num_examples"] == 8


def test_training_images_are_mixed_and_others_keep_their_order(tmp_path: Path) -> None:
    for i in range(40):
        for split in ("train", "val"):
            write_image(tmp_path / "set" / split / ("a" if i < 20 else "b") / f"{i:02d}.png", i)
    layout = read_layout(pack(tmp_path / "set", tmp_path / "out", workers=0).folder)
    assert layout.parts["val"].labels.tolist() == [0] * 20 + [1] * 20
    assert 5 <= layout.parts["train"].labels[:20].sum() <= 15, "each part of the shards is a fair sample"


def test_large_images_are_made_smaller_and_small_ones_copied(tmp_path: Path) -> None:
    sizes = {
        "a/1.jpg": ((60, 90), "JPEG"),
        "a/2.png": ((90, 60), "PNG"),
        "b/3.jpg": ((30, 200), "JPEG"),
        "b/4.bmp": ((70, 70), "BMP"),
    }
    for name, (size, kind) in sizes.items():
        write_image(tmp_path / "set" / name, 3, kind, size)
    made = pack(tmp_path / "set", tmp_path / "out", short_side=30, workers=0)
    layout = read_layout(made.folder)
    store = layout.parts["train"].store
    found = {store.name(i).rpartition("_")[2]: i for i in range(4)}
    assert made.shrunk == 3
    assert store.read(found["1.jpg"]).shape == (3, 30, 45)
    assert store.read(found["2.png"]).shape == (3, 45, 30)
    assert store.read(found["4.png"]).shape == (3, 30, 30)
    assert store.blob(found["3.jpg"]) == (tmp_path / "set" / "b/3.jpg").read_bytes()
    wanted = np.array(Image.fromarray(picture(3, (60, 90))).resize((45, 30), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(store.read(found["1.jpg"]).permute(1, 2, 0).numpy() - wanted).mean() < 4


def test_unreadable_images_are_left_out_and_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "cat" / "00.png").write_bytes(b"<html>")
    made = pack(folder, tmp_path / "out", workers=0)
    assert [name for name, _ in made.broken] == ["cat/00.png"]
    assert made.images == {"train": 11}
    (folder / "dog" / "07.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 12(.|\n)*dog/07.png"):
        pack(folder, tmp_path / "more", workers=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["animals", "out"]


def test_nothing_is_left_and_nothing_overwritten(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="exists"):
        pack(folder, tmp_path / "full", workers=0)
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(UsageError, match="stopped it"):
        pack(folder, tmp_path / "other", workers=0)

    def fail(path: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module, "index_of", fail)
    with pytest.raises(VitrailError, match="No space left"):
        pack(folder, tmp_path / "third", workers=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["animals", "full", "other.partial"]


def test_class_names_of_any_bytes_come_back(tmp_path: Path) -> None:
    root = bytes(tmp_path / "set")
    for i, name in enumerate((b"caf\xe9", "ü".encode(), b"10")):
        write_image(root + b"/" + name + b"/x.png", i)
    made = pack(tmp_path / "set", tmp_path / "out", workers=0)
    assert read_layout(made.folder).classes == read_layout(tmp_path / "set").classes
    assert content(made.folder) == content(tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "size"), [("1G", 1 << 30), ("1.5 MiB", 3 << 19), ("700", 700), ("2kb", 2048), ("3t", 3 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1G", "1X", "1e9"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(UsageError, match="500M or 1G"):
        parse_bytes(text)


def test_a_packed_set_trains_like_its_source_but_for_the_order(split_folder: Path, tmp_path: Path) -> None:
    packed = open_dataset(pack(split_folder, tmp_path / "out", workers=0).folder)
    source = open_dataset(split_folder)

    def by_class(data: ImageSet) -> list[int]:
        return data.counts().tolist()

    assert by_class(packed.train) == by_class(source.train)
    assert packed.train.blob(0) in [source.train.blob(i) for i in range(8)]
    assert encoded(0) in [packed.train.blob(i) for i in range(8)]
