"""`vitrail explain gradients`: the gradient's norm through time, measured and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import UsageError

from .console import result, say, table

if TYPE_CHECKING:
    from vitrail.explain.through_time import GradientStudy

WORD = "gradients"
LENGTH = 100  # steps, unless --length says otherwise
MOST_STEPS = 2000


def require_length_wanted(model: str, length: int | None) -> None:
    """Raise :class:`UsageError` if a length was given for the explanation of a model."""
    if length is not None:
        raise UsageError(f"--length has no effect on {model}; mend: vitrail explain {WORD} --length {length}")


def explain_gradients(length: int | None, others: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Measure untrained networks over ``length`` steps; write the picture to ``out``, and say the norms.

    ``others`` are options of the verb that have no effect here: :class:`UsageError` if one is given.
    """
    from vitrail.explain.through_time import draw_gradients, study_gradients

    for name in (name for name, value in others.items() if value):
        what = "an image" if name == "image" else f"--{name}"
        raise UsageError(f"{what} has no effect on vitrail explain {WORD}; mend: leave it out")
    steps = LENGTH if length is None else length
    if not 2 <= steps <= MOST_STEPS:
        raise UsageError(f"expected --length from 2 to {MOST_STEPS} steps, got {steps}")
    found = study_gradients(steps)
    path = (out or Path("explain")) / "gradients.svg"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(draw_gradients(found), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the picture cannot be written to {path}: {error}; mend: --out <writable>") from None
    _show(found)
    say(path.resolve())
    result("explain", as_json, pictures=[path.resolve()], **found.to_dict())


def _show(found: GradientStudy) -> None:
    back = sorted({min(k, found.length - 1) for k in (1, 10, 30, found.length - 1)})
    rows = [
        [f"plain, {function}, radius {radius:g}", *(f"{norms[k]:.1e}" for k in back)]
        for function, by_radius in found.plain.items()
        for radius, norms in by_radius.items()
    ]
    rows += [[name, *(f"{norms[k]:.1e}" for k in back)] for name, norms in found.models.items()]
    heads = [f"{k} back" for k in back]
    say("The gradient's norm, as a share of its norm at the last step:")
    table(["network", *heads], rows, right=heads)
    say("Plain networks by their states, the others by their inputs; width 64, untrained.")
