"""Layers of text encoders and decoders, and what a decoder remembers between steps.

Sources: Vaswani et al. 2017, arXiv 1706.03762, section 3.1 (post-norm: ``norm(x + drop(branch(x)))``); Xiong et al.
2020, arXiv 2002.04745 (pre-norm: ``x + drop(branch(norm(x)))``).

B batch, T tokens, S source tokens, C width, R rows that are decoded, w rows of one source (beams).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .attention import Attention
from .cache import KVCache, caches
from .dropout import Dropout
from .fused import eager_linear
from .quick import QuickLayer, quick_layers, steps_quickly
from .steps import State


class Mixer(Protocol):
    """What mixes the tokens of a text in a decoder's layer: each position hears of itself and of earlier ones only.

    It is a module and a part: causal self-attention, or whatever else can stand in its place (retention). Reading a
    text at once, or piece by piece with a memory, gives the same numbers.
    """

    def __call__(self, x: Tensor, memory: Any = None) -> Tensor:
        """(B, T, C) -> (B, T, C).

        Without a memory, ``x`` is a whole text. With one, ``x`` are the T tokens that follow those which the memory
        has read; it then holds these too.
        """

    def new_memory(self) -> State:
        """Return a memory of nothing read yet; it learns the batch, the type and the device from what it reads.

        Its ``select`` does nothing as long as nothing was read.
        """


class CausalAttention(nn.Module):
    """Self-attention that sees no later token: the :class:`Mixer` of the Transformer."""

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads, attn_drop=attn_drop)

    def forward(self, x: Tensor, memory: KVCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); with a memory, ``x`` follows what that has read."""
        mixed: Tensor = self.attn(x, causal=True, cache=memory)
        return mixed

    def new_memory(self) -> KVCache:
        """Return an empty cache of keys and values."""
        return KVCache()


class AddedLayer(nn.Module):
    """How every sublayer is added: dropout, the sum, and a norm before the branch or after the sum."""

    def __init__(self, drop: float, norm_first: bool) -> None:
        super().__init__()
        self.drop = Dropout(drop)
        self.norm_first = norm_first

    def _add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        out: Tensor = x + self.drop(branch(norm(x))) if self.norm_first else norm(x + self.drop(branch(x)))
        return out


class EncoderLayer(AddedLayer):
    """Self-attention over all tokens, then the feed-forward network.

    Args:
        attn: attention over the tokens.
        mlp: what each token goes through by itself.
        dim: width C.
        eps: epsilon of the layer norms.
        drop: dropout of both branches.
        norm_first: whether the norms stand before the branches (pre-norm) or after the sums (post-norm).
    """

    def __init__(
        self, attn: Attention, mlp: nn.Module, dim: int, *, eps: float, drop: float = 0.0, norm_first: bool = False
    ) -> None:
        super().__init__(drop, norm_first)
        self.attn = attn
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.norm2 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, S, C) -> (B, S, C); ``keep`` (B, S) bool is True where a token is real."""
        x = self._add(x, self.norm1, lambda y: self.attn(y, keep=keep))
        return self._add(x, self.norm2, self.mlp)


class DecoderLayer(AddedLayer):
    """What mixes the text so far, attention to the source if there is one, then the feed-forward network.

    Args:
        mixer: causal self-attention, or what stands in its place; see :class:`Mixer`.
        mlp: what each token goes through by itself.
        dim: width C.
        cross: attention to the source; None for a decoder alone.
        eps: epsilon of the layer norms.
        drop: dropout of each branch.
        norm_first: see :class:`EncoderLayer`.
    """

    def __init__(
        self,
        mixer: Mixer,
        mlp: nn.Module,
        dim: int,
        *,
        cross: Attention | None = None,
        eps: float,
        drop: float = 0.0,
        norm_first: bool = False,
    ) -> None:
        super().__init__(drop, norm_first)
        self.mixer = mixer
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.cross = cross
        self.norm2 = nn.Identity() if cross is None else nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.norm3 = nn.LayerNorm(dim, eps=eps)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        keep: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        memory: State | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(R, T, C) -> (R, T, C).

        Args:
            x: tokens of the text; with a memory, those that follow what it has read.
            context: source (B, S, C) for the cross-attention; w = R / B rows in a row are of one source.
            keep: (B, S) bool, True where the source is real.
            bias: the same as 0 and minus infinity, (B, 1, 1, S): what many steps need is made once.
            memory: what the mixer has read so far.
            cache: keys and values of the source, filled at the first call.
        """
        x = self._add(x, self.norm1, lambda y: self.mixer(y, memory))
        if context is not None:
            x = self._add(x, self.norm2, lambda y: self._read(y, context, keep, bias, cache))
        return self._add(x, self.norm3, self.mlp)

    def _read(
        self, x: Tensor, context: Tensor, keep: Tensor | None, bias: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Attend to the source; the rows of one source ask as if they were more tokens of one row."""
        assert self.cross is not None
        asked = x.reshape(context.shape[0], -1, x.shape[-1])
        answer: Tensor = self.cross(asked, context, keep=keep, bias=bias, cache=cache)
        return answer.view(x.shape)


class DecoderState:
    """What a stack of :class:`DecoderLayer` remembers: the text of each row, and each source once.

    Args:
        memories: what the mixer of each layer has read.
        context: encoded sources (B, S, C); None for a decoder alone.
        keep: (B, S) bool, True where a source is real.

    Attributes:
        quick: the layers as their weights, where steps may go by these; None where not.
        length: tokens read so far.
        width: rows that share a source; rows 0 .. w - 1 are of the first one.
    """

    def __init__(self, memories: Sequence[State], context: Tensor | None = None, keep: Tensor | None = None) -> None:
        self.memories = list(memories)
        self.caches = caches(len(self.memories))
        self.context = context
        self.bias = None if keep is None or context is None else _as_bias(keep, context)
        self.quick: list[QuickLayer] | None = None
        self.length = 0
        self.width = 1

    @property
    def read_source(self) -> bool:
        """Whether the keys and values of the source, if there is one, are there."""
        return self.context is None or all(cache.filled for cache in self.caches)

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order; what rows of one source share is not copied."""
        for memory in self.memories:
            memory.select(rows)
        if self.context is None:
            return
        sources, counts = torch.unique_consecutive(rows // self.width, return_counts=True)
        even = len(counts) > 0 and bool((counts == counts[0]).all())
        kept = sources if even else rows // self.width
        self.width = int(counts[0]) if even else 1
        if len(kept) != len(self.context) or bool((kept != torch.arange(len(kept), device=kept.device)).any()):
            self.context = self.context[kept]
            self.bias = None if self.bias is None else self.bias[kept]
            for cache in self.caches:
                cache.select(kept)


def _as_bias(keep: Tensor, context: Tensor) -> Tensor:
    """Return what is added to scores: (B, S) bool -> (B, 1, 1, S), 0 where True and minus infinity elsewhere."""
    return context.new_zeros(len(keep), 1, 1, keep.shape[1]).masked_fill(~keep[:, None, None], float("-inf"))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer` and what comes after the last of them: a norm or nothing."""

    def __init__(self, layers: Iterable[EncoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, S, C) -> (B, S, C); ``keep`` (B, S) bool is True where a token is real."""
        for layer in self.layers:
            x = layer(x, keep)
        out: Tensor = self.norm(x)
        return out


class Decoder(nn.Module):
    """A stack of :class:`DecoderLayer` and what comes after the last of them: a norm or nothing."""

    def __init__(self, layers: Iterable[DecoderLayer], norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, context: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Text (B, T, C), source (B, S, C) and its ``keep`` (B, S) if there is one -> (B, T, C)."""
        for layer in self.layers:
            x = layer(x, context, keep)
        out: Tensor = self.norm(x)
        return out

    def begin(self, context: Tensor | None = None, keep: Tensor | None = None) -> DecoderState:
        """Return the state before the first token of the text."""
        mixers = [layer.mixer for layer in self.layers if isinstance(layer, DecoderLayer)]
        state = DecoderState([mixer.new_memory() for mixer in mixers], context, keep)
        state.quick = quick_layers(self, self.layers)
        return state

    def step(self, x: Tensor, state: DecoderState) -> Tensor:
        """Read the tokens (R, T, C) that follow; returns (R, T, C), and ``state`` moves on by T."""
        if state.quick is not None and state.read_source and steps_quickly(x):
            x = self._step_quickly(x[:, 0], state.quick, state)[:, None]
        else:
            for layer, memory, cache in zip(self.layers, state.memories, state.caches, strict=True):
                x = layer(x, state.context, bias=state.bias, memory=memory, cache=cache)
        state.length += x.shape[1]
        out: Tensor = self.norm(x)
        return out

    def _step_quickly(self, x: Tensor, layers: Sequence[QuickLayer], state: DecoderState) -> Tensor:
        """(R, C) -> (R, C)."""
        product = eager_linear(x)
        for layer, memory, cache in zip(layers, state.memories, state.caches, strict=True):
            assert isinstance(memory, KVCache)
            x = layer(x, product, memory, None if state.context is None else (cache, state.bias))
        return x
