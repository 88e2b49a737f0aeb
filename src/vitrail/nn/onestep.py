"""One token a row through a stack of pre-norm blocks: what painting and writing do a thousand times.

A token is little work, and the layers around it (modules, checks, dropout that is off) take longer than the products
themselves. Here the weights of blocks that are as they were made are gathered once, and a step is the bare operators.
The numbers agree to rounding with those of the blocks.

B rows, H heads, D width of one head, C width, M keys so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, attend
from .cache import KVCache
from .feedforward import FeedForward
from .fused import ACTIVATIONS, Linear
from .residual import PreNormBlock
from .shortcuts import at_once, plain, watched

Map = Callable[[Tensor], Tensor]
Layer = tuple[Tensor, Tensor | None]
"""Matrix and bias: (C', C) of ``qkv`` and ``up``, (C', C) transposed of what is added to the tokens."""
QUICK = 1.702  # quick GELU of y is silu(1.702 y) / 1.702: the factors go into the matrices beside it


@dataclass(frozen=True)
class Weights:
    """What one block does to one token a row (B, C)."""

    heads: int
    norm1: Map
    qkv: Layer
    proj: Layer
    norm2: Map
    up: Layer
    act: Map
    down: Layer


def gather(blocks: Iterable[nn.Module]) -> list[Weights] | None:
    """Return the weights of all blocks; None where one of them must be run as it is.

    That is: in training, with gradients, with hooks or tapes on a part, with layers that were replaced.
    """
    if torch.is_grad_enabled() or not at_once():
        return None
    found = []
    for block in blocks:
        if type(block) is not PreNormBlock or block.training or watched(block):
            return None
        attn, mlp = block.attn, block.mlp
        if type(attn) is not Attention or type(mlp) is not FeedForward or not _bare(block):
            return None
        if not all(plain(layer, Linear) for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)):
            return None
        found.append(_weights(block, attn, mlp))
    return found


def _bare(block: PreNormBlock) -> bool:
    norms = all(plain(norm, nn.RMSNorm, nn.LayerNorm) for norm in (block.norm1, block.norm2))
    return norms and type(block.ls1) is nn.Identity and type(block.ls2) is nn.Identity


def _weights(block: PreNormBlock, attn: Attention, mlp: FeedForward) -> Weights:
    up, up_bias = _after(block.norm2, mlp.fc1.weight, mlp.fc1.bias)
    down: Tensor = mlp.fc2.weight
    act = ACTIVATIONS[mlp.act]
    if mlp.act == "quick_gelu":
        up, up_bias = up * QUICK, None if up_bias is None else up_bias * QUICK
        down, act = down / QUICK, F.silu
    qkv, qkv_bias = _after(block.norm1, attn.qkv.weight, attn.qkv.bias)
    return Weights(
        heads=attn.num_heads,
        norm1=_norm(block.norm1),
        qkv=(qkv, qkv_bias),
        proj=(attn.proj.weight.t(), attn.proj.bias),
        norm2=_norm(block.norm2),
        up=(up, up_bias),
        act=act,
        down=(down.t(), mlp.fc2.bias),
    )


def _after(norm: nn.Module, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return a layer with the scale (and shift) of the norm before it in its own weights."""
    if isinstance(norm.bias if isinstance(norm, nn.LayerNorm) else None, Tensor):
        shift = weight @ norm.bias  # type: ignore[operator]
        bias = shift if bias is None else bias + shift
    scale = norm.weight
    return (weight * scale, bias) if isinstance(scale, Tensor) else (weight, bias)


def _norm(norm: nn.Module) -> Map:
    """Return a norm without scale and shift, (B, C) -> (B, C)."""
    if isinstance(norm, nn.RMSNorm):
        eps = torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
        return lambda x: x * x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    assert isinstance(norm, nn.LayerNorm)
    shape = list(norm.normalized_shape)
    return partial(F.layer_norm, normalized_shape=shape, eps=norm.eps)


class Memory:
    """Keys and values of one block, for at most ``room`` tokens: those of each head lie side by side.

    One query reads them all, and reads them fastest in this order; :class:`~vitrail.nn.cache.KVCache` has the order in
    which rows are moved fastest, as beams do.
    """

    def __init__(self, room: int, cache: KVCache) -> None:
        self.room, self.length = room, cache.length
        self._store: Tensor | None = None  # (2, B, H, room, D)
        if cache.filled:
            both = torch.stack(cache.read())
            self._store = both.new_empty(*both.shape[:3], room, both.shape[4])
            self._store[:, :, :, : self.length] = both

    def append(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (2, B, H, D) of one more token; return all keys and all values (B, H, M, D)."""
        if self._store is None:
            self._store = both.new_empty(*both.shape[:3], self.room, both.shape[3])
        self._store.select(3, self.length).copy_(both)
        self.length += 1
        k, v = self._store.narrow(3, 0, self.length).unbind(0)
        return k, v

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` (b,) int64, in that order."""
        if self._store is not None:
            self._store = self._store[:, rows]


def step(x: Tensor, weights: Sequence[Weights], memories: Sequence[Memory]) -> Tensor:
    """Move one token a row (B, C) through all blocks, causally; the memories then hold it too. Returns (B, C)."""
    rows = x.shape[0]
    for block, memory in zip(weights, memories, strict=True):
        three = F.linear(block.norm1(x), *block.qkv).view(rows, 3, block.heads, -1)
        keys, values = memory.append(three[:, 1:].transpose(0, 1))
        mixed = attend(three[:, :1].transpose(1, 2), keys, values)
        x = _add(x, mixed.reshape(rows, -1), *block.proj)
        x = _add(x, block.act(F.linear(block.norm2(x), *block.up)), *block.down)
    return x


def _add(x: Tensor, y: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x + y matrix + bias``: (B, C), (B, C'), (C', C) -> (B, C)."""
    out = torch.addmm(x, y, matrix)
    return out if bias is None else out + bias
