"""Threads that decode and augment while the model trains, and that always end.

Why threads: Pillow and torch release the interpreter lock, images need not be copied between processes, and one cache
serves all. Each thread runs torch on one core. ``torch.set_num_threads`` is per thread for threads that have it set,
but it also leaves its value to every thread started later [seen with torch 2.13]; so the pool's starter sets its own
value again once all workers are up.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

import torch

from vitrail.errors import UsageError

In = TypeVar("In")
Out = TypeVar("Out")


def default_workers() -> int:
    """The cores this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def require_workers(workers: int | None) -> int:
    """Return the number of workers (None: one a core); below 0 is :class:`UsageError`. 0 means none."""
    if workers is None:
        return default_workers()
    if workers < 0:
        raise UsageError(f"expected workers >= 0 (0: load in the calling thread), got {workers}")
    return workers


class Workers:
    """A pool of ``count`` threads that runs tasks in the order given; a context manager that joins them at its end.

    Tasks must not raise: they report through what they were given. With ``count`` 0 a task runs when it is submitted.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def stopping(self) -> bool:
        """True once the pool is closing: long tasks look at it and leave."""
        return self._stop.is_set()

    def __enter__(self) -> Workers:
        if self.count:
            ready = threading.Barrier(self.count + 1)
            self._threads = [
                threading.Thread(target=self._run, args=(ready,), name=f"vitrail-data-{i}", daemon=True)
                for i in range(self.count)
            ]
            for thread in self._threads:
                thread.start()
            ready.wait()
            torch.set_num_threads(torch.get_num_threads())  # see the head of this file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task (or run it now, where there are no threads)."""
        if self._threads:
            self._tasks.put(task)
        else:
            task()

    def _run(self, ready: threading.Barrier) -> None:
        torch.get_num_threads()  # a thread's first call sets it to the process's value: get that over
        torch.set_num_threads(1)
        ready.wait()
        while (task := self._tasks.get()) is not None:
            if not self.stopping:
                task()


def in_order(pool: Workers, items: Iterable[In], work: Callable[[In], Out]) -> Iterator[Out]:
    """Yield ``work(item)`` in the order of ``items``, worked out by the pool a little ahead; errors are raised here."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        future: Future[Out] = Future()
        waiting.append(future)
        pool.submit(lambda future=future, item=item: _settle(future, work, item))  # type: ignore[misc]
        if len(waiting) > 4 * pool.count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _settle(future: Future[Out], work: Callable[[In], Out], item: In) -> None:
    try:
        future.set_result(work(item))
    except BaseException as error:  # raised again by whoever waits for the result
        future.set_exception(error)
