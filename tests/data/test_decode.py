"""The one reader: every odd file either becomes the right pixels or is refused with a reason."""

from __future__ import annotations

import io
import os
import resource
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from vitrail.data.decode import BrokenImage, inspect_image, probe_image, read_image, sniff
from vitrail.errors import UsageError

RGB = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(48) * 5, np.arange(64) * 3, indexing="xy"), -1).astype(np.uint8)
SMOOTH = np.concatenate([SMOOTH, SMOOTH[..., :1]], -1)


def encode(image: Image.Image | np.ndarray, fmt: str, **options: object) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def refused(data: bytes | str | Path, **options: int) -> str:
    with pytest.raises(BrokenImage) as caught:
        read_image(data, **options)
    assert caught.value.message
    return caught.value.reason


def array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_pixels(fmt: str) -> None:
    image = read_image(encode(RGB, fmt))
    assert image.shape == (3, 64, 48)
    assert image.dtype == torch.uint8
    assert np.array_equal(array(image), RGB)
    assert image[None].is_contiguous(memory_format=torch.channels_last)


def test_lossy_formats_are_near(tmp_path: Path) -> None:
    for fmt in ("JPEG", "WEBP"):
        assert np.abs(array(read_image(encode(SMOOTH, fmt, quality=95))).astype(int) - SMOOTH).mean() < 4


def test_path_and_bytes_agree(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(encode(RGB, "JPEG"))
    expected = read_image(file.read_bytes())
    assert torch.equal(read_image(file), expected)
    assert torch.equal(read_image(str(file)), expected)
    info, image = inspect_image(file)
    assert torch.equal(image, expected)
    assert info == probe_image(file)
    assert (info.width, info.height, info.mode, info.format) == (48, 64, "RGB", "JPEG")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_picture(fmt: str, orientation: int) -> None:
    # What a camera stores for each orientation so that the shown picture is RGB itself.
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if fmt == "WEBP" else {"quality": 100, "subsampling": 0} if fmt == "JPEG" else {}
    shown = array(read_image(encode(np.ascontiguousarray(undo[orientation](SMOOTH)), fmt, exif=exif, **options)))
    assert shown.shape == SMOOTH.shape
    assert np.abs(shown.astype(int) - SMOOTH).mean() < (2 if fmt == "JPEG" else 1e-9)


def test_damaged_exif_costs_nothing() -> None:
    data = encode(RGB, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage")
    assert read_image(data).shape == (3, 64, 48)


def test_grey_and_one_bit() -> None:
    grey = Image.fromarray(RGB).convert("L")
    assert np.array_equal(array(read_image(encode(grey, "PNG"))), np.repeat(np.array(grey)[..., None], 3, 2))
    one = read_image(encode(grey.convert("1"), "PNG"))
    assert set(one.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_saturated(fmt: str) -> None:
    deep = (np.arange(4096).reshape(64, 64) * 16).astype(np.uint16)
    image = read_image(encode(deep, fmt)).float()
    assert abs(image.mean().item() - 127.5) < 0.6
    assert image.max() >= 254
    assert image.min() == 0
    ends = read_image(encode(np.array([[0, 65535, 257]], dtype=np.uint16), fmt))
    assert ends[0, 0].tolist() == [0, 255, 1]


def test_alpha_is_laid_over_white() -> None:
    rgba = np.dstack([RGB, np.full((64, 48), 128, np.uint8)])
    expected = RGB.astype(int) * 128 / 255 + 127
    for fmt in ("PNG", "TIFF"):
        assert np.abs(array(read_image(encode(rgba, fmt))) - expected).max() <= 1
    clear = np.dstack([RGB, np.zeros((64, 48), np.uint8)])
    assert read_image(encode(clear, "PNG")).min() == 255
    two = Image.fromarray(clear).convert("LA")
    assert read_image(encode(two, "PNG")).min() == 255


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.fromarray(RGB).convert("P")
    assert np.array_equal(array(read_image(encode(palette, "PNG"))), np.array(palette.convert("RGB")))
    index = int(np.array(palette)[0, 0])
    image = array(read_image(encode(palette, "PNG", transparency=index)))
    assert (image[np.array(palette) == index] == 255).all()
    several = encode(palette, "PNG", transparency=bytes(range(256)))  # alpha table: Pillow would warn here
    assert read_image(several).shape == (3, 64, 48)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read_image(encode(palette, "PNG", transparency=index, exif=exif))
    assert turned.shape == (3, 48, 64)
    assert np.array_equal(array(turned), np.rot90(image, -1))


def test_colour_key_transparency() -> None:
    flat = np.full((4, 4, 3), 7, np.uint8)
    assert read_image(encode(flat, "PNG", transparency=(7, 7, 7))).min() == 255


def test_cmyk() -> None:
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    for fmt in ("JPEG", "TIFF"):
        assert np.abs(array(read_image(encode(cmyk, fmt))).astype(int) - SMOOTH).mean() < 4


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), (200 * (i == 0), 0, 90 * i)) for i in range(3)]
    for fmt, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})):
        data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
        assert read_image(data)[:, 4, 4].tolist() == [200, 0, 0]
        assert probe_image(data).animated


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@given(share=st.floats(0.02, 0.95))
@settings(max_examples=25, deadline=None)
def test_cut_files_are_refused_never_half_grey(fmt: str, share: float) -> None:
    data = encode(RGB, fmt)
    assert refused(data[: max(1, int(len(data) * share))]) in {"truncated", "corrupt", "not_an_image"}


@given(
    data=st.binary(max_size=400),
    magic=st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM"]),
)
@settings(max_examples=150, deadline=None)
def test_random_bytes_never_crash(data: bytes, magic: bytes) -> None:
    try:
        image = read_image(magic + data)
    except BrokenImage:
        return
    assert image.dtype == torch.uint8


def test_damaged_bytes_are_corrupt() -> None:
    data = bytearray(encode(RGB, "PNG"))
    data[60] ^= 255
    assert refused(bytes(data)) in {"corrupt", "truncated"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"hello world" * 50, "not_an_image"),
        (b"<html><script>", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not_an_image"),
        (b"%PDF-1.4\n", "not_an_image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "not_an_image"),
        (png(1, 100_000_000), "too_many_pixels"),
        (png(60_000, 60_000), "too_many_pixels"),
        (png(9000, 9000), "too_many_pixels"),
        (png(50_000, 1), "extreme_shape"),
        (png(900, 2), "extreme_shape"),
        (png(0, 0), "corrupt"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    assert refused(data) == reason


def test_icon_and_other_formats_are_not_on_the_list() -> None:
    for fmt in ("ICO", "PPM", "TGA"):
        assert refused(encode(RGB, fmt)) == "not_an_image"


def test_a_bomb_costs_no_memory() -> None:
    rows = zlib.compress(b"\0" * (20_000 * 3 + 1), 9) * 3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BrokenImage, match="400 million") as caught:
        read_image(png(20_000, 20_000, rows))
    assert caught.value.reason == "too_many_pixels"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 20_000  # KiB; the pixels would be 1.2 GB


def test_a_text_bomb_is_refused() -> None:
    data = encode(RGB, "PNG")
    at = data.index(b"IDAT") - 4
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (64 << 20)))
    assert refused(data[:at] + text + data[at:]) == "corrupt"


def test_the_limit_can_be_set() -> None:
    data = encode(RGB, "PNG")
    assert refused(data, max_pixels=100) == "too_many_pixels"
    assert read_image(data, max_pixels=64 * 48).shape == (3, 64, 48)


def test_one_pixel_is_an_image() -> None:
    assert read_image(encode(RGB[:1, :1], "PNG"))[:, 0, 0].tolist() == RGB[0, 0].tolist()


def test_thirty_two_bits_have_no_known_range() -> None:
    assert refused(encode(RGB[:8, :8, 0].astype(np.float32), "TIFF")) == "unsupported_mode"
    assert refused(encode(np.arange(64, dtype=np.int32).reshape(8, 8), "TIFF")) == "unsupported_mode"


def test_what_is_not_a_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.jpg") == "missing"
    assert refused(tmp_path) == "not_a_file"
    fifo = tmp_path / "fifo.jpg"
    os.mkfifo(fifo)
    assert refused(fifo) == "not_a_file"
    (tmp_path / "broken.jpg").symlink_to("/nonexistent.jpg")
    assert refused(tmp_path / "broken.jpg") == "missing"
    assert refused("nul\0byte.jpg") == "unreadable"


def test_messages_carry_no_path_and_transience_is_known(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage) as caught:
        read_image(tmp_path / "absent.jpg")
    assert str(tmp_path) not in caught.value.message
    assert caught.value.transient
    assert not BrokenImage("corrupt", "x").transient
    assert caught.value.exit_code == 3


def test_pillow_is_silent_and_its_truncation_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refused(png(9600, 9600))  # between Pillow's warning and its error
        read_image(encode(Image.fromarray(RGB).convert("P"), "PNG", transparency=bytes(256)))
    assert not caught
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(encode(RGB, "PNG"))


def test_sniff_names_what_we_read() -> None:
    for fmt in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        assert sniff(encode(RGB, fmt)[:64]) == fmt
    assert sniff(b"hello") is None
