"""`vitrail data check`: what is in a data set, what is wrong with it, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.errors import DataError, UsageError

from .console import Json, counter, draw, partial_result, result, say, table


def check(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="Images or parallel text: a folder, a table, shards, digits, numbers.")
    ],
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every problem, file by file, outside the data.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Labels an image: auto (seen from the data), single or multi.")] = "auto",
    as_json: Json = False,
) -> None:
    """Report what is in the data, what is wrong, and what to do.

    Ends with code 3 if training could not start.
    """
    from vitrail.data.paralleltext import is_parallel

    if is_parallel(source):
        if csv is not None or labels != "auto":
            raise UsageError("--csv and --labels are for images; mend: leave them out for parallel text")
        _check_text(source, as_json)
        return
    from vitrail.data.detection.source import is_detection

    if is_detection(source):
        from .detect import check as check_boxes

        if labels != "auto":
            raise UsageError("--labels is for images with labels; mend: leave it out for boxes")
        check_boxes(source, csv, as_json)
        return
    from vitrail.data.doctor import check as examine

    report = examine(source, labels=labels, progress=counter("looked at"), problems_csv=csv)
    draw(report.table(), markup=True)
    if csv is not None:
        say(f"wrote {csv.resolve()}")
    stopping = [finding.what for finding in report.findings if finding.severity == "error"]
    if stopping:
        error = DataError(f"training could not start: {'; '.join(stopping)}; mend: see what to do above")
        partial_result("data check", as_json, error, report=report.to_json())
    forced = "" if labels == "auto" else f" --set data.labels={labels}"
    say(f"\nTrain on it:  vitrail train {source}{forced}")
    result("data check", as_json, report=report.to_json())


def _check_text(source: str, as_json: bool) -> None:
    from vitrail.data.textcheck import check_text

    report = check_text(source)
    one, other = report.languages
    heads = ("split", "pairs", f"words {one}", f"words {other}", f"longest {one}", f"longest {other}")
    rows = [
        (name, f"{split.pairs:,}", *(f"{n:,}" for n in (*split.words, *split.longest)))
        for name, split in report.splits.items()
    ]
    table(heads, rows, right=heads[1:])
    problems = report.problems()
    for words in (*report.notes, *problems):
        say(f"- {words}")
    if not problems:
        say("- nothing to mend was found")
    say(f"\nTrain on it:  vitrail train {source}")
    result("data check", as_json, report=report, problems=problems)
