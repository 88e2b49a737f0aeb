"""Keys and values that were computed before, for decoding one token at a time.

B batch, H heads, M keys so far, D width of one head.
"""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """A growing store of keys and values (B, H, M, D); room doubles, so that appending costs O(1) on average."""

    def __init__(self) -> None:
        self._k: Tensor | None = None
        self._v: Tensor | None = None
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
        self._k[:, :, self.length : end] = k
        self._v[:, :, self.length : end] = v
        self.length = end
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """Return all keys and all values stored so far; views, not copies."""
        if self._k is None or self._v is None:
            raise ValueError("expected a cache that was filled, got an empty one: call append first")
        return self._k[:, :, : self.length], self._v[:, :, : self.length]

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` (b,) int64, in that order: what beam search does after each step."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[rows], self._v[rows]


def _with_room(store: Tensor | None, new: Tensor, used: int, end: int) -> Tensor:
    if store is not None and store.shape[2] >= end:
        return store
    room = end if store is None else max(end, 2 * store.shape[2])
    grown = new.new_empty(new.shape[0], new.shape[1], room, new.shape[3])
    if store is not None:
        grown[:, :, :used] = store[:, :, :used]
    return grown


def caches(count: int) -> list[KVCache]:
    """Return one empty cache a layer."""
    return [KVCache() for _ in range(count)]
