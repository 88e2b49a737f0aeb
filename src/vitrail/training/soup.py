"""A model soup made and measured: members, what they reach on held-out images, and what their mean reaches.

The averaging itself, and the papers: :mod:`vitrail.weights.soup`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.data.imageset import ImageSet
from vitrail.data.loader import Loader
from vitrail.errors import UsageError
from vitrail.tasks import create_task
from vitrail.tasks.evaluate import evaluate
from vitrail.weights import Card, load_folder, open_folder
from vitrail.weights.soup import (
    Indices,
    average,
    greedy,
    has_statistics,
    measure_statistics,
    require_alike,
)

from .pipeline import eval_crop, eval_loader, normalization

Method = Literal["greedy", "uniform"]
STATISTICS_BATCH, STATISTICS_BATCHES = 128, 64  # 8,192 training images settle a mean and a variance


@dataclass(frozen=True)
class Member:
    """A model offered to the soup, its metrics on the validation images, and whether it is in."""

    source: str
    val: dict[str, float]
    kept: bool


@dataclass(frozen=True)
class Soup:
    """The mean of the members that were kept, and metrics. ``test`` is that of (soup, best member), or None."""

    model: nn.Module
    card: Card
    classes: ClassMap | None
    method: Method
    members: tuple[Member, ...]
    val: dict[str, float]
    test: tuple[dict[str, float], dict[str, float]] | None

    @property
    def best(self) -> Member:
        """The best member by validation."""
        return max(self.members, key=lambda member: rank(member.val))

    def record(self) -> dict[str, Any]:
        """Return plain data that is kept beside the weights."""
        members = [{"source": m.source, "kept": m.kept, "val": m.val} for m in self.members]
        return {"method": self.method, "members": members, "val": self.val, "test": self.test and self.test[0]}


def rank(metrics: dict[str, float]) -> float:
    """Return what members and soups are compared by."""
    return metrics["top1"]


class Kitchen:
    """One network that takes the weights of any mean of the members, and the images that it is measured on."""

    def __init__(self, sources: Sequence[str], train: ImageSet | None, batch: int, device: torch.device) -> None:
        self.sources, self.train, self.batch, self.device = sources, train, batch, device
        self.model, self.card, self.classes = load_folder(sources[0])
        if self.card.multi_label:
            raise UsageError(f"expected models of one label an image, got one of several: {sources[0]}")
        self.model.to(device)
        self.filled: Indices = (0,)

    def fill(self, chosen: Indices) -> None:
        """Give the network the mean of these members; the batch norms of a mean of several are measured anew."""
        if chosen == self.filled:
            return
        self.model.load_state_dict(average(load_folder(self.sources[i])[0].state_dict() for i in chosen))
        self.filled = chosen
        if len(chosen) > 1 and has_statistics(self.model):
            measure_statistics(self.model, self._training_images())

    def _training_images(self) -> Any:
        if self.train is None:
            raise UsageError(
                f"expected training images, got none: {type(self.model).__name__} has batch norms, whose statistics "
                "are measured anew after averaging; mend: members that are runs, or --data with a train split"
            )
        loader = Loader(
            self.train,
            batch_size=min(STATISTICS_BATCH, len(self.train)),
            crop=eval_crop(self.card),
            normalize=normalization(self.card),
            seed=0,
            shuffle=True,  # a folder comes class by class, and a batch of one class has too small a variance
            drop_last=True,
        )
        for batch in islice(loader.epoch(0), STATISTICS_BATCHES):
            images: Tensor = batch.images[batch.keep]
            if len(images) > 1:
                yield images.to(self.device)

    def measure(self, chosen: Indices, images: ImageSet) -> dict[str, float]:
        """Return the metrics of the mean of these members."""
        self.fill(chosen)
        loader = eval_loader(images, self.card, batch_size=min(self.batch, len(images)))
        task = create_task("classify", num_classes=len(images.classes))
        return evaluate(task, self.model, loader.epoch(0), device=self.device).metrics


def cook(
    sources: Sequence[str],
    *,
    val: ImageSet,
    test: ImageSet | None = None,
    train: ImageSet | None = None,
    method: Method = "greedy",
    batch: int = 64,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Soup:
    """Average models (runs, folders, hub ids) that were fine-tuned from one start.

    Args:
        sources: the members; of one architecture, with one class map.
        val: images that rank the members and judge the greedy soup.
        test: images on which soup and best member are measured at the end.
        train: images that batch norms are measured on; not needed by models without.
        method: "uniform" takes all; "greedy" takes a member only if the soup does not get worse on ``val``.

    Raises :class:`WeightsError` or :class:`DataError` that names what differs between the members.
    """
    folders = [open_folder(source) for source in sources]
    twice = next((s for i, s in enumerate(sources) if folders[i].path in [f.path for f in folders[:i]]), None)
    if twice is not None:
        raise UsageError(f"expected different members, got {twice} twice; mend: name it once")
    require_alike(sources, folders)
    kitchen = Kitchen(sources, train, batch, torch.device(device))
    metrics: dict[Indices, dict[str, float]] = {}

    def score(chosen: Indices) -> float:
        metrics[chosen] = kitchen.measure(chosen, val)
        words = sources[chosen[0]] if len(chosen) == 1 else f"a soup of {len(chosen)}, {sources[chosen[-1]]} added last"
        say(f"{rank(metrics[chosen]):.2%}  {words}")
        return rank(metrics[chosen])

    alone = [score((i,)) for i in range(len(sources))]
    everyone = tuple(range(len(sources)))
    kept = greedy(alone, score)[0] if method == "greedy" else everyone
    if kept not in metrics:
        score(kept)
    members = tuple(Member(s, metrics[(i,)], i in kept) for i, s in enumerate(sources))
    best = max(everyone, key=lambda i: alone[i])
    reached = None if test is None else (kitchen.measure(kept, test), kitchen.measure((best,), test))
    kitchen.fill(kept)
    card = replace(kitchen.card, origin=_origin(method, members), hub_id=None, revision=None, licence=_licence(folders))
    return Soup(kitchen.model, card, kitchen.classes, method, members, metrics[kept], reached)


def _origin(method: Method, members: Sequence[Member]) -> str:
    kept = [member.source for member in members if member.kept]
    return f"{method} soup of {len(kept)} of {len(members)} models (arXiv 2203.05482): {', '.join(kept)}"


def _licence(folders: Sequence[Any]) -> str | None:
    found = {folder.card.licence for folder in folders}
    return found.pop() if len(found) == 1 else None
