"""Sources of many files (parquet, tar shards): a file, a folder, or a pattern such as ``train-{000000..000099}.tar``.

Source: the layouts of the Hugging Face hub (``train-00000-of-00005.parquet``, the same below ``data/``, or
``train/0000.parquet``) and the patterns of webdataset (braces as in the shell).
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path

from vitrail.errors import DataError

from .imageset import printable
from .layout import SPLITS, listed, split_of_file, split_word

_MOST = 100_000  # files that a pattern may stand for
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(source: str) -> bool:
    """True if a source is no existing path and has braces or wildcards in it."""
    return not os.path.exists(source) and any(mark in source for mark in "{*?[")


def expand(pattern: str) -> list[str]:
    """The files of a pattern, sorted by bytes. Raises :class:`DataError` where files of it are missing."""
    found: list[str] = []
    missing: list[str] = []
    for path in _braced(pattern):
        matches = glob.glob(path) if glob.has_magic(path) else [path] if os.path.isfile(path) else []
        found += [match for match in matches if os.path.isfile(match)]
        missing += [] if matches else [path]
    if missing:
        raise DataError(
            f"expected the files of {printable(pattern)}, got none for {listed([printable(p) for p in missing])}. "
            "mend: correct the pattern (or quote it, so that the shell leaves it alone), or fetch what is missing"
        )
    return sorted(set(found), key=os.fsencode)


def _braced(pattern: str) -> list[str]:
    """``a-{0..2}`` -> ``a-0``, ``a-1``, ``a-2``; ``{x,y}`` -> ``x``, ``y``. Zeros in front keep the width."""
    texts = [pattern]
    while any(_BRACES.search(text) for text in texts):
        made = (word for text in texts for word in _first_brace(text))
        texts = list(itertools.islice(made, _MOST + 1))
        if len(texts) > _MOST:
            raise DataError(f"expected a pattern of at most {_MOST:,} files, got more: {printable(pattern)}")
    return texts


def _first_brace(text: str) -> list[str]:
    found = _BRACES.search(text)
    if found is None:
        return [text]
    words = found[1].split(",")
    if whole := _RANGE.fullmatch(found[1]):
        first, last = int(whole[1]), int(whole[2])
        if not 0 <= last - first < _MOST:
            raise DataError(f"expected a rising range of at most {_MOST:,} numbers, got {{{found[1]}}}")
        words = [str(number).zfill(len(whole[1])) for number in range(first, last + 1)]
    return [text[: found.start()] + word + text[found.end() :] for word in words]


def find_files(source: str, endings: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the files of each split ({} if there is none). One file, or a pattern of one split, is all train.

    A folder goes by the names of its files, of those below ``data``, or by sub-folders named like splits.
    """
    if is_pattern(source):
        shards = _by_name(source, expand(source), endings)
        return shards if len(shards) > 1 else {"train": [path for paths in shards.values() for path in paths]}
    if os.path.isfile(source):
        return {"train": [source]}
    for folder in (source, os.path.join(source, "data")):
        if files := _files_in(folder, endings):
            return _by_name(source, files, endings)
    shards = {}
    for name in sorted(os.listdir(source)):
        split = split_word(name)
        files = _files_in(os.path.join(source, name), endings) if split else []
        if split and files:
            shards[split] = files
    return {split: shards[split] for split in SPLITS if split in shards}


def _by_name(source: str, files: list[str], endings: tuple[str, ...]) -> dict[str, list[str]]:
    kind = endings[0].lstrip(".")
    shards: dict[str, list[str]] = {}
    for path in files:
        split = split_of_file(Path(path).stem) or split_word(Path(path).parent.name) or ""
        shards.setdefault(split, []).append(path)
    if set(shards) == {""}:
        return {"train": shards[""]}
    if "" in shards:
        raise DataError(
            f"expected {kind} files named after train, val or test in {printable(source)}, "
            f"got also {listed([printable(os.path.basename(p)) for p in shards['']])}. mend: rename or move them"
        )
    return {split: shards[split] for split in SPLITS if split in shards}


def _files_in(folder: str, endings: tuple[str, ...]) -> list[str]:
    if not os.path.isdir(folder):
        return []
    names = (n for n in os.listdir(folder) if n.lower().endswith(endings) and not n.startswith("."))
    return [os.path.join(folder, name) for name in sorted(names, key=os.fsencode)]
