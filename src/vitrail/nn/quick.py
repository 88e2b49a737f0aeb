"""One step of a decoder's layers on their weights alone, without the modules around them.

A step of a small model is so little work that calling fifty modules takes as long as the products. The numbers are
those of the layers; who hooks into one, replaces a part or records attention gets the layers themselves, as long as it
is done before the state is made (:mod:`.shortcuts`).

R rows, w rows of one source, C width, H heads, D width of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, attend
from .cache import KVCache
from .feedforward import FeedForward
from .fused import ACTIVATIONS, Linear, Product
from .shortcuts import at_once, plain, watched

if TYPE_CHECKING:
    from .decoder import DecoderLayer


class QuickLayer:
    """The weights of one decoder layer, and its step.

    Args:
        layer: a layer whose mixer is causal attention; see :func:`quick_layers` for what else is asked.
    """

    def __init__(self, layer: DecoderLayer, attn: Attention) -> None:
        self.norm_first = layer.norm_first
        self.heads = attn.num_heads
        self.norms = [_norm(norm) for norm in (layer.norm1, layer.norm2, layer.norm3) if isinstance(norm, nn.LayerNorm)]
        self.qkv, self.proj = _weights(attn.qkv), _weights(attn.proj)
        self.cross: tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None], int] | None = None
        if layer.cross is not None:
            weight, bias = _weights(layer.cross.qkv)
            inner = layer.cross.inner_dim
            query = weight[:inner], None if bias is None else bias[:inner]
            self.cross = query, _weights(layer.cross.proj), layer.cross.num_heads
        assert isinstance(layer.mlp, FeedForward)
        self.fc1, self.fc2, self.act = _weights(layer.mlp.fc1), _weights(layer.mlp.fc2), ACTIVATIONS[layer.mlp.act]

    def __call__(
        self, x: Tensor, product: Product, memory: KVCache, source: tuple[KVCache, Tensor | None] | None
    ) -> Tensor:
        """(R, C) -> (R, C); ``source`` is the filled cache of the cross-attention and what is added to its scores."""
        norms = iter(self.norms)
        x = self._add(x, next(norms), lambda y: self._mix(y, memory, product))
        if source is not None:
            x = self._add(x, next(norms), lambda y: self._read(y, *source, product))
        return self._add(x, next(norms), lambda y: product(self.act(product(y, *self.fc1)), *self.fc2))

    def _add(self, x: Tensor, norm: Callable[[Tensor], Tensor], branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x + branch(norm(x)) if self.norm_first else norm(branch(x).add_(x))

    def _mix(self, x: Tensor, memory: KVCache, product: Product) -> Tensor:
        q, k, v = product(x, *self.qkv).view(x.shape[0], 3, self.heads, 1, -1).unbind(1)
        mixed = attend(q, *memory.append(k, v))
        return product(mixed.reshape(x.shape[0], -1), *self.proj)

    def _read(self, x: Tensor, cache: KVCache, bias: Tensor | None, product: Product) -> Tensor:
        assert self.cross is not None
        query, proj, heads = self.cross
        k, v = cache.read()
        q = product(x, *query).view(k.shape[0], -1, heads, k.shape[-1]).transpose(1, 2)
        read = attend(q, k, v, bias=bias).transpose(1, 2)
        return product(read.reshape(x.shape[0], -1), *proj)


def quick_layers(stack: nn.Module, layers: Iterable[nn.Module]) -> list[QuickLayer] | None:
    """Return the layers of a stack as their weights; None where a part is not what it was made as, or is watched."""
    from .decoder import CausalAttention, DecoderLayer

    if stack.training or watched(stack):
        return None
    found = []
    for layer in layers:
        if type(layer) is not DecoderLayer or type(layer.mixer) is not CausalAttention:
            return None
        attentions = [a for a in (layer.mixer.attn, layer.cross) if a is not None]
        if type(layer.mlp) is not FeedForward or any(type(a) is not Attention for a in attentions):
            return None
        linears = [layer.mlp.fc1, layer.mlp.fc2, *(part for a in attentions for part in (a.qkv, a.proj))]
        norms = [layer.norm1, layer.norm3] if layer.cross is None else [layer.norm1, layer.norm2, layer.norm3]
        if not all(plain(part, Linear) and type(part.weight) is nn.Parameter for part in linears) or not all(
            plain(norm, nn.LayerNorm) for norm in norms
        ):
            return None
        found.append(QuickLayer(layer, layer.mixer.attn))
    return found


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    assert isinstance(layer, nn.Linear)
    return layer.weight, layer.bias


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)


def steps_quickly(x: Tensor) -> bool:
    """Whether tokens (R, T, C) are one a row, and nothing but their numbers is asked for."""
    bare = not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
    return x.shape[1] == 1 and bare and at_once()
