"""The class map: source id -> index -> name, one hashed object carried by data, checkpoint, export and server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import DataError


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set or a model, in index order.

    ``names[i]`` is shown to people; ``ids[i]`` is what the source calls the class (a folder name, a CSV value,
    a COCO category id). For most sources the two are equal.
    """

    names: tuple[str, ...]
    ids: tuple[str | int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise DataError(f"expected one name per class id, got {len(self.names)} names and {len(self.ids)} ids")
        repeated = sorted({str(i) for i in self.ids if self.ids.count(i) > 1})
        if repeated:
            raise DataError(f"expected each class id once, got these more than once: {', '.join(repeated)}")

    @classmethod
    def of(cls, names: Sequence[str]) -> ClassMap:
        """Build a map whose ids are the names themselves."""
        return cls(tuple(names), tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits that change when any id, name or their order changes."""
        text = json.dumps([list(self.ids), list(self.names)], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _index(self) -> dict[str | int, int]:
        return {source_id: i for i, source_id in enumerate(self.ids)}

    def index(self, source_id: str | int) -> int:
        """Return the index of a source id; :class:`DataError` names the known ones."""
        try:
            return self._index[source_id]
        except KeyError:
            raise DataError(f"unknown class {source_id!r}; the classes are {self.summary()}") from None

    def summary(self, most: int = 8) -> str:
        """Return the first names, and how many more there are."""
        shown = ", ".join(self.names[:most])
        return shown if len(self) <= most else f"{shown} and {len(self) - most} more"

    def require_equal(self, other: ClassMap, *, mine: str, theirs: str) -> None:
        """Raise :class:`DataError` that lists the differences and the fix, unless both maps are the same."""
        if self.hash == other.hash:
            return
        missing = [n for n in self.names if n not in other.names]
        extra = [n for n in other.names if n not in self.names]
        lines = [f"the classes of {theirs} ({len(other)}) are not those of {mine} ({len(self)})."]
        if missing:
            lines.append(f"  only in {mine}: {', '.join(missing[:10])}")
        if extra:
            lines.append(f"  only in {theirs}: {', '.join(extra[:10])}")
        if not missing and not extra:
            lines.append("  the names are the same but their order or source ids differ")
        lines.append(f"  mend: rename the classes of {theirs} to match, or train a new model on {theirs}.")
        raise DataError("\n".join(lines))

    def order_of(self, other: ClassMap, *, mine: str, theirs: str) -> list[int]:
        """Return the index here of each class of ``other``, matched by name: the same classes in any order will do.

        Raises :class:`DataError` as :meth:`require_equal` does if the names are not the same.
        """
        if len(self) == len(other) == len(set(self.names)) and set(self.names) == set(other.names):
            return [self.names.index(name) for name in other.names]
        self.require_equal(other, mine=mine, theirs=theirs)
        return list(range(len(self)))

    def to_json(self) -> dict[str, Any]:
        """Return what ``classes.json`` holds."""
        return {"names": list(self.names), "ids": list(self.ids), "hash": self.hash}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClassMap:
        """Read what :meth:`to_json` wrote; a hash that does not fit its own names is an error."""
        found = cls(tuple(data["names"]), tuple(data["ids"]))
        if "hash" in data and data["hash"] != found.hash:
            raise DataError(
                f"classes.json was changed by hand: its hash says {data['hash']}, its names give {found.hash}"
            )
        return found
