"""Tables of names: which of our tensors is made of which of theirs, and how; :mod:`.convert` runs them.

An :class:`Entry` is one line of a table; ``{i}`` and ``{j}`` in a name stand for numbers, of a stage or a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

Numbers = Mapping[str, int]
"""The few numbers of a model that a transform may need to undo a reshape, such as ``num_heads``."""


@dataclass(frozen=True)
class Transform:
    """A reversible change of layout: ``to_ours(parts, numbers)`` and ``to_theirs(tensor, count, numbers)``."""

    name: str
    to_ours: Callable[[Sequence[Tensor], Numbers], Tensor]
    to_theirs: Callable[[Tensor, int, Numbers], Sequence[Tensor]]


SAME = Transform("same", lambda parts, n: parts[0], lambda t, count, n: [t])
TRANSPOSE = Transform("transpose", lambda parts, n: parts[0].T, lambda t, count, n: [t.T])
CONCAT = Transform("concat", lambda parts, n: torch.cat(list(parts)), lambda t, count, n: t.chunk(count))
Q_KV = Transform(  # queries apart, keys and values together
    "q and kv", lambda parts, n: torch.cat(list(parts)), lambda t, count, n: (t[: len(t) // 3], t[len(t) // 3 :])
)
HWIO = Transform(  # Flax convolution kernel (h, w, in, out) -> (out, in, h, w)
    "hwio", lambda parts, n: parts[0].permute(3, 2, 0, 1), lambda t, count, n: [t.permute(2, 3, 1, 0)]
)
SQUEEZE_1X1 = Transform(  # a convolution of one pixel (out, in, 1, 1) is a linear layer (out, in)
    "squeeze 1x1", lambda parts, n: parts[0].squeeze((-2, -1)), lambda t, count, n: [t[:, :, None, None]]
)


@dataclass(frozen=True)
class Entry:
    """Our tensor, the tensors of theirs it is made of, and how.

    ``{i}`` and ``{j}`` are numbers that both names share; theirs may count from elsewhere and write them wider:
    ``{i+1}``, ``{j:02}``, ``{j+1:02}``. ``{i}`` in ours only: theirs holds all layers, stacked along a leading axis
    (Flax ``scan``).
    """

    ours: str
    theirs: tuple[str, ...]
    transform: Transform = SAME

    def __post_init__(self) -> None:
        own = set(_PLACE.findall(self.ours))
        known = {letter for letter, *_ in own}
        wrong = [t for t in self.theirs if {letter for letter, *_ in _PLACE.findall(t)} not in ({*known}, set())]
        if wrong or any(offset or width for _, offset, width in own) or (self.stacked and known != {"i"}):
            raise ValueError(f"expected the numbers of {self.ours} in every name it is made of, got {self.theirs}")

    @cached_property
    def stacked(self) -> bool:
        """Whether theirs holds all layers in one tensor."""
        return "{i}" in self.ours and not _PLACE.search(self.theirs[0])

    def fill(self, numbers: Numbers) -> tuple[str, ...]:
        """Return their names with the numbers filled in."""
        return tuple(_PLACE.sub(lambda m: _number(m, numbers), t) for t in self.theirs)


_PLACE = re.compile(r"\{([ij])([+-]\d+)?(?::0(\d+))?\}")


def _number(place: re.Match[str], numbers: Numbers) -> str:
    letter, offset, width = place.groups()
    return f"{numbers[letter] + int(offset or 0):0{int(width or 0)}}"


@dataclass(frozen=True)
class Table:
    """One layout of one family.

    Attributes:
        layout: what users call it: ``timm``, ``transformers``, ``original``.
        title: what messages call it.
        entries: the mapping.
        ignored: patterns (``*`` allowed) of names in files that carry no weight and may be skipped.
        prefixes: prefixes the whole file may carry; the first is written.
        head: patterns of *our* names that a new classifier replaces.
    """

    layout: str
    title: str
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    head: tuple[str, ...] = ("head.*", "head_dist.*", "pre_logits.*")

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        return {entry.ours: entry for entry in self.entries}

    def entry_of(self, name: str) -> tuple[Entry, dict[str, int]] | None:
        """Return the entry that makes our tensor ``name``, and its numbers; the more of them it spells out, the better.

        Any number of a name may be the ``{i}`` of an entry, and any later one its ``{j}``.
        """
        spots = list(_NUMBER.finditer(name))
        for count in range(min(len(spots), 2) + 1):
            for chosen in combinations(spots, count):
                entry = self._by_name.get(_with_places(name, chosen))
                if entry is not None:
                    return entry, {letter: int(spot[0]) for letter, spot in zip("ij", chosen, strict=False)}
        return None


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def _with_places(name: str, chosen: Sequence[re.Match[str]]) -> str:
    """Put ``{i}`` and ``{j}`` where the chosen numbers stand."""
    for letter, spot in reversed(list(zip("ij", chosen, strict=False))):
        name = f"{name[: spot.start()]}{{{letter}}}{name[spot.end() :]}"
    return name


def module(ours: str, *theirs: str, transform: Transform = SAME) -> tuple[Entry, Entry]:
    """Two entries, for the ``weight`` and the ``bias`` of a module that both sides store alike."""
    weight, bias = (
        Entry(f"{ours}.{kind}", tuple(f"{t}.{kind}" for t in theirs), transform) for kind in ("weight", "bias")
    )
    return weight, bias


def batch_norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    """The four tensors of a batch norm that a result depends on."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    return tuple(Entry(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in kinds)


def own_table(entries: Iterable[Entry], head: tuple[str, ...] | None = None) -> Table:
    """Return the table of our own names, for the tensors that ``entries`` speak of."""
    names = dict.fromkeys(e.ours for e in entries)
    table = Table("vitrail", "Vitrail", tuple(Entry(n, (n,)) for n in names))
    return table if head is None else replace(table, head=head)


COUNTER = "num_batches_tracked"


def counted(name: str) -> bool:
    """Whether a tensor is the counter of a batch norm, which is in no account."""
    return name.rpartition(".")[2] == COUNTER


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns, in which ``*`` stands for anything."""
    return any(fnmatchcase(name, p) for p in patterns)


def with_prefix(entries: Iterable[Entry], prefix: str) -> tuple[Entry, ...]:
    """Put a prefix before every name of theirs."""
    return tuple(replace(e, theirs=tuple(prefix + t for t in e.theirs)) for e in entries)
