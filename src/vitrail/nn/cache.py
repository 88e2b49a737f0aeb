"""Keys and values that were computed before, for decoding one token at a time.

B batch, H heads, M keys so far, D width of one head.
"""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """A growing store of keys and values (B, H, M, D); room doubles, so that appending costs O(1) on average."""

    def __init__(self) -> None:
        self._both: Tensor | None = None  # (2, B, H, room, D)
        self.length = 0

    @property
    def filled(self) -> bool:
        """Whether anything was stored."""
        return self.length > 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``k`` and ``v`` (B, H, n, D) after what is there; return all keys and all values."""
        store, start = self._make_room(k), self.length
        self.length += k.shape[2]
        store[0, :, :, start : self.length] = k
        store[1, :, :, start : self.length] = v
        return self.read()

    def append_one(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (2, B, H, D) of one more token; return all keys and all values."""
        store = self._both
        if store is None or store.shape[3] == self.length:
            store = self._make_room(both[0, :, :, None])
        store.select(3, self.length).copy_(both)
        self.length += 1
        k, v = store.narrow(3, 0, self.length).unbind(0)
        return k, v

    def read(self) -> tuple[Tensor, Tensor]:
        """Return all keys and all values stored so far; views, not copies."""
        if self._both is None:
            raise ValueError("expected a cache that was filled, got an empty one: call append first")
        k, v = self._both[:, :, :, : self.length].unbind(0)
        return k, v

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` (b,) int64, in that order: what beam search does after each step."""
        if self._both is not None:
            self._both = self._both[:, rows]

    def _make_room(self, new: Tensor) -> Tensor:
        """Return the store, large enough for ``new`` (B, H, n, D) behind what it holds."""
        store, end = self._both, self.length + new.shape[2]
        if store is None or store.shape[3] < end:
            room = end if store is None else max(end, 2 * store.shape[3])
            grown = new.new_empty(2, new.shape[0], new.shape[1], room, new.shape[3])
            if store is not None:
                grown[:, :, :, : self.length] = store[:, :, :, : self.length]
            self._both = store = grown
        return store


def caches(count: int) -> list[KVCache]:
    """Return one empty cache a layer."""
    return [KVCache() for _ in range(count)]
