"""Linear layers and convolutions by oneDNN's kernels, alone or with the activation behind them in one pass over memory.

What a layer writes goes out to memory, and an activation reads and writes it all again: for GELU as long as the layer
itself in narrow networks. oneDNN applies it while a number is still in a register. Its float32 matrix product is also
faster than the one torch takes for a linear layer: 1.05 to 2 times on the shapes of these models. torch uses those
kernels when it compiles, and here they are called in eager mode: on a CPU, where no gradient is asked for. Everywhere
else, and on a build of torch without them, torch's own steps are made. The numbers agree to rounding.

B batch, N tokens, C width, (h, w) map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .shortcuts import at_once

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu"]


def quick_gelu(x: Tensor) -> Tensor:
    """Return ``x · sigmoid(1.702 x)``, the approximation of GELU in CLIP and image GPT: (...) -> (...)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
    "relu": F.relu,
}
LARGE = 2**24  # multiply-adds of a product from which on a kernel's start does not count
_NAMES = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", ""), "relu": ("relu", "")}


class Linear(nn.Linear):
    """torch's linear layer (..., C) -> (..., C'), computed by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x weightᵀ + bias``: (..., C) -> (..., C')."""
    kernel = _kernel("_linear_pointwise", x, weight, bias, least=LARGE)
    if kernel is None:
        return F.linear(x, weight, bias)
    out: Tensor = kernel(x, weight, bias, "none", [], "")
    return out


def eager_linear(x: Tensor) -> Product:
    """Return :func:`linear` for tensors of the kind of ``x``, with its questions asked once for many calls."""
    kernel = _kernel("_linear_pointwise", x, x, None)
    if kernel is None:
        return F.linear

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.numel() * weight.shape[0] < LARGE:
            return F.linear(x, weight, bias)
        out: Tensor = kernel(x, weight, bias, "none", [], "")
        return out

    return product


def linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation) -> Tensor:
    """Return ``act(x weightᵀ + bias)``: (..., C) -> (..., C')."""
    kernel = _kernel("_linear_pointwise", x, weight, bias) if act in _NAMES else None
    if kernel is None:
        return ACTIVATIONS[act](linear(x, weight, bias))
    name, algorithm = _NAMES[act]
    out: Tensor = kernel(x, weight, bias, name, [], algorithm)
    return out


def conv_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: Activation,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Return ``act(conv2d(x, weight, bias))``: (B, C, h, w) -> (B, C', h', w')."""
    kernel = _kernel("_convolution_pointwise", x, weight, bias) if act in _NAMES else None
    if kernel is None:
        return ACTIVATIONS[act](F.conv2d(x, weight, bias, stride, padding, groups=groups))
    name, algorithm = _NAMES[act]
    out: Tensor = kernel(x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, name, [], algorithm)
    return out


def _kernel(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, *, least: int = 0) -> Callable[..., Any] | None:
    """Return oneDNN's kernel if it may be used on these tensors, and is asked for ``least`` multiply-adds or more."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or not at_once():
        return None
    if torch.is_autocast_enabled("cpu") or x.numel() * weight.shape[0] < least:
        return None
    if type(weight) not in (Tensor, nn.Parameter):  # quantised or sharded ones, whose products are their own
        return None
    same = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    return _find(name) if same and x.dtype in (torch.float32, torch.bfloat16) else None


@cache
def _find(name: str) -> Callable[..., Any] | None:
    if not torch._C._has_mkldnn:
        return None
    found: Callable[..., Any] | None = getattr(torch.ops.mkldnn, name, None)
    return found
