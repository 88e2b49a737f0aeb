"""Decoding, for every model that steps: one beam is greedy, cached is uncached, batched is single, the ended leave."""

import pytest
import torch

from tests.contract.every import randomise
from tests.contract.test_sequences import DECODING, KINDS, S, texts, tokens
from vitrail import models
from vitrail.errors import UsageError
from vitrail.infer.beams import Beams, Penalty
from vitrail.infer.choose import best, draw, largest
from vitrail.infer.decode import Limits, beam_search, greedy, sample
from vitrail.nn.steps import Specials

MOST = 12


@pytest.fixture(params=DECODING)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    """A model whose texts end at times: the id that it likes to say is taken for eos."""
    return randomise(models.create_model(name)).eval()


def sources(model, name):
    given = texts(model, name)
    return (given[0], given[2]) if KINDS[name] == "both" else (given[0][:, :4], None)


def limits(model, **more):
    return Limits(model.config.specials, MOST, **more)


def recomputed(model, source, keep, target):
    """Return the log probabilities of what follows ``target``, from the whole of it."""
    logits = model(source, target, keep) if keep is not None else model(torch.cat([source, target], 1))
    return logits[:, -1].log_softmax(-1)


class Counted:
    """A model whose calls are counted, that ends each text after as many tokens as its source says."""

    class State:
        def __init__(self, left):
            self.left = left

        def select(self, rows):
            self.left = self.left[rows]

    def __init__(self):
        self.rows = []

    def begin(self, source, keep=None):
        return self.State(source[:, 0].clone())

    def step(self, tokens, state):
        self.rows.append(len(tokens))
        logits = torch.full((len(tokens), 40), -5.0)
        logits[:, 7] = 2.0
        logits[state.left == 0, 3] = 30.0
        state.left = state.left - 1
        return logits


@torch.inference_mode()
def test_greedy_takes_the_likeliest_of_the_whole_text(model, name):
    source, keep = sources(model, name)
    found = greedy(model, source, keep, limits=limits(model, ends=False))
    s = model.config.specials
    text, total = torch.full((len(source), 1), s.bos), torch.zeros(len(source))
    for _ in range(MOST):
        values = recomputed(model, source, keep, text)
        values[:, [s.pad, s.bos]] = float("-inf")
        value, token = values.max(-1)
        text, total = torch.cat([text, token[:, None]], 1), total + value
    assert torch.equal(found.tokens, text[:, 1:])
    torch.testing.assert_close(found.scores, total, atol=1e-4, rtol=1e-4)
    assert found.lengths.tolist() == [MOST] * len(source)
    assert not found.ended.any()


@torch.inference_mode()
def test_beams_find_no_worse_and_count_right(model, name):
    """The score of what a search finds is that of its text read at once."""
    source, keep = sources(model, name)
    found = beam_search(model, source, keep, limits=limits(model), beams=3, length_penalty=0.6)
    s = model.config.specials
    for i, row in enumerate(found.rows()):
        said = [*row, s.eos] if found.ended[i] else row
        text, total = torch.tensor([[s.bos]]), 0.0
        for token in said:
            one = (source[i : i + 1], None if keep is None else keep[i : i + 1], text)
            total += float(recomputed(model, *one)[0, token])
            text = torch.cat([text, torch.tensor([[token]])], 1)
        assert float(found.scores[i]) == pytest.approx(total / ((5 + len(said)) / 6) ** 0.6, abs=1e-3)


@torch.inference_mode()
def test_one_beam_is_greedy(model, name):
    source, keep = sources(model, name)
    one = beam_search(model, source, keep, limits=limits(model), beams=1, length_penalty=0.0)
    found = greedy(model, source, keep, limits=limits(model))
    assert torch.equal(one.tokens, found.tokens)
    assert torch.equal(one.scores, found.scores)


@torch.inference_mode()
@pytest.mark.parametrize("beams", [1, 4])
def test_a_source_does_not_depend_on_its_batch(model, name, beams):
    source, keep = sources(model, name)
    together = beam_search(model, source, keep, limits=limits(model), beams=beams)
    for i in range(len(source)):
        length = S if keep is None else int(keep[i].sum())
        alone = beam_search(model, source[i : i + 1, :length], limits=limits(model), beams=beams)
        assert alone.rows() == together.rows()[i : i + 1]
        torch.testing.assert_close(alone.scores, together.scores[i : i + 1], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_given_tokens_come_first(model, name):
    source, keep = sources(model, name)
    first = torch.cat([torch.full((len(source), 1), model.config.specials.bos), tokens(model, len(source), 3)], 1)
    found = greedy(model, source, keep, limits=limits(model, ends=False), first=first)
    values = recomputed(model, source, keep, first)
    values[:, [model.config.specials.pad, model.config.specials.bos]] = float("-inf")
    assert torch.equal(found.tokens[:, 0], values.argmax(-1))


@torch.inference_mode()
def test_nothing_before_the_text(model, name):
    if KINDS[name] == "decoder":
        found = sample(model, torch.empty(2, 0, dtype=torch.long), limits=limits(model, ends=False))
        assert found.tokens.shape == (2, MOST)


def test_rows_that_end_leave():
    model = Counted()
    lengths = torch.tensor([[1], [9], [1], [5]])
    found = greedy(model, lengths, limits=Limits(Specials(), 20))
    assert found.lengths.tolist() == [1, 9, 1, 5]
    assert found.ended.all()
    assert model.rows == [4, 4, 2, 2, 2, 2, 1, 1, 1, 1]
    assert found.rows() == [[7], [7] * 9, [7], [7] * 5]


def test_sources_that_are_done_leave_a_search():
    model = Counted()
    found = beam_search(model, torch.tensor([[1], [9]]), limits=Limits(Specials(), 30), beams=2, length_penalty=0.0)
    assert found.rows() == [[7], [7] * 9]
    assert model.rows[:2] == [2, 4]
    assert model.rows[-1] == 2


def test_a_text_that_does_not_end_is_told():
    found = greedy(Counted(), torch.tensor([[1], [9]]), limits=Limits(Specials(), 4))
    assert found.ended.tolist() == [True, False]
    assert found.lengths.tolist() == [1, 4]
    search = beam_search(Counted(), torch.tensor([[1], [9]]), limits=Limits(Specials(), 4), beams=2)
    assert search.ended.tolist() == [True, False]


def test_no_source_no_text():
    found = greedy(Counted(), torch.empty(0, 1, dtype=torch.long), limits=Limits(Specials(), 4))
    assert found.rows() == []
    assert beam_search(Counted(), torch.empty(0, 1, dtype=torch.long), limits=Limits(Specials(), 4)).rows() == []


def test_long_texts_are_preferred_as_alpha_says():
    penalty = Penalty("gnmt", 0.6)
    assert penalty(1) == 1.0
    assert penalty(7) == pytest.approx(2**0.6)
    assert Penalty("power", 2.0)(3) == 9.0
    beams = Beams(1, 1, 3, Penalty("power", 1.0), torch.device("cpu"))
    beams.extend(torch.tensor([[-1.0, -1.2]]), torch.tensor([[5, 3]]), last=False)
    assert not beams.done()  # the text that ended is not among the K likeliest
    beams.extend(torch.tensor([[-0.1, -9.0]]), torch.tensor([[3, 5]]), last=False)
    assert beams.done()
    texts, scores = beams.take(torch.tensor([True]))
    assert texts.tolist() == [[5, 3]]
    assert float(scores) == pytest.approx(-1.1 / 2)


@pytest.mark.parametrize("count", [1, 5, 12])
def test_the_largest_are_those_of_topk(count):
    for width in (40, 64 * 60, 64 * 60 + 13):
        values = torch.randn(7, width)
        found, places = largest(values, count)
        expected = values.topk(count)
        assert torch.equal(found, expected.values)
        assert torch.equal(places, expected.indices)


def test_the_best_of_many_rows_are_those_of_few(monkeypatch):
    logits = torch.randn(9, 200)
    whole = best(logits, 3, banned=(4,))
    monkeypatch.setattr("vitrail.infer.choose.PIECE", 512)
    pieces = best(logits, 3, banned=(4,))
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))
    assert not (whole[1] == 4).any()
    torch.testing.assert_close(whole[0][:, 0], logits.log_softmax(-1).index_fill(1, torch.tensor([4]), -9e9).amax(-1))


def shares(logits, count=20_000, **settings):
    generator = torch.Generator().manual_seed(0)
    values, found = draw(logits.expand(count, -1), generator=generator, **settings)
    torch.testing.assert_close(values, logits.log_softmax(-1)[found])
    return torch.bincount(found, minlength=len(logits)) / count


def test_what_is_drawn_is_as_likely_as_the_model_says():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    torch.testing.assert_close(shares(logits), logits.softmax(-1), atol=0.02, rtol=0)
    torch.testing.assert_close(shares(logits, temperature=0.5), (2 * logits).softmax(-1), atol=0.02, rtol=0)
    only = logits.masked_fill(torch.tensor([False, True, True, False, True]), float("-inf")).softmax(-1)
    torch.testing.assert_close(shares(logits, top_k=2), only, atol=0.02, rtol=0)
    torch.testing.assert_close(shares(logits, top_p=0.7), only, atol=0.02, rtol=0)  # 0.58 + 0.21
    assert shares(logits, top_p=0.5).argmax() == 3
    assert shares(logits, top_p=0.5)[3] == 1.0
    assert shares(logits, banned=(3,))[3] == 0.0
    assert shares(logits, top_k=1)[3] == 1.0


def test_a_sample_is_the_same_by_the_same_chance(model, name):
    source, keep = sources(model, name)
    first, second = (
        sample(model, source, keep, limits=limits(model), generator=torch.Generator().manual_seed(5), top_k=9)
        for _ in range(2)
    )
    assert torch.equal(first.tokens, second.tokens)
    assert not first.tokens.is_inference()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"temperature": 0.0}, "temperature above 0"), ({"top_k": 0}, "top_k of at least 1"), ({"top_p": 1.5}, "top_p")],
)
def test_impossible_chances(settings, words):
    with pytest.raises(UsageError, match=words):
        sample(Counted(), torch.ones(1, 1, dtype=torch.long), limits=Limits(Specials(), 4), **settings)


def test_impossible_limits():
    one = torch.ones(1, 1, dtype=torch.long)
    with pytest.raises(UsageError, match="at least 1 beam"):
        beam_search(Counted(), one, limits=Limits(Specials(), 4), beams=0)
    with pytest.raises(UsageError, match="at most 20 beams"):
        beam_search(Counted(), one, limits=Limits(Specials(), 4), beams=21)
    with pytest.raises(UsageError, match="max_length of at least 1"):
        Limits(Specials(), 0)
    with pytest.raises(UsageError, match="first tokens"):
        greedy(Counted(), one, limits=Limits(Specials(), 4), first=torch.ones(1, dtype=torch.long))
