"""Verbs on models that read text: `vitrail predict` translates lines, `vitrail val` measures BLEU.

The verbs themselves are in predict.py, val.py and explain.py, which hand over to here what reads text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import DataError, UsageError

from .console import partial_result, plain, result, say, table

if TYPE_CHECKING:
    from vitrail.data.paralleltext import Pairs
    from vitrail.infer.translator import Translator

DRAWN = 3  # held-out sentences that explain draws where none is named
SHOWN = 5  # translations that val prints


def reads_text(source: str) -> bool:
    """Tell whether the model of a verb reads text."""
    from vitrail.weights.textfolder import is_text_folder

    from .source import existing

    return not source.startswith("hf-hub:") and Path(source).is_dir() and is_text_folder(existing(source))


def refuse(model: str, **options: Any) -> None:
    """Raise :class:`UsageError` if an option that is for images was given for a model that reads text."""
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(f"--{given[0]} has no effect on {model}, which reads text; mend: leave it out")


def translate(model: str, files: list[str], *, beam: int | None, device: str, batch: int, as_json: bool) -> None:
    """Translate the lines of files, or of standard input, one line of output a line of input."""
    from vitrail.infer.translator import load_translator

    translator = load_translator(model, device=device, batch_size=batch, beam=beam)
    broken: list[str] = []
    found = []
    for lines in _blocks(files):
        for answer in translator.stream(_readable(lines, broken)):
            if not as_json:
                sys.stdout.write(plain(answer.text) + "\n")
                for note in answer.notes:
                    say(f"vitrail: {note}: {answer.source[:60]!r}", stream=sys.stderr)
            found.append(answer.to_json())
        sys.stdout.flush()
    if broken:
        error = DataError(f"{len(broken)} of {len(found)} lines could not be read, the first: {broken[0]}")
        partial_result("predict", as_json, error, predictions=found)
    result("predict", as_json, predictions=found)


def _blocks(files: list[str]) -> Iterator[Iterable[tuple[str, bytes]]]:
    """Yield (place, line) by file; from a terminal line by line, so that each is answered at once."""
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"expected a file of lines to translate, got {name!r}, which does not exist")
    for name in files:
        with open(name, "rb") as file:
            yield ((f"{name}, line {i}", line) for i, line in enumerate(file, 1))
    if files:
        return
    lines = ((f"standard input, line {i}", line) for i, line in enumerate(sys.stdin.buffer, 1))
    if sys.stdin.isatty():
        yield from ([line] for line in lines)
    else:
        yield lines


def _readable(lines: Iterable[tuple[str, bytes]], broken: list[str]) -> Iterator[str]:
    """Yield text; a line that is not UTF-8 is noted and stays empty, so that the others keep their places."""
    from vitrail.data.paralleltext import decode

    for place, line in lines:
        try:
            yield decode(line.rstrip(b"\n"), place)
        except DataError as error:
            broken.append(str(error))
            yield ""


def align(model: str, lines: list[str], *, out: Path | None, device: str, as_json: bool) -> None:
    """Draw which source words each word of a translation looked at, a picture a sentence."""
    from vitrail.infer.translator import load_translator

    translator = load_translator(model, device=device)
    if not lines:
        splits = _held_out(model, None, None, translator)[0]
        lines = sorted(splits.source, key=lambda line: abs(len(line.split()) - 10))[:DRAWN]
    folder = Path(model) / "explain" if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for number, line in enumerate(lines, 1):
        found = translator.align(line)
        path = found.plot(folder / f"alignment-{number}.svg")
        say(f"{path.resolve()}  ({found.best()})\n  {line}\n  -> {found.result.text}")
        drawn.append({**found.result.to_json(), "layer": found.best(), "picture": path.resolve()})
    result("explain", as_json, explanations=drawn)


def measure(
    model: str, data: str | None, split: str | None, *, beam: int | None, device: str, batch: int, as_json: bool
) -> None:
    """Print BLEU, loss and accuracy on held-out sentences, BLEU by length, and a few translations."""
    from vitrail.data.tokenbatches import Encoded, TokenBatches
    from vitrail.infer.translator import load_translator
    from vitrail.tasks.evaluate import evaluate
    from vitrail.tasks.translate import Translate

    translator = load_translator(model, device=device, beam=beam)
    pairs, source = _held_out(model, data, split, translator)
    card, specials = translator.card, translator.tokenizer.specials
    encoded = Encoded.of(pairs, translator.tokenizer, card.max_tokens)
    task = Translate(
        translator.tokenizer, translator.decode_rows, sources=pairs.source, references=pairs.target, label_smoothing=0.0
    )
    batches = TokenBatches(encoded, specials, tokens=32 * batch)
    found = evaluate(task, translator.model, batches.epoch(0), device=translator.device)
    details = found.accumulator.describe()
    if encoded.cut:
        say(f"{encoded.cut} sentences have more than {card.max_tokens} tokens and lost their end")
    _show(f"{pairs.name} of {source}", found.metrics, details)
    result("val", as_json, model=model, data=source, split=pairs.name, metrics=found.metrics, **details)


def _held_out(model: str, data: str | None, split: str | None, translator: Translator) -> tuple[Pairs, str]:
    """Return the sentences to measure on: a test split if there is one, unless another is asked for."""
    from vitrail.data.paralleltext import open_text
    from vitrail.errors import require_known

    from .heldout import recipe_of

    recipe = recipe_of(model)
    if data is None and recipe is None:
        raise UsageError(f"expected --data: {model} is not a run, so it does not say which data it belongs to")
    own = recipe.data if recipe is not None and data is None else None
    cut = {} if own is None else {key: getattr(own, key) for key in ("val_fraction", "train_fraction", "seed")}
    source = data if own is None else own.source
    assert source is not None, "one of the two is given"
    splits = open_text(source, languages=translator.card.languages, **cut)
    parts = {**splits.tests, "val": splits.val, "train": splits.train}
    name = split or next(iter(parts))
    require_known([name], list(parts), "split")
    return parts[name], source


def _show(words: str, metrics: dict[str, float], details: dict[str, Any]) -> None:
    say(f"{words}: {metrics['count']:.0f} sentences\n")
    rows = [
        ("sacreBLEU", f"{metrics['bleu']:.2f}"),
        ("chrF2", f"{metrics['chrf']:.2f}"),
        ("loss (nats a token)", f"{metrics['loss']:.4f}"),
        ("next token right", f"{metrics['accuracy']:.2%}"),
    ]
    table(("figure", "value"), rows, right=("value",))
    say(f"\nsignature: {details['signature']}\n")
    cells = [(f"{r['from']} to {r['to']}", r["sentences"], f"{r['bleu']:.2f}") for r in details["by_length"]]
    table(("words of the source", "sentences", "sacreBLEU"), cells, right=("sentences", "sacreBLEU"))
    say()
    for source, translation, reference in details["lines"][:SHOWN]:
        say(f"  {source}\n    -> {translation}\n     = {reference}")
