"""Keys and values that were computed before, for decoding one token at a time.

B batch, H heads, M keys so far, D width of one head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """A growing store of keys and values (B, H, M, D); room doubles, so that appending costs O(1) on average.

    They lie in memory as (B, M, H, D): a step writes one piece a row, and a row is moved as one piece.
    """

    def __init__(self) -> None:
        self._k: Tensor | None = None
        self._v: Tensor | None = None
        self._spare: tuple[Tensor, Tensor] | None = None  # where rows are moved to; then they change places
        self.length = 0

    @property
    def filled(self) -> bool:
        """Whether anything was stored."""
        return self.length > 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k`` and ``v`` (B, H, n, D) after what is there; return all keys and all values."""
        end = self.length + k.shape[2]
        self._k = _with_room(self._k, k, self.length, end)
        self._v = _with_room(self._v, v, self.length, end)
        self._k[:, self.length : end] = k.transpose(1, 2)
        self._v[:, self.length : end] = v.transpose(1, 2)
        self.length = end
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """Return all keys and all values stored so far; views, not copies."""
        if self._k is None or self._v is None:
            raise ValueError("expected a cache that was filled, got an empty one: call append first")
        return self._k[:, : self.length].transpose(1, 2), self._v[:, : self.length].transpose(1, 2)

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` (b,) int64, in that order: what beam search does after each step."""
        if self._k is None or self._v is None:
            return
        spare = self._spare or (None, None)
        self._spare = self._k, self._v
        self._k = _moved(self._k, spare[0], rows, self.length)
        self._v = _moved(self._v, spare[1], rows, self.length)


def _with_room(store: Tensor | None, new: Tensor, used: int, end: int) -> Tensor:
    if store is not None and store.shape[1] >= end:
        return store
    room = end if store is None else max(end, 2 * store.shape[1])
    grown = new.new_empty(new.shape[0], room, new.shape[1], new.shape[3])
    if store is not None:
        grown[:, :used] = store[:, :used]
    return grown


def _moved(store: Tensor, spare: Tensor | None, rows: Tensor, used: int) -> Tensor:
    """Return the first ``used`` keys of ``rows``, with the same room; in ``spare`` if that is large enough."""
    if torch.is_grad_enabled() and store.requires_grad:
        return store[rows]
    if spare is None or spare.shape[0] < len(rows) or spare.shape[1] < store.shape[1] or spare.requires_grad:
        spare = store.new_empty(len(rows), *store.shape[1:])
    into = spare[: len(rows)]
    torch.index_select(store[:, :used], 0, rows, out=into[:, :used])
    return into


def caches(count: int) -> list[KVCache]:
    """Return one empty cache a layer."""
    return [KVCache() for _ in range(count)]
