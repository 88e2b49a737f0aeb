"""What a model costs: parameters and multiply-adds of one image, counted on the meta device.

Counted as the published tables do (fvcore's and timm's convention): one multiply-add = one MAC, in linear layers,
convolutions and both matrix products of attention; norms, activations, softmax and position resizing are left out.
Every layer counts in full, also where a model leaves out what its head does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds to classify one image of ``img_size`` (H, W)."""

    params: int
    macs: int
    img_size: tuple[int, int]

    @property
    def gmacs(self) -> float:
        """Multiply-adds in thousands of millions, as model tables print them."""
        return self.macs / 1e9

    @property
    def gflops(self) -> float:
        """Floating-point operations in thousands of millions, a multiply and an add counted as two."""
        return 2 * self.gmacs


def cost(model: nn.Module | Callable[[], nn.Module], img_size: int | tuple[int, int], in_chans: int = 3) -> Cost:
    """Count a model on the meta device: no memory is used and a built model is left untouched.

    ``model`` is a module, or a function that builds one (it is called under ``torch.device("meta")``, so that the
    largest models can be counted anywhere: ``cost(lambda: create_model("vit_giant_patch14_224"), 224)``).
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    size = (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
    module = _on_meta(model).requires_grad_(False)  # the counter stumbles over views of parameters that want gradients
    image = torch.empty(1, in_chans, *size, device="meta")
    for part in module.modules():  # what is watched is computed in full
        part.register_forward_hook(_look)
    # the math backend is plain matrix products, which the counter knows on every device
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        was_training = module.training
        module.eval()(image)
        module.train(was_training)
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2, size)


def _look(*_: object) -> None:
    """A forward hook that does nothing."""


def _on_meta(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    if isinstance(model, nn.Module):
        import copy

        # copied by the memo: every parameter and buffer is replaced by an empty one before its data is touched
        memo: dict[int, object] = {}
        for p in model.parameters():
            memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for b in model.buffers():
            memo[id(b)] = torch.empty_like(b, device="meta")
        return copy.deepcopy(model, memo)
    with torch.device("meta"):
        return model()
