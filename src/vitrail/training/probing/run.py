"""``probe``: the door. Features once, then each method on them, every figure with its interval, and a line on the disk.

What is chosen is chosen on validation; the test split is only measured. Where there is no test split, the validation
figures of the linear probe and of k-NN are those of the best of several tries, and the report says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.sources import Splits, open_dataset
from vitrail.errors import DataError, UsageError, WeightsError, require_known
from vitrail.metrics.intervals import mean_interval, share_interval
from vitrail.models import as_size, variants
from vitrail.training.precision import pick_device
from vitrail.weights import Card, load_model

from . import fewshot, linear, nearest
from .features import FeatureCache, FeatureSet, Reader, cache_key, extract, weights_digest

METHODS = ("linear", "knn", "few-shot")


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        model, data: as they were given.
        network: name on the model's card; ``img_size`` (H, W) that images are brought to; ``width`` C of the features.
        layer: block that was read, or None: before the head.
        images: split -> images that could be read; ``classes`` K.
        results: one entry a figure: ``method``, ``setting`` in words, and for ``val`` and ``test`` (or None) ``top1``,
            ``low`` and ``high`` of the 95 % interval; further numbers of the method.
        notes: sentences to show to the user.
    """

    model: str
    data: str
    network: str
    img_size: tuple[int, int]
    width: int
    layer: int | None
    images: dict[str, int]
    classes: int
    results: list[dict[str, Any]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def probe(
    model: str | PathLike[str],
    data: str | PathLike[str] | Splits,
    *,
    methods: Sequence[str] = METHODS,
    img_size: int | tuple[int, int] | None = None,
    layer: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    neighbours: Sequence[int] | None = None,
    temperature: float | None = None,
    shots: Sequence[int] | None = None,
    draws: int | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    title: str | None = None,
    out: str | PathLike[str] = "runs/probe",
    say: Callable[[str], None] = print,
    show: Callable[[int, int], None] | None = None,
) -> ProbeReport:
    """Measure what the frozen features of ``model`` are worth on ``data``.

    Args:
        model: run folder, folder of Vitrail, timm or transformers, or ``hf-hub:org/name``.
        data: as for training, or splits that are open already.
        methods: of ``linear``, ``knn``, ``few-shot``.
        img_size: pixels, (H, W) or one number; default the card's.
        layer: read this block (from 0, or below 0 from the end) instead of what the head reads.
        batch_size: images through the model at once.
        device: of the model; the methods run on the CPU.
        neighbours, temperature: of ``knn``; default 5, 10, 20, 50 and 0.07.
        shots, draws: of ``few-shot``: images a class, and how often they are drawn; default 1, 5, 10 and 10 times.
        val_fraction, test_fraction, seed: of splits the data lack, as in training; ``seed`` also draws the few shots.
        title: what the report calls splits that are open already.
        out: folder of the kept features (``features/``) and of ``results.jsonl``, one line a probe.
        say: receives lines for people; ``show`` receives (images done, images in all) while features are computed.

    Raises:
        UsageError: an unknown method, or an option that would have no effect.
        DataError: data that cannot be used.
        WeightsError: no weights at ``model``, or a bare architecture's name.
    """
    chosen = _Settings.check(methods, neighbours, temperature, shots, draws)
    if title is not None and not isinstance(data, Splits):
        raise UsageError(f"title has no effect on data that are named: {data}")
    source = str(data) if not isinstance(data, Splits) else title or "open splits"
    network, card = open_model(str(model), img_size)
    if not isinstance(data, Splits):
        data = open_dataset(data, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    if data.train.multi_label:
        raise DataError(f"expected one label an image to probe with, got several in {source}; mend: vitrail train")
    for note in data.notes:
        say(note)
    cache = FeatureCache(Path(out) / "features", say)
    read = _features(network, card, data, layer, batch_size, pick_device(device), cache, show)
    results, notes = [], _notes(data, read)
    for method in chosen.methods:
        more, said = chosen.measure(method, read, len(data.classes), seed)
        results += more
        notes += said
    report = ProbeReport(
        model=str(model),
        data=source,
        network=card.name,
        img_size=card.input_size,
        width=read["train"].features.shape[1],
        layer=layer,
        images={split: len(part) for split, part in read.items()},
        classes=len(data.classes),
        results=results,
        notes=notes,
    )
    _remember(Path(out), report)
    return report


@dataclass(frozen=True)
class _Settings:
    """Methods and their options, all known and all of use."""

    methods: tuple[str, ...]
    neighbours: tuple[int, ...] | None
    temperature: float
    shots: tuple[int, ...] | None
    draws: int

    @classmethod
    def check(
        cls,
        methods: Sequence[str],
        neighbours: Sequence[int] | None,
        temperature: float | None,
        shots: Sequence[int] | None,
        draws: int | None,
    ) -> _Settings:
        require_known(methods, METHODS, "method")
        if not methods:
            raise UsageError(f"expected a method of {', '.join(METHODS)}, got none")
        owners = {"neighbours": ("knn", neighbours), "temperature": ("knn", temperature)}
        owners |= {"shots": ("few-shot", shots), "draws": ("few-shot", draws)}
        for name, (owner, value) in owners.items():
            if value is not None and owner not in methods:
                raise UsageError(f"{name} has no effect without the method {owner}; mend: leave it out")
        for name, counts in (("neighbours", neighbours), ("shots", shots)):
            if counts is not None and (not counts or min(counts) < 1):
                raise UsageError(f"expected {name} as numbers from 1 on, got {list(counts)}")
        if temperature is not None and not temperature > 0:
            raise UsageError(f"expected a temperature above 0, got {temperature}")
        if draws is not None and draws < 2:
            raise UsageError(f"expected two draws or more, so that they give an interval, got {draws}")
        return cls(
            tuple(dict.fromkeys(methods)),
            None if neighbours is None else tuple(sorted(set(neighbours))),
            nearest.TEMPERATURE if temperature is None else temperature,
            None if shots is None else tuple(sorted(set(shots))),
            fewshot.DRAWS if draws is None else draws,
        )

    def measure(
        self, method: str, read: dict[str, FeatureSet], classes: int, seed: int
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the entries of one method, and what must be said of them."""
        if method == "linear":
            return _linear(read, classes)
        if method == "knn":
            return _knn(read, classes, self.neighbours, self.temperature)
        return _few_shot(read, classes, self.shots, self.draws, seed)


def open_model(source: str, img_size: int | tuple[int, int] | None) -> tuple[nn.Module, Card]:
    """Return the network in eval mode, and its card; :class:`WeightsError` for a bare architecture's name."""
    if source.partition(".")[0] in variants() and not Path(source).expanduser().exists():
        raise WeightsError(
            f"expected a model with weights, got the name of an architecture, {source!r}: random features say nothing;"
            " mend: a run folder, a model folder, or hf-hub:org/name"
        )
    network, card, _ = load_model(source)
    return network.eval(), card if img_size is None else replace(card, input_size=as_size(img_size))


def _features(
    network: nn.Module,
    card: Card,
    splits: Splits,
    layer: int | None,
    batch_size: int,
    device: torch.device,
    cache: FeatureCache,
    show: Callable[[int, int], None] | None,
) -> dict[str, FeatureSet]:
    """Return split -> features, from the disk where they are kept."""
    digest = weights_digest(network)
    reader = Reader(network.to(device), layer)
    found = {}
    for split, images in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if images is None:
            continue
        key = cache_key(network, digest, card, images, layer)

        def compute(images: Any = images) -> FeatureSet:
            try:
                return extract(reader, images, card, batch_size=batch_size, device=device, show=show)
            except ValueError as error:
                raise UsageError(f"the model does not take images of {card.input_size}: {error}") from error

        found[split] = cache.get(f"{split}-{key}", compute)
    return found


def _notes(splits: Splits, read: dict[str, FeatureSet]) -> list[str]:
    notes = [
        f"{part.lost} images of {split} could not be read and are left out; `vitrail data check` names them"
        for split, part in read.items()
        if part.lost
    ]
    if splits.test is None:
        notes.append(
            "there is no test split: the linear probe and k-NN are shown at what suits these validation images best; "
            "mend: a test folder, or a test fraction (--test-fraction 0.2)"
        )
    return notes


def _held_out(read: dict[str, FeatureSet]) -> dict[str, FeatureSet]:
    return {split: part for split, part in read.items() if split != "train"}


def share(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracy of scores (N, K), with its 95 % interval."""
    hits = int((scores.argmax(1) == labels).sum())
    low, high = share_interval(hits, len(labels))
    return {"top1": hits / len(labels), "low": low, "high": high}


def _linear(read: dict[str, FeatureSet], classes: int) -> tuple[list[dict[str, Any]], list[str]]:
    found = linear.sweep(read["train"], read["val"], classes)
    figures = {split: share(found.logits(part.features), part.labels) for split, part in _held_out(read).items()}
    l2 = found.chosen.l2
    notes = []
    if l2 in (linear.STRENGTHS[0], linear.STRENGTHS[-1]):
        notes.append(f"the linear probe's best l2 strength, {l2:.2g}, is at the end of those tried")
    if not found.chosen.converged:
        notes.append(f"the linear probe stopped after {linear.MOST_ITERATIONS} iterations, before it converged")
    entry = {"method": "linear", "setting": f"l2 {l2:.2g}", "l2": l2, "sweep": found.tried, **figures}
    return [entry], notes


def _knn(
    read: dict[str, FeatureSet], classes: int, neighbours: tuple[int, ...] | None, temperature: float
) -> tuple[list[dict[str, Any]], list[str]]:
    train = read["train"]
    chosen = neighbours or tuple(k for k in nearest.NEIGHBOURS if k <= len(train)) or (len(train),)
    if max(chosen) > len(train):
        raise UsageError(f"expected at most {len(train)} neighbours, the training images, got {max(chosen)}")
    shares = {
        split: nearest.votes(train, part.features, classes, chosen, temperature)
        for split, part in _held_out(read).items()
    }
    entries: list[dict[str, Any]] = [
        {
            "method": "knn",
            "setting": f"k {k}",
            "k": k,
            "temperature": temperature,
            **{split: share(shares[split][k], part.labels) for split, part in _held_out(read).items()},
        }
        for k in chosen
    ]
    best = max(entries, key=lambda entry: entry["val"]["top1"])
    best["best_on_val"] = True
    return entries, []


def _few_shot(
    read: dict[str, FeatureSet], classes: int, shots: tuple[int, ...] | None, draws: int, seed: int
) -> tuple[list[dict[str, Any]], list[str]]:
    train, held = read["train"], _held_out(read)
    fewest = int(torch.bincount(train.labels, minlength=classes).min())
    if shots is not None and max(shots) > fewest:
        raise UsageError(
            f"expected shots of at most {fewest}, the training images of the smallest class, got {max(shots)}"
        )
    chosen = shots or tuple(n for n in fewshot.SHOTS if n <= fewest)
    notes = [f"few-shot with {n} images a class is left out: a class has {fewest}" for n in fewshot.SHOTS if n > fewest]
    entries = []
    for n in chosen:
        found = fewshot.few_shot(train, list(held.values()), classes, n, draws=draws, seed=seed)
        figures = {}
        for split, values in zip(held, found, strict=True):
            mean, half = mean_interval(values)
            figures[split] = {"top1": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}
        words = f"{n} image{'s' if n > 1 else ''} a class, {draws} draws"
        entries.append({"method": "few-shot", "setting": words, "shots": n, "draws": draws, **figures})
    return entries, [] if shots else notes


def _remember(out: Path, report: ProbeReport) -> None:
    """Add one line to results.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **report.to_dict()})
    with open(out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
