"""What a model costs: parameters, multiply-adds, memory and attention matrices of one image, on the meta device.

One counter for every model, outside all of them: it looks at the operations of one forward pass, layer by layer.
Multiply-adds are counted as the published tables do (fvcore's and timm's convention): one multiply-add = one MAC, in
linear layers, convolutions and both matrix products of attention; norms, activations, softmax and position resizing are
left out. Windows count with the padding they are computed with, reduced keys as they are reduced. Every layer counts in
full, also where a model leaves out what its head does not read.

Bytes are those of float32 (half of it in bf16) with the fused attention kernel, which never writes its weights out;
what they would take is :attr:`AttentionCost.bytes`.

What training keeps is told apart by two batches: the part of each image, and the part that is there once whatever the
batch, such as standardised or re-laid kernels and position biases. A batch of B images keeps B · kept + kept_once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BYTES = 4  # of a float32


@dataclass(frozen=True)
class AttentionCost:
    """One call of attention: ``windows`` sets of N queries and M keys (1 set if attention is global), H heads.

    ``dim`` is the width of all heads together, ``in_dim`` that of what queries are made of. ``cells`` are the tokens of
    the layer's map before it is padded to whole windows; without windows they are the queries.
    """

    name: str
    windows: int
    heads: int
    queries: int
    keys: int
    dim: int
    in_dim: int
    cells: int

    @property
    def tokens(self) -> int:
        """Queries of one image: windows · N, with the padding of windows."""
        return self.windows * self.queries

    @property
    def entries(self) -> int:
        """Entries of all attention matrices of one image: windows · H · N · M."""
        return self.windows * self.heads * self.queries * self.keys

    @property
    def bytes(self) -> int:
        """Bytes of these matrices in float32, if they are written out."""
        return BYTES * self.entries

    @property
    def reach(self) -> float:
        """Share of the matrix that attention of all tokens to all tokens would have."""
        return self.keys / self.tokens


@dataclass(frozen=True)
class LayerCost:
    """One layer of a model: a block, or a part outside the blocks.

    Attributes:
        name: as ``named_modules`` has it; "" for what belongs to the model itself.
        kind: name of its class.
        params: parameters.
        macs: multiply-adds of one image.
        kept: bytes that training keeps of each image for the backward pass.
        kept_once: bytes that training keeps besides, once a batch of any size.
        attention: its calls of attention.
    """

    name: str
    kind: str
    params: int
    macs: int
    kept: int
    kept_once: int
    attention: tuple[AttentionCost, ...]


@dataclass(frozen=True)
class Cost:
    """What it takes to classify one image of ``img_size`` (H, W).

    Attributes:
        params: parameters.
        macs: multiply-adds.
        img_size: (H, W) of the image.
        peak: most bytes of activations that live at one time in a forward pass without gradients.
        layers: the same by layer, in the order of the model's parts.
        modules: multiply-adds by the innermost module that ran them.
    """

    params: int
    macs: int
    img_size: tuple[int, int]
    peak: int
    layers: tuple[LayerCost, ...]
    modules: Mapping[str, int]

    @property
    def gmacs(self) -> float:
        """Multiply-adds in thousands of millions, as model tables print them."""
        return self.macs / 1e9

    @property
    def gflops(self) -> float:
        """Floating-point operations in thousands of millions, a multiply and an add counted as two."""
        return 2 * self.gmacs

    @property
    def kept(self) -> int:
        """Bytes that training keeps of each image for the backward pass."""
        return sum(layer.kept for layer in self.layers)

    @property
    def kept_once(self) -> int:
        """Bytes that training keeps besides, once a batch of any size; parameters and buffers are not among them."""
        return sum(layer.kept_once for layer in self.layers)

    def macs_of(self, name: str) -> int:
        """Return the multiply-adds of a module and all below it; of "", as ``named_modules`` has it, all there are."""
        return sum(macs for path, macs in self.modules.items() if not name or f"{path}.".startswith(f"{name}."))

    @property
    def attention(self) -> tuple[AttentionCost, ...]:
        """Every call of attention, in order."""
        return tuple(call for layer in self.layers for call in layer.attention)


def cost(
    model: nn.Module | Callable[[], nn.Module],
    img_size: int | tuple[int, int],
    in_chans: int | None = None,
    *,
    training: bool = True,
) -> Cost:
    """Count a model on the meta device: no memory is used and a built model is left untouched.

    ``model`` is a module, or a function that builds one (it is called under ``torch.device("meta")``, so that the
    largest models can be counted anywhere: ``cost(lambda: create_model("vit_giant_patch14_224"), 224)``). Images have
    ``in_chans`` channels; default those of ``model.config``, or 3 if it says nothing. Without ``training`` what it
    keeps is left at 0, in a third of the time.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else (int(img_size[0]), int(img_size[1]))
    module = _on_meta(model)
    if in_chans is None:
        in_chans = int(getattr(getattr(module, "config", None), "in_chans", 3))
    image = torch.empty(1, in_chans, *size, device="meta")
    rows = _Rows(module)
    with rows.followed(), _Attends(rows), _Products(rows, image) as products, torch.no_grad():
        module.eval()(image)
    modules = {name: sum(macs) for name, macs in rows.take("macs").items()}
    macs, calls = rows.by_row(modules), rows.take("attention")
    kept, once = (rows.by_row(part) for part in _kept(rows, image)) if training else ({}, {})
    params = rows.by_row(rows.params())
    costs = []
    for row, kind in rows.kinds.items():
        called = tuple(call for name, found in calls.items() if rows.row(name) == row for call in found)
        numbers, sums, each, fixed = (found.get(row, 0) for found in (params, macs, kept, once))
        costs.append(LayerCost(row, kind, numbers, sums, each, fixed, called))
    used = tuple(layer for layer in costs if layer.params or layer.macs or layer.kept or layer.kept_once)
    return Cost(sum(params.values()), sum(modules.values()), size, products.peak, used, modules)


def _kept(rows: _Rows, image: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes that training keeps of each image, and those that it keeps once, by module.

    Batches of 2 and 3 images tell them apart. One image would not do: it spares copies that every larger batch makes
    (a hybrid's patches), and batch norm refuses one image whose last map is one cell.
    """
    model = rows.model.train().requires_grad_()
    batches: list[dict[str, int]] = []
    for count in (2, 3):
        with rows.followed(), _Attends(rows), rows.saving(), torch.enable_grad():
            model(image.new_empty(count, *image.shape[1:]))
        batches.append({name: sum(found) for name, found in rows.take("kept").items()})
    two, three = batches
    each = {name: three[name] - two.get(name, 0) for name in three}
    return each, {name: two.get(name, 0) - 2 * figure for name, figure in each.items()}


class _Rows:
    """The layers of a model, which of them is running, and what was noted of each."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.kinds = {"": type(model).__name__} | dict(layers(model))
        self.notes: dict[str, dict[str, list[Any]]] = {}
        self.running: list[str] = [""]
        self.shapes: list[torch.Size] = [torch.Size()]  # of what each of them was given, empty if that was no tensor

    def row(self, name: str) -> str:
        """Return the layer that a module is part of."""
        while name not in self.kinds:
            name = name.rpartition(".")[0]
        return name

    def note(self, what: str, value: Any) -> None:
        """Note something of the innermost module that is running."""
        self.notes.setdefault(what, {}).setdefault(self.running[-1], []).append(value)

    def take(self, what: str) -> dict[str, list[Any]]:
        """Return what was noted, by module, and forget it."""
        return self.notes.pop(what, {})

    def by_row(self, modules: Mapping[str, int]) -> dict[str, int]:
        """Add up the figures of modules by the layer they are part of."""
        found: dict[str, int] = {}
        for name, figure in modules.items():
            found[self.row(name)] = found.get(self.row(name), 0) + figure
        return found

    def params(self) -> dict[str, int]:
        """Return the parameters by module; one that is shared counts once."""
        found: dict[str, int] = {}
        for name, parameter in self.model.named_parameters():
            module = name.rpartition(".")[0]
            found[module] = found.get(module, 0) + parameter.numel()
        return found

    def weights(self) -> set[int]:
        """Return the addresses of the storages of parameters and buffers."""
        return {t.untyped_storage()._cdata for t in (*self.model.parameters(), *self.model.buffers())}

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Keep ``running`` up to date; a model that is watched computes every layer in full."""
        handles = []
        for name, part in self.model.named_modules():
            handles.append(part.register_forward_pre_hook(lambda _, given, name=name: self._entered(name, given)))
            handles.append(part.register_forward_hook(lambda *_: self._left()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entered(self, name: str, given: tuple[Any, ...]) -> None:
        self.running.append(name)
        self.shapes.append(given[0].shape if given and isinstance(given[0], Tensor) else torch.Size())

    def _left(self) -> None:
        self.running.pop()
        self.shapes.pop()

    def saving(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Note the bytes that autograd saves of what is neither parameter nor buffer, each storage once."""
        seen = self.weights()

        def pack(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)  # the graph keeps it alive, so that no other gets its address
                self.note("kept", storage.nbytes())
            return t

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)


def layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and class of each block of a model, and of each part outside the blocks."""
    for name, child in module.named_children():
        if _holds_blocks(child) or any(_holds_blocks(part) for part in child.children()):
            yield from layers(child, f"{prefix}{name}.")
        else:
            yield prefix + name, type(child).__name__


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a module is a list of parts that have parts themselves."""
    return isinstance(module, nn.Sequential | nn.ModuleList) and any(True for p in module for _ in p.children())


class _Products(TorchDispatchMode):
    """Notes the multiply-adds of every matrix product and convolution, and how many bytes live at one time."""

    def __init__(self, rows: _Rows, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.live, self.peak = rows, 0, 0
        self._given = rows.weights() | {image.untyped_storage()._cdata}
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        out = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func._overloadpacket)
        if flops is not None:
            self.rows.note("macs", flops(*args, **(kwargs or {}), out_val=out) // 2)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        return out

    def _born(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known and key not in self._given:
            self._known[key] = weakref.ref(storage, lambda _: self._died(key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _died(self, key: int, size: int) -> None:
        self.live -= size
        del self._known[key]


class _Attends(TorchFunctionMode):
    """Notes every call of the fused attention kernel, and stands in for it: what a flash kernel makes and saves."""

    def __init__(self, rows: _Rows) -> None:
        super().__init__()
        self.rows = rows

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "scaled_dot_product_attention":
            return func(*args, **kwargs)
        q, k, v = args[:3]
        n, m, width, matrices = q.shape[-2], k.shape[-2], q.shape[-1], q.shape[:-2].numel()
        name = self.rows.running[-1]
        module, given = self.rows.model.get_submodule(name), self.rows.shapes[-1]
        heads = getattr(module, "num_heads", q.shape[-3])  # windows may come as heads
        windows, cells = matrices // heads, n
        if hasattr(module, "windows"):
            cells = given[:-1].numel()
        in_dim = given[-1] if given else heads * width
        self.rows.note("attention", AttentionCost(name, windows, heads, n, m, heads * width, in_dim, cells))
        self.rows.note("macs", matrices * n * m * (width + v.shape[-1]))
        out: Tensor = _Fused.apply(q, k, v, kwargs.get("attn_mask"))  # type: ignore[no-untyped-call]
        return out


class _Fused(torch.autograd.Function):
    """Shapes of fused attention: the result, and for the backward pass also q, k, v, the mask and a sum per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1]).transpose(-2, -3)  # heads together
        ctx.save_for_backward(q, k, v, mask, out, q.new_empty(q.shape[:-1]))
        return out


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
