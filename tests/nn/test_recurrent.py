"""The equations step by step equal torch's kernels; padding reaches nothing; additive attention by hand."""

import pytest
import torch

from vitrail.nn.recurrent import AdditiveAttention, RecurrentState, advance, first_state, recurrence, run, unroll

CELLS = ["tanh", "relu", "gru", "lstm"]
LENGTHS = (5, 1, 7, 4)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layers(cell, depth=2, **keywords):
    torch.manual_seed(3)
    return recurrence(cell, 5, 6, depth, **keywords).double()


def prefix(lengths, width):
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def same(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_the_equations_equal_the_kernel(cell):
    rnn, x = layers(cell), noise(4, 9, 5)
    start = RecurrentState(noise(2, 4, 6, seed=1), noise(2, 4, 6, seed=2) if cell == "lstm" else None)
    states = unroll(rnn, x, start)
    out, last = run(rnn, x, start)
    same(torch.stack([state.hidden[-1] for state in states], 1), out)
    same(states[-1].hidden, last.hidden)
    if cell == "lstm":
        same(states[-1].cell, last.cell)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_the_equations_equal_the_kernels(cell):
    rnn, x = layers(cell), noise(3, 6, 5).requires_grad_()
    theirs = torch.autograd.grad(run(rnn, x)[0].square().sum(), [x, *rnn.parameters()])
    outputs = torch.stack([state.hidden[-1] for state in unroll(rnn, x)], 1)
    ours = torch.autograd.grad(outputs.square().sum(), [x, *rnn.parameters()])
    for mine, other in zip(ours, theirs, strict=True):
        same(mine, other, 1e-11)


def one_sentence(rnn, x):
    """Both directions of every layer by the equations, over one row without padding: outputs (T, 2C), last states."""
    lasts = []
    for layer in range(rnn.num_layers):
        outs = []
        for reverse in (False, True):
            state = first_state(rnn, 1, x)
            state = RecurrentState(state.hidden[0], None if state.cell is None else state.cell[0])
            seen = []
            for step in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
                state = advance(rnn, layer, x[:, step], state, reverse=reverse)
                seen.append(state.hidden)
            outs.append(torch.stack(seen[::-1] if reverse else seen, 1))
            lasts.append(state.hidden[0])
        x = torch.cat(outs, -1)
    return x[0], torch.stack(lasts)


@pytest.mark.parametrize("cell", CELLS)
def test_two_directions_with_padding_equal_a_loop_over_sentences(cell):
    rnn, x = layers(cell, bidirectional=True), noise(4, 8, 5)
    out, last = run(rnn, x, keep=prefix(LENGTHS, 8))
    for row, length in enumerate(LENGTHS):
        expected, state = one_sentence(rnn, x[row : row + 1, :length])
        same(out[row, :length], expected)
        same(last.hidden[:, row], state)
        assert not out[row, length:].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_fills_a_row_up_reaches_nothing(cell, bidirectional):
    rnn, x, keep = layers(cell, bidirectional=bidirectional), noise(4, 8, 5), prefix(LENGTHS, 8)
    out, last = run(rnn, x, keep=keep)
    other = torch.where(keep[..., None], x, noise(4, 8, 5, seed=9))
    again, state = run(rnn, other, keep=keep)
    assert torch.equal(out, again)
    assert torch.equal(last.hidden, state.hidden)
    wider, state = run(rnn, torch.cat([x, noise(4, 3, 5)], 1), keep=prefix(LENGTHS, 11))
    assert torch.equal(wider[:, :8], out)
    assert torch.equal(state.hidden, last.hidden)
    same(run(rnn, x, keep=prefix((8,) * 4, 8))[0], run(rnn, x)[0])


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm"])
def test_cells_of_one_bias_load_by_the_sum_of_both(cell):
    """Only the GRU needs its second bias: the reset gate acts on it."""
    rnn, x = layers(cell), noise(2, 5, 5)
    both = run(rnn, x)[0]
    with torch.no_grad():
        for layer in range(rnn.num_layers):
            first, second = getattr(rnn, f"bias_ih_l{layer}"), getattr(rnn, f"bias_hh_l{layer}")
            first += second
            second.zero_()
    same(run(rnn, x)[0], both)


def test_no_step_at_all_leaves_the_state():
    for cell in CELLS:
        rnn = layers(cell)
        out, state = run(rnn, noise(3, 0, 5))
        assert out.shape == (3, 0, 6)
        assert not state.hidden.any()


def test_select_reorders_repeats_and_drops_rows():
    state = RecurrentState(noise(2, 3, 4), noise(2, 3, 4, seed=1))
    before = state.hidden, state.cell
    state.select(torch.tensor([2, 0, 0, 2]))
    assert torch.equal(state.hidden[:, 1], before[0][:, 0])
    assert torch.equal(state.cell[:, 3], before[1][:, 2])


def test_bad_arguments_say_what_was_expected():
    rnn, x = layers("gru"), noise(2, 4, 5)
    with pytest.raises(ValueError, match="gaps"):
        run(rnn, x, keep=torch.tensor([[True, False, True, False], [True] * 4]))
    with pytest.raises(ValueError, match=r"bool of shape \(2, 4\)"):
        run(rnn, x, keep=torch.ones(2, 4))
    with pytest.raises(ValueError, match="expected a cell of tanh, relu, gru, lstm"):
        recurrence("rnn", 5, 6)
    with pytest.raises(ValueError, match="one direction"):
        unroll(layers("gru", bidirectional=True), x)


def test_additive_attention_by_hand(monkeypatch):
    attention = AdditiveAttention(6, 5, 7).double()
    queries, memory = noise(3, 4, 6), noise(3, 8, 5, seed=1)
    keep = prefix((8, 3, 0), 8)
    attention.tape = []
    with torch.no_grad():
        out = attention(queries, attention.key(memory), memory, keep)
        weights = attention.tape[0][:, 0]
        for b, length in enumerate((8, 3)):
            for t in range(4):
                scores = [
                    attention.score @ torch.tanh(attention.query(queries[b, t]) + attention.key(memory[b, s]))
                    for s in range(length)
                ]
                expected = torch.stack(scores).softmax(0)
                same(weights[b, t, :length], expected)
                same(out[b, t], expected @ memory[b, :length])
        assert not weights[1, :, 3:].any()
        assert not out[2].any()
        monkeypatch.setattr("vitrail.nn.recurrent.MOST_HIDDEN", 200)  # one query at a time
        assert torch.equal(attention(queries, attention.key(memory), memory, keep), out)
