"""The parts of a report that are pictures: best and worst predictions, attention over images, the known figures.

An image that cannot be read again is left out and said. N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError

from .charts import text_of
from .distance import attention_distances, uniform_distance
from .draw import ICON, Picture, as_picture, data_uri, overlay, place, resized, scaled
from .figures import distance_figure, filters_figure, positions_figure
from .geometry import patch_layout
from .maps import ONE_CELL, Method, attention_maps, default_method, scale01
from .page import figure
from .preprocess import Preprocess
from .runfolder import Predictions

THUMBNAIL, OVERLAY = 192, 224
DISTANCE_IMAGES = 64  # the paper averages 128; half of it costs half and moves the dots by less than their size


class Pictures(Protocol):
    """The part of ``vitrail.data``'s ImageSet that a report reads."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> Tensor:
        """Return uint8 (3, H, W); raises :class:`DataError`."""


@dataclass(frozen=True)
class Gallery:
    """Images of a split with what the model said about them, ready to be shown."""

    images: Pictures
    found: Predictions
    classes: ClassMap

    def read(self, row: int) -> Tensor | None:
        """Return the image of a row of the predictions, or None if it cannot be read any more."""
        try:
            return self.images.read(int(self.found.indices[row]))
        except (DataError, OSError, IndexError):
            return None

    def shown(self, rows: Sequence[int], most: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the first ``most`` rows whose image can be read, with the image."""
        left = most
        for row in rows:
            image = self.read(row) if left else None
            if image is not None:
                left -= 1
                yield row, image

    def caption(self, row: int) -> str:
        """Return markup: the true class, what it was taken for, how surely, and its name."""
        if self.found.multi_label:
            return self._several(row)
        label, guess = int(self.found.labels[row]), int(self.found.guesses[row])
        sure = f"{100 * float(self.found.scores[row, guess]):.0f} %"
        names = self.classes.names
        said = f"<b>{text_of(names[label])}</b> "
        said += sure if label == guess else f"taken for <b>{text_of(names[guess])}</b> {sure}"
        return f"{said}<br>{text_of(self.found.names[row])}"

    def _several(self, row: int) -> str:
        """Return markup: the true classes, what was missed and what was seen too much, and the image's name."""
        true, found, names = self.found.labels[row], self.found.answers[row], self.classes.names
        parts = [f"<b>{text_of(', '.join(names[c] for c in np.flatnonzero(true)) or 'no class')}</b>"]
        for word, which in (("missed", true & ~found), ("too much", found & ~true)):
            if which.any():
                listed = (f"{names[c]} {100 * float(self.found.scores[row, c]):.0f} %" for c in np.flatnonzero(which))
                parts.append(f"{word}: {text_of(', '.join(listed))}")
        return "<br>".join([*parts, text_of(self.found.names[row])])


def best_and_worst(gallery: Gallery, most: int = 12) -> str:
    """Return the surest right answers and the worst mistakes, as thumbnails."""
    own, right = gallery.found.own_scores(), gallery.found.right
    order = np.argsort(own, kind="stable")
    worst = _cards(gallery, [int(r) for r in order if not right[r]], most)
    best = _cards(gallery, _one_a_class(gallery.found, [int(r) for r in order[::-1] if right[r]]), most)
    unsure = _cards(gallery, [int(r) for r in order if right[r]], most // 2)
    parts = [
        ("Worst mistakes", "The true class got the lowest probability.", worst),
        ("Right, but only just", "", unsure),
        ("Best", "The surest right answer of each class.", best),
    ]
    return "".join(
        f"<h3>{title}</h3>{f'<p class=note>{note}</p>' if note else ''}{cards}" for title, note, cards in parts if cards
    )


def _one_a_class(found: Predictions, rows: list[int]) -> list[int]:
    """Put the first row of every class before all others, so that one easy class does not fill the picture."""
    first: dict[object, int] = {}
    for row in rows:
        first.setdefault(found.kind_of(row), row)
    return [*first.values(), *(r for r in rows if r not in set(first.values()))]


def _cards(gallery: Gallery, rows: list[int], most: int) -> str:
    cards = [_card(thumbnail(image), gallery.caption(row), image) for row, image in gallery.shown(rows, most)]
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(address: str, caption: str, image: Tensor) -> str:
    small = ' class="small"' if max(image.shape[-2:]) < ICON else ""
    return f'<figure><img{small} src="{address}" alt="" loading="lazy"><figcaption>{caption}</figcaption></figure>'


def thumbnail(image: Tensor, most: int = THUMBNAIL) -> str:
    """Return a uint8 (3, H, W) image as a data address: tiny ones as they are (PNG), others shrunk (JPEG)."""
    picture = as_picture(image)
    if max(picture.shape[:2]) < ICON:
        return data_uri(picture)
    return data_uri(resized(picture, most=min(most, max(picture.shape[:2]))), kind="JPEG")


def pick_examples(found: Predictions, most: int) -> list[int]:
    """Return rows to explain: right answers of different classes and the worst mistakes, half and half, then more."""
    right = found.right
    order = np.argsort(found.own_scores(), kind="stable")
    wrong = [int(r) for r in order if not right[r]][: most // 2]
    middle = _one_a_class(found, [int(r) for r in order[::-1] if right[r]])
    return [*middle[: most - len(wrong)], *wrong, *middle[most - len(wrong) :]]


def attention(gallery: Gallery, model: nn.Module, preprocess: Preprocess, most: int = 8) -> str:
    """Return sample images and maps of what their answers were read from, side by side."""
    rows: list[str] = []
    methods, remark = _METHODS["attention"], ""
    for row, image in gallery.shown(pick_examples(gallery.found, most), most):
        batch = preprocess.batch([preprocess.crop(image)], _device(model), torch.float32)
        if not rows and default_method(model, batch) == "grad_cam":
            methods = _METHODS["map"]
        if patch_layout(model, batch).grid == (1, 1):
            remark = f" {ONE_CELL}"
        try:
            drawn = [_overlay(model, batch, image, preprocess, method) for method in methods.names]
        except UsageError as error:
            return f'<p class="note">No maps: {text_of(error)}</p>'
        cells = _card(thumbnail(image, OVERLAY), gallery.caption(row), image)
        for picture, name in zip(drawn, methods.names.values(), strict=True):
            address = data_uri(picture, kind="JPEG")
            cells += (
                f'<figure><img src="{address}" alt="{name}" loading="lazy"><figcaption>{name}</figcaption></figure>'
            )
        rows.append(f'<div class="triple">{cells}</div>')
    if not rows:
        return ""
    note = (
        f"{methods.note} Pale is high, dark is low, each map scaled to its own range; pale grey areas were cropped "
        f"away before the model saw the image.{remark}"
    )
    return f'<p>{note}</p><div class="triples">{"".join(rows)}</div>'


@dataclass(frozen=True)
class _Shown:
    """Methods that a report shows, each with its caption, and a note on them."""

    names: dict[Method, str]
    note: str


_METHODS = {
    "attention": _Shown(
        {"rollout": "rollout", "class_token": "last layer"},
        "Rollout multiplies the attention of all layers (Abnar and Zuidema 2020); the last layer's attention is "
        "averaged over its heads.",
    ),
    "map": _Shown(
        {"grad_cam": "Grad-CAM"},
        "Grad-CAM weights the channels of the last feature map by the gradient of the class score (Selvaraju et al. "
        "2017): what in the picture speaks for the answer.",
    ),
}


def _overlay(model: nn.Module, batch: Tensor, image: Tensor, preprocess: Preprocess, method: Method) -> Picture:
    layout = patch_layout(model, batch)
    heat = scale01(attention_maps(model, batch, method=method).maps[0].float().cpu())
    picture = resized(as_picture(image), most=OVERLAY)
    factor = picture.shape[1] / image.shape[2]
    box = scaled(preprocess.box(image, layout.covered), factor)
    seen = scaled(preprocess.box(image, layout.seen(preprocess.size)), factor)
    return overlay(picture, place(heat, (picture.shape[0], picture.shape[1]), box, seen), seen)


def known_figures(model: nn.Module, gallery: Gallery | None, preprocess: Preprocess) -> str:
    """Return the figures of Dosovitskiy et al. 2021, figure 7, of this model; those that do not apply are left out."""
    parts: list[str] = []
    _try(
        parts,
        lambda: figure(data_uri(filters_figure(model, text=24)), "", alt="Principal components of the patch embedding"),
    )
    _try(parts, lambda: figure(data_uri(positions_figure(model, text=26)), "", alt="Similarity of position embeddings"))
    if gallery is not None:
        _try(parts, lambda: _distance(model, gallery, preprocess))
    return f'<div class="row wide">{"".join(parts)}</div>' if parts else ""


def _try(parts: list[str], make: Callable[[], str]) -> None:
    try:
        parts.append(make())
    except UsageError:
        return  # the figure does not exist for this architecture


def _distance(model: nn.Module, gallery: Gallery, preprocess: Preprocess) -> str:
    rows = np.linspace(0, len(gallery.found.labels) - 1, min(DISTANCE_IMAGES, len(gallery.found.labels))).astype(int)
    crops = [preprocess.crop(image) for _, image in gallery.shown([int(r) for r in rows], len(rows))]
    if not crops:
        return ""
    batches = [preprocess.batch(crops[i : i + 8], _device(model), torch.float32) for i in range(0, len(crops), 8)]
    layout = patch_layout(model, batches[0])
    svg = distance_figure(attention_distances(model, batches), uniform=uniform_distance(layout.grid, layout.patch_size))
    note = (
        f"Over {len(crops)} images. Distances between patch centres, weighted by attention; class-token rows and "
        "columns are left out and the rest renormalised."
    )
    return figure(svg, note)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
