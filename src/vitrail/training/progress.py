"""What a person sees while a run trains: a bar on a terminal, one line an epoch anywhere else. All on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _say_nothing(text: str) -> None:
    """Swallow a line that another process prints."""


class Progress:
    """A bar with loss, pace and time left on a terminal; quiet otherwise. ``say`` prints lines above it.

    ``printer`` receives the lines instead of stderr (tests, notebooks); there is no bar then. Of several processes only
    the ``first`` speaks.
    """

    def __init__(self, printer: Callable[[str], None] | None = None, first: bool = True) -> None:
        if not first:
            printer = _say_nothing
        self._printer, self._bar, self._task = printer, None, None
        self._last: tuple[float, int] | None = None
        self._pace = 0.0
        self._data = 0.0
        self.on_terminal = printer is None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str) -> None:
        """Print a line."""
        if self._printer is not None:
            self._printer(text)
        elif self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def start(self, total: int, step: int) -> None:
        """Show the bar, ``step`` of ``total`` done."""
        if not self.on_terminal:
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[words]}", markup=False),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("train", total=total, completed=step, words="")
        self._bar.start()

    def show(self, *, step: int, each: float, unit: str, total: int, loss: float, data: float) -> None:
        """Move the bar: ``each`` images (the ``unit``) a step; ``data`` is the share of time spent waiting for them."""
        now = time.monotonic()
        if self._last is not None and step > self._last[1]:
            seconds = (now - self._last[0]) / (step - self._last[1])
            self._pace = seconds if not self._pace else 0.95 * self._pace + 0.05 * seconds
        self._last = (now, step)
        self._data = data
        if self._bar is not None and self._pace:
            words = (
                f"loss {loss:.3f}  {each / self._pace:,.0f} {unit}/s  step {1000 * self._pace:,.0f} ms  "
                f"data {100 * data:.0f} %  {self.left(step, total)} left"
            )
            self._bar.update(self._task, completed=step, words=words)

    def left(self, step: int, total: int) -> str:
        """Return the time left at the present pace."""
        return clock(self._pace * (total - step))

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> Any:
        self.stop()
