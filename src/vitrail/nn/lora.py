"""LoRA: a frozen linear layer plus a trained product of two thin matrices.

Source: Hu et al. 2022, arXiv 2106.09685, section 4.1: W x + (α / r) B A x, A random, B zero, so that at first nothing
is changed. The sum is a weight like any other: merged, the network is the plain one again and costs the same.

A fused projection of q, k and v is three layers in one: each gets an A and a B of its own.

B batch, N tokens, C width, C' output width, r rank, P parts of a fused layer (3 for qkv, else 1).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import Linear

FUSED = {"qkv": 3}  # layers that hold several projections of the same input, side by side
ATTENTION = ("qkv",)


class LoraLinear(nn.Linear):
    """A linear layer (..., C) -> (..., C') with its weight frozen, and what is added to it.

    ``weight`` and ``bias`` keep their names; ``lora_a`` (P · r, C) and ``lora_b`` (C', r) are new. To the rows of part
    p of the output are added ``scale · lora_b[rows] @ lora_a[p · r : (p + 1) · r]``.

    Args:
        layer: the layer it takes the place of; weight and bias are shared with it, not copied.
        rank: r.
        alpha: the product counts ``alpha / rank``.
        parts: P, which divides C'.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, *, parts: int = 1) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        if rank < 1 or alpha <= 0:
            raise ValueError(f"expected a rank from 1 on and an alpha above 0, got {rank} and {alpha}")
        if layer.out_features % parts:
            raise ValueError(f"expected a number of parts that divides {layer.out_features}, got {parts}")
        self.weight, self.bias = layer.weight, layer.bias
        self.rank, self.scale, self.parts = rank, alpha / rank, parts
        self.lora_a = nn.Parameter(layer.weight.new_empty(parts * rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.normal_(self.lora_a, std=layer.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        thin = F.linear(x, self.lora_a)
        if self.parts == 1:
            added = F.linear(thin, self.lora_b)
        else:
            thin = thin.reshape(*x.shape[:-1], self.parts, self.rank)
            added = torch.einsum("...pr,por->...po", thin, self._by_part(self.lora_b)).flatten(-2)
        return F.linear(x, self.weight, self.bias) + self.scale * added

    @torch.no_grad()
    def merged(self) -> Linear:
        """Return a plain layer of the same outputs, with tensors of its own; the sum is formed in float64."""
        plain = Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        product = torch.bmm(self._by_part(self.lora_b).double(), self._by_part(self.lora_a).double())
        total = self.weight.double() + self.scale * product.flatten(0, 1)
        plain.weight = nn.Parameter(total.to(self.weight.dtype))
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.clone())
        return plain.train(self.training)

    def _by_part(self, thin: Tensor) -> Tensor:
        """(P · rows, columns) -> (P, rows, columns)."""
        return thin.reshape(self.parts, -1, thin.shape[1])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}, parts={self.parts}"


def add_lora(
    model: nn.Module, *, rank: int = 8, alpha: float = 16.0, layers: Sequence[str] = ATTENTION
) -> dict[str, LoraLinear]:
    """Freeze ``model`` but for its head, and put adapters on its linear layers; returns path -> adapter.

    The model's outputs stay what they were. Its state dict gains ``lora_a`` and ``lora_b`` beside each adapted weight;
    load weights before, and :func:`merge_lora` for a plain model again.

    Args:
        model: a model of ``vitrail.models``.
        rank: r of every adapter.
        alpha: what the adapters add counts ``alpha / rank``.
        layers: last parts of the names of linear layers outside the head: "qkv", "proj", "fc1", "fc2", ...

    Raises:
        ValueError: a name that no linear layer has, adapters that are there already, or impossible numbers.
    """
    if next(adapters(model), None) is not None:
        raise ValueError("expected a model without adapters, got one that has them; mend: merge_lora first")
    found = {path: part for path, part in model.named_modules() if _may_adapt(path, part)}
    known = sorted({_last(path) for path in found})
    if not known:
        raise ValueError("expected a model with linear layers to adapt outside its head, got one without")
    wrong = [name for name in layers if name not in known]
    if wrong or not layers:
        got = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"expected names of linear layers of this model ({', '.join(known)}), got {got}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    made = {}
    for path, layer in found.items():
        if _last(path) in layers:
            assert isinstance(layer, nn.Linear)
            made[path] = LoraLinear(layer, rank, alpha, parts=FUSED.get(_last(path), 1))
            _put(model, path, made[path])
    return made


def merge_lora(model: nn.Module) -> nn.Module:
    """Replace every adapter of ``model`` by the plain layer it amounts to, in place; returns ``model``.

    All parameters are trainable afterwards. A model without adapters comes back untouched.
    """
    found = dict(adapters(model))
    for path, adapter in found.items():
        _put(model, path, adapter.merged())
    if found:
        model.requires_grad_(True)
    return model


def merged(model: nn.Module) -> nn.Module:
    """Return ``model`` itself if it has no adapters, else a copy of it with the adapters merged."""
    return merge_lora(copy.deepcopy(model)) if next(adapters(model), None) is not None else model


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Yield (path, adapter) of every adapter in ``model``."""
    return ((path, part) for path, part in model.named_modules() if isinstance(part, LoraLinear))


def _may_adapt(path: str, part: nn.Module) -> bool:
    return type(part) is Linear and not path.startswith("head")  # small networks of biases are plain nn.Linear


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
