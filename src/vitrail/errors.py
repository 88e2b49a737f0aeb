"""The errors users meet, each with the exit code its command ends with.

Every message says what was expected, what came, and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitrailError(Exception):
    """Something failed at run time (exit code 1). Base class of everything Vitrail raises on purpose."""

    exit_code = 1


class UsageError(VitrailError, ValueError):
    """An option, keyword or recipe key is unknown or has an impossible value (exit code 2)."""

    exit_code = 2


class DataError(VitrailError, ValueError):
    """The user's data cannot be used as it is (exit code 3)."""

    exit_code = 3


class WeightsError(VitrailError, ValueError):
    """A model name, checkpoint or weights file does not fit (exit code 4)."""

    exit_code = 4


class ExportError(VitrailError):
    """An export could not be made or did not match its source (exit code 5)."""

    exit_code = 5


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest choice, or an empty string if none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def require_known(keys: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise :class:`UsageError` naming the first of ``keys`` that is not ``known``, with the nearest name."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise UsageError(f"unknown {what} {key!r}.{did_you_mean(key, known)} Known: {', '.join(sorted(known))}.")


def require_extra(module: str, extra: str, why: str) -> None:
    """Raise :class:`UsageError` with the install command if ``module`` is not installed."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise UsageError(f"{why} needs the package {module!r}: pip install 'vitrail[{extra}]'")
