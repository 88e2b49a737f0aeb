"""`vitrail resume`: go on with a run that was stopped, to the bits it would have had."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Json
from .finish import finish


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A setting (or `data`) whose change since the run stopped is meant."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a training that was stopped or killed."""
    from vitrail.training.run import resume as go_on

    finish("resume", as_json, go_on(run, force=force or []))
