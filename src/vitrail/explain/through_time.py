"""Gradients through time: how much of an error at the last step reaches each earlier one.

Sources: Bengio, Simard and Frasconi 1994, "Learning long-term dependencies with gradient descent is difficult";
Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063, section 2, equation 5: of S_t = f(U x_t + W S_(t-1)),

    dL/dS_t = (W^T diag f'(.)) ... (W^T diag f'(.)) dL/dS_T,    T - t factors,

so that the norm vanishes or explodes as W's spectral radius rho says: exactly rho^(T - t) for f(a) = a and W of rho
times an orthogonal matrix. Gates: Gers et al. 2000; Jozefowicz et al. 2015 (a gate's bias decides how long it keeps).

B batch, T steps, I input width, C width of the state, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.models import build
from vitrail.models.decoder import TransformerDecoderConfig
from vitrail.models.rnn import RNNLanguageModel, RNNLanguageModelConfig
from vitrail.nn.recurrent import Cell, RecurrentState, unroll

from .charts import Plot, Series, panels
from .colors import MUTED, PALETTE

RADII = (0.5, 0.9, 1.0, 1.1, 1.5, 2.0)
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
INPUT = 0.1  # spread of U x
OPEN = 4.0  # bias of a gate that is open: sigmoid(4) = 0.98 of the old state stays a step
_PANEL = (600, 340)
_LOWEST, _HIGHEST = 1e-10, 1e6


def plain_states(
    function: Callable[[Tensor], Tensor], u: Tensor, w: Tensor, x: Tensor, first: Tensor | None = None
) -> list[Tensor]:
    """Return S_1 .. S_T, (B, C) each, of S_t = f(U x_t + W S_(t-1)) for inputs x (B, T, I), U (C, I), W (C, C)."""
    state = x.new_zeros(len(x), len(w)) if first is None else first
    states = []
    for step in x.unbind(1):
        state = function(step @ u.T + state @ w.T)
        states.append(state)
    return states


def with_radius(w: Tensor, radius: float) -> Tensor:
    """Return a square matrix scaled so that its largest eigenvalue has the modulus ``radius``."""
    scaled: Tensor = w * (radius / torch.linalg.eigvals(w).abs().max())
    return scaled


def norms_to_states(states: Sequence[Tensor | RecurrentState], weights: Tensor) -> Tensor:
    """Return the norms (T,) of the gradient of ``weights`` · S_T with respect to each state, a mean over rows.

    Args:
        states: S_1 .. S_T of one graph: (B, C) each, or what :func:`~vitrail.nn.recurrent.unroll` returns. Of an LSTM
            both states count together.
        weights: (B, C): the gradient that arrives at the last step (of the last layer).
    """
    parts = [_parts(state) for state in states]
    last = parts[-1][0]
    score = ((last if last.ndim == 2 else last[-1]) * weights).sum()
    flat = [part for step in parts for part in step]
    found = torch.autograd.grad(score, flat, materialize_grads=True)
    squares = [g.square().sum(-1) if g.ndim == 2 else g.square().sum((0, -1)) for g in found]  # (B,)
    each = torch.stack(squares).view(len(parts), len(parts[0]), -1)
    return each.sum(1).sqrt().mean(-1)


def _parts(state: Tensor | RecurrentState) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    return [state.hidden] if state.cell is None else [state.hidden, state.cell]


def gradients_through_time(model: nn.Module, tokens: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the norm of the last token's loss differentiated by the embedding of each token that was read.

    Args:
        model: any sequence model of :mod:`vitrail.nn.steps`. It is measured as in evaluation, and left as it was.
        tokens: (B, T) int64. A decoder alone reads all but the last, and the loss is that of the last.
        target: for an encoder-decoder, (B, U) int64 that begins with bos: the loss is that of its last token, and what
            is measured are the ``tokens`` of the source.

    Returns:
        (T - 1,) norms in reading order, a mean over rows; (T,) of a source.

    Raises:
        UsageError: a model without an embedding, or too few tokens for a loss.
    """
    text = tokens if target is None else target
    if text.ndim != 2 or text.shape[1] < 2:
        raise UsageError(f"expected tokens (B, T) of two steps and more, got shape {tuple(text.shape)}")
    with _measured(model) as embedded, torch.enable_grad():
        logits = model(text[:, :-1]) if target is None else model(tokens, text[:, :-1])
        loss = nn.functional.cross_entropy(logits[:, -1].double(), text[:, -1], reduction="sum")
        if not embedded:
            raise UsageError(f"expected a model that embeds tokens, got {type(model).__name__}, which embeds none")
        (found,) = torch.autograd.grad(loss, embedded[:1])
    norms: Tensor = torch.linalg.vector_norm(found, dim=-1).mean(0)
    return norms


@contextmanager
def _measured(model: nn.Module) -> Iterator[list[Tensor]]:
    """Cut the graph behind every embedding while the block runs; gives what they returned, in order of their calls."""
    seen: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    hooks = [part.register_forward_hook(cut) for part in model.modules() if isinstance(part, nn.Embedding)]
    training = {part: part.training for part in model.modules()}
    try:
        model.eval()
        with torch.backends.cudnn.flags(enabled=False):  # its recurrent kernels have no backward in evaluation
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for part, was in training.items():
            part.training = was


# ---- the study: plain networks by spectral radius, gates and attention


@dataclass(frozen=True)
class GradientStudy:
    """Norms by how many steps back, 0 first, each a share of the norm at the last step.

    Attributes:
        length: number of steps T.
        width: width C of every state.
        plain: f -> spectral radius of W -> T norms with respect to the state.
        models: name -> T norms with respect to the input, of networks as they are before training.
    """

    length: int
    width: int
    plain: dict[str, dict[float, list[float]]]
    models: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """Return the study as plain JSON data."""
        plain = {f: {str(radius): norms for radius, norms in by.items()} for f, by in self.plain.items()}
        return {"length": self.length, "width": self.width, "plain": plain, "models": self.models}


def study_gradients(length: int = 100, *, width: int = 64, rows: int = 8, seed: int = 0) -> GradientStudy:
    """Measure plain networks at every spectral radius of ``RADII``, GRU, LSTM and Transformer, all untrained.

    Args:
        length: number of steps T, at least 2.
        width: width C of the states, a multiple of 4.
        rows: random sequences that a norm is the mean of.
        seed: of all weights and inputs.

    Everything runs in float64 on the CPU: norms down to 1e-300 are norms, not rounding.

    Raises:
        UsageError: fewer than two steps.
    """
    if length < 2:
        raise UsageError(f"expected a length of at least 2 steps, got {length}")
    random = torch.Generator().manual_seed(seed)
    x, weights = (torch.randn(*s, width, dtype=torch.float64, generator=random) for s in ((rows, length), (rows,)))
    u = INPUT * torch.randn(width, width, dtype=torch.float64, generator=random) / math.sqrt(width)
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=random))[0]
    weights = nn.functional.normalize(weights, dim=-1)
    plain = {
        name: {radius: _plain_norms(function, u, radius * turn, x, weights) for radius in RADII}
        for name, function in FUNCTIONS.items()
    }
    tokens = torch.randint(4, VOCABULARY, (rows, length + 1), generator=random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = {name: _back(gradients_through_time(model, tokens)) for name, model in _models(width)}
    return GradientStudy(length, width, plain, found)


VOCABULARY = 100  # of the untrained language models


def _plain_norms(f: Callable[[Tensor], Tensor], u: Tensor, w: Tensor, x: Tensor, weights: Tensor) -> list[float]:
    x = x.clone().requires_grad_()  # so that the first states are part of a graph
    return _back(norms_to_states(plain_states(f, u, w, x), weights))


def _back(norms: Tensor) -> list[float]:
    """(T,) in reading order -> by steps back, as a share of the last step's."""
    found: list[float] = (norms.flip(0) / norms[-1]).tolist()
    return found


def _models(width: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield untrained language models of one layer of cells, and a Transformer of four, with their names."""
    kinds: tuple[tuple[str, Cell, float], ...] = (
        ("RNN", "tanh", 0.0),
        ("GRU", "gru", 0.0),
        ("GRU open", "gru", OPEN),
        ("LSTM", "lstm", 0.0),
        ("LSTM open", "lstm", OPEN),
    )
    for name, cell, bias in kinds:
        config = RNNLanguageModelConfig(vocab_size=VOCABULARY, cell=cell, embed_dim=width, hidden_dim=width)
        model = build(config)
        assert isinstance(model, RNNLanguageModel)
        open_gates(model.rnn, bias)
        yield name, model.double()
    yield (
        "Transformer",
        build(
            TransformerDecoderConfig(VOCABULARY, embed_dim=width, depth=4, num_heads=4, hidden_dim=4 * width)
        ).double(),
    )


@torch.no_grad()
def open_gates(rnn: nn.RNNBase, bias: float) -> None:
    """Add ``bias`` to the gate that keeps the old state (the GRU's z, the LSTM's f), in place; others have none."""
    if isinstance(rnn, nn.GRU | nn.LSTM):
        for name, parameter in rnn.named_parameters():
            if name.startswith("bias_ih"):
                parameter[rnn.hidden_size : 2 * rnn.hidden_size] += bias  # the second block of rows in both


def unrolled_norms(rnn: nn.RNNBase, x: Tensor, weights: Tensor) -> Tensor:
    """Return :func:`norms_to_states` of recurrent layers that read ``x`` (B, T, I), over all of their layers."""
    return norms_to_states(unroll(rnn, x.clone().requires_grad_()), weights)


def draw_gradients(found: GradientStudy) -> str:
    """Return one picture (SVG): the three plain networks, and gates beside attention; norms on a logarithmic scale."""
    charts = []
    for name, shown in (("identity", "f(a) = a"), ("tanh", "f = tanh"), ("relu", "f = relu")):
        by_radius = found.plain[name]
        lines = [
            Series(f"ρ = {radius:g}", _points(norms), PALETTE[i]) for i, (radius, norms) in enumerate(by_radius.items())
        ]
        rule = (
            []
            if name == "identity"
            else [Series("", _points(_powers(r, found.length)), MUTED, faint=True) for r in by_radius]
        )
        title = f"Plain RNN, {shown}: by the state" + ("" if name == "identity" else "; grey: ρ^k")
        charts.append(_plot(title, found.length).svg([*rule, *lines]))
    colors = dict(zip(("RNN", "GRU", "LSTM", "Transformer"), PALETTE, strict=False))
    models = [
        Series(name, _points(norms), colors[name.partition(" ")[0]], dashed=name.endswith(" open"))
        for name, norms in found.models.items()
    ]
    charts.append(_plot(f"Gates (open: bias {OPEN:g}) and attention: by the input", found.length).svg(models))
    return panels(charts, _PANEL, columns=2, title="The gradient's norm through time")


def _plot(title: str, length: int) -> Plot:
    return Plot(
        title, "steps back", "norm / norm at the last step", (0, length - 1), (_LOWEST, _HIGHEST), _PANEL, log="y"
    )


def _powers(radius: float, length: int) -> list[float]:
    return [radius**k for k in range(length)]


def _points(norms: Sequence[float]) -> list[tuple[float, float]]:
    """Return (steps back, norm), not a number where the chart has no room for it."""
    return [(k, norm if _LOWEST <= norm <= _HIGHEST else math.nan) for k, norm in enumerate(norms)]
