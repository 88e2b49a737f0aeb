"""Does a run wait for its images? Judged from the lines of the log, said once, with what to do about it.

A GPU that waits is the costliest fault of a training that otherwise works, and nothing in loss or accuracy shows it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from vitrail.data.loader import Loader
from vitrail.data.workers import default_workers

from .recipe import Recipe

SHARE = 0.2  # of a step's time spent waiting, above which something is said
SECONDS, STEPS = 20.0, 20  # what is measured before anything is said


class Starving:
    """Reads the training lines of one run (:meth:`see`); the first of a process is left out: disks wake up then."""

    def __init__(self, recipe: Recipe, loader: Loader, say: Callable[[str], None]) -> None:
        self.recipe, self.loader, self.say = recipe, loader, say
        self._last: int | None = None
        self._steps, self._waited, self._spent = 0, 0.0, 0.0
        self._said = False

    def see(self, step: int, values: Mapping[str, Any]) -> None:
        """Take a line of the log (``data_s`` and ``step_s`` are seconds a step)."""
        last, self._last = self._last, step
        if last is None or self._said:
            return
        taken = step - last
        self._steps += taken
        self._waited += taken * values["data_s"]
        self._spent += taken * values["step_s"]
        if self._spent < SECONDS or self._steps < STEPS:
            return
        if self._waited > SHARE * self._spent and not self._cache_will_do():
            self._said = True
            self.say(self._words())
        self._steps, self._waited, self._spent = 0, 0.0, 0.0

    def _cache_will_do(self) -> bool:
        """True while a cache that has room for all images is being filled: the next epoch will not wait."""
        cache, count = self.loader.cache, len(self.loader.dataset)
        held = len(cache)
        return 0 < held < count and cache.used / held * count <= cache.budget

    def _words(self) -> str:
        share = self._waited / self._spent
        return (
            f"training waits for images {100 * share:.0f} % of the time ({1000 * self._waited / self._steps:,.0f} of "
            f"{1000 * self._spent / self._steps:,.0f} ms a step, over {self._steps:,} steps); mend: "
            + "; or ".join(self._advice())
        )

    def _advice(self) -> list[str]:
        loader, source = self.loader, self.recipe.data.source
        found, most = [], default_workers()
        if loader.workers < most:
            found.append(f"--set data.workers={most} (now {loader.workers})")
        held = len(loader.cache)
        if held and held < len(loader.dataset):
            needed = loader.cache.used / held * len(loader.dataset) / 2**30
            found.append(f"--set data.cache=all, if there are {needed:,.1f} GiB of memory to spare")
        elif not loader.cache.budget:
            found.append("--set data.cache=auto")
        side = math.ceil(min(loader.crop.size) * 8 / 7)  # the short side before the usual centre crop: 256 for 224
        found.append(f"vitrail data shard {shlex.quote(source)} OUT --resize {side}, if the images are larger")
        found.append(f"vitrail data bench {shlex.quote(source)} shows where the time goes")
        return found
