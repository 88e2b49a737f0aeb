"""Recording attention: one context manager that puts a tape on every ``Attention`` of a model.

The fused kernel keeps no attention map, and a forward hook cannot recover one. ``Attention.tape`` therefore
switches a module to the explicit path of :func:`vitrail.nn.attention.attend`, which appends its softmax weights;
the output of both paths is the same. Nothing global changes: only the modules of the given model carry a tape,
and only while the ``with`` block runs.

B batch, H heads, N queries, M keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from vitrail.errors import UsageError


class Recording(Mapping[str, list[Tensor]]):
    """Module name -> the (B, H, N, M) weights of each call, in call order.

    Names come in the order of ``model.named_modules()``. A module that did not run has an empty list. The tensors
    keep their autograd history when gradients are enabled, so a relevance method can differentiate through them.
    """

    def __init__(self, tapes: dict[str, list[Tensor]]) -> None:
        self._tapes = tapes

    def __getitem__(self, name: str) -> list[Tensor]:
        return self._tapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tapes)

    def __len__(self) -> int:
        return len(self._tapes)

    def __repr__(self) -> str:
        shapes = {name: [tuple(w.shape) for w in maps] for name, maps in self._tapes.items()}
        return f"Recording({shapes})"

    def square(self) -> list[Tensor]:
        """Return the (B, H, N, N) self-attention maps of the modules that ran once, in ``named_modules()`` order."""
        return [m[0] for m in self._tapes.values() if len(m) == 1 and m[0].shape[-1] == m[0].shape[-2]]

    def pooling(self) -> Tensor | None:
        """Return the (B, H, 1, M) map of the attention that pools the tokens, or None if none does."""
        single = [m[0] for m in self._tapes.values() if len(m) == 1 and m[0].shape[-2] == 1 < m[0].shape[-1]]
        return single[-1] if single else None

    def clear(self) -> None:
        """Forget what was recorded so far; recording goes on."""
        for maps in self._tapes.values():
            maps.clear()


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Record every attention map that ``model`` computes inside the ``with`` block; of additive attention too.

    Of deformable attention it is what each cell of all maps counts for each query.

    Yields a :class:`Recording`. On exit each module's former tape comes back, also after an exception and also
    when recordings are nested (the inner one then receives the maps). Memory: B x H x N x M floats a layer.
    The tape belongs to the module: do not run one model from two threads while it is recorded.

    Raises :class:`UsageError` if the model holds no :class:`vitrail.nn.attention.Attention`.
    """
    from vitrail.nn.attention import Attention
    from vitrail.nn.deformable import DeformableAttention
    from vitrail.nn.recurrent import AdditiveAttention

    kinds = (Attention, AdditiveAttention, DeformableAttention)
    modules = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not modules:
        kind = type(model)
        own = kind.__module__.startswith("vitrail.models.")  # then no other way of building it would help
        mend = "" if own else "; mend: build it with vitrail.create_model or load it with vitrail.load"
        words = f"expected a model with vitrail.nn Attention modules, got {kind.__name__} which has none"
        raise UsageError(words + mend)
    former = {name: module.tape for name, module in modules.items()}
    tapes: dict[str, list[Tensor]] = {name: [] for name in modules}
    try:
        for name, module in modules.items():
            module.tape = tapes[name]
        yield Recording(tapes)
    finally:
        for name, module in modules.items():
            module.tape = former[name]
