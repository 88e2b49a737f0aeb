"""The last words of a training: what it reached, where it is, what it looks at, what to type next."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import VitrailError

from .console import result, say

if TYPE_CHECKING:
    from vitrail.training import RunResult


SHOWN = 3  # translations
SCENES = {  # task on scenes -> what its model does with images, what it explains, what it is measured by
    "detect": ("find objects in your own images", "see what a box was read from", "average precision of each class"),
    "segment": ("masks and pictures of your own images", "see what a class was read from", "IoU of each class"),
    "restore": ("restore your own images", "see which pixels an answer was read from", "PSNR and SSIM"),
}
NO_CLASSES = ("translate", "pixels", *SCENES)


def finish(verb: str, as_json: bool, run: RunResult) -> None:
    """Draw the attention picture and say it all, on stdout: whatever else a training says goes to stderr.

    Of several processes the first does it.
    """
    from vitrail.tasks import headline, headline_words

    if os.environ.get("RANK", "0") != "0":
        return
    folder = run.folder.resolve()
    report = folder / "report.html"
    task = run.summary["task"]
    text = task == "translate"
    picture = None if task in NO_CLASSES else _draw(folder)
    kind = f"sentences of {run.split}" if text else f"{'test' if run.split == 'test' else 'validation'} images"
    name, words = headline(run.metrics)[0], headline_words(run.metrics)
    value = words.removeprefix(name).replace(" %", "%").strip()
    say(f"\n{name:<10} {value} on {run.metrics['count']:.0f} {kind} that it was not trained on")
    say(f"run        {folder}")
    if picture is not None:
        say(f"attention  {picture}")
    if report.exists():
        say(f"report     {report}")
    if text:
        _show_translations(folder / f"translations_{run.split}.tsv")
    say("\nNext:")
    commands = next_commands(folder, task)
    width = max(len(command) for command, _ in commands)
    for command, why in commands:
        say(f"  {command:<{width}}  {why}")
    result(
        verb,
        as_json,
        folder=folder,
        attention=picture,
        report=report if report.exists() else None,
        split=run.split,
        metrics=run.metrics,
        best=run.best,
        summary=run.summary,
    )


def _show_translations(path: Path) -> None:
    """Show a few translations beside what they should have been."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    for source, translation, reference in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
        say(f"\n  {source}\n    -> {translation}\n     = {reference}")


def _draw(folder: Path) -> Path | None:
    """Draw attention over held-out images; the training is safe, so that a failure here is a sentence and no more."""
    from .heldout import held_out
    from .samples import draw_samples
    from .source import open_predictor

    try:
        predictor = open_predictor(str(folder), device="cpu")
        return draw_samples(predictor, held_out(str(folder)), None, folder / "explain")[1]
    except (VitrailError, OSError) as error:
        say(f"the attention picture could not be drawn: {error}", stream=sys.stderr)
        return None


def next_commands(folder: Path, task: str = "classify") -> list[tuple[str, str]]:
    """Return commands to type next, and what each does; paths are relative where that is shorter."""
    near = os.path.relpath(folder)
    run = shlex.quote(near if len(near) < len(str(folder)) else str(folder))
    if task == "pixels":
        return [
            (f"vitrail sample {run}", "paint pictures"),
            (f"vitrail sample {run} --held-out 8", "complete held-out pictures from their upper half"),
            (f"vitrail probe {run} --layers", "what each layer knows of the classes, if there are any"),
            (f"vitrail train DATA --set model.pretrained={run}", "fine-tune it on classes"),
        ]
    if task in SCENES:
        does, reads, figures = SCENES[task]
        return [
            (f"vitrail predict {run} IMAGE... --out DIR", does),
            (f"vitrail explain {run} IMAGE --at X,Y", reads),
            (f"vitrail val {run}", figures),
        ]
    if task == "translate":
        return [
            (f"vitrail predict {run} < lines.txt", "translate your own lines"),
            (f"vitrail explain {run} 'a sentence'", "see which words it looked at"),
            (f"vitrail val {run}", "BLEU, also by the length of the sentence"),
        ]
    return [
        (f"vitrail predict {run} IMAGE...", "classify your own images"),
        (f"vitrail explain {run} IMAGE...", "see where it looks in them"),
        (f"vitrail explain {run} --figures", "see what its weights have learnt"),
        (f"vitrail val {run}", "figures for each class"),
    ]
