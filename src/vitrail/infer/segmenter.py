"""The segmenter: a network with its card and classes, ready for images as people have them.

H·W pixels of the image the user gave, (h, w) of a window, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.data.augment import Normalize
from vitrail.data.maskcrops import to_short_side
from vitrail.errors import DataError, UsageError, VitrailError, require_known
from vitrail.explain.geometry import pair
from vitrail.explain.maps import scale01
from vitrail.explain.pixels import pixel_activation
from vitrail.nn.sliding import OVERLAP, answer, enlarged, slide
from vitrail.weights.cards import Card

from .explanation import Explanation
from .inputs import Images, Item, is_single, items_of
from .network import Network, is_exported, open_network
from .predictor import DTYPES, Precision, pick_device
from .segmentation import SegmentationResult

How = Literal["auto", "whole", "windows"]
_WHOLE = 4  # windows' worth of pixels up to which an image is answered in one piece


class Segmenter:
    """Answers every pixel of images. Made by :func:`vitrail.load`.

    Attributes:
        model: the network, on ``device`` in the precision asked for, in eval mode.
        card: what the weights ask of their images, their licence and origin.
        classes: the class map.
        window: (h, w) of the network's input where an image is answered window by window.
        short_side: what the shorter side of an image is brought to before the network sees it; None: left as it is.
        in_windows: whether images are answered window by window, whatever their size, as the network was measured.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: str | torch.device = "auto",
        dtype: Precision = "float32",
        img_size: int | tuple[int, int] | None = None,
        batch_size: int = 4,
        fixed: bool = False,
    ) -> None:
        """Make one of an opened network; ``fixed``: it takes images of ``img_size`` alone, as an exported one does."""
        require_known([dtype], DTYPES, "dtype")
        if batch_size < 1:
            raise UsageError(f"expected a batch size of at least 1, got {batch_size}")
        self.device, self.dtype, self.batch_size, self.fixed = pick_device(device), DTYPES[dtype], batch_size, fixed
        self.card, self.model = network.card, network.model.to(self.device, self.dtype).eval()
        self.window = pair(img_size) if img_size is not None else self.card.input_size
        count = int(network.config.num_classes)
        if network.classes is not None and len(network.classes) != count:
            raise VitrailError(f"expected {count} classes as the model has, got {len(network.classes)} names")
        self.classes = network.classes or ClassMap.of([f"class {i}" for i in range(count)])
        self.short_side: int | None = network.extra.get("short_side")
        self.in_windows = network.extra.get("answer") == "windows"
        self.normalize = normalize_of(self.card)

    def __repr__(self) -> str:
        return f"Segmenter({self.card.name}, {len(self.classes)} classes, windows {self.window[0]}x{self.window[1]})"

    def __call__(
        self, images: Images, *, how: How = "auto", overlap: float = OVERLAP
    ) -> SegmentationResult | list[SegmentationResult]:
        """Answer ``images``; see :mod:`.inputs` for what they may be.

        Args:
            images: one or many.
            how: "whole": the image in one piece; "windows": piece by piece, logits averaged where pieces overlap;
                "auto": as the run that trained the network measured it, and else whole up to four windows' worth of
                pixels.
            overlap: of windows, as a share of their side, in 0..1 (without 1).

        Returns one result for one image, and a list for a folder, a glob, a list or a batch. An image that cannot be
        used comes back as a result with ``error`` set.
        """
        results = list(self.stream(images, how=how, overlap=overlap))
        return results[0] if is_single(images) else results

    def stream(self, images: Images, *, how: How = "auto", overlap: float = OVERLAP) -> Iterator[SegmentationResult]:
        """Yield results in order, one image at a time."""
        require_known([how], ("auto", "whole", "windows"), "way to answer")
        if not 0 <= overlap < 1:
            raise UsageError(f"expected an overlap of at least 0 and below 1, got {overlap}")
        if how == "whole" and self.fixed:
            raise UsageError("an exported network takes one image size: how='whole' is not for it; mend: leave it out")
        for item in items_of(images):
            yield self._answer(item, how, overlap)

    def _answer(self, item: Item, how: How, overlap: float) -> SegmentationResult:
        values = tuple(i if isinstance(i, int) and 0 <= i <= 255 else k for k, i in enumerate(self.classes.ids))
        names = self.classes.names
        try:
            image = item.read()
        except DataError as error:
            empty = np.zeros((0, 0))
            reason = str(getattr(error, "reason", "unusable"))
            return SegmentationResult(
                item.name, names, values, empty.astype(np.uint8), empty.astype(np.float32), str(error), reason
            )
        labels, scores = self.answer(image, how, overlap)
        return SegmentationResult(item.name, names, values, labels.numpy(), scores.numpy(), _read=item.read)

    def answer(self, image: Tensor, how: How = "auto", overlap: float = OVERLAP) -> tuple[Tensor, Tensor]:
        """Image uint8 (3, H, W) -> (class indices uint8 (H, W), their probability float32 (H, W))."""
        size = (image.shape[1], image.shape[2])
        pixels = self._prepared(image)
        own = (pixels.shape[1], pixels.shape[2])
        small = own[0] * own[1] <= _WHOLE * self.window[0] * self.window[1]
        whole = how == "whole" or (how == "auto" and small and not self.in_windows)
        with torch.inference_mode():
            if whole and not self.fixed:
                return answer(enlarged(self.model(pixels[None]).float()[0], size), size)
            bands = slide(self.model, pixels, self.window, overlap=overlap, batch=self.batch_size)
            if own == size:
                return answer(bands, size)
            return answer(enlarged(torch.cat([found for _, found in bands], dim=1), size), size)

    def _prepared(self, image: Tensor) -> Tensor:
        """Image uint8 (3, H, W) -> what the network sees, normalised, on the device."""
        seen = to_short_side(image, self.short_side)
        return self.normalize(seen[None].to(self.device))[0].to(self.dtype)

    def explain(
        self, image: Images, *, at: tuple[float, float] | None = None, target: int | str | None = None, level: int = -1
    ) -> Explanation:
        """Say where in one image an answer was read from, by Grad-CAM of the chosen pixels' logits.

        Args:
            image: one image, answered in one piece.
            at: (x, y) in pixels of the image: explain the answer there; None: of all pixels of a class.
            target: the class (name or index); default the one answered at the pixel, or the commonest one.
            level: which map of the backbone, from the finest; -1: the deepest.

        Raises :class:`DataError` if the image cannot be read, :class:`UsageError` for a pixel outside it or a class
        that no pixel was answered with.
        """
        if not is_single(image):
            raise UsageError("expected one image to explain, got several; mend: call explain for each")
        if self.fixed:
            raise UsageError("an exported network gives no gradients; mend: explain the run it was exported from")
        item = next(items_of(image))
        picture = item.read()
        pixels = self._prepared(picture)[None]
        with torch.inference_mode():
            logits = self.model(pixels).float()[0]
        chosen, index = self._pixels(logits, (picture.shape[1], picture.shape[2]), at, target)
        found = pixel_activation(self.model, pixels, chosen, index, level).float().cpu()
        stride = sorted(self._strides())[level]
        fy, fx = picture.shape[1] / pixels.shape[2], picture.shape[2] / pixels.shape[3]
        score = float(logits.softmax(0)[index][chosen.to(logits.device)].mean())
        where = "" if at is None else f" at {at[0]:g},{at[1]:g}"
        return Explanation(
            name=item.name,
            method="grad_cam",
            label=f"{self.classes.names[index]}{where}",
            score=score,
            grid_map=scale01(found),
            per_head=None,
            head=None,
            box=(0.0, 0.0, found.shape[1] * stride * fx, found.shape[0] * stride * fy),
            seen=(0.0, 0.0, float(picture.shape[2]), float(picture.shape[1])),
            image=picture,
        )

    def _strides(self) -> list[int]:
        network: Any = self.model
        return list(network.feature_channels)

    def _pixels(
        self, logits: Tensor, size: tuple[int, int], at: tuple[float, float] | None, target: int | str | None
    ) -> tuple[Tensor, int]:
        """Return which logits (h, w) are explained, and the class."""
        best = logits.argmax(0).cpu()
        if isinstance(target, str):
            require_known([target], self.classes.names, "class")
            target = self.classes.names.index(target)
        if at is None:
            index = int(best.flatten().bincount().argmax()) if target is None else target
            chosen = best == index
            if not bool(chosen.any()):
                raise UsageError(f"no pixel was answered with class {index}; mend: another target, or at=(x, y)")
            return chosen, index
        x, y = at
        if not (0 <= x < size[1] and 0 <= y < size[0]):
            raise UsageError(f"expected a pixel (x, y) inside the image of {size[1]} x {size[0]}, got ({x:g}, {y:g})")
        row, column = int(y / size[0] * best.shape[0]), int(x / size[1] * best.shape[1])
        chosen = torch.zeros_like(best, dtype=torch.bool)
        chosen[row, column] = True
        return chosen, int(best[row, column]) if target is None else target


def normalize_of(card: Card) -> Normalize:
    """Return how a card wants colour images normalised; :class:`UsageError` for one of other channels."""
    if len(card.mean) != 3 or len(card.std) != 3:
        raise UsageError(f"expected weights for images of 3 channels, got {len(card.mean)}")
    (red, green, blue), (r, g, b) = card.mean, card.std
    return Normalize((red, green, blue), (r, g, b))


def load_segmenter(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: Precision = "float32",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 4,
) -> Segmenter:
    """Load a segmenter: of a run folder, a folder of Vitrail or transformers, a hub id, or an exported file.

    ``img_size`` is that of the windows of large images; ``batch_size``: windows at once. Raises :class:`WeightsError`
    if there is no usable model at ``source``.
    """
    fixed = is_exported(source)
    if fixed and img_size is not None:
        raise UsageError("an exported network takes the image size it was exported for; mend: leave img_size out")
    return Segmenter(
        open_network(source), device=device, dtype=dtype, img_size=img_size, batch_size=batch_size, fixed=fixed
    )
