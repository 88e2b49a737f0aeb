"""The teacher of a run: any folder of weights with the student's classes, asked about the student's own images.

The teacher sees exactly what the student sees (Beyer et al. 2022, arXiv 2106.05237, "consistent teaching"): the same
crop, augmentation and mixing, brought from the student's mean, std and size to its own. Where images are not varied its
answers are kept and it is asked once. It is no part of the run's state: its digest in the recipe says which it is.
B batch, K classes, N training images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.data.loader import Batch, Loader
from vitrail.data.resample import require_interpolation
from vitrail.errors import UsageError, WeightsError
from vitrail.models import config_to_dict
from vitrail.weights import Card, load_folder, open_folder
from vitrail.weights.read import sha256, weight_files

from .optim import to_type
from .pipeline import normalization
from .precision import dtype_of
from .sections import Distill
from .world import World


def digest(source: str) -> str:
    """Return sixteen hex digits of all that decides what a teacher answers: weights, architecture, card, classes."""
    folder = open_folder(source)
    card, classes = folder.card, folder.classes
    said = {
        "weights": sorted(sha256(weight_files(folder.path)).items()),
        "config": config_to_dict(folder.config),
        "card": [card.input_size, card.mean, card.std, card.interpolation],
        "classes": None if classes is None else classes.hash,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def require_teacher(settings: Distill) -> None:
    """Raise :class:`UsageError` unless the teacher is the one that the recipe's digest names."""
    found = digest(settings.teacher)
    if settings.sha256 not in ("auto", found):
        raise UsageError(
            f"expected the teacher with distill.sha256 {settings.sha256}, got {found} in {settings.teacher}; "
            "mend: name the folder of the first one as distill.teacher, or, in a new run, set distill.sha256=auto"
        )


class Teacher:
    """A network that is only asked: no gradient, no dropout, its weights and running means stay as they are."""

    def __init__(self, model: nn.Module, card: Card, order: list[int]) -> None:
        """``card``: of the images that come in is set by :meth:`seeing`; ``order``: its index of each class asked."""
        self.model, self.card = model.eval().requires_grad_(False), card
        self.order = None if order == list(range(len(order))) else torch.tensor(order)
        self.dtype = torch.float32
        self._scale = self._shift = torch.zeros(0)

    @classmethod
    def load(
        cls,
        settings: Distill,
        classes: ClassMap,
        card: Card | None,
        *,
        precision: str,
        device: torch.device,
        theirs: str,
    ) -> Teacher:
        """Return the teacher that ``settings`` name, for images as ``card`` (the student's) has them; None: its own.

        ``classes`` are those of the data ``theirs``. Raises :class:`UsageError` if it is another teacher than the
        recipe's, :class:`WeightsError` if it cannot be loaded or says nothing of its classes, and
        :class:`~vitrail.errors.DataError` if they are not those of the data.
        """
        require_teacher(settings)
        model, own, known = load_folder(settings.teacher)
        if own.multi_label:
            raise WeightsError(f"expected a teacher of one label an image, got one of several: {settings.teacher}")
        if known is None:
            raise WeightsError(
                f"expected a teacher with a class map, got {settings.teacher}, which does not name its classes; "
                "mend: train or fine-tune it with `vitrail train`, which writes classes.json"
            )
        made = cls(model, own, known.order_of(classes, mine=f"the teacher {settings.teacher}", theirs=theirs))
        return made.seeing(card or own).to(device, dtype_of(precision))

    def seeing(self, card: Card) -> Teacher:
        """Expect images normalised as ``card`` says, and return itself."""
        require_interpolation(self.card.interpolation)
        theirs, own = normalization(card), normalization(self.card)
        std = torch.tensor(own.std)
        self._scale = (torch.tensor(theirs.std) / std)[:, None, None]
        self._shift = ((torch.tensor(theirs.mean) - torch.tensor(own.mean)) / std)[:, None, None]
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> Teacher:
        """Move it, and return itself; its batch norms keep float32."""
        to_type(self.model, dtype)
        self.model.to(device)
        self.dtype = dtype
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        self.order = None if self.order is None else self.order.to(device)
        return self

    def __call__(self, batch: Batch) -> Tensor:
        """Return its logits (B, K) float32 of a batch on its device, in the order of the data's classes."""
        return self.logits(batch.images)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the student has them -> (B, K) float32."""
        images = images.float() * self._scale + self._shift
        if images.shape[-2:] != self.card.input_size:
            how = self.card.interpolation
            images = F.interpolate(images, self.card.input_size, mode=how, antialias=True, align_corners=False)
        found: Tensor = self.model(images.to(self.dtype)).float()
        return found if self.order is None else found[:, self.order]


@dataclass(frozen=True)
class Answers:
    """The answers to N images: ``logits`` (N, K) float32 and ``known`` (N,) bool, False where none could be given."""

    logits: Tensor
    known: Tensor


@dataclass(frozen=True)
class _Told:
    logits: Tensor
    keep: Tensor
    indices: Tensor


def ask(teacher: Teacher, loader: Loader, device: torch.device, world: World) -> Answers:
    """Ask about all images of ``loader``, each process about its part; all get all answers, on the CPU."""
    count = len(loader.dataset)
    logits, known = torch.zeros(count, len(loader.dataset.classes)), torch.zeros(count, dtype=torch.bool)
    for batch in loader.epoch(0):
        told = world.join(_Told(teacher(batch.to(device)).cpu(), batch.keep.cpu(), batch.indices.cpu()))
        where = told.indices[told.keep]
        logits[where], known[where] = told.logits[told.keep], True
    return Answers(logits, known)


class Remembered:
    """A teacher whose answers to all training images are known: it is not asked again."""

    def __init__(self, teacher: Callable[[Batch], Tensor], answers: Answers) -> None:
        self.teacher, self.answers = teacher, answers

    def __call__(self, batch: Batch) -> Tensor:
        """Return the logits (B, K) of a batch, on its device."""
        indices = batch.indices.cpu()
        if (batch.keep.cpu() & ~self.answers.known[indices]).any():  # what could not be read then can be read now
            return self.teacher(batch)
        return self.answers.logits[indices].to(batch.images.device)
