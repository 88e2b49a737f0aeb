"""A folder with one sub-folder a class, with or without ``train``/``val``/``test`` above them.

Source: the layout torchvision made usual (ImageFolder); the traps are docs/reliability.md 6.2, D4-D10. Names are walked
as bytes, because a file name is bytes; files are listed in byte order, so every machine sees one order. No file is
opened here, but for the first bytes of those that have no extension.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from vitrail.errors import DataError

from .decode import EXTENSIONS, BrokenImage, open_regular, sniff
from .imageset import FileStore, printable
from .layout import SPLITS, Ignored, Layout, Part, class_map, listed, split_word

_JUNK = {b"thumbs.db", b"desktop.ini", b"__macosx"}
_EXTENSIONS = {os.fsencode(e) for e in EXTENSIONS}

HIDDEN = "hidden or system file"
BROKEN_LINK = "broken link"
LOOP = "link makes a loop"
OUTSIDE = "link leaves the folder"
SPECIAL = "not a regular file"
OUTSIDE_CLASS = "outside any class folder"
OUTSIDE_SPLIT = "outside train, val and test"

Chain = frozenset[tuple[int, int]]  # (device, inode) of a folder and all above it

EXAMPLE = (
    "  expected one folder a class, e.g.\n"
    "    {root}/cat/1.jpg\n    {root}/dog/1.jpg\n"
    "  or the same below {root}/train and {root}/val"
)


@dataclass
class Walker:
    """Lists a tree once: image candidates, and everything else with its reason. Loops end, links stay inside."""

    root: bytes
    outside_links: bool = False
    ignored: list[Ignored] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._real = os.path.realpath(self.root)

    def start(self) -> Chain:
        """The chain of the root itself."""
        return frozenset({_identity(self.root)})

    def ignore(self, path: bytes, reason: str) -> None:
        """Account for an entry that is not used; a folder stands for the files below it."""
        if os.path.isdir(path) and not os.path.islink(path):
            for folder, _, files in os.walk(path):
                self.ignored.extend(self._entry(os.path.join(folder, file), reason) for file in files)
        else:
            self.ignored.append(self._entry(path, reason))

    def _entry(self, path: bytes, reason: str) -> Ignored:
        return Ignored(os.fsdecode(os.path.relpath(path, self.root)), reason)

    def children(self, folder: bytes, chain: Chain) -> tuple[list[tuple[bytes, Chain]], list[bytes]]:
        """Return the sub-folders (with their chains) and the image candidates directly in ``folder``, as paths."""
        folders: list[tuple[bytes, Chain]] = []
        files: list[bytes] = []
        try:
            entries = os.scandir(folder)
        except OSError as error:
            where = printable(os.fsdecode(folder))
            raise DataError(
                f"expected a readable folder, got {where!r}: {error.strerror}. mend: check its permissions"
            ) from None
        with entries:
            for entry in entries:
                self._sort(entry, chain, folders, files)
        return sorted(folders, key=lambda pair: pair[0]), files

    def _sort(
        self,
        entry: os.DirEntry[bytes],
        chain: Chain,
        folders: list[tuple[bytes, Chain]],
        files: list[bytes],
    ) -> None:
        name = entry.name
        if name[:1] == b"." or name.lower() in _JUNK:
            self.ignore(entry.path, HIDDEN)
        elif entry.is_file(follow_symlinks=False):
            self._candidate(entry.path, name, files)
        elif entry.is_dir(follow_symlinks=False):
            folders.append((entry.path, chain | {_identity(entry.path)}))
        elif entry.is_symlink():
            self._link(entry, chain, folders, files)
        else:
            self.ignore(entry.path, SPECIAL)

    def _link(
        self,
        entry: os.DirEntry[bytes],
        chain: Chain,
        folders: list[tuple[bytes, Chain]],
        files: list[bytes],
    ) -> None:
        target = os.path.realpath(entry.path)
        if not os.path.exists(target):
            self.ignore(entry.path, BROKEN_LINK)
        elif os.path.isdir(target) and _identity(target) in chain:
            self.ignore(entry.path, LOOP)
        elif not self.outside_links and not (target + b"/").startswith(self._real.rstrip(b"/") + b"/"):
            # A link to a folder above the root both leaves it and loops; naming the loop is the better help.
            self.ignore(entry.path, LOOP if (self._real + b"/").startswith(target + b"/") else OUTSIDE)
        elif os.path.isdir(target):
            folders.append((entry.path, chain | {_identity(target)}))
        elif os.path.isfile(target):
            self._candidate(entry.path, entry.name, files)
        else:
            self.ignore(entry.path, SPECIAL)

    def _candidate(self, path: bytes, name: bytes, files: list[bytes]) -> None:
        extension = os.path.splitext(name)[1].lower()
        if extension in _EXTENSIONS or (not extension and _looks_like_image(path)):
            files.append(path)
        else:
            self.ignore(path, f"not an image ({printable(os.fsdecode(extension)) or 'no extension'})")

    def files_below(self, folder: bytes, chain: Chain) -> list[bytes]:
        """Return the image candidates in a folder and everything below it, as paths."""
        found: list[bytes] = []
        waiting = [(folder, chain)]
        while waiting:
            folders, files = self.children(*waiting.pop())
            found += files
            waiting += folders
        return found


def read_folder(source: str, *, outside_links: bool = False) -> Layout:
    """Read a class-per-folder tree. Raises :class:`DataError` if there is no class folder with an image in it."""
    root = os.fsencode(source)
    walker = Walker(root, outside_links)
    folders, loose = walker.children(root, walker.start())
    splits, aside = _split_folders(walker, folders)
    if splits:
        trees = {split: walker.children(*pair) for split, pair in splits.items()}
        loose += [path for _, files in trees.values() for path in files]
        for path, _ in aside:
            walker.ignore(path, OUTSIDE_SPLIT)
        per_split = {split: classes for split, (classes, _) in trees.items()}
    else:
        per_split = {"train": folders}
    found = {
        split: {os.path.basename(path): walker.files_below(path, chain) for path, chain in classes}
        for split, classes in per_split.items()
    }
    if not any(files for classes in found.values() for files in classes.values()):
        raise _nothing_to_learn(source, loose, walker.ignored)
    for path in loose:
        walker.ignore(path, OUTSIDE_CLASS)
    return _layout(source, root, found, walker.ignored)


def _split_folders(
    walker: Walker, folders: list[tuple[bytes, Chain]]
) -> tuple[dict[str, tuple[bytes, Chain]], list[tuple[bytes, Chain]]]:
    """Return the split folders and the rest; no splits at all where ``train`` is a class (a railway, say)."""
    splits: dict[str, tuple[bytes, Chain]] = {}
    for path, chain in folders:
        split = split_word(os.fsdecode(os.path.basename(path)))
        if split is None:
            continue
        if split in splits:
            both = [os.fsdecode(os.path.basename(p)) for p in (splits[split][0], path)]
            raise DataError(f"expected one folder for the {split} split, got {listed(both)}. mend: join or move one")
        splits[split] = (path, chain)
    rest = [pair for pair in folders if split_word(os.fsdecode(os.path.basename(pair[0]))) is None]
    if not splits or (rest and ("train" not in splits or _holds_images(walker, splits["train"]))):
        return {}, folders
    if "train" not in splits:
        names = [os.fsdecode(os.path.basename(path)) for path, _ in splits.values()]
        raise DataError(
            f"expected a 'train' folder beside {listed(names)}, got none in {printable(os.fsdecode(walker.root))}. "
            "mend: put the training images below 'train', one folder a class"
        )
    return splits, rest


def _holds_images(walker: Walker, pair: tuple[bytes, Chain]) -> bool:
    peek = Walker(walker.root, walker.outside_links)  # its account of ignored files is thrown away
    return bool(peek.children(*pair)[1])


def _layout(source: str, root: bytes, found: dict[str, dict[bytes, list[bytes]]], ignored: list[Ignored]) -> Layout:
    classes = class_map(os.fsdecode(name) for names in found.values() for name in names)
    parts, notes = {}, []
    for split in SPLITS:
        if split not in found:
            continue
        if split != "train" and not any(found[split].values()):
            notes.append(f"the {split} folder holds no images")
            continue
        pairs = [(path, name) for name, files in found[split].items() for path in files]
        pairs.sort()
        cut = len(os.path.join(root, b""))
        index = {os.fsencode(str(source_id)): i for i, source_id in enumerate(classes.ids)}
        labels = np.fromiter((index[name] for _, name in pairs), dtype=np.int64, count=len(pairs))
        parts[split] = Part(FileStore(source, [os.fsdecode(path[cut:]) for path, _ in pairs]), labels)
    return Layout("folder", source, parts, classes, ignored, notes)


def _nothing_to_learn(source: str, loose: list[bytes], ignored: list[Ignored]) -> DataError:
    shown = printable(source)
    example = EXAMPLE.format(root=shown)
    if loose:
        first = printable(os.fsdecode(os.path.basename(min(loose))))
        return DataError(
            f"expected one folder a class in {shown}, got {len(loose)} images outside any class folder "
            f"(e.g. {first!r}).\n{example}\n  mend: move each image into a folder named after its class"
        )
    tables = [entry.name for entry in ignored if entry.name.lower().endswith((".csv", ".tsv"))]
    if tables:
        return DataError(
            f"expected images in {shown}, got none.\n{example}\n"
            f"  mend: if the labels are in a table, give the table itself: {os.path.join(shown, printable(tables[0]))}"
        )
    why = "; ".join(f"{n} x {reason}" for reason, n in Counter(entry.reason for entry in ignored).most_common(4))
    return DataError(
        f"expected images in {shown}, got none{f' ({why})' if why else ' (the folder is empty)'}.\n{example}\n"
        "  mend: check the path, or put images there"
    )


def _identity(folder: bytes) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _looks_like_image(path: bytes) -> bool:
    try:
        with open_regular(os.fsdecode(path)) as file:
            return sniff(file.read(16)) is not None
    except (BrokenImage, OSError):
        return False
