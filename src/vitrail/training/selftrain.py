"""Self-training: a teacher labels images that have no labels, and the student trains on both kinds.

Source: Xie et al. 2020, arXiv 1911.04252 (Noisy Student), algorithm 1. The teacher sees whole images without noise; the
student trains on them as on all others, with augmentation, dropout and drop path. Training again with the student as
the teacher is the next round. The labels lie in the run's folder, so that a resumed run has the same ones.
M images without labels, m chosen, K classes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.imageset import FileStore, ImageSet
from vitrail.data.pseudo import Answers, account, choose, find_images, join, real_paths
from vitrail.data.sources import Splits
from vitrail.errors import DataError, UsageError, WeightsError
from vitrail.weights.read import read_header, read_safetensors

from .checkpoint import replace_bytes
from .folder import write_json
from .pipeline import eval_loader
from .precision import own_device, pick_precision, use_threads
from .recipe import Recipe
from .teacher import Teacher, ask, digest
from .tensorfile import write_tensors
from .world import ALONE, World

FILE = "pseudo_labels.safetensors"
BATCH = 64


@dataclass(frozen=True)
class Pseudo:
    """The images chosen: ``rows`` of the store and ``labels``, int64 (m,); ``soft`` float32 (m, K) where asked for."""

    store: FileStore
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    soft: NDArray[np.float32] | None
    key: str
    """Changes with the teacher, the files and all that chooses among them."""
    answers: Answers | None = None
    """Of all M images, unless the choice was read from a run's folder."""

    def save(self, folder: Path, images: ImageSet) -> None:
        """Write what :func:`reread` needs, and for people the account (JSON) and a line an image (CSV)."""
        assert self.answers is not None, "what was read from a folder is there already"
        tensors = {"rows": torch.from_numpy(self.rows), "labels": torch.from_numpy(self.labels)}
        if self.soft is not None:
            tensors["soft"] = torch.from_numpy(self.soft)
        write_tensors(folder / f"{FILE}.tmp", tensors, {"key": self.key})
        os.replace(folder / f"{FILE}.tmp", folder / FILE)
        write_json(folder / "pseudo_labels.json", account(self.answers, self.rows, images.classes))
        replace_bytes(folder / "pseudo_labels.csv", self._table(images).encode())

    def _table(self, images: ImageSet) -> str:
        assert self.answers is not None, "save() asked"
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["image", "label", "score", "shown_an_epoch", "readable"])
        times = np.bincount(self.rows, minlength=len(self.store))
        labels, confidence = self.answers.labels, self.answers.confidence
        for i, ok in enumerate(self.answers.readable):
            said = [images.classes.names[labels[i]], f"{confidence[i]:.4f}"] if ok else ["", ""]
            lines.writerow([self.store.name(i), *said, times[i], "yes" if ok else "no"])
        return text.getvalue()


def with_unlabelled(
    recipe: Recipe, splits: Splits, folder: Path | None, say: Callable[[str], None], world: World = ALONE
) -> Splits:
    """Return ``splits`` with the images of ``distill.unlabelled`` in train; unchanged where the recipe names none.

    The labels are those in the run's ``folder`` where it holds them, else the teacher is asked. Raises
    :class:`DataError` if there is no image, or none that the teacher is sure of, and as :class:`Teacher` does.
    """
    d = recipe.distill
    if d is None or d.unlabelled is None:
        return splits
    if splits.train.multi_label:
        raise UsageError("expected one label an image with a teacher, got several; mend: leave distill out")
    store, notes = _usable(d.unlabelled, splits)
    key = _key(recipe, store)
    found = reread(folder, store, key) if folder is not None else None
    if not all(world.collect(found is not None)):
        say(f"asking the teacher {d.teacher} about {len(store):,} images without labels")
        found = _asked(recipe, splits, store, key, world)
        notes.append(_sentence(recipe, found, splits))
    assert found is not None, "read or asked for"
    train = join(splits.train, store, found.rows, found.labels, found.soft)
    return replace(splits, train=train, pseudo=found, notes=[*splits.notes, *notes])


def _usable(source: str, splits: Splits) -> tuple[FileStore, list[str]]:
    """Return the images of the folder that are in no split, and sentences on those that are left out."""
    store, ignored = find_images(source)
    known = set().union(*(real_paths(images) for images in (splits.train, splits.val, splits.test)))
    fresh = [name for name in store.names if os.path.realpath(os.path.join(store.root, name)) not in known]
    notes = [f"{len(ignored)} files of {source} are no images"] if ignored else []
    if len(fresh) < len(store):
        notes.append(f"{len(store) - len(fresh):,} images of {source} are in the labelled data already: left out there")
    if not fresh:
        raise DataError(f"expected images in {source} that are not in the labelled data, got none; mend: add some")
    return FileStore(store.root, fresh), notes


def _key(recipe: Recipe, store: FileStore) -> str:
    d = recipe.distill
    assert d is not None, "asked for a teacher's labels"
    teacher = digest(d.teacher) if d.sha256 == "auto" else d.sha256
    chosen = [teacher, d.how, d.temperature, d.confidence, d.balance]
    return hashlib.sha256(json.dumps([chosen, store.names]).encode()).hexdigest()[:16]


def reread(folder: Path, store: FileStore, key: str) -> Pseudo | None:
    """Return what :meth:`Pseudo.save` wrote, or None if it is not there, damaged, or of another teacher or choice."""
    path = folder / FILE
    try:
        read_header(path)
        with open(path, "rb") as file:
            said = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        if said.get("__metadata__", {}).get("key") != key:
            return None
        tensors = {name: tensor.numpy() for name, tensor in read_safetensors(path).items()}
    except (WeightsError, OSError, ValueError):
        return None
    return Pseudo(store, tensors["rows"], tensors["labels"], tensors.get("soft"), key)


def _asked(recipe: Recipe, splits: Splits, store: FileStore, key: str, world: World) -> Pseudo:
    d = recipe.distill
    assert d is not None, "asked for a teacher's labels"
    logits, readable = _ask(recipe, splits, store, world)
    answers = Answers(logits.softmax(1).numpy(), readable)
    rows = choose(answers, d.confidence or 0.0, d.balance)
    if not len(rows):
        best = float(answers.confidence[readable].max()) if readable.any() else float("nan")
        raise DataError(
            f"expected images that the teacher is sure of in {d.unlabelled}, got none of {len(store)} with a score of "
            f"{d.confidence:g} (the best has {best:.2g}); mend: a lower distill.confidence, or a better teacher"
        )
    soft = (logits / d.temperature).softmax(1).numpy()[rows] if d.how == "soft" else None
    return Pseudo(store, rows, answers.labels[rows], soft, key, answers)


def _ask(recipe: Recipe, splits: Splits, store: FileStore, world: World) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Return logits (M, K) of all images, float32, and which could be read, bool (M,); each process asks a part."""
    device, rows = own_device(recipe.train.device, world), np.arange(len(store))
    precision, _ = pick_precision(recipe.train.precision, device)
    theirs, d = recipe.data.source, recipe.distill
    assert d is not None, "asked for a teacher's labels"
    teacher = Teacher.load(d, splits.classes, None, precision=precision, device=device, theirs=theirs)
    images = ImageSet(store, rows, np.zeros(len(store), dtype=np.int64), splits.classes)
    part = (world.rank, world.size)
    with use_threads(recipe.train.threads):
        loader = eval_loader(images, teacher.card, batch_size=BATCH * world.size, cache="none", part=part)
        told = ask(teacher, loader, device, world)
    return told.logits, told.known.numpy()


def _sentence(recipe: Recipe, found: Pseudo, splits: Splits) -> str:
    d = recipe.distill
    assert d is not None, "asked for a teacher's labels"
    assert found.answers is not None, "just asked"
    a: dict[str, Any] = account(found.answers, found.rows, splits.classes)
    none = [name for name, counts in a["classes"].items() if not counts["used"]]
    more = f", shown {a['shown_an_epoch']:,} times an epoch ({d.balance:,} a class)" if d.balance else ""
    why = f"below a score of {d.confidence:g}" + (" or beyond the balance" if d.balance else "")
    missing = f"; none of {', '.join(none[:5])}{' and others' if len(none) > 5 else ''}" if none else ""
    return (
        f"{a['images']:,} images without labels: {a['used']:,} used with {d.how} labels of {d.teacher}{more}, "
        f"{a['left_out']:,} {why}, {a['unreadable']:,} unreadable{missing}"
    )
