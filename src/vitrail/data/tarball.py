"""What lies where in a tar file, from its headers alone: nothing is extracted, and no damage passes in silence.

Source: POSIX.1-2001 (pax interchange format, ustar header block) and the GNU tar manual, "Basic Tar Format" (long
names, base-256 numbers, sparse members). Python's ``tarfile`` is not used because it takes a damaged header in the
middle of an archive for its end, without a word, and keeps an object for every member.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from vitrail.errors import DataError

from .imageset import printable

BLOCK = 512
_PAGE = 4096  # headers and small labels lie together: one read serves several
_CHUNK = 1 << 20
_LONG = 1 << 16  # bytes of a name or of extended headers; longer ones are damage
_ZEROS = bytes(BLOCK)

FILE, FOLDER, LINK, SPECIAL, SPARSE = "file", "folder", "link", "device or pipe", "sparse file"
_KINDS = {
    b"0": FILE, b"\0": FILE, b"7": FILE, b"1": LINK, b"2": LINK, b"3": SPECIAL, b"4": SPECIAL, b"6": SPECIAL,
    b"5": FOLDER, b"S": SPARSE,
}  # fmt: skip
_EMPTY = b"123456"  # links, folders, devices hold no bytes, whatever they say (hard links repeat their target's size)
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip -k"),
    b"BZh": ("bzip2", "bunzip2 -k"),
    b"\xfd7zXZ": ("xz", "unxz -k"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd -k"),
}


class Member(NamedTuple):
    """One entry: name as stored, kind (``FILE`` ...), and where its ``size`` bytes begin."""

    name: bytes
    kind: str
    offset: int
    size: int


class Damage(NamedTuple):
    """Bytes ``start`` to ``end`` of the file cannot be understood; ``what`` says why."""

    start: int
    end: int
    what: str


class Window:
    """Reads a file by position, a page at a time. ``fd`` stays the caller's."""

    def __init__(self, fd: int) -> None:
        self.fd, self.size = fd, os.fstat(fd).st_size
        self._at, self._held = 0, b""

    def read(self, at: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``at`` on: fewer at the end of the file."""
        first = at - self._at
        if first < 0 or first + count > len(self._held):
            self._at, self._held, first = at, _pread(self.fd, max(count, _PAGE), at), 0
        return self._held[first : first + count]


def _pread(fd: int, count: int, at: int) -> bytes:
    data = os.pread(fd, count, at)
    while data and len(data) < count and (more := os.pread(fd, count - len(data), at + len(data))):
        data += more
    return data


def require_plain(path: str, window: Window) -> None:
    """Raise :class:`DataError` for a compressed archive, in which no member can be found without all before it."""
    head = window.read(0, 6)
    for mark, (name, command) in _PACKED.items():
        if head.startswith(mark):
            shown = printable(path)
            raise DataError(
                f"expected a plain tar file (any image is read by its position), got one packed with {name}: {shown}. "
                f"mend: {command} {shown!r}; images are compressed already, so little is gained by packing them again"
            )


def members(window: Window) -> Iterator[Member | Damage]:
    """Every entry of the archive in the order it is stored, and every stretch of bytes that is none.

    After damage the list goes on at the next header found. Archives written one behind the other are one list.
    """
    at, closed, told = 0, False, False
    extended: dict[str, bytes] = {}
    while at + BLOCK <= window.size:
        header = window.read(at, BLOCK)
        if header == _ZEROS:
            at, closed = _past_zeros(window, at), True
            continue
        if not _checks(header) or (found := _fields(header)) is None:
            end = _next_header(window, at + BLOCK)
            yield Damage(at, end, "a header is damaged")
            at, closed, extended, told = end, False, {}, end == window.size
            continue
        name, kind, size = found
        offset, closed, told = at + BLOCK, False, False
        if kind in b"LKxgX":
            text = window.read(offset, size) if size <= _LONG else b""
            problem = "" if len(text) == size else "an extended header is cut off or too long"
            problem = problem or _extend(extended, kind, text)
            if problem:
                yield Damage(at, min(offset + size, window.size), problem)
        else:
            if kind == b"S" and header[482:483] not in (b"\0", b""):
                offset = _past_sparse_map(window, offset)
            name = extended.pop("path", name)
            size = 0 if kind in _EMPTY else _number(extended.pop("size", b""), size)
            sparse = any(key.startswith("GNU.sparse") for key in extended)
            extended = {}
            yield Member(name, SPARSE if sparse else _KINDS.get(kind, FILE), offset, size)
        at = offset + -(-size // BLOCK) * BLOCK
    if not closed and not told:
        yield Damage(min(at, window.size), max(at, window.size), "it ends without the end mark of a tar file: cut off")


def _checks(header: bytes) -> bool:
    """True if the header's sum is the one it states (as unsigned bytes, or as signed ones: old tars)."""
    try:
        stated = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    rest = (header[:148] + header[156:]).replace(b"\0", b"")  # zeros add nothing
    total = sum(rest) + 8 * 32
    return total == stated or total - 256 * sum(byte > 127 for byte in rest) == stated


def _fields(header: bytes) -> tuple[bytes, bytes, int] | None:
    """Name, type byte and size of a header, or None where the size is no number."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    field = header[124:136]
    try:
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    kind = header[156:157]
    return None if size < 0 else (name, kind, 0 if kind in _EMPTY else size)


def _extend(extended: dict[str, bytes], kind: bytes, text: bytes) -> str:
    """Note what an extended header says of the next member; return what is wrong with it, or nothing."""
    if kind == b"L":
        extended["path"] = text.rstrip(b"\0")
    if kind not in b"xX":
        return ""  # a long link target, or records for all members, which hold no name and no size of one
    while text:
        length, _, _ = text.partition(b" ")
        end = int(length) if length.isdigit() else 0
        key, mark, value = text[len(length) + 1 : end].partition(b"=")
        if not len(length) < end <= len(text) or not mark or text[end - 1 : end] != b"\n":
            return "an extended header is damaged"
        extended[key.decode("utf-8", "backslashreplace")] = value[:-1]
        text = text[end:]
    return ""


def _number(text: bytes, otherwise: int) -> int:
    return int(text) if text.isdigit() else otherwise


def _past_sparse_map(window: Window, at: int) -> int:
    more = True
    while more and at + BLOCK <= window.size:
        more = window.read(at, BLOCK)[504:505] not in (b"\0", b"")
        at += BLOCK
    return at


def _past_zeros(window: Window, at: int) -> int:
    """The position of the first block from ``at`` on that is not all zeros, or the end of the file."""
    while at < window.size:
        chunk = _pread(window.fd, _CHUNK, at)
        rest = len(chunk.lstrip(b"\0"))
        if rest or not chunk:
            return at + (len(chunk) - rest) // BLOCK * BLOCK
        at += len(chunk)
    return window.size


def _next_header(window: Window, at: int) -> int:
    """The position of the next good header from ``at`` on, by the word that every header since 1988 holds."""
    while at < window.size:
        chunk = _pread(window.fd, _CHUNK, at)
        mark = chunk.find(b"ustar")
        while mark >= 0:
            start = mark - 257
            if start >= 0 and start % BLOCK == 0 and _checks(chunk[start : start + BLOCK]):
                return at + start
            mark = chunk.find(b"ustar", mark + 1)
        at += _CHUNK
    return window.size
