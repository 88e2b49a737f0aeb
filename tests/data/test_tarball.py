"""Tar headers: the same list as Python's tarfile on whole archives, and an account of every byte on damaged ones."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.making import write_tar
from vitrail.data.tarball import FILE, LINK, SPARSE, SPECIAL, Damage, Member, Window, members, require_plain
from vitrail.errors import DataError


def listed(path: Path) -> list[Member | Damage]:
    with open(path, "rb") as file:
        return list(members(Window(file.fileno())))


LONG = "folder/" + "x" * 180 + ".png"
NAMES = ["a.png", "ä/ü.png", LONG, "y" * 260 + "/" + "z" * 120, "n\udce9.png", "/etc/passwd", "../../up.png"]


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_list_is_that_of_the_peer(tmp_path: Path, fmt: int) -> None:
    names = [n for n in NAMES if fmt != tarfile.USTAR_FORMAT or len(n) < 100]
    path = write_tar(tmp_path / "a.tar", [(n, os.fsencode(n) * (i * 90)) for i, n in enumerate(names)], fmt)
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as peer:
        expected = [Member(os.fsencode(m.name), FILE, m.offset_data, m.size) for m in peer]
    assert listed(path) == expected
    assert [m.name for m in expected] == [os.fsencode(n) for n in names]


def test_links_devices_and_sparse_files_are_called_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("s", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("d", tarfile.CHRTYPE),
            ("p", tarfile.FIFOTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 700 if kind == tarfile.LNKTYPE else 0
            archive.fileobj.write(entry.tobuf())  # type: ignore[union-attr]
        archive.offset = archive.fileobj.tell()  # type: ignore[union-attr]
        sparse = tarfile.TarInfo("holes")
        sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        sparse.size = 3
        archive.addfile(sparse, io.BytesIO(b"abc"))
        plain = tarfile.TarInfo("f")
        plain.size = 3
        archive.addfile(plain, io.BytesIO(b"abc"))
    found = listed(path)
    assert [m.kind for m in found if isinstance(m, Member)] == [LINK, LINK, SPECIAL, SPECIAL, SPARSE, FILE]
    assert not any(isinstance(m, Damage) for m in found)


def test_a_damaged_header_costs_its_member_and_no_other(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}", bytes([i]) * 700) for i in range(5)])
    whole = listed(path)
    data = bytearray(path.read_bytes())
    at = whole[2].offset - 512  # type: ignore[union-attr]
    data[at + 5] ^= 0xFF
    path.write_bytes(data)
    assert listed(path) == [*whole[:2], Damage(at, at + 1536, "a header is damaged"), *whole[3:]]
    with tarfile.open(path) as peer:
        assert len(peer.getmembers()) == 2, "the peer ends here in silence, which is why we read headers ourselves"


@pytest.mark.parametrize("cut", [1, 511, 512, 513, 1100, 3 * 1536, 5 * 1536, 5 * 1536 + 512])
def test_a_cut_is_always_told_unless_only_padding_is_gone(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{i}", bytes([i + 1]) * 700) for i in range(5)])
    whole = listed(path)
    path.write_bytes(path.read_bytes()[:cut])
    found = listed(path)
    kept = [m for m in found if isinstance(m, Member)]
    assert kept == whole[: len(kept)]
    if cut == 5 * 1536 + 512:
        assert len(found) == 5, "one block of the end mark is enough to know that nothing is missing"
    else:
        assert isinstance(found[-1], Damage)


def test_archives_laid_end_to_end_are_one(tmp_path: Path) -> None:
    a = write_tar(tmp_path / "a.tar", [("1", b"x" * 600)])
    b = write_tar(tmp_path / "b.tar", [("2", b"y")])
    (tmp_path / "c.tar").write_bytes(a.read_bytes() + b.read_bytes())
    assert [m.name for m in listed(tmp_path / "c.tar") if isinstance(m, Member)] == [b"1", b"2"]
    assert len(listed(tmp_path / "c.tar")) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (slice(124, 136), b"-0000001000\0"),
        (slice(124, 136), b"zzzzzzzzzzz\0"),
        (slice(124, 136), b"\x80" + b"\xff" * 11),
        (slice(124, 136), b"\xff" * 12),
    ],
)
def test_evil_sizes_end(tmp_path: Path, field: slice, value: bytes) -> None:
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[field] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    found = listed(tmp_path / "a.tar")
    assert any(isinstance(m, Damage) for m in found)


@pytest.mark.parametrize(
    "text", [b"9999999999 path=a\n", b"0 path=a\n", b"-5 path=a\n", b"junk", b"12 path=abc", b" =\n"]
)
def test_evil_extended_headers_are_damage(tmp_path: Path, text: bytes) -> None:
    header = tarfile.TarInfo("h")
    header.type, header.size = tarfile.XHDTYPE, len(text)
    member = tarfile.TarInfo("a.png").tobuf()
    data = header.tobuf() + text.ljust(512, b"\0") + member + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    found = listed(tmp_path / "a.tar")
    assert isinstance(found[0], Damage)
    assert found[1] == Member(b"a.png", FILE, 1536, 0)


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 255)), max_size=8), cut=st.integers(0, 6000))
def test_no_damage_hangs_or_points_outside(tmp_path_factory: pytest.TempPathFactory, flips: list, cut: int) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = write_tar(folder / "a.tar", [("1", b"x" * 600), (LONG, b"y" * 100), ("ü", b"z")], tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes()[: 6000 - cut])
    for at, value in flips:
        if at < len(data):
            data[at] ^= value
    path.write_bytes(data)
    found = listed(path)
    starts = [m.offset if isinstance(m, Member) else m.start for m in found]
    assert starts == sorted(starts)
    assert all(0 <= start <= max(len(data), 0) for start in starts)
    path.unlink()
    folder.rmdir()


def test_packed_archives_are_refused_with_the_command(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(b"x" * 100))
    with open(path, "rb") as file, pytest.raises(DataError, match="gunzip -k"):
        require_plain(str(path), Window(file.fileno()))
