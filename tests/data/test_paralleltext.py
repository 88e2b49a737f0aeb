"""Parallel text: every layout, and what is said of text that is not as it should be."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from vitrail.data.paralleltext import is_parallel, open_text
from vitrail.errors import DataError, UsageError

ENGLISH = [f"the {word} house" for word in ("red", "green", "blue", "old", "new", "big")]
GERMAN = [f"das {word} Haus" for word in ("rote", "grüne", "blaue", "alte", "neue", "große")]


def write(folder: Path, split: str, english: list[str], german: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for language, lines in (("en", english), ("de", german)):
        (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def test_a_folder_of_files_is_read_line_by_line(tmp_path: Path) -> None:
    write(tmp_path, "train", ENGLISH, GERMAN)
    write(tmp_path, "valid", ENGLISH[:2], GERMAN[:2])
    write(tmp_path, "test_2016", ENGLISH[:1], GERMAN[:1])
    found = open_text(str(tmp_path))
    assert found.languages == ("en", "de")
    assert (found.train.source, found.train.target) == (ENGLISH, GERMAN)
    assert list(found.held_out()) == ["val", "test_2016"]
    assert "the other way: data.languages=[de,en]" in found.notes[0]
    assert open_text(str(tmp_path), languages=("de", "en")).train.source == GERMAN
    assert is_parallel(str(tmp_path))


def test_packed_files_tables_and_shards_hold_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for language, lines in (("en", ENGLISH), ("de", GERMAN)):
        (packed / f"train.{language}.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    table = tmp_path / "pairs.tsv"
    table.write_text("".join(f"{e}\t{g}\n" for e, g in zip(ENGLISH, GERMAN, strict=True)), encoding="utf-8")
    shard = tmp_path / "pairs.tar"
    with tarfile.open(shard, "w") as archive:
        for i, sides in enumerate(zip(ENGLISH, GERMAN, strict=True)):
            for language, line in zip(("en", "de"), sides, strict=True):
                member = tarfile.TarInfo(f"{i:04d}.{language}")
                member.size = len(line.encode())
                archive.addfile(member, io.BytesIO(line.encode()))
    found = [open_text(str(source), languages=("en", "de"), val_fraction=0.2) for source in (packed, table, shard)]
    assert len({one.train.digest() for one in found}) == 1
    assert len(found[0].train) == 5
    assert len(found[0].val) == 1
    assert not is_parallel(str(table))


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    odd = ["one\u2028two", "three\x85four", "five\x0bsix"]
    found = open_text(str(write(tmp_path, "train", odd, GERMAN[:3])), val_fraction=0.3)
    assert sorted([*found.train.source, *found.val.source]) == sorted(odd)


def test_pairs_with_an_empty_side_are_left_out_of_training_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "train", ["", *ENGLISH], ["leer", *GERMAN])
    write(tmp_path, "val", ["", "the house"], ["", "das Haus"])
    found = open_text(str(tmp_path))
    assert len(found.train) == 6
    assert any("1 of 7 training pairs have an empty side" in note for note in found.notes)
    assert len(found.val) == 2  # held-out lines keep their places


def test_files_of_different_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"as many lines .* got 6 and 5"):
        open_text(str(write(tmp_path, "train", ENGLISH, GERMAN[:5])))


def test_bytes_that_are_not_utf8_are_found_by_line(tmp_path: Path) -> None:
    write(tmp_path, "train", ENGLISH, GERMAN)
    (tmp_path / "train.de").write_bytes("\n".join(GERMAN).encode("latin1"))
    with pytest.raises(DataError, match=r"expected UTF-8 in .*train\.de, line 2, got the byte 0xfc.*iconv"):
        open_text(str(tmp_path))


@pytest.mark.parametrize("line", ["one\ttwo\tthree", "alone"])
def test_a_table_has_two_columns(tmp_path: Path, line: str) -> None:
    (tmp_path / "pairs.tsv").write_text(f"a\tb\n{line}\n")
    with pytest.raises(DataError, match=r"line 2, got \d column"):
        open_text(str(tmp_path / "pairs.tsv"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which does not exist"):
        open_text(str(tmp_path / "nowhere"))
    write(tmp_path, "train", ENGLISH, GERMAN)
    with pytest.raises(UsageError, match="got none in fr; train has de, en"):
        open_text(str(tmp_path), languages=("en", "fr"))
    (tmp_path / "train.fr").write_text("")
    with pytest.raises(DataError, match="which two"):
        open_text(str(tmp_path))


def test_the_built_in_numbers_are_the_same_every_time() -> None:
    one, two = open_text("numbers"), open_text("numbers")
    assert one.train.digest() == two.train.digest()
    assert (len(one.train), len(one.val), len(one.tests["test"])) == (4000, 250, 250)
    assert "and" in " ".join(one.train.source)
    assert "und" in " ".join(one.train.target)
    assert open_text("numbers", languages=("de", "fr")).train.source == open_text("numbers").train.target
