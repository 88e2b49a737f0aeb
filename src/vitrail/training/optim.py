"""AdamW over two flat float32 buffers: weights that decay, and weights that do not.

AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101. No decay on biases, norms, position tables and learned tokens:
the groups of ViT (AugReg) and DeiT.

The buffers are the *masters*: the optimiser, the moving average and the checkpoints see only them. A float32 model's
parameters are views of the masters. A bf16 model's parameters are views of bf16 copies, written back after each update
(mixed precision training, Micikevicius et al. 2018, arXiv 1710.03740, section 3.1). Gradients of a step's pieces are
summed in float32 whatever the model's type. Flat buffers make clipping, update and averaging a few long passes over
memory instead of thousands of short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ALIGN = 32  # every weight starts on a 64-byte boundary in both types, as the matrix kernels like it
UNDECAYED = ("pos_embed", "cls_token", "dist_token", "latent", "gamma")  # by the last part of the name
MOMENTS = ("exp_avg", "exp_avg_sq")


def decays(name: str, parameter: Tensor) -> bool:
    """Tell whether weight decay applies: not to vectors, position tables, learned tokens or LayerScale."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED


class Flat:
    """Named tensors laid end to end in one float32 buffer."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self.places: dict[str, tuple[int, torch.Size]] = {}
        end = 0
        for name, tensor in named.items():
            self.places[name] = (end, tensor.shape)
            end += -(-tensor.numel() // ALIGN) * ALIGN
        device = next(iter(named.values())).device
        self.buffer = torch.zeros(end, dtype=torch.float32, device=device)
        for name, view in self.views(self.buffer).items():
            view.copy_(named[name].detach())

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return each name's part of ``buffer``, which is laid out like this one, in its own shape."""
        return {name: buffer[start : start + shape.numel()].view(shape) for name, (start, shape) in self.places.items()}


class Masters:
    """Holds the float32 weights of ``model``, gathers gradients, and updates with AdamW.

    ``settings`` needs ``betas``, ``eps``, ``weight_decay``. The model is moved to ``dtype`` (float32 or bfloat16) and
    its parameters become views of shared buffers; buffers of the model stay its own.
    """

    def __init__(self, model: nn.Module, settings: Any, dtype: torch.dtype = torch.float32) -> None:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        decayed = {n: p for n, p in trained.items() if decays(n, p)}
        plain = {n: p for n, p in trained.items() if n not in decayed}
        groups = [(g, decay) for g, decay in ((decayed, settings.weight_decay), (plain, 0.0)) if g]
        self.model, self.parameters = model, [list(group.values()) for group, _ in groups]
        self.flats = [Flat(group) for group, _ in groups]
        self.weights = [nn.Parameter(flat.buffer) for flat in self.flats]
        for weight in self.weights:
            weight.grad = torch.zeros_like(weight)
        self._grad_views = [list(f.views(_grad(w)).values()) for f, w in zip(self.flats, self.weights, strict=True)]
        model.to(dtype)
        same = dtype == torch.float32
        self._working = [f.buffer if same else f.buffer.to(dtype) for f in self.flats]
        self.attach(model, self._working)
        self._adamw = torch.optim.AdamW(
            [{"params": [w], "weight_decay": decay} for w, (_, decay) in zip(self.weights, groups, strict=True)],
            betas=settings.betas,
            eps=settings.eps,
            fused=self.weights[0].device.type in ("cpu", "cuda", "xpu", "mps"),
        )
        for weight in self.weights:  # made now, not at the first update, so that saving and loading need no cases
            state = self._adamw.state[weight]
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state |= {name: torch.zeros_like(weight) for name in MOMENTS}

    def attach(self, model: nn.Module, buffers: list[Tensor]) -> None:
        """Make the parameters of ``model`` (same architecture) views of ``buffers``; nothing is copied."""
        parameters = dict(model.named_parameters())
        for flat, buffer in zip(self.flats, buffers, strict=True):
            for name, view in flat.views(buffer.detach()).items():
                parameters[name].data = view

    @property
    def updates(self) -> int:
        """Updates made so far: steps that were skipped do not count."""
        return int(self._adamw.state[self.weights[0]]["step"].item())

    def gather(self) -> None:
        """Add the model's gradients to the float32 sums and drop them."""
        for views, parameters in zip(self._grad_views, self.parameters, strict=True):
            pairs = [(v, p.grad) for v, p in zip(views, parameters, strict=True) if p.grad is not None]
            if pairs:
                torch._foreach_add_([v for v, _ in pairs], [g for _, g in pairs])
            for parameter in parameters:
                parameter.grad = None

    def drop_gradients(self) -> None:
        """Set the gradient sums to zero."""
        for weight in self.weights:
            _grad(weight).zero_()

    def norm(self) -> float:
        """Return the 2-norm of all gathered gradients; inf or nan if any of them is."""
        return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(_grad(w)) for w in self.weights])))

    @torch.no_grad()
    def update(self, lr: float, *, scale: float = 1.0) -> None:
        """Multiply the gradients by ``scale``, take one AdamW step, write working copies, zero the gradients."""
        for weight, group in zip(self.weights, self._adamw.param_groups, strict=True):
            group["lr"] = lr
            if scale != 1.0:
                _grad(weight).mul_(scale)
        self._adamw.step()
        self.write_back()
        self.drop_gradients()

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters to the model's own type; nothing to do for a float32 model."""
        for working, weight in zip(self._working, self.weights, strict=True):
            if working.dtype != weight.dtype:
                working.copy_(weight)

    def tensors(self) -> dict[str, list[Tensor]]:
        """Return the flat buffers that a checkpoint must hold, by kind: weights and the two moments."""
        kinds = {name: [self._adamw.state[w][name] for w in self.weights] for name in MOMENTS}
        return {"model": [w.detach() for w in self.weights], **kinds}

    def set_updates(self, updates: int) -> None:
        """Set the update count of AdamW's bias correction, after loading a checkpoint."""
        for weight in self.weights:
            self._adamw.state[weight]["step"].fill_(float(updates))

    def named(self, buffers: list[Tensor]) -> dict[str, Tensor]:
        """Return parameter name -> its part of ``buffers``."""
        return {n: v for flat, b in zip(self.flats, buffers, strict=True) for n, v in flat.views(b).items()}


def _grad(weight: Tensor) -> Tensor:
    assert weight.grad is not None, "masters always hold a gradient buffer"
    return weight.grad
