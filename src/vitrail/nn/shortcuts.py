"""What is asked before a shortcut is taken: whether anybody could see that the layers did not run one by one.

Fused kernels, folded norms and work left out give the numbers of the plain layers. Who hooks into a layer, replaces it
by one of their own (an adapter, a pruned or quantised one), traces or counts operators, gets the plain layers.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


def watched(module: nn.Module) -> bool:
    """Whether anybody looks inside ``module``: a hook on a part of it, or a tape on its attention."""
    return any(_hooked(m) or getattr(m, "tape", None) is not None for m in module.modules())


def as_made(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``layer`` is exactly of one of these classes and its weight its own: its weights say all it does."""
    return type(layer) in kinds and ("weight" in layer._parameters or "weight" in layer._buffers)


def plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether ``layer`` is as it was made, and nobody hooks into it."""
    return as_made(layer, *kinds) and not _hooked(layer)


def _hooked(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def at_once() -> bool:
    """Whether operators just run: no compiler, tracer, counter or other mode looks at each of them."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
        return False
    return _get_current_dispatch_mode() is None
