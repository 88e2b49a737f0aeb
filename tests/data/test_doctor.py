"""The data check: every trap is named, counted and explained, and the data stay as they were."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.data.making import picture, write_image, write_parquet
from vitrail.data.doctor import check
from vitrail.data.duplicates import DISTANCE, exact_groups, near_pairs
from vitrail.data.report import DataReport
from vitrail.data.scan import fingerprint
from vitrail.errors import DataError, UsageError


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for folder, _, files in sorted(os.walk(root)):
        for name in sorted(files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            digest.update(f"{os.fsencode(path)!r} {status.st_mode} {status.st_mtime_ns} {status.st_size}".encode())
    return digest.hexdigest()


@pytest.fixture
def dirty(split_folder: Path) -> Path:
    cat, dog = split_folder / "train" / "cat", split_folder / "train" / "dog"
    (cat / "cut.png").write_bytes((cat / "0.png").read_bytes()[:70])
    (cat / "zero.jpg").touch()
    (cat / "text.png").write_text("hello")
    write_image(dog / "really_png.jpg", 60)
    write_image(dog / "plain", 61, "JPEG")
    (dog / "._0.jpg").write_bytes(b"\0\5")
    (dog / "notes.txt").write_text("hello")
    os.mkfifo(cat / "fifo.jpg")
    (cat / "gone.jpg").symlink_to("/nonexistent.jpg")
    shutil.copy(cat / "1.png", dog / "copy_of_cat_1.png")  # conflict
    shutil.copy(cat / "2.png", split_folder / "val" / "cat" / "leak.png")  # leak
    shutil.copy(cat / "3.png", cat / "3copy.png")  # within
    Image.fromarray(picture(4)).save(
        split_folder / "test" / "dog" / "again.jpg", quality=95
    )  # near leak of train/dog/0
    (split_folder / "train" / "empty").mkdir()
    write_image(split_folder / "train" / "Cat" / "x.png", 70)
    Image.new("RGB", (9, 9), (7, 7, 7)).save(dog / "flat.png")
    frames = [Image.fromarray(picture(i)) for i in (80, 81)]
    frames[0].save(dog / "anim.gif", save_all=True, append_images=frames[1:])
    Image.fromarray((np.arange(120).reshape(12, 10) * 500).astype(np.uint16)).save(dog / "deep.png")
    write_image(dog / "huge.png", 90, size=(200, 150))
    write_image(dog / "n\udce9.png", 91)
    write_image(split_folder / "val" / "bird" / "1.png", 92)
    return split_folder


def test_every_trap_is_named(dirty: Path) -> None:
    before = tree_hash(dirty)
    report = check(dirty, workers=2)
    assert tree_hash(dirty) == before
    counts = {finding.code: finding.count for finding in report.findings}
    assert counts == {
        "empty_class": 1, "only_in_val": 1, "one_image": 1, "twin_names": 2, "imbalance": 1, "broken": 3, "ignored": 4,
        "wrong_extension": 2, "name_not_utf8": 1, "animated": 1, "sixteen_bit": 1, "huge": 1, "flat": 1,
        "exact_conflict": 1, "exact_leak": 1, "exact_copies": 1, "near_leak": 1,
    }  # fmt: skip
    assert not report.ok
    assert all(finding.advice and finding.what for finding in report.findings)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


def test_all_files_are_accounted_for(dirty: Path) -> None:
    report = check(dirty, workers=0)
    on_disk = sum(len(files) for _, _, files in os.walk(dirty))
    assert report.used + report.skipped + report.ignored == report.found == on_disk
    assert report.skipped == 3
    assert report.ignored == 4
    assert report.ignored_reasons == {
        "hidden or system file": 1, "not an image (.txt)": 1, "not a regular file": 1, "broken link": 1,
    }  # fmt: skip
    assert {p.file.split("/")[-1]: p.detail.split(":")[0] for p in report.broken()} == {
        "cut.png": "truncated",
        "zero.jpg": "empty_file",
        "text.png": "not_an_image",
    }


def test_facts(dirty: Path) -> None:
    report = check(dirty)
    assert report.kind == "folder"
    assert report.classes == ("Cat", "bird", "cat", "dog", "empty")
    assert report.splits["val"] == {"Cat": 0, "bird": 1, "cat": 3, "dog": 2, "empty": 0}
    assert report.sizes["height"] == {"min": 9, "median": 12, "max": 200}
    assert report.formats["GIF"] == 1
    assert report.modes["I;16"] == 1
    assert sum(report.formats.values()) == report.used


def test_examples_name_both_files(dirty: Path) -> None:
    report = check(dirty)
    leak = report.finding("exact_leak")
    assert leak is not None
    assert leak.examples == ("train/cat/2.png (train, cat) = val/cat/leak.png (val, cat)",)
    near = report.finding("near_leak")
    assert near is not None
    assert "again.jpg" in near.examples[0]
    assert "train/dog/0.png" in near.examples[0]
    assert report.finding("nothing") is None


def test_a_clean_set_is_fine(split_folder: Path, folder: Path) -> None:
    report = check(split_folder)
    assert report.ok
    assert report.findings == []
    assert [finding.code for finding in check(folder).findings] == ["no_val"]


def test_json_and_table(dirty: Path) -> None:
    report = check(dirty)
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is False
    assert data["found"] == data["used"] + data["skipped"] + data["ignored"]
    assert len(data["broken"]) == 3
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(report.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for said in ("images a class", "error", "warning", "leak.png", "n\\xe9.png", "used +"):
        assert said in text
    text.encode("utf-8")


def test_class_names_cannot_write_markup(folder: Path) -> None:
    write_image(folder / "[red]x[" / "1.png", 5)
    console = Console(file=io.StringIO(), width=120)
    console.print(check(folder).table())
    assert "[red]x[" in console.file.getvalue()  # type: ignore[attr-defined]


def test_problems_csv_round_trips_names(dirty: Path, tmp_path: Path) -> None:
    report = check(dirty, problems_csv=tmp_path / "problems.csv")
    with open(tmp_path / "problems.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(report.problems)
    odd = [row["file"] for row in rows if row["problem"] == "name_not_utf8"]
    assert odd == ["train/dog/n\udce9.png"]
    assert (dirty / odd[0]).exists()
    assert {row["file"] for row in rows if row["problem"] == "broken"} == {
        f"train/cat/{n}" for n in ("cut.png", "zero.jpg", "text.png")
    }
    with pytest.raises(UsageError, match="outside the data"):
        check(dirty, problems_csv=dirty / "problems.csv")
    assert not (dirty / "problems.csv").exists()


def test_progress_counts_up_to_the_end(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(folder, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


def test_other_kinds_of_source(tmp_path: Path) -> None:
    write_parquet(tmp_path / "p" / "train.parquet", [0, 1, 0, 1], ["a", "b"])
    write_parquet(tmp_path / "p" / "test.parquet", [1, 1], ["a", "b"], first_seed=2)
    report = check(tmp_path / "p")
    assert (report.found, report.used) == (6, 6)
    codes = {finding.code: finding.count for finding in report.findings}
    assert codes == {"exact_leak": 2, "exact_conflict": 1, "no_val": 1}
    digits = check("digits", workers=2)
    assert digits.used == 1797
    assert digits.finding("exact_leak") is None


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check(tmp_path)


def test_unreadable_everything_is_a_report(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_text("no image")
    report = check(tmp_path)
    assert (report.used, report.skipped) == (0, 2)
    assert report.sizes == {}
    Console(file=io.StringIO()).print(report.table())


def test_a_file_too_large_to_hash_is_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.data.imageset.MAX_BYTES", 1000)
    (folder / "cat" / "big.bmp").write_bytes(bytes(2000))
    report = check(folder)
    assert [p.detail.split(":")[0] for p in report.broken()] == ["too_many_bytes"]


def test_report_is_plain_data() -> None:
    report = DataReport("x", "folder", ("a",), {"train": {"a": 1}}, 1, 1, 0, 0)
    assert report.ok
    assert json.dumps(report.to_json())


# Fingerprints


def test_near_pairs_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 400).astype(np.uint64)
    for i in range(200):  # copies with 0..7 bits flipped
        flips = rng.choice(64, size=i % 8, replace=False)
        hashes[200 + i] = hashes[i] ^ np.uint64(sum(1 << int(b) for b in flips))
    thumb = np.tile(np.arange(144, dtype=np.uint8), (400, 1))
    usable = np.ones(400, bool)
    usable[5] = False
    pairs, complete = near_pairs(hashes, thumb, usable)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(400, 8), axis=1)
    distance = (bits[:, None] != bits[None]).sum(-1)
    expected = [(i, j) for i in range(400) for j in range(i + 1, 400) if distance[i, j] <= DISTANCE and 5 not in (i, j)]
    assert [tuple(pair) for pair in pairs.tolist()] == expected
    assert complete


def test_thumbnails_must_agree_and_flat_images_say_nothing() -> None:
    hashes = np.zeros(4, np.uint64)
    thumb = np.tile(np.arange(144, dtype=np.uint8), (4, 1))
    thumb[1] += 50
    thumb[2:] = 9
    assert near_pairs(hashes, thumb, np.ones(4, bool))[0].tolist() == []
    thumb[1] -= 50
    assert near_pairs(hashes, thumb, np.ones(4, bool))[0].tolist() == [[0, 1]]


def test_exact_groups() -> None:
    sha = np.zeros((6, 32), np.uint8)
    sha[[1, 4], 31] = 1
    sha[[2], 0] = 3
    groups = exact_groups(sha, np.array([True, True, True, True, True, False]))
    assert sorted(group.tolist() for group in groups) == [[0, 3], [1, 4]]


def test_fingerprint_survives_resizing_and_recompression() -> None:
    import torch

    for seed in range(6):
        image = Image.fromarray(picture(seed, (80, 100)))
        buffer = io.BytesIO()
        image.resize((60, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
        again = np.array(Image.open(buffer))
        (a, thumb_a), (b, thumb_b) = (
            fingerprint(torch.from_numpy(np.array(x)).permute(2, 0, 1)) for x in (image, again)
        )
        assert bin(int(a) ^ int(b)).count("1") <= DISTANCE
        assert np.abs(thumb_a.astype(int) - thumb_b).mean() < 3
        other, _ = fingerprint(torch.from_numpy(picture(seed + 50, (80, 100))).permute(2, 0, 1))
        assert bin(int(a) ^ int(other)).count("1") > DISTANCE


def test_imbalance_is_said_with_the_classes_and_what_to_set(tmp_path: Path) -> None:
    for i in range(14):
        write_image(tmp_path / "d" / ("few" if i == 0 else "many") / f"{i}.png", i)
    finding = check(tmp_path / "d", workers=0).finding("imbalance")
    assert finding is not None
    assert "(many: 13) has 13 times" in finding.what
    assert "(few: 1)" in finding.what
    assert "train.class_weights=balanced" in finding.advice
    for i in range(20, 23):
        write_image(tmp_path / "d" / "few" / f"{i}.png", i)
    assert check(tmp_path / "d", workers=0).finding("imbalance") is None
