"""`vitrail data check`: what is in a data set, what is wrong with it, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.errors import DataError

from .console import Json, counter, draw, partial_result, result, say


def check(
    source: Annotated[str, typer.Argument(metavar="DATA", help="A folder, a CSV, parquet or tar shards, or digits.")],
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every problem, file by file, outside the data.")
    ] = None,
    labels: Annotated[str, typer.Option(help="Labels an image: auto (seen from the data), single or multi.")] = "auto",
    as_json: Json = False,
) -> None:
    """Report what is in the data, what is wrong, and what to do.

    Ends with code 3 if training could not start.
    """
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
