"""`vitrail val`: measure a trained model on data it was not trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json


def val(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hf-hub:org/name.")],
    as_json: Json = False,
) -> None:
    """Measure a model on held-out data."""
