"""Convolutions of residual networks: padding of two kinds, standardised weights, batch norms that fold away.

Sources: He et al. 2016, arXiv 1512.03385, section 3; Qiao et al. 2019, arXiv 1903.10520 (weight standardisation).

Maps are kept in channels-last memory: there a 1x1 convolution is one matrix product, and ``x.permute(0, 2, 3, 1)``
copies nothing.

B batch, C channels, (h, w) grid, k kernel side, s stride, d dilation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import linear
from .norms import FrozenBatchNorm2d, affine, fixed
from .shortcuts import plain

Padding = Literal["symmetric", "same"]
StdForm = Literal["variance", "deviation"]


class Conv2d(nn.Conv2d):
    """A k x k convolution without bias that pads so as to keep the grid: (B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉).

    Args:
        in_chans: input channels C.
        out_chans: output channels C'.
        kernel_size: odd side k.
        stride: s.
        dilation: d.
        padding: "symmetric" pads alike on all sides (PyTorch's models, BiT). "same" is TensorFlow's: as little as the
            size asks for, the odd pixel at the right and bottom (Flax's models).
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        padding: Padding = "symmetric",
    ) -> None:
        reach = dilation * (kernel_size - 1)
        self.pads_by_size = padding == "same" and stride > 1  # at stride 1 both are the same
        super().__init__(
            in_chans,
            out_chans,
            kernel_size,
            stride,
            0 if self.pads_by_size else reach // 2,
            dilation,
            bias=False,
        )

    def kernel(self) -> Tensor:
        """Return the kernel (C', C, k, k) that is applied."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/s⌉, ⌈w/s⌉)."""
        return self.apply_kernel(x, self.kernel(), None)

    def apply_kernel(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve ``x`` with another kernel of the same shape; a 1x1 kernel is a matrix product over channels."""
        if self.kernel_size == (1, 1):
            if self.stride != (1, 1):
                x = x[:, :, :: self.stride[0], :: self.stride[1]].contiguous(memory_format=torch.channels_last)
            if _trains_in_float32(x):
                return F.conv2d(x, kernel, bias)
            return linear(x.permute(0, 2, 3, 1), kernel.flatten(1), bias).permute(0, 3, 1, 2)
        if self.pads_by_size:
            x = pad_same(x, self.dilation[0] * (self.kernel_size[0] - 1) + 1, self.stride[0])
        return F.conv2d(x, kernel, bias, self.stride, self.padding, self.dilation)


def _trains_in_float32(x: Tensor) -> bool:
    """Whether this is a training step in float32 on a CPU, where oneDNN's convolution beats torch's matrix product.

    What is counted (on no device) is counted as there.
    """
    return torch.is_grad_enabled() and x.dtype == torch.float32 and x.device.type in ("cpu", "meta")


class StdConv2d(Conv2d):
    """A convolution whose filters are brought to mean 0 and variance 1 before use; no bias.

    Args:
        in_chans: input channels C.
        out_chans: output channels C'.
        kernel_size: odd side k.
        stride: s.
        dilation: d.
        padding: see :class:`Conv2d`.
        eps: keeps the division finite.
        form: where ``eps`` is added: to the "variance", inside the root (timm, transformers: 1e-8; BiT's PyTorch
            code: 1e-10), or to the standard "deviation" (Flax: 1e-5).
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        padding: Padding = "symmetric",
        eps: float = 1e-8,
        form: StdForm = "variance",
    ) -> None:
        super().__init__(in_chans, out_chans, kernel_size, stride, dilation, padding=padding)
        self.eps, self.form = eps, form

    def kernel(self) -> Tensor:
        """Return the standardised kernel (C', C, k, k)."""
        return standardise(self.weight, self.eps, self.form)


def standardise(weight: Tensor, eps: float, form: StdForm = "variance") -> Tensor:
    """Bring each filter of (out, in, k, k) to mean 0 and variance 1, statistics in float32; its layout is kept."""
    laid = weight if weight.is_contiguous() else weight.permute(0, 2, 3, 1)  # the order within a filter is all one
    rows = laid.reshape(len(weight), -1)
    if form == "variance":  # a layer norm without weights, whose kernel is by far the fastest for this
        out = F.layer_norm(rows, rows.shape[1:], eps=eps)
    else:
        centred = rows.float() - rows.float().mean(1, keepdim=True)
        out = (centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)).to(weight.dtype)
    return out.view(laid.shape) if laid is weight else out.view(laid.shape).permute(0, 3, 1, 2)


def pad_same(x: Tensor, extent: int, stride: int) -> Tensor:
    """Pad a map with zeros as TensorFlow's SAME does for a window of ``extent`` pixels: ⌈size / stride⌉ windows fit."""
    (top, bottom), (left, right) = (_same(n, extent, stride) for n in x.shape[-2:])
    return F.pad(x, (left, right, top, bottom)) if top or bottom or left or right else x


def _same(size: int, extent: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def conv_norm(conv: Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Return ``norm(conv(x))``, computed as one convolution where nobody can tell the difference.

    A batch norm in evaluation is a fixed scale and shift of each channel, which the kernel takes in. That is done when
    no gradient is asked for (but by a kernel under a frozen norm), nobody hooks into either layer, and the map has more
    positions than a filter has weights: below that, scaling the kernel costs more than it saves. Compiled and exported
    graphs keep both layers.
    """
    if not _folds(conv, norm, x):
        plain: Tensor = norm(conv(x))
        return plain
    assert isinstance(norm, nn.BatchNorm2d)
    scale, shift = affine(norm)
    kernel = conv.kernel() * scale[:, None, None, None]  # norms may be kept in float32 beside kernels in bf16
    return conv.apply_kernel(x, kernel.to(x.dtype), shift.to(x.dtype))


def _folds(conv: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and type(norm) is not FrozenBatchNorm2d):
        return False
    if not plain(conv, Conv2d, StdConv2d) or not fixed(norm):
        return False
    assert isinstance(conv, Conv2d)
    positions = x.shape[0] * x.shape[2] * x.shape[3] // conv.stride[0] ** 2
    return positions >= conv.weight[0].numel()


def channels_last_kernels(model: nn.Module) -> None:
    """Keep the kernels of a model's convolutions in channels-last memory, so that no call has to reorder them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
