"""Checkpoints that survive a kill at any instant, a full disk, and rotting bits.

``step-N/`` holds safetensors files, ``state.json`` and ``manifest.json`` (size and sha256 of each file). It is written
as ``step-N.tmp``, flushed, renamed, and the folder flushed: a folder whose manifest does not verify does not exist for
us. Saving runs in a background thread on a snapshot. No pickle anywhere.

Whole tensors are one file a kind (``model.safetensors``), written by the first process. Slices of tensors (see
sharding.py) are a folder a kind, into which every process writes its own by torch.distributed.checkpoint over
safetensors. Its default layout is not used and not read: that one is pickle, and loading it runs what is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.errors import VitrailError

from .slices import read_slices, require_shape, rows_of, save_slices
from .tensorfile import write_tensors
from .world import ALONE, World, exchange, peers_needed

FORMAT = 1
MOST_FAILURES = 3


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after ``step``: tensors by kind, and plain state.

    The tensors are whole, or every process's slices as DTensors on the CPU.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    @property
    def sliced(self) -> bool:
        """True if every process holds only slices."""
        return any(hasattr(t, "to_local") for tensors in self.tensors.values() for t in tensors.values())


class Checkpoints:
    """Writes and finds the checkpoints of one run.

    ``warn`` receives sentences for the user. ``point`` is called with the name of each moment of a commit; tests kill
    the process there. Of several processes the first writes whole tensors; all of them write slices and then agree,
    over a ``group`` of their own, on whether that went well.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        warn: Callable[[str], None],
        point: Callable[[str], None] = lambda name: None,
        world: World = ALONE,
        group: Any = None,
    ) -> None:
        self.folder, self.keep, self.warn, self.point = folder, keep, warn, point
        self.world, self.group = world, group
        self.failures = 0
        self.last_good: int | None = None
        self._pending: tuple[int, Future[None]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def save(self, snapshot: Snapshot, *, final: bool = False) -> None:
        """Write ``snapshot`` in the background; its tensors must not change afterwards.

        A save that is still running is waited for first. A failed one is a warning, and the third in a row a
        :class:`VitrailError`. ``final`` waits for the result and makes any failure an error.
        """
        self.finish()
        if snapshot.step != self.last_good:
            if snapshot.sliced:
                self._pending = (snapshot.step, self._thread.submit(self._commit_slices, snapshot))
            elif self.world.first:
                self._pending = (snapshot.step, self._thread.submit(self._commit, snapshot))
            else:
                self.last_good = snapshot.step  # as far as this process knows: the first one writes and judges
        if final:
            self.finish(final=True)
            self.world.wait()

    def finish(self, *, final: bool = False) -> None:
        """Wait for the save in flight and judge it."""
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        try:
            future.result()
        except OSError as error:
            self.failures += 1
            self._judge(step, error, final)
        else:
            self.failures, self.last_good = 0, step

    def _judge(self, step: int, error: OSError, final: bool) -> None:
        free = _free_space(self.folder)
        kept = f"the last good one is step-{self.last_good}" if self.last_good is not None else "there is none yet"
        said = f"the checkpoint of step {step} could not be written to {self.folder}: {error} ({free}); {kept}"
        if final or self.failures >= MOST_FAILURES:
            again = "" if final else f", {self.failures} times in a row"
            raise VitrailError(
                f"{said}{again}; mend: free some space or make the folder writable, then `vitrail resume`"
            )
        self.warn(f"{said}; training goes on and tries again at the next interval ({self.failures} of {MOST_FAILURES})")

    def close(self) -> None:
        """Let the save in flight end, whatever its result."""
        self._thread.shutdown(wait=True)

    def _commit(self, snapshot: Snapshot) -> None:
        temporary = self._temporary(snapshot.step)
        try:
            self._begin(temporary)
            files = self._write(temporary, snapshot)
            self._write_manifest(temporary, snapshot, files)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)  # give the space back
            raise
        self._publish(temporary, snapshot.step)

    def _commit_slices(self, snapshot: Snapshot) -> None:
        """Commit what every process holds a part of; each step is agreed on, so that all fail or none."""
        temporary, first = self._temporary(snapshot.step), self.world.first
        try:
            self._together(lambda: self._begin(temporary) if first else None)
            with peers_needed(self.world):
                found = self._together(lambda: self._write_slices(temporary, snapshot))
            files = {name: facts for part in found for name, facts in part.items()}
            self._together(lambda: self._write_manifest(temporary, snapshot, files) if first else None)
        except OSError:
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._together(lambda: self._publish(temporary, snapshot.step) if first else None)

    def _together(self, action: Callable[[], Any]) -> list[Any]:
        """Do ``action`` on every process and return all results; :class:`OSError` everywhere if one of them failed."""
        try:
            own: dict[str, Any] = {"result": action()}
        except OSError as error:
            own = {"fault": str(error)}
        found = exchange(own, self.world.size, self.group, self.world)
        faults = dict.fromkeys(part["fault"] for part in found if "fault" in part)  # all may know of the same one
        if faults:
            raise OSError("; ".join(faults))
        return [part["result"] for part in found]

    def _temporary(self, step: int) -> Path:
        return self.folder / f"step-{step}.tmp"

    def _begin(self, temporary: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def _write(self, temporary: Path, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        files: dict[str, dict[str, Any]] = {}
        for name, tensors in snapshot.tensors.items():
            path = temporary / f"{name}.safetensors"
            digest = write_tensors(path, tensors)
            files[path.name] = {"size": path.stat().st_size, "sha256": digest}
            self.point(f"wrote {name}")
        return files

    def _write_slices(self, temporary: Path, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        """Write this process's part of each kind; return size and hash of its own files."""
        files: dict[str, dict[str, Any]] = {}
        for kind, tensors in snapshot.tensors.items():
            folder = temporary / kind
            save_slices(folder, tensors, self.group)
            for path in sorted(folder.glob(f"shard-{self.world.rank + 1:05d}-*")):
                files[f"{kind}/{path.name}"] = {"size": path.stat().st_size, "sha256": _digest(path)}
            self.point(f"wrote {kind}")
        return files

    def _write_manifest(self, temporary: Path, snapshot: Snapshot, files: dict[str, dict[str, Any]]) -> None:
        for name, content in (
            ("state.json", {"step": snapshot.step, **snapshot.state}),
            ("manifest.json", {"format": FORMAT, "step": snapshot.step, "files": files}),
        ):
            data = json.dumps(content, indent=1, allow_nan=False).encode()
            write_bytes(temporary / name, data)
            files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            self.point(f"wrote {name}")
        for folder in {(temporary / name).parent for name in files}:
            fsync_folder(folder)

    def _publish(self, temporary: Path, step: int) -> None:
        """Give the folder its name, and remove those that are no longer kept."""
        self.point("before rename")
        os.rename(temporary, self.folder / f"step-{step}")
        self.point("after rename")
        fsync_folder(self.folder)
        for old in self.steps()[self.keep :]:
            self.point("before prune")
            shutil.rmtree(self.folder / f"step-{old}", ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps that have a folder, newest first; nothing is said of their health."""
        if not self.folder.is_dir():
            return []
        names = (p.name for p in self.folder.iterdir() if p.is_dir())
        return sorted((int(n[5:]) for n in names if n.startswith("step-") and n[5:].isdigit()), reverse=True)

    def latest(self) -> Path | None:
        """Return the newest checkpoint that verifies, or None. Damaged ones are named and kept as ``bad-step-N``."""
        for path in self.folder.glob("step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        for step in self.steps():
            path = self.folder / f"step-{step}"
            fault = verify(path)
            if fault is None:
                self.last_good = step
                return path
            self.warn(f"checkpoint {path} is damaged ({fault}); going back to the one before it")
            _set_aside(path)
        return None


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if every byte is as it was written."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        for name, expected in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
            if _digest(file) != expected["sha256"]:
                return f"{name} has changed since it was written"
        if "state.json" not in manifest["files"]:
            return "state.json is missing from the manifest"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {error}"
    return None


@dataclass(frozen=True)
class Saved:
    """A checkpoint that :meth:`Checkpoints.latest` returned: its state, and its tensors when they are asked for."""

    path: Path
    step: int
    state: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Saved:
        """Read ``state.json``."""
        state = json.loads((path / "state.json").read_bytes())
        return cls(path, int(state.pop("step")), state)

    def read(self, kind: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a kind for the names in ``wanted``: whole ones, or for a DTensor its own slice.

        They come as they were saved, by however many processes. Raises :class:`VitrailError` if a name is missing or
        has another shape.
        """
        file, folder = self.path / f"{kind}.safetensors", self.path / kind
        if file.is_file():
            return _read_file(file, wanted)
        if folder.is_dir():
            return read_slices(folder, wanted)
        if wanted:
            raise VitrailError(f"expected {kind} in the checkpoint {self.path}, got none")
        return {}


def _read_file(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from safetensors import safe_open

    found = {}
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, target in wanted.items():
            shape = file.get_slice(name).get_shape() if name in names else None
            require_shape(name, shape, target)
            rows = rows_of(target)
            found[name] = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write and flush to disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    write_bytes(temporary, data)
    os.replace(temporary, path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make a rename inside ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(path: Path) -> None:
    target, n = path.with_name(f"bad-{path.name}"), 1
    while target.exists():
        n += 1
        target = path.with_name(f"bad-{path.name}-{n}")
    try:
        path.rename(target)
    except OSError:
        return  # read-only: it was named; the next save will say what is wrong


def _free_space(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"free space unknown: {error}"
    return f"{free / 2**20:.0f} MiB free"
