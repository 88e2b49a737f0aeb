"""Sources of weights: a state dict, a file, a folder or a hub id, read into tensors with what is known of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import WeightsError

from .atomic import recover
from .cards import Card

if TYPE_CHECKING:
    from .folder import Folder

HUB_PREFIX = "hf-hub:"
FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class Source:
    """Tensors, and what came with them.

    Attributes:
        tensors: name in the file -> tensor.
        origin: how messages name the source.
        card: what is known about the weights.
        config: our config of the model the file was made with, if known.
        classes: the classes of its head, if named.
        notes: sentences to show to the user.
    """

    tensors: Mapping[str, Tensor]
    origin: str
    card: Card | None = None
    config: Any = None
    classes: ClassMap | None = None
    notes: list[str] = field(default_factory=list)


def is_hub_id(text: str) -> bool:
    """Whether a text names a hub repository: it carries the prefix, or looks like ``org/name`` and like no path.

    A mistyped path must not reach for the network: a name of a weights file, or one whose first part is a folder here,
    is a path.
    """
    if text.startswith(HUB_PREFIX):
        return True
    first = Path(text.partition("/")[0])
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith((".safetensors", *FOREIGN)) and not first.exists()


def to_folder(source: str | Path) -> Path:
    """Return the local folder of a folder, a run folder (its best weights) or a hub id (fetched if need be)."""
    text = str(source)
    if is_hub_id(text):
        from .hub import resolve

        return resolve(text)
    path = Path(text).expanduser()
    recover(path)
    if not path.exists():
        raise WeightsError(
            f"no file or folder {text}. mend: check the path, or name a hub model as {HUB_PREFIX}org/name"
        )
    if not path.is_dir():
        raise WeightsError(f"expected a folder with config.json and weights, got the file {text}")
    if (path / ".metadata").exists():
        raise WeightsError(
            f"{text} is a torch.distributed checkpoint, whose metadata is a pickle that runs code when read; it was not"
            " opened. mend: in the library that made it, save the state dict as safetensors."
        )
    if not (path / "config.json").exists() and (path / "best" / "config.json").exists():
        return path / "best"
    return path


def read_source(source: str | Path | Mapping[str, Tensor]) -> Source:
    """Read any source; :class:`WeightsError` says what is wrong with it."""
    if isinstance(source, Mapping):
        strangers = [str(k) for k, v in source.items() if not isinstance(v, Tensor)]
        if strangers:
            raise WeightsError(
                f"expected a state dict of tensors, got other things under {', '.join(strangers[:3])}."
                " mend: pass the state dict inside it, such as checkpoint['model']."
            )
        return Source(dict(source), "the state dict")
    path = Path(str(source)).expanduser()
    if path.is_file():
        return _read_file(path)
    from .folder import open_folder

    return from_folder(open_folder(source), str(source))


def _read_file(path: Path) -> Source:
    from .foreign import read_foreign
    from .read import read_safetensors

    if path.suffix == ".safetensors":
        return Source(read_safetensors(path), str(path))
    if path.suffix in FOREIGN:
        found = read_foreign(path)
        return Source(found.tensors, str(path), notes=found.notes)
    raise WeightsError(
        f"expected a weights file (.safetensors, {', '.join(FOREIGN)}), got {path.name!r}. mend: check the path."
    )


def from_folder(folder: Folder, origin: str) -> Source:
    """Read the weights of an opened folder."""
    return Source(folder.tensors(), origin, folder.card, folder.config, folder.classes, list(folder.notes))
