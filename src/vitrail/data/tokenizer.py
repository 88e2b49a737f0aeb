"""Byte-pair tokenisation, by the ``tokenizers`` library; trained on the user's own text.

Source: Sennrich et al. 2016, arXiv 1508.07909, on bytes (Radford et al. 2019): any text has tokens, and comes back from
them letter by letter. One vocabulary serves both languages (arXiv 1706.03762, section 5.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitrail.errors import DataError, WeightsError, require_extra
from vitrail.specials import Specials

NAMES = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")  # ids 0 to 3; bytes are never unknown, but other tools expect the name
SPECIALS = Specials(pad=0, bos=2, eos=3)
LEAST = len(NAMES) + 256  # specials and one token a byte


class Tokenizer:
    """Text to token ids and back. ``specials`` are never made from text, whatever it says."""

    def __init__(self, inner: Any, specials: Specials = SPECIALS) -> None:
        inner.encode_special_tokens = True
        self.inner, self.specials = inner, specials

    @property
    def vocab_size(self) -> int:
        """Tokens there are, specials included."""
        return int(self.inner.get_vocab_size())

    @classmethod
    def train(cls, lines: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn at most ``vocab_size`` tokens from ``lines``; a small text yields fewer.

        Raises :class:`DataError` if ``vocab_size`` has no room for the 256 bytes and the specials.
        """
        require_extra("tokenizers", "text", "byte-pair tokenisation")
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

        if vocab_size < LEAST:
            raise DataError(f"expected a vocabulary of at least {LEAST} (256 bytes, 4 specials), got {vocab_size}")
        inner = tokenizers.Tokenizer(models.BPE())
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(NAMES),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=2,
            show_progress=False,
        )
        inner.train_from_iterator(lines, trainer)
        return cls(inner)

    @classmethod
    def load(cls, path: Path, specials: Specials = SPECIALS) -> Tokenizer:
        """Read ``tokenizer.json``; :class:`WeightsError` if it is none."""
        require_extra("tokenizers", "text", "byte-pair tokenisation")
        import tokenizers

        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), specials)
        except Exception as error:  # the library raises nothing narrower
            raise WeightsError(f"expected a tokenizer in {path}, got: {error}") from None

    @classmethod
    def from_json(cls, text: str, specials: Specials = SPECIALS) -> Tokenizer:
        """Read what :meth:`to_json` returned."""
        import tokenizers

        return cls(tokenizers.Tokenizer.from_str(text), specials)

    def digest(self) -> str:
        """Return a hash of the whole tokenizer."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the contents of ``tokenizer.json``."""
        return str(self.inner.to_str(pretty=False))

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each line, without specials."""
        return [found.ids for found in self.inner.encode_batch(list(lines), add_special_tokens=False)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of token ids; specials give nothing."""
        return [text.strip() for text in self.inner.decode_batch([list(row) for row in rows])]

    def names(self, row: Sequence[int]) -> list[str]:
        """Return each token of a row as people read it; one that goes on a word begins with "·"."""
        found = [self.inner.decode([i]) for i in row]
        return [text.strip() or "·" if text.startswith(" ") else f"·{text}" for text in found]
