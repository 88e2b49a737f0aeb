"""The child that reads a foreign weight file; run by :mod:`vitrail.weights.foreign`, never imported for its work.

Before it opens the file it limits itself: processor time, size of what it writes, no core dump, where the kernel lets
it no network, and, once its library is imported, how much memory it may add. It imports nothing of Vitrail. Then:
archives are checked before they are opened (members stored, not deflated; together no larger than the file), pickles
are read with ``weights_only=True``, and what comes out is walked with limits (depth, count, a tensor no larger than its
storage) before anything is copied.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WRAPPERS = ("model", "state_dict", "params_ema", "params", "model_state_dict", "module", "net", "weights", "model_ema")
"""Names under which training files keep their weights; the first present one is taken."""
PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.")
MOST_DEPTH, MOST_ITEMS = 8, 200_000


class Refused(Exception):
    """The file breaks a rule; the text says which."""


def main() -> int:
    """Read the order from standard input, do it, and write the report; 0 also when the file was refused."""
    order = json.load(sys.stdin)
    _restrict(order["seconds"])
    report: dict[str, Any] = {"error": None, "notes": []}
    try:
        report["notes"] = _read(Path(order["source"]), Path(order["out"]), order["key"], order["memory"])
    except Refused as refused:
        report["error"] = str(refused)
    except MemoryError:
        report["error"] = "needs more memory than a file of its size may. mend: it is damaged or made to do harm."
    Path(order["report"]).write_text(json.dumps(report), encoding="utf-8")
    return 0


def _restrict(seconds: int) -> None:
    """Give up what reading a file does not need. Windows has no such limits: there ``weights_only`` stands alone."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform == "linux":
        _leave_network()


def _limit_memory(more: int) -> None:
    """Allow ``more`` bytes beyond the address space in use now; how much torch itself maps depends on its build."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + max(more, 0)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _leave_network() -> None:
    """Move into an empty network namespace, if the kernel allows that to ordinary users; many do not."""
    import ctypes

    new_user, new_network = 0x10000000, 0x40000000
    ctypes.CDLL(None, use_errno=True).unshare(new_user | new_network)


def _read(source: Path, out: Path, key: str | None, memory: int) -> list[str]:
    if source.suffix == ".npz":  # needs no torch, which takes seconds to import
        import safetensors.numpy as library

        _limit_memory(memory)
        found, notes = _read_npz(source)
    else:
        import safetensors.torch as library  # type: ignore[no-redef]

        _limit_memory(memory)
        found, notes = _read_torch(source, key)
    if not found:
        raise Refused("holds no tensors. mend: it is not a file of weights.")
    library.save_file(found, out)
    return notes


def _check_zip(source: Path) -> list[str]:
    """Return the member names of an archive; refuse what could swell."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise Refused(f"is a damaged archive ({error}). mend: fetch it again.") from None
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise Refused(
            "is compressed, which torch.save and numpy.savez never do; such a file can swell without bound."
            " mend: save it again with torch.save or numpy.savez."
        )
    if sum(m.file_size for m in members) > source.stat().st_size:
        raise Refused("claims more data than it has: its members overlap. mend: do not use this file.")
    return [m.filename for m in members]


# ---- pickles


def _read_torch(source: Path, key: str | None) -> tuple[dict[str, Any], list[str]]:
    import torch

    if zipfile.is_zipfile(source):
        names = _check_zip(source)
        if any(n.endswith("constants.pkl") for n in names) or any("/code/" in n for n in names):
            raise Refused(
                "is a TorchScript archive, which holds code; Vitrail does not read these yet. mend: in the library that"
                " made it, save `model.state_dict()` with torch.save or safetensors."
            )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm and DeiT keep their options in one
            loaded = torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a hostile pickle provokes: all of it means "not readable"
        raise Refused(_why(error)) from None
    _walk(loaded)
    state, notes = _unwrap(loaded, key)
    return _collect(state, source.stat().st_size, notes), notes


def _why(error: Exception) -> str:
    text = str(error)
    if "alloc" in text and "memory" in text:
        return "needs more memory than a file of its size may. mend: it is damaged or made to do harm."
    named = re.search(r"GLOBAL (\S+)", text)
    if named:
        return (
            f"holds code or objects besides tensors ({named[1]}), so it was not opened."
            " mend: in the library that made it, save `model.state_dict()` alone."
        )
    reason = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    first = reason[1] if reason else text.strip().partition("\n")[0]
    return f"cannot be read as a PyTorch file ({type(error).__name__}: {first[:160]}). mend: fetch it again."


def _walk(root: Any) -> None:
    """Refuse nesting and repetition without end; each container is entered once, however often it is shared."""
    seen: set[int] = set()
    level, depth = [root], 0
    while level:
        if depth > MOST_DEPTH:
            raise Refused(f"nests deeper than {MOST_DEPTH} levels; weights never do. mend: do not use this file.")
        below: list[Any] = []
        for item in level:
            if id(item) in seen:
                continue
            seen.add(id(item))
            below += _children(item)
        if len(below) + len(seen) > MOST_ITEMS:
            raise Refused(f"holds more than {MOST_ITEMS} things; weights never do. mend: do not use this file.")
        level, depth = below, depth + 1


def _children(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return [v for v in item.values() if isinstance(v, Mapping | list | tuple)]
    if isinstance(item, list | tuple):
        return [v for v in item if isinstance(v, Mapping | list | tuple)]
    return []


def _is_state(item: Any) -> bool:
    import torch

    return isinstance(item, Mapping) and any(isinstance(v, torch.Tensor) for v in item.values())


def _unwrap(loaded: Any, key: str | None) -> tuple[Mapping[str, Any], list[str]]:
    """Return the state dict inside a training file, and what was decided."""
    if not isinstance(loaded, Mapping):
        raise Refused(f"holds a {type(loaded).__name__}, expected a dict of tensors. mend: save `model.state_dict()`.")
    if key is not None:
        if not _is_state(loaded.get(key)):
            have = ", ".join(str(k) for k, v in loaded.items() if _is_state(v)) or "none"
            raise Refused(f"has no weights under {key!r}; sets of weights in it: {have}.")
        return loaded[key], []
    inside = [w for w in WRAPPERS if _is_state(loaded.get(w))]
    if _is_state(loaded) and not inside:
        return loaded, []
    inside += [str(k) for k, v in loaded.items() if _is_state(v) and k not in WRAPPERS]
    if not inside:
        raise Refused("holds no dict of tensors. mend: save `model.state_dict()`.")
    notes = [f"took the weights under {inside[0]!r}"]
    if len(inside) > 1:
        notes[0] += f"; the file also holds {', '.join(inside[1:4])}"
    return loaded[inside[0]], notes


def _collect(state: Mapping[Any, Any], file_size: int, notes: list[str]) -> dict[str, Any]:
    """Return contiguous copies of the tensors, named as the model names them; refuse tensors larger than their data."""
    import torch

    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    others = [str(k) for k in state if str(k) not in tensors]
    if others:
        notes.append(f"left out what is no tensor: {', '.join(others[:5])}")
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise Refused(f"holds the sparse or quantised tensor {name}. mend: save dense weights.")
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes():
            raise Refused(f"holds the tensor {name} of shape {tuple(tensor.shape)}, larger than its data.")
    if total > 2 * file_size:
        raise Refused("its tensors are larger than the file; they share their data over and over.")
    strip = next((p for p in reversed(PREFIXES) if all(n.startswith(p) for n in tensors)), "")
    return {n.removeprefix(strip): t.detach().clone().contiguous() for n, t in tensors.items()}


# ---- numpy


def _read_npz(source: Path) -> tuple[dict[str, Any], list[str]]:
    import numpy as np

    if not zipfile.is_zipfile(source):
        raise Refused("is not an .npz archive, or a damaged one. mend: fetch it again.")
    _check_zip(source)
    found: dict[str, Any] = {}
    notes: list[str] = []
    try:
        with np.load(source, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how numpy stores JAX's bfloat16
                    found[name] = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
                elif array.dtype.kind == "f":
                    found[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
                else:
                    notes.append(f"left out {name}, an array of {array.dtype}")
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            raise Refused("holds pickled objects, so it was not opened. mend: save arrays of numbers only.") from None
        raise Refused(f"is a damaged .npz file ({error}). mend: fetch it again.") from None
    return found, notes


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
