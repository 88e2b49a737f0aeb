"""Finish the step, save, then stop: what a run does when it is asked to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from vitrail.errors import VitrailError


class Interrupted(VitrailError):
    """The run was asked to stop and has saved its state; ``exit_code`` is 130 (Ctrl-C) or 143 (terminated)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stop:
    """Context in which SIGINT, SIGTERM and SIGUSR1 only set :attr:`asked`; a second SIGINT stops at once.

    In a thread that is not the main one signals cannot be caught, and the context does nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked: signal.Signals | None = None
        self.say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
                self._before.setdefault(number, signal.signal(number, self._heard))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        self.say(f"{self.asked.name} received: finishing this step and saving{again}")

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, otherwise 143."""
        return 130 if self.asked == signal.SIGINT else 143
