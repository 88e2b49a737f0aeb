"""Runs on parallel text: translation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.data.paralleltext import TextSplits, open_text
from vitrail.data.tokenbatches import Encoded, TokenBatches
from vitrail.data.tokenizer import Tokenizer
from vitrail.errors import UsageError, VitrailError, WeightsError
from vitrail.infer.translator import decode_rows
from vitrail.models import build, config_of, configure, text_variants, translates
from vitrail.tasks import Task
from vitrail.tasks.evaluate import Evaluation
from vitrail.tasks.translate import Translate
from vitrail.weights.textfolder import TOKENIZER, TextCard, TextFolder, open_text_folder, save_text_folder

from .checkpoint import replace_bytes
from .defaults import sentences
from .folder import write_json
from .job import Identity, Say
from .textrecipe import TextFacts, TranslateRecipe, resolve_text
from .world import ALONE, World


class TextJob:
    """A recipe, the sentences it names, and the tokenizer trained on them."""

    unit = "tokens"

    def __init__(self, recipe: TranslateRecipe, splits: TextSplits, tokenizer: Tokenizer | None = None) -> None:
        self.recipe, self.splits, self._tokenizer = recipe, splits, tokenizer
        self._encoded: dict[str, Encoded] = {}
        self.notes = splits.notes

    @classmethod
    def open(cls, recipe: TranslateRecipe, folder: Path | None, say: Say, world: World = ALONE) -> TextJob:
        """Read all sentences; a resumed run has its tokenizer in its folder."""
        d = recipe.data
        splits = open_text(
            d.source,
            languages=None if d.languages == "auto" else d.languages,
            val_fraction=d.val_fraction,
            train_fraction=d.train_fraction,
            seed=d.seed,
        )
        made = None if folder is None else Tokenizer.load(folder / TOKENIZER)
        return cls(recipe, splits, made)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, once the recipe is settled."""
        assert self._tokenizer is not None, "the tokenizer is trained when the recipe is settled"
        return self._tokenizer

    @property
    def names(self) -> list[str]:
        """Validation and all tests."""
        return list(self.splits.held_out())

    def settle(self, device: torch.device, say: Say, world: World) -> list[str]:
        """Work out every ``auto``, and train the tokenizer on the training sentences of both languages."""
        train = self.splits.train
        words = sum(len(line.split()) for side in (train.source, train.target) for line in side)
        facts = TextFacts(len(train), words, self.splits.languages)
        pretrained = self._start()
        if pretrained is not None:
            options = {"name": pretrained.name} if self.recipe.model.name == "auto" else {}
            self.recipe.model = self.recipe.model.model_copy(update=options)
            self.recipe.tokenizer.vocab_size = pretrained.config.vocab_size
        settled, made = resolve_text(self.recipe, facts, device)
        settled = TranslateRecipe.check(world.share(settled.model_dump(mode="json")))
        if not translates(config_of(settled.model.name)):
            known = [n for n, config in text_variants().items() if translates(config) and not n.startswith("test_")]
            raise UsageError(f"expected a model that translates ({', '.join(known)}), got {settled.model.name}")
        self.recipe = settled
        if pretrained is not None:
            self._tokenizer = Tokenizer.load(pretrained.tokenizer, pretrained.config.specials)
        else:
            trained = Tokenizer.train([*train.source, *train.target], int(settled.tokenizer.vocab_size))
            self._tokenizer = Tokenizer.from_json(world.share(trained.to_json()))
        self._say_what_was_cut(say)
        return sentences(made)

    def _start(self) -> TextFolder | None:
        where = self.recipe.model.pretrained
        return None if where is None else open_text_folder(where)

    def _say_what_was_cut(self, say: Say) -> None:
        cut = self._encode("train").cut
        if cut:
            say(f"{cut} training sentences have more than {self.recipe.data.max_tokens} tokens and lose their end")

    def _encode(self, name: str) -> Encoded:
        if name not in self._encoded:
            pairs = self.splits.train if name == "train" else self.splits.held_out()[name]
            self._encoded[name] = Encoded.of(pairs, self.tokenizer, self.recipe.data.max_tokens)
        return self._encoded[name]

    def identity(self) -> Identity:
        """Every sentence, the tokenizer, the recipe."""
        parts = {"train": self.splits.train, **self.splits.held_out()}
        return Identity({name: pairs.digest() for name, pairs in parts.items()}, self._classes(), self.recipe.flat())

    def _classes(self) -> dict[str, Any]:
        return {"hash": self.tokenizer.digest(), "names": [f"{self.tokenizer.vocab_size} tokens"]}

    def keep_data(self, folder: Path) -> None:
        """Keep the tokenizer."""
        replace_bytes(folder / TOKENIZER, self.tokenizer.to_json().encode())

    def build_model(self, say: Say) -> tuple[nn.Module, TextCard]:
        """Return the network with fresh weights, or with those of another run and its vocabulary."""
        r = self.recipe
        start = self._start()
        own = {
            "vocab_size": self.tokenizer.vocab_size,
            "specials": self.tokenizer.specials,
            "drop_rate": r.model.drop_rate,
            **r.model.options,
        }
        torch.manual_seed(r.train.seed)
        model = build(configure(start.config if start is not None else config_of(r.model.name), own))
        if start is not None:
            try:
                model.load_state_dict(start.load().state_dict())
            except RuntimeError as error:
                raise WeightsError(f"the weights of {start.path} do not fit {r.model.name}: {error}") from None
            say(f"pretrained: {start.name} of {start.path}")
        card = TextCard(
            name=r.model.name,
            languages=self.splits.languages,
            max_tokens=r.data.max_tokens,
            **{key: getattr(r.decoding, key) for key in ("beam", "length_penalty", "extra")},
            origin=f"trained by Vitrail on {Path(r.data.source).name}",
        )
        return model, card

    def build_task(self, card: TextCard, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """Return translation that is validated greedily."""
        return self._task("val", beam=1)

    def _task(self, name: str, beam: int) -> Translate:
        t, d, pairs = self.recipe.train, self.recipe.decoding, self.splits.held_out()[name]
        decode = partial(decode_rows, beam=beam, length_penalty=d.length_penalty, extra=d.extra)
        return Translate(
            self.tokenizer,
            decode,
            sources=pairs.source,
            references=pairs.target,
            label_smoothing=float(t.label_smoothing),
            monitor=t.monitor,
        )

    def train_batches(self, card: TextCard, device: torch.device, part: tuple[int, int]) -> TokenBatches:
        """Shuffled batches of sentences of like length."""
        t = self.recipe.train
        return TokenBatches(
            self._encode("train"),
            self.tokenizer.specials,
            tokens=int(t.batch_tokens),
            seed=t.seed,
            shuffle=True,
            part=part,
        )

    def batches(self, name: str, card: TextCard, part: tuple[int, int]) -> TokenBatches:
        """Every sentence of a split once, the shortest first."""
        tokens = int(self.recipe.train.batch_tokens)
        return TokenBatches(self._encode(name), self.tokenizer.specials, tokens=tokens, part=part)

    def watch(self, batches: Any, say: Say) -> Callable[[int, dict[str, Any]], None]:
        """Text is in memory: nothing to wait for."""
        return lambda step, values: None

    def require_world(self, world: World) -> None:
        """Any number of processes can share a batch of sentences."""

    def introduction(self, params: int, device: torch.device) -> str:
        """Model, sentences, vocabulary, device."""
        s, r = self.splits, self.recipe
        held = ", ".join(f"{len(pairs):,} {name}" for name, pairs in s.held_out().items())
        return (
            f"{r.model.name}: {params:,} parameters; {s.languages[0]} to {s.languages[1]}, {len(s.train):,} training "
            f"pairs, {held}; {self.tokenizer.vocab_size:,} tokens; {device}, {r.train.precision}"
        )

    def save(self, path: Path, model: nn.Module, card: TextCard, extra: dict[str, Any]) -> None:
        """Write a folder with the tokenizer."""
        save_text_folder(path, model, card=card, tokenizer=self.tokenizer.to_json(), extra=extra)

    def load(self, path: Path) -> nn.Module:
        """Read it back."""
        return open_text_folder(path).load()

    def taught(self, card: TextCard, found: Evaluation) -> TextCard:
        """Evaluation teaches nothing that the weights do not hold."""
        return card

    def use_taught(self, task: Task, folder: Path) -> None:
        """See :meth:`taught`."""

    def finals(self, task: Task, name: str) -> Task:
        """Return translation as the recipe's ``decoding`` says, of one split."""
        return self._task(name, beam=self.recipe.decoding.beam)

    def record(self, folder: Path, name: str, found: Evaluation) -> None:
        """Write every translation beside its source and reference, and BLEU by length."""
        details = found.accumulator.describe()
        lines = ["\t".join(cell.replace("\t", " ") for cell in row) + "\n" for row in details.pop("lines")]
        replace_bytes(
            folder / f"translations_{name}.tsv", ("source\ttranslation\treference\n" + "".join(lines)).encode()
        )
        write_json(folder / f"details_{name}.json", {"metrics": found.finite(), **details})

    def summary(self) -> dict[str, Any]:
        """Sentences, languages, vocabulary."""
        held = {name: len(pairs) for name, pairs in self.splits.held_out().items()}
        return {
            "sentences": {"train": len(self.splits.train), **held},
            "languages": list(self.splits.languages),
            "vocabulary": self.tokenizer.vocab_size,
        }

    def report(self, folder: Path, name: str) -> Path | None:
        """There is none yet for text."""
        return None

    def memory_advice(self, card: TextCard, error: RuntimeError) -> VitrailError:
        """Fewer tokens at a time."""
        t = self.recipe.train
        tokens, pieces = int(t.batch_tokens), int(t.accumulation)
        return VitrailError(
            f"out of memory at {tokens} tokens a step in {pieces} piece(s): {str(error).splitlines()[0]}\n"
            f"mend, in this order: --set train.accumulation={2 * pieces} (the same result); "
            f"--set train.batch_tokens={tokens // 2}; --set data.max_tokens={card.max_tokens // 2}; a smaller --model"
        )
