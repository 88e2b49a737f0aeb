"""Recurrent networks: one step in equations, whole sequences by torch's kernels, additive attention over a memory.

    S_t = f(U x_t + W S_(t-1)),    O_t = g(V S_t)

U reads the input, W the state before, f is tanh or relu; V and g belong to whoever reads the states. A GRU and an LSTM
decide by gates how much of the old state stays.

Sources: Elman 1990, "Finding structure in time" (plain); Cho et al. 2014, arXiv 1406.1078, section 2.3 (GRU; the reset
gate acts on W S_(t-1) after the product, as in cuDNN and torch); Hochreiter and Schmidhuber 1997 with the forget gate
of Gers et al. 2000 (LSTM); Bahdanau et al. 2015, arXiv 1409.0473, section 3.1 and appendix A.1.2 (additive attention).

B batch, T steps, S source steps, L layers, D directions (1 or 2), I input width, C width of the state, M memory width,
A width of the attention's hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .fused import Linear

Cell = Literal["tanh", "relu", "gru", "lstm"]
MOST_HIDDEN = 2**26  # numbers of the attention's hidden layer held at once where no gradient keeps them anyway


@dataclass
class RecurrentState:
    """What a stack of recurrent layers remembers.

    Attributes:
        hidden: S (L · D, B, C), one a layer and direction.
        cell: the LSTM's second state, of the same shape; None for every other cell.
    """

    hidden: Tensor
    cell: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order: in place."""
        self.hidden = self.hidden[:, rows]
        self.cell = None if self.cell is None else self.cell[:, rows]


def recurrence(
    cell: Cell, input_dim: int, hidden_dim: int, depth: int = 1, *, drop: float = 0.0, bidirectional: bool = False
) -> nn.RNNBase:
    """Return ``depth`` layers of a cell, (B, T, I) -> (B, T, D · C): torch's own module, kernels and names of weights.

    Args:
        cell: "tanh" or "relu" (plain, with that f), "gru", "lstm".
        input_dim: width I of the inputs.
        hidden_dim: width C of the state, of each direction.
        depth: number of layers L.
        drop: dropout between layers; none after the last, none within the recurrence.
        bidirectional: whether a second set of layers reads from the end; their outputs stand side by side.

    Raises:
        ValueError: an unknown cell.
    """
    if cell not in get_args(Cell):
        raise ValueError(f"expected a cell of {', '.join(get_args(Cell))}, got {cell!r}")
    between = drop if depth > 1 else 0.0
    if cell == "gru":
        return nn.GRU(input_dim, hidden_dim, depth, batch_first=True, dropout=between, bidirectional=bidirectional)
    if cell == "lstm":
        return nn.LSTM(input_dim, hidden_dim, depth, batch_first=True, dropout=between, bidirectional=bidirectional)
    return nn.RNN(
        input_dim,
        hidden_dim,
        depth,
        nonlinearity=cell,
        batch_first=True,
        dropout=between,
        bidirectional=bidirectional,
    )


def first_state(rnn: nn.RNNBase, rows: int, like: Tensor) -> RecurrentState:
    """Return the state before the first step, zeros, for ``rows`` rows, in the type and on the device of ``like``."""
    directions = 2 if rnn.bidirectional else 1
    zeros = like.new_zeros(rnn.num_layers * directions, rows, rnn.hidden_size)
    return RecurrentState(zeros, torch.zeros_like(zeros) if isinstance(rnn, nn.LSTM) else None)


def run(
    rnn: nn.RNNBase, x: Tensor, state: RecurrentState | None = None, keep: Tensor | None = None
) -> tuple[Tensor, RecurrentState]:
    """Run the layers over whole sequences in one call.

    Args:
        rnn: made by :func:`recurrence`.
        x: inputs (B, T, I); T may be 0.
        state: where to start; default zeros.
        keep: (B, T) bool, True where a step is real: a run of them from the start of each row. Every row ends at its
            own last real step, and the second direction begins there: what fills a row up reaches no number of it. A
            row without a real step reads its first.

    Returns:
        Outputs (B, T, D · C), zero where ``keep`` is False, and the state after each row's last real step.

    Raises:
        ValueError: a ``keep`` that is not bool (B, T), or that has gaps.
    """
    start = first_state(rnn, len(x), x) if state is None else state
    if x.shape[1] == 0:
        return x.new_zeros(len(x), 0, rnn.hidden_size * (2 if rnn.bidirectional else 1)), start
    hx = start.hidden if start.cell is None else (start.hidden, start.cell)
    if keep is None:
        out, last = rnn(x, hx)
        return out, _state(last)
    packed = pack_padded_sequence(x, _lengths(keep, x), batch_first=True, enforce_sorted=False)
    out, last = rnn(packed, hx)
    return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], _state(last)


def _state(last: Tensor | tuple[Tensor, Tensor]) -> RecurrentState:
    return RecurrentState(last) if isinstance(last, Tensor) else RecurrentState(*last)


def _lengths(keep: Tensor, x: Tensor) -> Tensor:
    """Return the number of real steps of each row (B,), at least one, where packing wants it: in main memory."""
    if keep.dtype != torch.bool or keep.shape != x.shape[:2]:
        shown = f"{keep.dtype} of shape {tuple(keep.shape)}"
        raise ValueError(f"expected keep to be bool of shape {tuple(x.shape[:2])}, got {shown}")
    if bool((keep[:, 1:] & ~keep[:, :-1]).any()):
        raise ValueError("expected the real steps of each row at its start, got gaps; mend: pad at the end of rows")
    return keep.sum(1).clamp(min=1).cpu()


def advance(rnn: nn.RNNBase, layer: int, x: Tensor, state: RecurrentState, *, reverse: bool = False) -> RecurrentState:
    """Read one input (B, I) by one layer, written from the equations; returns the layer's state, hidden (B, C).

    U is ``weight_ih``, W ``weight_hh``; each has a bias, of which the first alone would do in all cells but the GRU,
    whose reset gate r acts on the second of its candidate n:

    - plain: S' = f(U x + W S)
    - GRU: r, z = sigmoid(U x + W S), n = tanh(U x + r · (W S)), S' = (1 - z) · n + z · S
    - LSTM: i, f, o = sigmoid(U x + W S), g = tanh(U x + W S), c' = f · c + i · g, S' = o · tanh(c')

    Args:
        rnn: made by :func:`recurrence`.
        layer: which of its layers.
        x: the input of that layer.
        state: the layer's state before, hidden and cell (B, C).
        reverse: whether to take the weights of the second direction.
    """
    end = f"_l{layer}" + ("_reverse" if reverse else "")
    w_in, w_state, b_in, b_state = (getattr(rnn, n + end) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    read = nn.functional.linear(x, w_in, b_in)
    kept = nn.functional.linear(state.hidden, w_state, b_state)
    if isinstance(rnn, nn.LSTM):
        return _lstm(read + kept, state.cell)
    if isinstance(rnn, nn.GRU):
        return RecurrentState(_gru(read, kept, state.hidden))
    return RecurrentState((read + kept).relu() if rnn.mode == "RNN_RELU" else (read + kept).tanh())


def _gru(read: Tensor, kept: Tensor, before: Tensor) -> Tensor:
    (r_in, z_in, n_in), (r_state, z_state, n_state) = read.chunk(3, -1), kept.chunk(3, -1)
    z = (z_in + z_state).sigmoid()
    n = (n_in + (r_in + r_state).sigmoid() * n_state).tanh()
    return (1 - z) * n + z * before


def _lstm(sums: Tensor, cell: Tensor | None) -> RecurrentState:
    assert cell is not None
    i, f, g, o = sums.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return RecurrentState(o.sigmoid() * cell.tanh(), cell)


def unroll(rnn: nn.RNNBase, x: Tensor, state: RecurrentState | None = None) -> list[RecurrentState]:
    """Return the state of all layers after each step of ``x`` (B, T, I): :func:`run` step by step, without dropout.

    Each state is a node of the graph that the next step is computed from, so that gradients can be asked for at every
    step: :mod:`vitrail.explain.through_time`. ``hidden[-1]`` of them all is what :func:`run` returns.

    Raises:
        ValueError: layers of two directions.
    """
    if rnn.bidirectional:
        raise ValueError("expected layers of one direction, got two; mend: unroll each by advance(reverse=...)")
    state = first_state(rnn, len(x), x) if state is None else state
    states = []
    for step in x.unbind(1):
        layers: list[RecurrentState] = []
        for i in range(rnn.num_layers):
            before = RecurrentState(state.hidden[i], None if state.cell is None else state.cell[i])
            layers.append(advance(rnn, i, layers[-1].hidden if layers else step, before))
        cells = [layer.cell for layer in layers if layer.cell is not None]
        state = RecurrentState(torch.stack([one.hidden for one in layers]), torch.stack(cells) if cells else None)
        states.append(state)
    return states


class AdditiveAttention(nn.Module):
    """Attention by a small network instead of a product: weights = softmax_j v · tanh(W_a s + U_a h_j).

    Args:
        query_dim: width C of the queries s.
        memory_dim: width M of the memory h.
        dim: width A of the hidden layer.

    Attributes:
        tape: None, or a list to which each call appends its weights (B, 1, T, S), as
            :class:`~vitrail.nn.attention.Attention` does; :func:`vitrail.explain.record` sets it.
    """

    tape: list[Tensor] | None

    def __init__(self, query_dim: int, memory_dim: int, dim: int) -> None:
        super().__init__()
        self.query = Linear(query_dim, dim)
        self.key = Linear(memory_dim, dim, bias=False)
        self.score = nn.Parameter(torch.empty(dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.tape = None

    def forward(self, queries: Tensor, keys: Tensor, memory: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return for each query the weighted mean of the memory (B, T, M).

        Args:
            queries: (B, T, C), any number at once.
            keys: (B, S, A), which is ``self.key(memory)``: made once, however many queries follow.
            memory: (B, S, M).
            keep: (B, S) bool, True where the memory is real; a row without any gives zeros.
        """
        weights = self._scores(self.query(queries), keys)
        if keep is not None:
            seen = keep[:, None]
            empty = ~seen.any(-1, keepdim=True)
            weights = weights.masked_fill(~(seen | empty), float("-inf")).softmax(-1).masked_fill(empty, 0.0)
        else:
            weights = weights.softmax(-1)
        if self.tape is not None:
            self.tape.append(weights[:, None])
        return weights @ memory

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, T, A), (B, S, A) -> (B, T, S)."""
        at_once = max(1, MOST_HIDDEN // max(1, keys.numel()))
        if torch.is_grad_enabled() or queries.shape[1] <= at_once:
            return (queries[:, :, None] + keys[:, None]).tanh() @ self.score
        parts = torch.split(queries, at_once, 1)
        return torch.cat([(part[:, :, None] + keys[:, None]).tanh() @ self.score for part in parts], 1)
