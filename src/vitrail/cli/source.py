"""The model that a verb was given: a run, a folder, or, only when the prefix says so, a hub repository."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import WeightsError

if TYPE_CHECKING:
    from vitrail.infer import Predictor

HUB_PREFIX = "hf-hub:"


def existing(source: str) -> str:
    """Return ``source`` if it is a path that exists or a hub id with its prefix.

    A mistyped path must not become a request to the hub, so the prefix is asked for here.
    """
    path = Path(source).expanduser()
    if source.startswith(HUB_PREFIX) or path.exists():
        return source
    beside = [str(path.with_name(p.name)) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else f" For a hub model: {HUB_PREFIX}org/name."
    raise WeightsError(f"expected a run, a model folder or a hub id, got {source!r}, which does not exist.{hint}")


def open_predictor(source: str, *, device: str, batch: int = 32, img_size: str | None = None) -> Predictor:
    """Load the model of a verb, ready to predict."""
    from vitrail.infer.predictor import load_predictor

    from .settings import size_option

    return load_predictor(
        existing(source),
        device=device,
        batch_size=batch,
        img_size=size_option(img_size),
    )
