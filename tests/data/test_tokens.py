"""Tokens: text comes back as it was, and batches are a function of (seed, epoch, number)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.paralleltext import open_text
from vitrail.data.tokenbatches import Encoded, TokenBatches
from vitrail.data.tokenizer import LEAST, SPECIALS, Tokenizer
from vitrail.errors import DataError, UsageError, WeightsError

NUMBERS = open_text("numbers")
TOKENIZER = Tokenizer.train([*NUMBERS.train.source, *NUMBERS.train.target], 400)
ENCODED = Encoded.of(NUMBERS.val, TOKENIZER, 64)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    import unicodedata

    line = unicodedata.normalize("NFC", text.strip())
    assert TOKENIZER.decode(TOKENIZER.encode([text.strip()]))[0] == line.strip()


def test_words_of_the_specials_are_only_words() -> None:
    ids = TOKENIZER.encode(["[EOS] [PAD] [BOS]"])[0]
    assert not {SPECIALS.pad, SPECIALS.bos, SPECIALS.eos} & set(ids)
    assert TOKENIZER.decode([ids]) == ["[EOS] [PAD] [BOS]"]


def test_a_tokenizer_survives_its_file(tmp_path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_json())
    again = Tokenizer.load(path)
    assert again.encode(NUMBERS.val.source) == TOKENIZER.encode(NUMBERS.val.source)
    assert again.digest() == TOKENIZER.digest()
    path.write_text("{}")
    with pytest.raises(WeightsError, match="expected a tokenizer in"):
        Tokenizer.load(path)
    with pytest.raises(DataError, match=f"at least {LEAST}"):
        Tokenizer.train(["a"], 100)


def test_training_twice_gives_the_same_tokens() -> None:
    again = Tokenizer.train([*NUMBERS.train.source, *NUMBERS.train.target], 400)
    assert again.to_json() == TOKENIZER.to_json()


def test_a_batch_is_made_of_whole_sentences() -> None:
    batches = TokenBatches(ENCODED, SPECIALS, tokens=300)
    seen = []
    for batch in batches.epoch():
        assert max(batch.source.shape[1], batch.labels.shape[1]) * len(batch) <= 300
        for row, i in enumerate(batch.indices.tolist()):
            source = batch.source[row][batch.source_keep[row]]
            assert source.tolist() == ENCODED.source[i].tolist()
            real = batch.labels[row] >= 0
            assert batch.target[row][: int(real.sum()) + 1].tolist() == ENCODED.target[i].tolist()
            assert torch.equal(batch.labels[row][real], batch.target[row][1 : int(real.sum()) + 1])
        assert batch.count == int((batch.labels >= 0).sum())
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(250))


def test_epochs_have_equal_numbers_of_batches_and_other_ones() -> None:
    batches = TokenBatches(ENCODED, SPECIALS, tokens=300, seed=3, shuffle=True)
    first, second = ([b.indices.tolist() for b in batches.epoch(e)] for e in (0, 1))
    assert len(first) == len(second) == len(batches)
    assert first != second
    again = TokenBatches(ENCODED, SPECIALS, tokens=300, seed=3, shuffle=True)
    assert [b.indices.tolist() for b in again.epoch(1, start=4)] == second[4:]


def test_processes_share_each_batch() -> None:
    whole = TokenBatches(ENCODED, SPECIALS, tokens=300, shuffle=True)
    parts = [TokenBatches(ENCODED, SPECIALS, tokens=300, shuffle=True, part=(r, 3)) for r in range(3)]
    for batch, *shares in zip(whole.epoch(), *(p.epoch() for p in parts), strict=True):
        assert len({share.source.shape[1] for share in shares}) == 1
        assert all(len(share) for share in shares)
        assert sum(share.count for share in shares) == batch.count
        indices = np.concatenate([share.indices[share.keep].numpy() for share in shares])
        assert indices.tolist() == batch.indices.tolist()


def test_shares_of_an_evaluation_have_one_shape() -> None:
    parts = [TokenBatches(ENCODED, SPECIALS, tokens=300, part=(r, 3)) for r in range(3)]
    for shares in zip(*(p.epoch() for p in parts), strict=True):
        assert len({share.target.shape for share in shares}) == 1


def test_long_sentences_are_cut_and_counted() -> None:
    cut = Encoded.of(NUMBERS.val, TOKENIZER, 8)
    assert cut.cut > 100
    assert max(len(row) for row in cut.source) == 9
    assert all(row[-1] == SPECIALS.eos for row in (*cut.source, *cut.target))
    assert len(list(TokenBatches(cut, SPECIALS, tokens=1).epoch())) == 250  # each is a batch by itself
    with pytest.raises(UsageError, match="at least one token"):
        TokenBatches(cut, SPECIALS, tokens=0)
