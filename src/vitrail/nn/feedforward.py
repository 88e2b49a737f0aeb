"""The feed-forward network: position-wise, and with a convolution between its two layers.

Sources: Vaswani et al. 2017, arXiv 1706.03762, section 3.3; GELU: Hendrycks and Gimpel, arXiv 1606.08415; Wang et al.
2022, arXiv 2106.13797, section 3.3 (the convolution: PVT v2); Shazeer 2020, arXiv 2002.05202 (the gate).

B batch, N tokens, C width, (h, w) grid.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import Dropout
from .fused import ACTIVATIONS, Activation, Linear, conv_act, linear, linear_act
from .shortcuts import at_once, plain, watched

Gelu = Literal["erf", "tanh"]
ACTS: dict[str, Activation] = {"erf": "gelu", "tanh": "gelu_tanh"}

PIECE = 1024  # tokens whose hidden layer stays in a processor's cache
FRESH = 2**25  # bytes of a buffer that the system hands out anew, page by page, each time it is asked for
HIDDEN = 2**18  # numbers of a hidden layer that do


class FeedForward(nn.Module):
    """Linear, activation, Linear on each token by itself.

    Args:
        dim: width C of the tokens.
        hidden_dim: width of the hidden layer.
        act: the activation; :data:`ACTS` says which one "erf" and "tanh" GELU are.
        drop: dropout after each of the two layers.
        act_drop: dropout after the first of them; default ``drop``.
        bias: whether the two layers have a bias.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        act: Activation = "gelu",
        drop: float = 0.0,
        act_drop: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"expected an activation of {', '.join(ACTIVATIONS)}, got {act!r}")
        self.fc1 = Linear(dim, hidden_dim, bias=bias)
        self.fc2 = Linear(hidden_dim, dim, bias=bias)
        self.act = act
        self.act_drop = Dropout(drop if act_drop is None else act_drop)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if not _better_in_pieces(x) or watched(self):
            return self._run(x)
        if x.numel() // x.shape[-1] * self.fc1.out_features * x.element_size() < FRESH:
            return self._run(x)
        pieces = [self._run(piece) for piece in torch.split(x.reshape(-1, x.shape[-1]), PIECE)]
        return torch.cat(pieces).view(x.shape)

    def _run(self, x: Tensor) -> Tensor:
        if plain(self.fc1, Linear):
            hidden = linear_act(x, self.fc1.weight, self.fc1.bias, self.act)
        else:
            hidden = ACTIVATIONS[self.act](self.fc1(x))
        out: Tensor = self.drop(self.fc2(self.act_drop(hidden)))
        return out


def _better_in_pieces(x: Tensor) -> bool:
    """Whether to take the tokens of ``x`` a few at a time: on a CPU, where nothing is kept for a backward pass.

    The hidden layer of many tokens goes out to memory and comes back; that of a few stays in the cache.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or not at_once() or torch.is_autocast_enabled("cpu"):
        return False
    return x.shape[:-1].numel() >= 2 * PIECE


class ConvFeedForward(nn.Module):
    """Linear, depthwise 3 x 3 convolution, GELU, Linear: the zeros around the map tell tokens where they are.

    Args:
        dim: width C of the tokens.
        hidden_dim: width of the hidden layer.
        relu: whether a ReLU stands before the convolution (the linear variant of PVT v2).
        drop: dropout after the GELU and after the last layer.
    """

    def __init__(self, dim: int, hidden_dim: int, *, relu: bool = False, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.relu = relu
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens on their grid (B, h, w, C) -> (B, h, w, C)."""
        mine = plain(self.fc1, Linear) and plain(self.dwconv, nn.Conv2d) and plain(self.fc2, Linear)
        if not _better_in_pieces(x) or self.training or watched(self) or not mine:
            return self._run(x)
        tokens, hidden = x.shape[1:3].numel(), self.fc1.out_features
        slices = math.ceil(tokens * hidden / HIDDEN)
        width = math.ceil(hidden / slices / 64) * 64  # other numbers of channels leave vector units idle
        run = self._run if width >= hidden else partial(self._run_in_slices, width=width)
        return torch.cat([run(images) for images in torch.split(x, max(PIECE // tokens, 1))])

    def _run(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if self.relu:
            hidden = F.relu_(hidden) if plain(self.fc1, Linear) else F.relu(hidden)
        hidden, conv = hidden.permute(0, 3, 1, 2), self.dwconv  # a channels-last map: no copy
        if plain(conv, nn.Conv2d):
            hidden = conv_act(hidden, conv.weight, conv.bias, "gelu", padding=1, groups=conv.groups)
        else:
            hidden = F.gelu(conv(hidden))
        hidden = self.drop(hidden.permute(0, 2, 3, 1))
        out: Tensor = self.drop(self.fc2(hidden))
        return out

    def _run_in_slices(self, x: Tensor, width: int) -> Tensor:
        """The same without dropout, ``width`` hidden channels at a time.

        A hidden channel sees no other one between the two linear layers, so what slices of them give adds up.
        """
        assert self.dwconv.bias is not None
        rows = (self.fc1.weight, self.fc1.bias, self.dwconv.weight, self.dwconv.bias, self.fc2.weight.t())
        total = self.fc2.bias.expand(x.shape[:3].numel(), -1).clone()
        for into, bias1, kernel, bias2, out_of in zip(*(torch.split(r, width) for r in rows), strict=True):
            hidden = linear(x, into, bias1)
            hidden = (F.relu_(hidden) if self.relu else hidden).permute(0, 3, 1, 2)
            hidden = conv_act(hidden, kernel, bias2, "gelu", padding=1, groups=len(kernel)).permute(0, 2, 3, 1)
            total.addmm_(hidden.flatten(0, 2), out_of)
        return total.view(x.shape)


class GatedFeedForward(nn.Module):
    """``fc2(act(fc1 x) * gate x)`` on each token by itself, without biases: SwiGLU, GEGLU.

    Args:
        dim: width C of the tokens.
        hidden_dim: width of the hidden layer.
        act: the activation.
        drop: dropout after the last layer.
    """

    def __init__(self, dim: int, hidden_dim: int, *, act: Activation = "silu", drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim, bias=False)
        self.gate = Linear(dim, hidden_dim, bias=False)
        self.fc2 = Linear(hidden_dim, dim, bias=False)
        self.act = act
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        out: Tensor = self.drop(self.fc2(ACTIVATIONS[self.act](self.fc1(x)) * self.gate(x)))
        return out
