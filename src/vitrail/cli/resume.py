"""`vitrail resume`: go on with a run that was stopped, to the bits it would have had."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.errors import UsageError

from .console import Json, result
from .finish import finish


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A setting (or `data`) whose change since the run stopped is meant."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Change nothing: replay steps from a checkpoint and compare every bit.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="With --verify: steps to replay; default: those between the last two checkpoints."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a training that was stopped or killed."""
    if verify:
        _verify(run, steps, force, as_json)
        return
    if steps is not None:
        raise UsageError("--steps has no effect without --verify; mend: leave it out, or add --verify")
    from vitrail.training.run import resume as go_on

    finish("resume", as_json, go_on(run, force=force or []))


def _verify(run: Path, steps: int | None, force: list[str] | None, as_json: bool) -> None:
    from vitrail.training.verify import verify_resume

    if force:
        raise UsageError("--force has no effect with --verify: a change cannot give the same bits; mend: leave it out")
    replay = verify_resume(run, steps=steps)
    result("resume", as_json, verified=True, **vars(replay))
