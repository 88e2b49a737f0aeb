"""Folders that appear whole or not at all: written beside their place, flushed to disk, then moved there."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_ASIDE = ".old"


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving it is flushed and takes the place of ``path`` in one step.

    If the block raises, nothing is left behind and whatever was at ``path`` is untouched. A process killed half-way
    leaves at most a hidden ``.NAME.PID-*`` folder beside it, which the next call sweeps away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    _sweep(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.{os.getpid()}-", dir=path.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _flush(file)
        _flush(temporary)
        _put(temporary, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # what was there before, or what was not finished


def recover(path: Path) -> None:
    """Put back what a process killed between two renames set aside (only where folders cannot be swapped)."""
    if not path.exists():
        for aside in sorted(path.parent.glob(f".{path.name}.*{_ASIDE}")):
            os.rename(aside, path)
            return


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside ``path``; folders of living processes stay."""
    for left in path.parent.glob(f".{path.name}.*-*"):
        owner = left.name.removeprefix(f".{path.name}.").partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, but belongs to someone else
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Have the system write a file or a folder's list of names to disk (Windows cannot do the latter)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(temporary: Path, path: Path) -> None:
    """Move ``temporary`` to ``path``; what was at ``path`` ends up at ``temporary``."""
    if not path.exists():
        os.rename(temporary, path)
    elif not _exchange(temporary, path):
        aside = temporary.with_name(temporary.name + _ASIDE)
        os.rename(path, aside)
        os.rename(temporary, path)
        os.rename(aside, temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return int(rename(*arguments)) == 0
