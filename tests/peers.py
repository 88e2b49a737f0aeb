"""The libraries Vitrail is compared with, made importable beside a torch that torchvision was not built for.

timm and transformers import torchvision, whose wheel brings no compiled operators for this torch; its Python
then fails while registering meta kernels for operators nobody declared. :func:`declare_torchvision` declares
them (they are never called). Importing this module does that and nothing else: take the peers from here,

    from tests.peers import timm            # or: transformers

so that the declaration always comes first. It also holds the helpers every comparison needs.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that wants a hub starts its own, in its own process
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

_declared: list[torch.library.Library] = []  # keeps the declarations alive as long as the process


def _operator_names(source: str) -> Iterator[str]:
    """Yield each operator that a file of torchvision registers a kernel for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("register_meta", "register_fake"):
                yield str(node.args[0].value).removeprefix("torchvision::")


def declare_torchvision() -> None:
    """Declare torchvision's compiled operators, unless its own library can be loaded."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _declared:
        return
    folder = Path(spec.origin).parent
    try:
        torch.ops.load_library(str(next(folder.glob("_C*"))))
        return
    except (OSError, StopIteration):
        pass
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(_operator_names((folder / "_meta_registrations.py").read_text()))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _declared.append(library)


def __getattr__(name: str) -> ModuleType:
    if name not in ("spandrel", "timm", "transformers", "torchvision"):
        raise AttributeError(f"module 'tests.peers' has no attribute {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer says while importing itself is not ours to mend
        return importlib.import_module(name)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and saved buffer of a peer with values that keep activations O(1).

    Fresh peers hide bugs: zero biases, unit scales and zero heads would let a swapped or dropped tensor pass.
    Matrices get N(0, 1/fan_in), scales 1 + N(0, 0.2²), running variances 0.5 to 1.5, everything else N(0, 0.5²).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(torch.special.ndtr(noise) + 0.5)
                continue
            matrix = name.endswith("weight") and tensor.ndim >= 2
            scale = tensor[0].numel() ** -0.5 if matrix else 0.2 if name.endswith(("weight", "gamma")) else 0.5
            offset = 1.0 if name.endswith(("weight", "gamma")) and not matrix else 0.0
            tensor.copy_(noise * scale + offset)
    return model.eval()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference divided by the largest magnitude of the peer's output."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} against {tuple(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max())


declare_torchvision()
