"""The answers of scaling laws: in sentences for people, and as plain data with every number.

What would twice as much bring, how sure is that, what was not in it, and which runs would tell more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .laws import NOUN, Point, Series, Study
from .scaling import USUAL_DOF, USUAL_SPREAD, Estimate, JointLaw, PowerLaw

# Settings that a run's size decides, or that do not change what is learnt: they may differ in a family.
FOLLOWS = (
    "name", "out", "data.source", "data.train_fraction", "data.cache", "data.workers", "train.epochs", "train.seed",
    "train.device", "train.threads", "train.keep", "train.track", "train.save_every_steps", "train.save_every_minutes",
    "train.log_every", "train.eval_every", "train.ema_decay", "schedule.warmup_epochs", "schedule.min_lr",
)  # fmt: skip


def answer(series: Series, times: float = 2.0) -> list[str]:
    """Return sentences: what ``times`` as much would bring, what the law is, and what to mind."""
    law, question = series.law, series.question
    now = law.span[1]
    here, there, gain = law.error(now), law.error(times * now), law.gain(now, times * now)
    more = "twice" if times == 2 else f"{times:g} times"
    said = [
        f"{more} the {NOUN[question]} ({amount(now)} to {amount(times * now)}) would lower the error by "
        f"{points_of(gain)}, from {percent(here)} to {percent(there)}"
    ]
    if not law.falls:
        said[0] = (
            f"these runs do not tell that more {NOUN[question]} help: {more} as many would lower the error by "
            f"{points_of(gain)}"
        )
    return [*said, *_shape(law), *_cautions(series, times)]


def _shape(law: PowerLaw) -> list[str]:
    b, c, said = law.b, law.c, []
    if not law.falls:
        return ["neither the exponent b nor the floor c can be told from these runs"]
    if law.bounded:
        shown = f"exponent b = {b.value:.2f} ({b.low:.2f} to {b.high:.2f})"
        left = law.left(2.0)
        said.append(f"{shown}: twice as much leaves {left:.0%} of the error above c")
    elif b.low > law.curve.region.limits[0][0] * 1.001:
        said.append(f"the exponent b is at least {b.low:.2f}; these runs set no upper end")
    else:
        said.append(f"the exponent b cannot be told from these runs (at most {b.high:.2f})")
    if law.saturates:
        said.append(f"{percent(c)} of the error would stay however far one went (c)")
    else:
        said.append(f"c, the error that stays, cannot be told from 0 with these runs (at most {c.high:.1%})")
    return said


def _cautions(series: Series, times: float) -> list[str]:
    law, points = series.law, series.points
    said = []
    sizes = len({p.amount(series.question) for p in points})
    parameters = 4 if law.shifted else 3
    if law.far(times * law.span[1]):
        low, high = law.span
        said.append(
            f"far beyond the runs, which span {high / low:.3g} times: this holds only if the law goes on as it was"
        )
    if sizes <= parameters:
        said.append(
            f"{sizes} amounts for {parameters} parameters: nothing is left to check the law by; run more of them"
        )
    if law.curve.dof < USUAL_DOF:
        said.append(
            f"how much runs scatter rests on what is usual, {USUAL_SPREAD:.1%} of the error; --seeds 3 would measure it"
        )
    if law.curve.misfit < 0.01:
        said.append(
            "the law misses these runs by more than runs of one amount scatter, so do not lean on it; the smallest may "
            "have seen too little to learn at all: leave them out, or train them longer"
        )
    for sample, rest in zip(law.samples, law.curve.residuals, strict=True):
        if abs(rest) > 3:
            said.append(f"a run at {amount(sample.amount)} lies {abs(rest):.1f} standard errors off; look at it")
    differing = _differing(points)
    if differing:
        said.append(f"the runs also differ in {', '.join(differing)}, which is part of what was measured")
    return said


def _differing(points: Sequence[Point]) -> list[str]:
    keys = sorted({key for p in points for key in p.settings if key not in FOLLOWS and not key.startswith("model.")})
    found = []
    for key in keys:
        values = sorted({str(p.settings.get(key)) for p in points})
        if len(values) > 1:
            found.append(f"{key} ({', '.join(values[:3])}{', ...' if len(values) > 3 else ''})")
    return found


def amount(value: float) -> str:
    """Return an amount in words: "49,000", "1.2 M", "3.4e+15"."""
    if value >= 1e12:
        return f"{value:.3g}"
    return f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value:,.0f}"


def percent(found: Estimate) -> str:
    """Return an error with its interval: "2.9 % (2.0 to 4.1 %)"."""
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f} %)"


def points_of(found: Estimate) -> str:
    """Return a difference of errors with its interval: "0.9 points (0.3 to 1.6)"."""
    return f"{100 * found.value:.1f} points ({100 * found.low:.1f} to {100 * found.high:.1f})"


def joint_answer(label: str, law: JointLaw, times: float = 2.0) -> list[str]:
    """Return sentences on ``times`` the parameters, ``times`` the images, and both, from the largest of the runs."""
    params, images = max(n for n, _ in law.samples), max(s.amount for _, s in law.samples)
    more = "twice" if times == 2 else f"{times:g} times"
    bigger, fuller = (times * params, images), (params, times * images)
    gains = [points_of(law.gain((params, images), then)) for then in (bigger, fuller, (times * params, times * images))]
    alpha, beta = law.alpha, law.beta
    return [
        f"{label}: {more} the parameters would lower the error by {gains[0]}, {more} the images by {gains[1]}, "
        f"both by {gains[2]}",
        f"exponents alpha = {alpha.value:.2f} ({alpha.low:.2f} to {alpha.high:.2f}) of size, "
        f"beta = {beta.value:.2f} ({beta.low:.2f} to {beta.high:.2f}) of data",
    ]


def to_data(found: Study, times: float = 2.0) -> dict[str, Any]:
    """Return every number as plain data."""
    return {
        "runs": [
            {
                "run": p.run, "model": p.model, "kind": p.kind, "params": p.params, "images": p.images,
                "epochs": p.epochs, "flops": p.flops, "seed": p.seed, "wrong": p.wrong, "count": p.count,
                "error": p.wrong / p.count,
            }
            for p in found.points
        ],
        "times": times,
        "laws": [_law_data(series, times) for series in found.series],
        "joint": [
            {
                "label": label, "alpha": _triple(law.alpha), "beta": _triple(law.beta), "c": _triple(law.c),
                "units": list(law.units), "sentences": joint_answer(label, law, times),
            }
            for label, law in found.joint.items()
        ],
        "unanswered": dict(found.unanswered),
        "notes": list(found.notes),
    }  # fmt: skip


def _law_data(series: Series, times: float) -> dict[str, Any]:
    law, now = series.law, series.law.span[1]
    return {
        "question": series.question,
        "label": series.label,
        "runs": len(series.points),
        "unit": law.unit,
        "a": _triple(law.a),
        "b": _triple(law.b),
        "c": _triple(law.c),
        "d": _triple(law.d) if law.shifted else None,
        "level": law.curve.level,
        "spread": law.curve.spread,
        "degrees_of_freedom": law.curve.dof,
        "falls": law.falls,
        "c_above_zero": law.saturates,
        "now": {"amount": now, "error": _triple(law.error(now))},
        "then": {
            "amount": times * now,
            "error": _triple(law.error(times * now)),
            "one_run": _triple(law.measured(times * now, series.points[-1].count)),
            "far": law.far(times * now),
        },
        "misfit": law.curve.misfit,
        "gain": _triple(law.gain(now, times * now)),
        "sentences": answer(series, times),
    }


def _triple(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
