"""The one reader of images: training, evaluation, prediction and the data check all see pixels through here.

Source: docs/reliability.md S1-S5 and S18-S20 (what Pillow does with odd files by default, and what it must not do).
Shapes: H rows, W columns; an image is uint8 (3, H, W), RGB. The memory behind it is row by row, pixel by pixel
("channels last"), which is the layout torch resizes fastest.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
EXTENSIONS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
    ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
MAX_PIXELS = 50_000_000
MAX_SIDE = 20_000
MAX_RATIO = 200

# Reasons that may pass by themselves (a network disk that hiccups): worth another try.
TRANSIENT = frozenset({"missing", "unreadable", "empty_file", "truncated"})

_ORIENTATION = 0x0112
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class BrokenImage(DataError):
    """One image cannot be used. ``reason`` is a stable code, ``message`` a sentence for people.

    Codes: ``missing``, ``unreadable``, ``not_a_file``, ``empty_file``, ``not_an_image``, ``too_many_pixels``,
    ``extreme_shape``, ``truncated``, ``corrupt``, ``unsupported_mode``; ``lossy`` (masks); ``too_many_bytes`` (data
    check only).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def transient(self) -> bool:
        """True where reading again may help."""
        return self.reason in TRANSIENT


@dataclass(frozen=True)
class ImageInfo:
    """What the header says: stored width and height in pixels (before EXIF orientation), Pillow mode, format, and the
    orientation: 1 upright as stored, 5 to 8 lying on its side.
    """

    width: int
    height: int
    mode: str
    format: str
    animated: bool
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width once it is upright, as :func:`read_image` gives it."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_image(source: str | bytes | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode one image to uint8 (3, H, W), upright, RGB.

    ``source`` is a path (str or PathLike) or the encoded file (bytes).
    EXIF orientation is applied; alpha is laid over white; 16-bit grey is scaled to 8 bits; of an animation the first
    frame is taken. Raises :class:`BrokenImage`; never returns a partly decoded image.
    """
    with _opened(source, max_pixels) as image:
        return torch.from_numpy(_pixels(image)).permute(2, 0, 1)


def probe_image(source: str | bytes | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Read the header only. Raises :class:`BrokenImage` for what :func:`read_image` refuses by the header."""
    with _opened(source, max_pixels) as image:
        return info_of(image)


def inspect_image(source: str | bytes | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[ImageInfo, Tensor]:
    """Return header facts and pixels of one image, opened once."""
    with _opened(source, max_pixels) as image:
        info = info_of(image)
        return info, torch.from_numpy(_pixels(image)).permute(2, 0, 1)


def read_values(source: str | bytes | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, bool]:
    """Read what a drawn mask stores, upright: int32 (H, W), and whether these are colours.

    Grey (8 and 16 bits), black and white, and palettes give their own numbers; red, green and blue come packed into
    one, ``red << 16 | green << 8 | blue``. Raises :class:`BrokenImage`, with ``lossy`` for a JPEG, whose values are not
    those that were drawn.
    """
    with _opened(source, max_pixels) as image:
        if info_of(image).format == "JPEG":
            raise BrokenImage("lossy", "expected a mask that keeps its values (PNG), got a JPEG; mend: save it as PNG")
        image.load()
        image = _upright(image)
        if image.mode in ("RGB", "RGBA", "RGBX"):
            colours = np.array(image)[..., :3].astype(np.int32)
            return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2], True
        if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
            return np.array(image).astype(np.int32), False
        raise BrokenImage(
            "unsupported_mode", f"expected a mask of whole numbers or RGB colours, got mode {image.mode!r}"
        )


def info_of(image: Image.Image) -> ImageInfo:
    """Return the header facts of an opened Pillow image."""
    # MPO is what phones call a JPEG with a second picture behind the first.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    animated = bool(getattr(image, "is_animated", False))
    return ImageInfo(image.width, image.height, image.mode, name, animated, _orientation(image))


def sniff(head: bytes) -> str | None:
    """Return the image format that the first bytes of a file announce (one of ``FORMATS``), or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return None


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading; a FIFO, device or folder is :class:`BrokenImage`, and never blocks."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise BrokenImage("missing", "expected a file, found nothing at this path (or a broken link)") from None
    except (OSError, ValueError) as error:
        raise BrokenImage("unreadable", f"the file cannot be opened: {_reason_of(error)}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise BrokenImage("not_a_file", "expected a regular file, got a folder, pipe or device")
    return os.fdopen(handle, "rb")


@contextmanager
def _opened(source: str | bytes | os.PathLike[str], max_pixels: int) -> Iterator[Image.Image]:
    """Yield a Pillow image whose header has passed every check; translate whatever goes wrong."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    _silence_pillow()
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError(
            "expected PIL.ImageFile.LOAD_TRUNCATED_IMAGES to be False, got True: damaged files would come out "
            "half grey. mend: set it back to False (another library switched it on)."
        )
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        head = _head(file)
        try:
            with Image.open(file, formats=FORMATS) as image:
                _check_header(image, max_pixels)
                yield image
        except BrokenImage:
            raise
        except MemoryError:
            raise BrokenImage("too_many_pixels", "there is not enough memory to decode this image") from None
        except Image.DecompressionBombError as error:
            found = re.search(r"\((\d+) pixels\)", str(error))
            raise _too_many(int(found[1]) if found else 2 * (Image.MAX_IMAGE_PIXELS or 0), max_pixels) from None
        except UnidentifiedImageError:
            raise _unidentified(head) from None
        except Exception as error:
            # Pillow's decoders raise a dozen types (OSError, SyntaxError, struct.error, ...) for damaged bytes.
            raise _damaged(error) from None


def _silence_pillow() -> None:
    """Keep Pillow's own warnings (odd EXIF, large image) off the terminal: the reader refuses or reports instead.

    One filter entry, added where it is absent; ``warnings.catch_warnings`` is not safe between threads.
    """
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _head(file: IO[bytes]) -> bytes:
    try:
        head = file.read(64)
        file.seek(0)
    except OSError as error:
        raise BrokenImage("unreadable", f"the file cannot be read: {_reason_of(error)}") from None
    if not head:
        raise BrokenImage("empty_file", "the file is empty (0 bytes)")
    return head


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise BrokenImage("corrupt", f"expected at least one pixel, got {width} x {height}")
    if width * height > max_pixels:
        raise _too_many(width * height, max_pixels, (width, height))
    if max(width, height) > MAX_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        raise BrokenImage(
            "extreme_shape",
            f"expected sides of at most {MAX_SIDE} pixels and a ratio of at most {MAX_RATIO}, got {width} x {height}",
        )


def _too_many(pixels: int, limit: int, size: tuple[int, int] | None = None) -> BrokenImage:
    shape = f" ({size[0]} x {size[1]})" if size else ""
    return BrokenImage(
        "too_many_pixels",
        f"expected at most {limit / 1e6:.0f} million pixels, got {pixels / 1e6:.0f} million{shape}; "
        "mend: save a smaller copy of this image",
    )


def _unidentified(head: bytes) -> BrokenImage:
    name = sniff(head)
    if name is not None:
        return BrokenImage("corrupt", f"starts like a {name} file, but its header is damaged or cut off")
    if head[4:8] == b"ftyp":
        what = "a HEIC, AVIF or video file"
    elif head[:5] == b"%PDF-":
        what = "a PDF"
    elif head.lstrip()[:1] == b"<":
        what = "a text file (HTML, XML or SVG)"
    else:
        what = "a text file" if _is_text(head) else "something else"
    return BrokenImage("not_an_image", f"expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, got {what}")


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)


def _damaged(error: Exception) -> BrokenImage:
    text = _reason_of(error)
    if "truncated" in text.lower() or "unexpected end" in text.lower() or isinstance(error, EOFError):
        return BrokenImage("truncated", f"the file ends too early ({text})")
    return BrokenImage("corrupt", f"the file is damaged ({text})")


def _reason_of(error: BaseException) -> str:
    # str(OSError) carries the path; the caller adds it once, in a printable form.
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


def _pixels(image: Image.Image) -> np.ndarray:
    """Return a writable, contiguous uint8 (H, W, 3) array: decoded, upright, RGB."""
    image.load()
    image = _upright(image)
    if image.mode.startswith("I;16"):
        return _grey16(image)
    if image.mode in ("I", "F"):
        raise BrokenImage(
            "unsupported_mode",
            f"expected 8 or 16 bits a channel, got 32 (mode {image.mode!r}), whose range is not known; "
            "mend: save it with 8 or 16 bits",
        )
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = _over_white(image)
    if image.mode == "LAB":
        raise BrokenImage("unsupported_mode", "expected RGB, grey, palette or CMYK, got LAB; mend: save it as RGB")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that makes sense."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF blocks come from a hundred cameras; none of their faults may cost the image
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation. Damaged EXIF is no orientation: the pixels themselves are whole."""
    from PIL import Image

    turn = Image.Transpose
    method = {
        2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
        6: turn.ROTATE_270, 7: turn.TRANSVERSE, 8: turn.ROTATE_90,
    }.get(_orientation(image))  # fmt: skip
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = image.info  # a palette's transparency lives there
    return turned


def _grey16(image: Image.Image) -> np.ndarray:
    """Scale 16-bit grey to 8 bits (65535 -> 255); Pillow's own conversion would cut everything above 255 off."""
    grey = np.array(image).astype(np.uint32)
    grey = ((grey + 128) // 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
