"""Parallel text: the same sentences in two languages, line by line.

A source is a folder of files ``<split>.<language>`` (``train.en``, ``train.de``, ``val.en``, ..., each also ``.gz``) or
``<split>.tsv``, one ``.tsv`` file (source, tab, target), tar shards with members ``<key>.<language>``, or the built-in
``numbers``. A line ends at a line feed and nowhere else: the other line ends that Unicode has stand inside sentences.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vitrail.errors import DataError, UsageError, require_extra

BUILTIN = ("numbers",)
SPLITS = ("train", "val")
_NAMES = {"valid": "val", "validation": "val", "dev": "val"}
_LANGUAGE = re.compile(r"^[a-z]{2,3}([_-][A-Za-z]{2,8})?$")
_KNOWN = {"tsv", "csv", "txt", "tar", "zip", "json", "md", "py", "yml", "png", "jpg", "gif", "bmp"}
_LARGEST = 1 << 20  # bytes of a member of a shard: a sentence has a few hundred


@dataclass(frozen=True)
class Pairs:
    """Sentences of a split, ``source[i]`` and ``target[i]`` the same in two languages."""

    name: str
    source: list[str]
    target: list[str]

    def __len__(self) -> int:
        return len(self.source)

    def subset(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """Return these rows, in that order."""
        return replace(self, source=[self.source[i] for i in rows], target=[self.target[i] for i in rows])

    def digest(self) -> str:
        """Return a hash of all sentences."""
        found = hashlib.sha256()
        for pair in zip(self.source, self.target, strict=True):
            found.update("\0".join(pair).encode() + b"\n")
        return found.hexdigest()[:16]


@dataclass
class TextSplits:
    """Parallel text ready to use. ``tests`` are by name, in order; ``notes`` are sentences for the user."""

    train: Pairs
    val: Pairs
    tests: dict[str, Pairs]
    languages: tuple[str, str]
    notes: list[str] = field(default_factory=list)

    def held_out(self) -> dict[str, Pairs]:
        """Return validation and tests by name."""
        return {"val": self.val, **self.tests}


def is_parallel(source: str) -> bool:
    """Tell whether a name or path is parallel text beyond doubt: a built-in set, or train files in two languages."""
    path = Path(os.path.expanduser(source))
    if not path.exists():
        return source in BUILTIN
    return path.is_dir() and len(_languages_of(path, "train")) >= 2


def open_text(
    source: str,
    *,
    languages: tuple[str, str] | None = None,
    val_fraction: float = 0.05,
    train_fraction: float = 1.0,
    seed: int = 0,
) -> TextSplits:
    """Open parallel text, translated from ``languages[0]`` to ``languages[1]``.

    Without ``languages`` it is from English to the other one, or in the order of the alphabet; a note says so. A
    missing val split is cut off train by ``seed``. Training pairs with an empty side are left out and counted.

    Raises:
        DataError: nothing there, files of different length, bytes that are not UTF-8 (file, line), no pair left.
        UsageError: languages that the data have not.
    """
    path = Path(os.path.expanduser(source))
    notes: list[str] = []
    if not path.exists() and source in BUILTIN:
        parts, chosen = _numbers(languages or ("en", "de")), languages or ("en", "de")
    elif path.is_dir() and not _tsv_files(path):
        chosen = languages or _direction(path, notes)
        parts = _read_folder(path, chosen)
    elif path.is_dir() or path.suffix.lower() == ".tsv":
        chosen = languages or ("source", "target")
        files = _tsv_files(path) if path.is_dir() else {"train": path}
        parts = {name: _read_tsv(file, name) for name, file in files.items()}
    elif path.suffix.lower() == ".tar":
        chosen = _told(languages, path)
        parts = {"train": _read_tar(path, chosen)}
    else:
        raise DataError(
            f"expected parallel text as a folder (train.en, train.de, ...), a .tsv, a .tar or a built-in name "
            f"({', '.join(BUILTIN)}), got {source!r}{'' if path.exists() else ', which does not exist'}"
        )
    if "train" not in parts:
        raise DataError(f"expected train files in {source}, got only {', '.join(sorted(parts)) or 'none'}")
    return _split(parts, chosen, val_fraction, train_fraction, seed, notes)


def _split(
    parts: dict[str, Pairs],
    languages: tuple[str, str],
    val_fraction: float,
    train_fraction: float,
    seed: int,
    notes: list[str],
) -> TextSplits:
    train = _without_empty(parts.pop("train"), notes)
    order = np.random.default_rng(seed).permutation(len(train))
    if "val" not in parts:
        count = max(1, round(val_fraction * len(train)))
        if count >= len(train):
            raise DataError(f"expected more training pairs than the {count} that validation takes, got {len(train)}")
        parts["val"] = replace(train.subset(np.sort(order[:count])), name="val")
        order = order[count:]
        notes.append(f"no validation split found: {count} of {len(train)} pairs (seed {seed}) held out")
    if train_fraction < 1:
        order = order[: max(1, round(train_fraction * len(order)))]
        notes.append(f"{len(order)} training pairs used (train_fraction {train_fraction:g})")
    train, val = train.subset(np.sort(order)), parts.pop("val")
    return TextSplits(train, val, dict(sorted(parts.items())), languages, notes)


def _without_empty(pairs: Pairs, notes: list[str]) -> Pairs:
    full = [i for i, (s, t) in enumerate(zip(pairs.source, pairs.target, strict=True)) if s.strip() and t.strip()]
    if not full:
        raise DataError("expected training pairs with words on both sides, got none")
    if len(full) < len(pairs):
        notes.append(f"{len(pairs) - len(full)} of {len(pairs)} training pairs have an empty side and are left out")
    return pairs if len(full) == len(pairs) else pairs.subset(full)


# ---- folders of lines


def _stem(path: Path) -> tuple[str, str]:
    """Return split and language of ``train.en`` or ``train.en.gz``; the language is "" if there is none."""
    name = path.name.removesuffix(".gz")
    stem, _, language = name.rpartition(".")
    fits = bool(_LANGUAGE.match(language)) and language not in _KNOWN
    return (_NAMES.get(stem, stem), language) if stem and fits else (name, "")


def _languages_of(folder: Path, split: str) -> dict[str, Path]:
    files = [(_stem(file), file) for file in sorted(folder.iterdir())]
    return {language: file for (stem, language), file in files if stem == split and language}


def _direction(folder: Path, notes: list[str]) -> tuple[str, str]:
    found = list(_languages_of(folder, "train"))
    if len(found) != 2:
        raise DataError(
            f"expected train files in two languages in {folder} (train.en, train.de), got "
            f"{', '.join(found) or 'none'}; mend: data.languages=[en,de] says which two, if there are more"
        )
    one, other = ("en", next(x for x in found if x != "en")) if "en" in found else (found[0], found[1])
    notes.append(f"translates {one} to {other}; the other way: data.languages=[{other},{one}]")
    return one, other


def _read_folder(folder: Path, languages: tuple[str, str]) -> dict[str, Pairs]:
    splits = {_stem(file)[0] for file in folder.iterdir() if _stem(file)[1] in languages}
    parts = {}
    for split in sorted(splits):
        files = _languages_of(folder, split)
        missing = [language for language in languages if language not in files]
        if missing:
            known = sorted(_languages_of(folder, "train"))
            raise UsageError(
                f"expected {split} in {' and '.join(languages)} in {folder}, got none in {missing[0]}; "
                f"train has {', '.join(known)}"
            )
        one, other = (_lines(files[language]) for language in languages)
        if len(one) != len(other):
            raise DataError(
                f"expected as many lines in {files[languages[0]]} as in {files[languages[1]]}, line by line the same "
                f"sentences, got {len(one)} and {len(other)}"
            )
        parts[split] = Pairs(split, one, other)
    return parts


def _lines(path: Path) -> list[str]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return [decode(line, f"{path}, line {i}") for i, line in enumerate(_raw_lines(data), 1)]


def _raw_lines(data: bytes) -> list[bytes]:
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines[:-1] if lines and not lines[-1] else lines


def decode(line: bytes, where: str) -> str:
    """Return a line as text; :class:`DataError` names the place and the byte that is not UTF-8."""
    try:
        return line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 in {where}, got the byte {line[error.start]:#04x} at column {error.start + 1}; mend: save "
            "the file as UTF-8 (iconv -f latin1 -t utf-8)"
        ) from None


# ---- tables and shards


def _tsv_files(folder: Path) -> dict[str, Path]:
    found = {p.name.removesuffix(".tsv"): p for p in sorted(folder.glob("*.tsv"))}
    return {_NAMES.get(name, name): p for name, p in found.items()}


def _read_tsv(path: Path, split: str) -> Pairs:
    sides: list[tuple[str, str]] = []
    for number, line in enumerate(_lines(path), 1):
        cells = line.split("\t")
        if len(cells) != 2 and line:
            raise DataError(
                f"expected source, tab and target in {path}, line {number}, got {len(cells)} column"
                f"{'s' if len(cells) > 1 else ''}"
            )
        sides.append((cells[0].strip(), cells[1].strip()) if line else ("", ""))
    return Pairs(split, [s for s, _ in sides], [t for _, t in sides])


def _told(languages: tuple[str, str] | None, path: Path) -> tuple[str, str]:
    if languages is None:
        raise UsageError(f"expected the languages of the shards {path}; mend: data.languages=[en,de]")
    return languages


def _read_tar(path: Path, languages: tuple[str, str]) -> Pairs:
    """Read members ``<key>.<language>``; those of one key need not stand side by side."""
    found: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, language = member.name.rpartition(".")
                if member.isfile() and language in languages:
                    if member.size > _LARGEST:
                        raise DataError(f"expected a sentence in {path}: {member.name}, got {member.size:,} bytes")
                    file = archive.extractfile(member)
                    assert file is not None, "a regular file has contents"
                    found.setdefault(key, {})[language] = decode(file.read(), f"{path}: {member.name}")
    except tarfile.TarError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    lonely = [key for key, sides in found.items() if len(sides) < 2]
    if lonely or not found:
        raise DataError(
            f"expected every key of {path} as .{languages[0]} and .{languages[1]}, got "
            + (f"one of them for {lonely[0]!r} ({len(lonely)} such)" if lonely else "none")
        )
    return Pairs("train", *([sides[language] for sides in found.values()] for language in languages))


# ---- the built-in set


def _numbers(languages: tuple[str, str]) -> dict[str, Pairs]:
    """Lists of two to six numbers in words, by num2words: "two, four hundred and seven", "zwei, vierhundertsieben"."""
    require_extra("num2words", "text", "the built-in set 'numbers'")
    from num2words import num2words

    rng = np.random.default_rng(0)
    lists = [(10 ** rng.uniform(0, 4, rng.integers(2, 7))).astype(int).tolist() for _ in range(4500)]
    try:
        words = {x: [str(num2words(n, lang=x)).replace(",", "") for n in range(10_000)] for x in languages}
    except NotImplementedError:
        raise UsageError(f"expected languages that num2words has, got {', '.join(languages)}") from None
    bounds = {"val": lists[:250], "test": lists[250:500], "train": lists[500:]}
    return {
        name: Pairs(name, *([", ".join(words[x][n] for n in row) for row in rows] for x in languages))
        for name, rows in bounds.items()
    }
