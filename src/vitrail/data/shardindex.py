"""The index of one tar shard: which image lies where, and with which label. Built once, by one pass over the headers.

Source: the layout of webdataset (members ``key.field``, all fields of a key are one sample); docs/reliability.md D13.
The index is kept beside the shard as a safetensors file, or in the user's cache folder where that cannot be written,
and is used only while size and time of the shard are those it was made from.
Shapes: n samples of the shard that have an image and a label; ``names`` is one run of bytes, cut at ``name_ends`` (n,).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

from .decode import EXTENSIONS, open_regular
from .imageset import printable
from .tarball import FILE, FOLDER, Damage, Member, Window, members, require_plain

VERSION = 1
ENDING = ".vitrail-index"
IMAGE_FIELDS = frozenset(extension[1:] for extension in EXTENSIONS)
LABEL_FIELDS = ("cls", "json", "txt")  # the first that a sample has decides
JSON_KEYS = ("label", "cls")
_LONGEST = {"cls": 200, "txt": 200, "json": 1 << 20}  # bytes that are looked at for a label
_MOST_LABELS = 1 << 16
_LIMIT = 1 << 62


@dataclass(frozen=True)
class ShardIndex:
    """Where the n samples of a shard lie. ``labels`` int32 (n,) are places in ``label_ids``, the texts of the shard.

    ``ignored``: (name, reason) of members that are not used; ``damage``: (start, end, what) in bytes; ``others``: how
    many members of further fields stand beside images; ``seal``: size and time (ns) of the shard.
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int32]
    names: NDArray[np.uint8]
    name_ends: NDArray[np.int64]
    label_ids: tuple[str, ...]
    seal: tuple[int, int]
    ignored: tuple[tuple[str, str], ...] = ()
    damage: tuple[Damage, ...] = ()
    others: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets)


def index_of(path: str) -> ShardIndex:
    """Return the index of a shard: the one kept, if it fits the file, or a new one, which is then kept.

    Raises :class:`DataError` for what is no tar file, is compressed, or holds images without any label.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        seal = (status.st_size, status.st_mtime_ns)
        places = _places(path)
        for place in places:
            if (kept := _load(place, seal)) is not None:
                return kept
        made = scan(path, Window(file.fileno()), seal)
        after = os.fstat(file.fileno())
    if (after.st_size, after.st_mtime_ns) == seal:  # else it is being written
        any(_save(place, made) for place in places)
    return made


def scan(path: str, window: Window, seal: tuple[int, int]) -> ShardIndex:
    """Read the headers (and the small members that are labels) of one shard; raises as :func:`index_of` does."""
    require_plain(path, window)
    builder = _Builder(path, window)
    for entry in members(window):
        if isinstance(entry, Damage):
            builder.damage.append(Damage(min(entry.start, _LIMIT), min(entry.end, _LIMIT), entry.what))
        elif entry.kind == FILE:
            builder.add(entry)
        elif entry.kind != FOLDER:
            builder.ignore(entry.name, f"{entry.kind} in a tar file")
    if builder.damage and builder.damage[0].start == 0 and builder.damage[0].end >= window.size:
        got = "an empty file" if not window.size else "something else"
        raise DataError(
            f"expected a tar file, got {got}: {printable(path)}. mend: fetch it again, or take it out of the folder"
        )
    return builder.finish(seal)


class _Sample:
    """The fields of one key, as far as they were met."""

    __slots__ = ("field", "image", "key", "labels", "others")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.image: Member | None = None
        self.field = b""
        self.labels: dict[str, Member] = {}
        self.others: list[str] = []


class _Builder:
    """Gathers samples into arrays; only what waits for its other half is an object."""

    def __init__(self, path: str, window: Window) -> None:
        self.path, self.window = path, window
        self.offsets, self.sizes, self.labels, self.ends = array("q"), array("q"), array("i"), array("q")
        self.names = bytearray()
        self.label_ids: dict[str, int] = {}
        self.ignored: list[tuple[str, str]] = []
        self.damage: list[Damage] = []
        self.others: Counter[str] = Counter()
        self.waiting: dict[bytes, _Sample] = {}
        self.open = _Sample(b"")

    def ignore(self, name: bytes, reason: str) -> None:
        """Account for a member that is not used."""
        self.ignored.append((os.fsdecode(name), reason))

    def add(self, member: Member) -> None:
        """Take the next member; a sample is complete when another key follows."""
        folder, slash, base = member.name.rpartition(b"/")
        stem, _, extension = base.partition(b".")
        if not stem or stem.startswith(b"._"):
            self.ignore(member.name, "hidden or system file")
            return
        key, name = folder + slash + stem, extension.decode("utf-8", "backslashreplace").lower()
        if key != self.open.key:
            self.close()
            self.open = self.waiting.pop(key) if key in self.waiting else _Sample(key)
        sample = self.open
        if name in IMAGE_FIELDS:
            if sample.image is None:
                sample.image = member
            else:
                self.ignore(member.name, "second image of one key")
        elif name in LABEL_FIELDS:
            if name not in sample.labels:
                sample.labels[name] = member
            else:
                self.ignore(member.name, "second label of one key")
        else:
            sample.others.append(name)

    def close(self) -> None:
        """Turn the open sample into a row, or let it wait for what may come later in an unsorted archive."""
        sample, self.open = self.open, _Sample(b"")
        self.others.update(sample.others)
        sample.others = []
        if sample.image is None or not sample.labels:
            if sample.image is not None or sample.labels:
                self.waiting[sample.key] = sample
            return
        label, problem = self.label(sample)
        if label is None:
            self.ignore(sample.image.name, problem)
            return
        self.offsets.append(sample.image.offset)
        self.sizes.append(min(sample.image.size, _LIMIT))
        self.labels.append(self.label_ids.setdefault(label, len(self.label_ids)))
        self.names += sample.image.name
        self.ends.append(len(self.names))
        if len(self.label_ids) > _MOST_LABELS:
            raise DataError(
                f"expected class labels in {printable(self.path)}, got over {_MOST_LABELS:,} different ones, such as "
                f"{printable(label)!r}. mend: if .txt holds captions, put the class into .cls"
            )

    def label(self, sample: _Sample) -> tuple[str | None, str]:
        """The text of a sample's label, or None and why there is none."""
        problem = ""
        for name in LABEL_FIELDS:
            if (member := sample.labels.get(name)) is not None:
                text = self.window.read(member.offset, min(member.size, _LONGEST[name] + 1))
                found, why = _label_in(name, text, member.size)
                if found is not None:
                    return found, ""
                problem = problem or why
        return None, problem

    def finish(self, seal: tuple[int, int]) -> ShardIndex:
        """Judge what is left over, drop keys that come twice, and return the index, rows in the order of the file."""
        self.close()
        for sample in self.waiting.values():
            if sample.image is not None:
                self.ignore(sample.image.name, "image without a label")
            for member in sample.labels.values():
                self.ignore(member.name, "label without an image")
        if not self.offsets and any(reason == "image without a label" for _, reason in self.ignored):
            raise DataError(
                f"expected a label for each image (key.cls, key.txt or key.json beside key.jpg), got none in "
                f"{printable(self.path)}. mend: add them, or leave the unlabelled shards out of the source, as in "
                "'FOLDER/{train,val}-*.tar'"
            )
        self._drop_repeated()
        return ShardIndex(
            offsets=np.frombuffer(self.offsets, np.int64),
            sizes=np.frombuffer(self.sizes, np.int64),
            labels=np.frombuffer(self.labels, np.int32),
            names=np.frombuffer(self.names, np.uint8),
            name_ends=np.frombuffer(self.ends, np.int64),
            label_ids=tuple(self.label_ids),
            seal=seal,
            ignored=tuple(self.ignored),
            damage=tuple(self.damage),
            others=dict(self.others),
        )

    def _name(self, row: int) -> bytes:
        return bytes(self.names[self.ends[row - 1] if row else 0 : self.ends[row]])

    def _drop_repeated(self) -> None:
        """Keep the first sample of a key. Hashes find candidates in 8 bytes a sample; the names themselves decide."""
        keys = np.fromiter((hash(_key(self._name(row))) for row in range(len(self.ends))), np.int64, len(self.ends))
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        groups: dict[bytes, list[int]] = {}
        for row in np.unique(np.concatenate([order[same], order[same + 1]])).tolist():
            groups.setdefault(_key(self._name(row)), []).append(row)
        extra = {row for rows in groups.values() for row in rows[1:]}
        if not extra:
            return
        kept = [row for row in range(len(self.ends)) if row not in extra]
        for row in sorted(extra):
            self.ignore(self._name(row), "key that was there before")
        names = [self._name(row) for row in kept]
        for values in (self.offsets, self.sizes, self.labels):
            values[:] = array(values.typecode, [values[row] for row in kept])
        self.names = bytearray(b"".join(names))
        self.ends = array("q", np.cumsum([len(name) for name in names], dtype=np.int64).tolist())


def _key(name: bytes) -> bytes:
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _label_in(name: str, text: bytes, size: int) -> tuple[str | None, str]:
    """The label that a ``.cls``, ``.txt`` or ``.json`` member holds, or None and what is wrong with it."""
    if size > _LONGEST[name]:
        return None, f"image whose .{name} is too long for a label"
    if len(text) < size:
        return None, f"image whose .{name} is cut off"
    if name == "json":
        return _label_in_json(text)
    words = text.removeprefix(b"\xef\xbb\xbf").strip()
    if not words or any(byte < 32 for byte in words):
        return None, f"image whose .{name} is " + ("not one line" if words else "empty")
    return _canonical(os.fsdecode(words)), ""


def _label_in_json(text: bytes) -> tuple[str | None, str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None, "image whose .json is not JSON"
    found = next((content[key] for key in JSON_KEYS if key in content), None) if isinstance(content, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        return None, f"image whose .json has no number or text as {' or '.join(JSON_KEYS)}"
    return _canonical(str(found)), ""


def _canonical(text: str) -> str:
    """``007`` and ``7`` are one whole number; every other text is a class name as it stands."""
    digits = text.removeprefix("-")
    return str(int(text)) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else text


def _places(path: str) -> list[str]:
    """Where the index may lie: beside the shard, else in the user's cache folder under a hash of the full path."""
    real = os.path.realpath(path)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    key = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
    return [real + ENDING, os.path.join(cache, "vitrail", "shards", key + ENDING)]


def _load(place: str, seal: tuple[int, int]) -> ShardIndex | None:
    """Return a kept index if it is whole and was made from the shard as it is now, else None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("index", "{}"))
            if about.get("version") != VERSION or about.get("seal") != list(seal):
                return None
            found = ShardIndex(
                **{name: file.get_tensor(name) for name in ("offsets", "sizes", "labels", "names", "name_ends")},
                label_ids=tuple(map(str, about["label_ids"])),
                seal=seal,
                ignored=tuple((str(name), str(reason)) for name, reason in about["ignored"]),
                damage=tuple(Damage(int(start), int(end), str(what)) for start, end, what in about["damage"]),
                others={str(name): int(count) for name, count in about["others"].items()},
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none there, cut off, or not ours: it is made again
    return found if _sound(found, seal[0]) else None


def _sound(found: ShardIndex, size: int) -> bool:
    """True if nothing in the index points outside the shard or outside itself (a stranger's file may say anything)."""
    n, ends = len(found.offsets), found.name_ends
    kinds = (found.offsets, np.int64), (found.sizes, np.int64), (found.labels, np.int32), (ends, np.int64)
    if any(values.shape != (n,) or values.dtype != kind for values, kind in kinds) or found.names.dtype != np.uint8:
        return False
    if not n:
        return True
    rising = ends[0] >= 0 and bool((np.diff(ends) >= 0).all()) and ends[-1] == len(found.names)
    inside = found.offsets.min() >= 0 and found.offsets.max() <= size and found.sizes.min() >= 0
    return bool(rising and inside and found.labels.min() >= 0 and found.labels.max() < len(found.label_ids))


def _save(place: str, made: ShardIndex) -> bool:
    """Write an index so that no reader ever sees half of it; False where that folder cannot be written."""
    from safetensors.numpy import save

    about: dict[str, Any] = {
        "version": VERSION,
        "seal": made.seal,
        "label_ids": made.label_ids,
        "ignored": made.ignored,
        "damage": made.damage,
        "others": made.others,
    }
    arrays = {name: getattr(made, name) for name in ("offsets", "sizes", "labels", "names", "name_ends")}
    data = save(arrays, {"index": json.dumps(about)})
    folder = os.path.dirname(place)
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".index-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except OSError:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        return False
    return True
