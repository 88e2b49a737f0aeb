"""`vitrail data check`: what is in a data set, what is wrong with it, and what to do."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json


def check(
    source: Annotated[str, typer.Argument(metavar="DATA", help="A folder, a CSV or parquet file, or digits.")],
    as_json: Json = False,
) -> None:
    """Look at data before training on it."""
