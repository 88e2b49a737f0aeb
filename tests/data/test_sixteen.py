"""16 bits a channel: what is written is read, by Pillow too where it can; what is not is said."""

import zlib

import numpy as np
import pytest
from PIL import Image

from vitrail.data.decode import BrokenImage
from vitrail.data.sixteen import is_deep, read_deep, save_picture
from vitrail.errors import UsageError


def deep(*shape):
    return np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("shape", [(13, 17, 3), (13, 17), (1, 1, 3), (64, 3)])
def test_sixteen_bits_come_back(tmp_path, ending, shape):
    picture = deep(*shape)
    path = save_picture(tmp_path / f"x.{ending}", picture)
    assert is_deep(path)
    assert np.array_equal(read_deep(path), picture)
    with Image.open(path) as image:  # our files are files of their kind
        image.load()
        assert image.size == (shape[1], shape[0])
        if len(shape) == 2:
            assert np.array_equal(np.array(image), picture)
        else:
            assert np.array_equal(np.array(image), (picture >> 8).astype(np.uint8))


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("kind", range(5))
def test_png_filters_are_undone(tmp_path, kind):
    """A picture filtered by hand in each of the five ways, as other programs write it."""
    picture = deep(9, 7, 3)
    rows = picture.astype(">u2").reshape(9, -1).view(np.uint8).astype(int)
    body = b""
    for y, row in enumerate(rows):
        above = rows[y - 1] if y else np.zeros_like(row)
        left = np.concatenate([np.zeros(6, int), row[:-6]])
        corner = np.concatenate([np.zeros(6, int), above[:-6]])
        guess = left + above - corner
        far = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)])
        paeth = np.choose(far.argmin(0), [left, above, corner])
        taken = [0, left, above, (left + above) // 2, paeth][kind]
        body += bytes([kind]) + ((row - taken) % 256).astype(np.uint8).tobytes()
    header = (7).to_bytes(4, "big") + (9).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    path = tmp_path / "x.png"
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    assert np.array_equal(read_deep(path), picture)


def test_alpha_is_laid_over_white(tmp_path):
    colour, alpha = deep(5, 4, 3), np.zeros((5, 4, 1), np.uint16)
    alpha[0] = 65535
    rows = np.concatenate([colour, alpha], 2).astype(">u2").reshape(5, -1).view(np.uint8)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = (4).to_bytes(4, "big") + (5).to_bytes(4, "big") + bytes([16, 6, 0, 0, 0])
    path = tmp_path / "x.png"
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    found = read_deep(path)
    assert np.array_equal(found[0], colour[0])
    assert (found[1:] == 65535).all()


def test_eight_bits_are_not_sixteen(tmp_path):
    picture = (deep(6, 5, 3) >> 8).astype(np.uint8)
    for ending in ("png", "tif", "jpg"):
        path = save_picture(tmp_path / f"x.{ending}", picture)
        assert not is_deep(path)
        with pytest.raises(BrokenImage, match="16 bits"):
            read_deep(path)


def test_a_damaged_file_is_broken_and_never_half_a_picture(tmp_path):
    path = save_picture(tmp_path / "x.png", deep(40, 40, 3))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BrokenImage):
        read_deep(path)


def test_what_cannot_be_written_is_refused(tmp_path):
    for name, picture in (("x.jpg", deep(4, 4, 3)), ("x.bmp", deep(4, 4)), ("x.png", np.zeros((4, 4, 3)))):
        with pytest.raises(UsageError, match="expected"):
            save_picture(tmp_path / name, picture)
