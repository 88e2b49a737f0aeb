"""The detector: a network that finds objects, ready for images as people have them, and what it answers.

B batch, n objects found in an image, H, W pixels of the user's image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.data.augment import Normalize
from vitrail.data.detection.batches import pad
from vitrail.data.detection.masks import compressed
from vitrail.data.detection.transforms import Fit
from vitrail.data.resample import resize
from vitrail.errors import DataError, UsageError, VitrailError, require_known
from vitrail.nn.detection import Detections
from vitrail.tasks.detect import answers
from vitrail.weights.cards import Card

from .inputs import Images, Item, is_single, items_of
from .network import open_network
from .predictor import DTYPES, Precision, pick_device
from .results import SCHEMA

CELL = 32  # stride of the coarsest map that a backbone gives
THRESHOLD = 0.4
"""Score from which on an answer is shown, where nobody says another."""


@dataclass(frozen=True)
class DetectionResult:
    """The objects found in one image, the surest first.

    Attributes:
        name: path of the file, or "image 3" for the fourth of several arrays.
        names: the class names, in index order.
        size: (H, W) of the image.
        boxes_xyxy: (n, 4) float32, left, top, right, bottom in pixels of the image.
        scores: (n,) float32, 0 to 1.
        labels: (n,) int64 class indices.
        error: what went wrong with this image, or None; ``reason`` is its stable code.
        masks: (n, H, W) bool, of networks that give masks.
    """

    name: str
    names: Sequence[str]
    size: tuple[int, int]
    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    error: str | None = None
    reason: str | None = None
    masks: NDArray[np.bool_] | None = None
    _read: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the image could be used."""
        return self.error is None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> DetectionResult:
        """Return the same with the objects of at least this score."""
        from dataclasses import replace

        chosen = self.scores >= threshold
        masks = None if self.masks is None else self.masks[chosen]
        parts = (self.boxes_xyxy[chosen], self.scores[chosen], self.labels[chosen])
        return replace(self, boxes_xyxy=parts[0], scores=parts[1], labels=parts[2], masks=masks)

    def to_json(self) -> dict[str, Any]:
        """Return plain data of a stable schema: each object with class, score and box in pixels."""
        objects = [
            {
                "label": self.names[label],
                "index": int(label),
                "score": round(float(score), 6),
                "box_xyxy": [round(float(v), 2) for v in box],
            }
            for box, score, label in zip(self.boxes_xyxy, self.scores, self.labels, strict=True)
        ]
        return {
            "schema": SCHEMA,
            "task": "detect",
            "name": self.name,
            "size": list(self.size),
            "objects": objects,
            "error": None if self.ok else {"reason": self.reason, "message": self.error},
        }

    def plot(self, path: str | Path | None = None) -> Image.Image:
        """Draw boxes, classes and scores over the image; also save it if ``path`` is given.

        Raises :class:`DataError` if the image could not be used.
        """
        if not self.ok or self._read is None:
            raise DataError(f"expected an image to draw, got {self.name!r}: {self.error or 'its pixels are not kept'}")
        words = [f"{self.names[label]} {score:.2f}" for label, score in zip(self.labels, self.scores, strict=True)]
        drawn = draw_boxes(self._read(), self.boxes_xyxy, self.labels, words, self.masks)
        if path is not None:
            drawn.save(path)
        return drawn


def draw_boxes(
    image: Tensor,
    boxes_xyxy: NDArray[Any],
    labels: NDArray[np.int64],
    words: Sequence[str],
    masks: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Draw boxes (n, 4) in pixels over an image uint8 (3, H, W), the last of ``words`` under the first."""
    from vitrail.explain.colors import PALETTE, PAPER
    from vitrail.explain.draw import font

    picture = image.permute(1, 2, 0).numpy().copy()
    grow = max(1, min(8, round(640 / max(picture.shape[:2]))))  # small images are drawn larger, so that words fit
    canvas = Image.fromarray(picture).resize((picture.shape[1] * grow, picture.shape[0] * grow), Image.Resampling.BOX)
    if masks is not None:
        canvas = _tinted(canvas, masks, labels, grow)
    pen = ImageDraw.Draw(canvas)
    text, line = max(11, canvas.width // 50), max(1, canvas.width // 300)
    for box, label, word in reversed(list(zip(boxes_xyxy.tolist(), labels.tolist(), words, strict=True))):
        color = PALETTE[label % len(PALETTE)]
        left, top, right, bottom = (v * grow for v in box)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=line)
        place = (left, max(0, top - text - 4))
        area = pen.textbbox(place, word, font=font(text))
        pen.rectangle((area[0] - 2, area[1] - 1, area[2] + 2, area[3] + 1), fill=color)
        pen.text(place, word, fill=PAPER, font=font(text))
    return canvas


def _tinted(canvas: Image.Image, masks: NDArray[np.bool_], labels: NDArray[np.int64], grow: int) -> Image.Image:
    from vitrail.explain.colors import PALETTE

    for mask, label in zip(masks, labels.tolist(), strict=True):
        color = Image.new("RGB", canvas.size, PALETTE[label % len(PALETTE)])
        shade = Image.fromarray((mask * 115).astype(np.uint8)).resize(canvas.size, Image.Resampling.NEAREST)
        canvas = Image.composite(color, canvas, shade)
    return canvas


class Detector:
    """Finds objects. Made by :func:`vitrail.load`; the model given is moved to the device, in eval mode.

    Each query answers with its best class alone, where COCO's measure also counts its others.

    Attributes:
        model: the network, on ``device`` in the precision asked for.
        card: what the weights ask of their images.
        classes: the class map; its ids are those of the data it was trained on.
        fit: the size images are brought to.
        threshold: score from which on an object is answered.
        nms: overlap from which on a second answer of one class is left out; None: all stay.
    """

    def __init__(
        self,
        model: nn.Module,
        card: Card,
        classes: ClassMap | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: Precision = "float32",
        img_size: int | tuple[int, int] | None = None,
        batch_size: int = 8,
        threshold: float = THRESHOLD,
        nms: float | None = None,
    ) -> None:
        require_known([dtype], DTYPES, "dtype")
        if batch_size < 1:
            raise UsageError(f"expected a batch size of at least 1, got {batch_size}")
        if not 0 <= threshold <= 1:
            raise UsageError(f"expected a threshold between 0 and 1, got {threshold}")
        self.device, self.dtype, self.batch_size = pick_device(device), DTYPES[dtype], batch_size
        self.threshold, self.nms, self.card = threshold, nms, card
        self.model = model.to(self.device, self.dtype).eval()
        config: Any = model.config
        count = int(config.num_classes)
        if classes is not None and len(classes) != count:
            raise VitrailError(
                f"expected {count} classes as the model has, got a class map of {len(classes)}; "
                "mend: give the class map the weights were trained with"
            )
        self.classes = classes or ClassMap.of([f"class {i}" for i in range(count)])
        self.background = bool(config.background)
        self.fixed: tuple[int, int] | None = getattr(model, "size", None)  # of a file exported for one size
        if self.fixed is not None and img_size is not None:
            raise UsageError(f"img_size has no effect on a file exported for {self.fixed}; mend: leave it out")
        self.fit = fit_of(card.input_size if img_size is None else img_size, config)
        self.normalize = Normalize(_three(card.mean), _three(card.std))

    def __repr__(self) -> str:
        name = self.card.name or type(self.model).__name__
        return f"Detector({name}, {len(self.classes)} classes, {self.fit.shorter}..{self.fit.longer})"

    def __call__(self, images: Images) -> DetectionResult | list[DetectionResult]:
        """Find objects in ``images``; see :mod:`.inputs` for what they may be.

        Returns one result for one image, and a list for a folder, a glob, a list or a batch. An image that cannot be
        used comes back as a result with ``error`` set. A path that does not exist at all is a :class:`DataError`.
        """
        results = list(self.stream(images))
        return results[0] if is_single(images) else results

    def stream(self, images: Images) -> Iterator[DetectionResult]:
        """Yield results in order, one batch in memory at a time."""
        items = items_of(images)
        while batch := list(islice(items, self.batch_size)):
            yield from self._batch(batch)

    def _batch(self, items: list[Item]) -> Iterator[DetectionResult]:
        pixels: list[Tensor] = []
        faults: dict[int, DataError] = {}
        for i, item in enumerate(items):
            try:
                pixels.append(item.read())
            except DataError as error:
                faults[i] = error
        found = iter(self.find(pixels) if pixels else ())
        for i, item in enumerate(items):
            if i in faults:
                none = np.zeros(0, dtype=np.float32)
                reason = str(getattr(faults[i], "reason", "unusable"))
                empty = (np.zeros((0, 4), dtype=np.float32), none, np.zeros(0, dtype=np.int64))
                yield DetectionResult(item.name, self.classes.names, (0, 0), *empty, str(faults[i]), reason)
                continue
            size, boxes, scores, labels, masks = next(found)
            yield DetectionResult(
                item.name, self.classes.names, size, boxes, scores, labels, masks=masks, _read=item.read
            )

    def inputs(self, pixels: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Images uint8 (3, h, w) of any sizes -> what the network reads: (B, 3, H, W) normalised, and keep (B, H, W)
        or None where nothing is padded.
        """
        made = [resize(image, self.target((image.shape[1], image.shape[2])), "bilinear") for image in pixels]
        images, keep = pad(made, self.normalize)
        if self.fixed is not None:
            rest = (0, self.fixed[1] - images.shape[3], 0, self.fixed[0] - images.shape[2])
            images, keep = nn.functional.pad(images, rest), nn.functional.pad(keep, rest)
        images = images.to(self.device, self.dtype)
        return images, None if bool(keep.all()) else keep.to(self.device)

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) that an image of ``size`` is brought to."""
        if self.fixed is None:
            return self.fit.target(size)
        factor, m = min(self.fixed[0] / size[0], self.fixed[1] / size[1]), self.fit.multiple
        height, width = (max(m, m * round(side * factor / m)) for side in size)
        return min(height, self.fixed[0]), min(width, self.fixed[1])

    def find(
        self, pixels: Sequence[Tensor]
    ) -> Iterator[tuple[tuple[int, int], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]]:
        """Return size, boxes, scores, classes and masks of each image uint8 (3, h, w), in order.

        Images go through the network with those of their own size alone: nothing is padded, so an answer does not
        depend on which images came along.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(pixels):
            groups.setdefault(self.target((image.shape[1], image.shape[2])), []).append(i)
        found: dict[int, Any] = {}
        for rows in groups.values():
            found.update(zip(rows, self._find([pixels[i] for i in rows]), strict=True))
        return iter(found[i] for i in range(len(pixels)))

    def _find(
        self, pixels: Sequence[Tensor]
    ) -> Iterator[tuple[tuple[int, int], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]]:
        """The same of images that come to one size."""
        images, keep = self.inputs(pixels)
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in pixels]
        with torch.inference_mode():
            found: Detections = self.model(images, keep).float()
            told = torch.tensor(sizes, device=self.device)
            given = answers(found, told, background=self.background, nms=self.nms, one_class=True)
        for row, size in enumerate(sizes):
            boxes, scores, labels, queries = (part[row] for part in given)
            chosen = (scores >= self.threshold) & (scores > 0)
            limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
            own = boxes[chosen].clamp(min=0).minimum(limit)
            masks = None if found.masks is None else self._masks(found.masks[row, queries[chosen]], size, images)
            yield size, own.cpu().numpy(), scores[chosen].cpu().numpy(), labels[chosen].cpu().numpy(), masks

    def _masks(self, logits: Tensor, size: tuple[int, int], images: Tensor) -> NDArray[np.bool_]:
        """Logits (n, h, w) of the chosen answers -> masks (n, H, W) in the user's pixels: where they are above 0."""
        if not len(logits):  # interpolation refuses nothing
            return np.zeros((0, *size), dtype=np.bool_)
        padded = nn.functional.interpolate(logits[None], images.shape[-2:], mode="bilinear")
        height, width = self.target(size)
        whole = nn.functional.interpolate(padded[:, :, :height, :width], size, mode="bilinear")
        return (whole[0] > 0).cpu().numpy()


def fit_of(img_size: int | Sequence[int], config: Any) -> Fit:
    """Return the size that images are brought to: into a square of one number, or shorter and longer side; for a
    network (``config``) that reads several maps in whole cells of the coarsest.
    """
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    return Fit(min(sides), max(sides), CELL if hasattr(config, "levels") else 1)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"expected a network for three channels, got {len(values)}")
    return values[0], values[1], values[2]


def results_to_coco(
    results: Iterable[DetectionResult],
    classes: ClassMap,
    path: str | Path | None = None,
    image_ids: Mapping[str, int | str] | None = None,
) -> list[dict[str, Any]]:
    """Return detections in the form of COCO's result files, masks as run lengths, and write them if ``path`` is given.

    Args:
        results: of :class:`Detector`; those with an error give nothing.
        classes: the detector's; categories are written with the ids of its data.
        path: a json to write.
        image_ids: id of each image by its name; default: the stem of the file, as a number where it is one.
    """
    rows = []
    for result in results:
        stem = Path(result.name).stem
        own = int(stem) if stem.isdecimal() else stem
        image = own if image_ids is None else image_ids[result.name]
        for i, (x1, y1, x2, y2) in enumerate(result.boxes_xyxy.tolist()):
            row = {
                "image_id": image,
                "category_id": classes.ids[int(result.labels[i])],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(result.scores[i]),
            }
            rows.append(row if result.masks is None else {**row, "segmentation": compressed(result.masks[i])})
    if path is not None:
        Path(path).write_text(json.dumps(rows), encoding="utf-8")
    return rows


def load_detector(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: Precision = "float32",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
    threshold: float = THRESHOLD,
) -> Detector:
    """Load a detector: a run folder (its ``best/`` weights), a model folder, a hub id, or an exported file.

    Args:
        source: where it is.
        device: "auto", "cpu", "cuda", ...
        dtype: "float32" or "bfloat16"; boxes and scores are float32 in both.
        img_size: an int (images are fitted into such a square) or shorter and longer side; default the card's.
        batch_size: images that run through the model at once.
        threshold: score from which on an object is answered.

    Raises :class:`WeightsError` if there is no usable model at ``source``.
    """
    found = open_network(source)
    return Detector(
        found.model, found.card, found.classes, device=device, dtype=dtype, img_size=img_size, batch_size=batch_size,
        threshold=threshold, nms=found.extra.get("nms"),
    )  # fmt: skip
