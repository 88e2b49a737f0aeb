"""What the check of parallel text finds."""

from __future__ import annotations

from pathlib import Path

from vitrail.data.textcheck import check_text


def test_every_kind_of_trouble_is_found(tmp_path: Path) -> None:
    train = [("a b", "x y"), ("a b", "x y"), ("same", "same"), ("one", "x " * 9), ("w " * 201, "w " * 205), ("", "x")]
    val = [("a b", "x y"), ("new", "neu"), ("", "leer")]
    for split, rows in (("train", train), ("val", val)):
        for side, language in enumerate(("en", "de")):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{row[side]}\n" for row in rows))
    report = check_text(str(tmp_path))
    found = report.splits["train"]
    assert (found.pairs, found.copied, found.repeated, found.unequal, found.long) == (5, 1, 1, [4], [5])
    assert report.splits["val"].in_train == 1
    assert report.splits["val"].empty == [3]
    assert report.problems()[0] == "1 of 3 pairs of val are in train too"
    assert any("1 of 6 training pairs have an empty side" in note for note in report.notes)


def test_numbers_are_clean() -> None:
    report = check_text("numbers")
    assert report.splits["train"].pairs == 4000
    assert not report.splits["train"].empty
    assert report.to_dict()["languages"] == ("en", "de")
