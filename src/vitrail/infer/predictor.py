"""The predictor: a model with its card and classes, ready for images as people have them.

B batch, K classes, H, W pixels.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError, VitrailError, require_known
from vitrail.explain.geometry import pair, patch_layout
from vitrail.explain.maps import Method, attention_maps, scale01
from vitrail.explain.preprocess import Preprocess
from vitrail.weights.cards import Card

from .explanation import Explanation
from .inputs import Images, Item, is_single, items_of
from .labels import MultiLabelResult
from .network import open_network
from .results import ClassificationResult

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Precision = Literal["float32", "bfloat16"]
Prediction = ClassificationResult | MultiLabelResult


class Predictor:
    """Classifies images. Made by :func:`load`; the model given is moved to the device and precision, in eval mode.

    Attributes:
        model: the network, on ``device`` in the precision asked for.
        card: what the weights ask of their images, their licence and origin.
        classes: the class map.
        img_size: (H, W) of the model's input.
        thresholds: (K,) float32, from which score on a class is present; only with several labels an image.
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
        batch_size: int = 32,
    ) -> None:
        require_known([dtype], DTYPES, "dtype")
        if batch_size < 1:
            raise UsageError(f"expected a batch size of at least 1, got {batch_size}")
        self.device, self.dtype, self.batch_size = pick_device(device), DTYPES[dtype], batch_size
        self.card = card
        self.img_size = pair(img_size) if img_size is not None else card.input_size
        self.model = model.to(self.device, self.dtype).eval()
        count = self._count_classes()
        if classes is not None and len(classes) != count:
            raise VitrailError(
                f"expected {count} classes as the model has, got a class map of {len(classes)}; "
                "mend: give the class map the weights were trained with"
            )
        self.classes = classes or ClassMap.of([f"class {i}" for i in range(count)])
        told = card.thresholds
        self.thresholds = np.full(count, 0.5, dtype=np.float32) if told is None else np.array(told, dtype=np.float32)
        self.preprocess = Preprocess(card, self.img_size)

    def __repr__(self) -> str:
        size = f"{self.img_size[0]}x{self.img_size[1]}"
        return f"Predictor({self.card.name or type(self.model).__name__}, {len(self.classes)} classes, {size})"

    def _count_classes(self) -> int:
        """Run one blank image: the count of outputs, and a clear error if the input size does not work."""
        blank = torch.zeros(1, len(self.card.mean), *self.img_size, device=self.device, dtype=self.dtype)
        if not getattr(getattr(self.model, "config", None), "num_classes", 1):
            raise UsageError(
                "expected a model with a classifier, got one without (num_classes 0); mend: load weights with a head, "
                "or fine-tune it: vitrail train"
            )
        try:
            with torch.inference_mode():
                return int(self.model(blank).shape[1])
        except ValueError as error:
            raise UsageError(f"the model does not take images of {self.img_size}: {error}") from error

    def __call__(self, images: Images) -> Prediction | list[Prediction]:
        """Classify ``images``; see :mod:`.inputs` for what they may be.

        Returns one result for one image, and a list for a folder, a glob, a list or a batch. An image that cannot be
        used comes back as a result with ``error`` set. A path that does not exist at all is a :class:`DataError`.
        """
        results = list(self.stream(images))
        return results[0] if is_single(images) else results

    def stream(self, images: Images) -> Iterator[Prediction]:
        """Yield results in order, in bounded memory: at most three batches of decoded crops exist at a time.

        Files are decoded by a few threads ahead of the model; the images of a generator are taken as needed.
        """
        items = items_of(images)
        workers = max(1, min(4, os.cpu_count() or 1))
        pending: deque[tuple[Item, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            try:
                for item in islice(items, 2 * self.batch_size):
                    pending.append((item, pool.submit(self._crop, item)))
                while pending:
                    batch = [pending.popleft() for _ in range(min(self.batch_size, len(pending)))]
                    for item in islice(items, len(batch)):
                        pending.append((item, pool.submit(self._crop, item)))
                    yield from self._classify(batch)
            finally:
                for _, future in pending:
                    future.cancel()

    def _crop(self, item: Item) -> Tensor:
        return self.preprocess.crop(item.read())

    def _classify(self, batch: list[tuple[Item, Future[Tensor]]]) -> Iterator[Prediction]:
        crops: list[Tensor] = []
        faults: dict[int, DataError] = {}
        for i, (_, future) in enumerate(batch):
            try:
                crops.append(future.result())
            except DataError as error:
                faults[i] = error
        scores = iter(self.scores(self.preprocess.batch(crops, self.device, self.dtype)) if crops else ())
        for i, (item, _) in enumerate(batch):
            if i in faults:
                reason = str(getattr(faults[i], "reason", "unusable"))
                yield self._result(item, np.zeros(0, dtype=np.float32), str(faults[i]), reason)
            else:
                yield self._result(item, next(scores).numpy())

    def _result(
        self, item: Item, scores: NDArray[np.float32], error: str | None = None, reason: str | None = None
    ) -> Prediction:
        read = item.read if error is None else None
        if self.card.multi_label:
            return MultiLabelResult(item.name, self.classes.names, scores, self.thresholds, error, reason, read)
        return ClassificationResult(item.name, self.classes.names, scores, error, reason, read)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes, or, where an image may have several, each class by itself."""
        return logits.float().sigmoid() if self.card.multi_label else logits.float().softmax(1)

    def scores(self, images: Tensor) -> Tensor:
        """Return scores (B, K), float32 on the CPU, of normalised images (B, 3, H, W): softmax, or each by itself."""
        with torch.inference_mode():
            logits: Tensor = self.model(images.to(self.device, self.dtype))
        return self._probabilities(logits).cpu()

    def explain(
        self,
        image: Images,
        *,
        method: Method | None = None,
        head: int | None = None,
        target: int | str | None = None,
    ) -> Explanation:
        """Say where in one image the answer was read from.

        Args:
            image: one image, as for a prediction.
            method: "rollout" (attention through all layers), "class_token" (the last layer's attention, each head),
                "gradient" (attention weighted by the gradient of the class score) or "grad_cam" (the last feature map
                weighted by it); see :mod:`vitrail.explain.maps`. Default "rollout" where every layer attends to all
                patches, else "grad_cam", which every model has.
            head: show this head alone; for "class_token".
            target: explain this class (name or index) and not the predicted one; for "gradient" and "grad_cam".

        Raises :class:`DataError` if the image cannot be read, :class:`UsageError` for an option without effect.
        """
        if not is_single(image):
            raise UsageError("expected one image to explain, got several; mend: call explain for each")
        if head is not None and method != "class_token":
            raise UsageError(f"`head` has no effect on method {method!r}; mend: use method='class_token'")
        item = next(items_of(image))
        pixels = item.read()
        batch = self.preprocess.batch([self.preprocess.crop(pixels)], self.device, self.dtype)
        chosen = None if target is None else self._class_index(target)
        found = attention_maps(
            self.model, batch, method=method, target=None if chosen is None else torch.tensor([chosen])
        )
        scores = self._probabilities(found.logits)[0].cpu()
        index = int(scores.argmax()) if chosen is None else chosen
        shown, per_head = found.maps[0].float().cpu(), None
        if found.per_head is not None:
            per_head = found.per_head[0].float().cpu()
            if head is not None and not 0 <= head < len(per_head):
                raise UsageError(f"expected a head in 0..{len(per_head) - 1}, got {head}")
            shown, per_head = shown if head is None else per_head[head], scale01(per_head)
        layout = patch_layout(self.model, batch)
        return Explanation(
            name=item.name,
            method=found.method,
            label=self.classes.names[index],
            score=float(scores[index]),
            grid_map=scale01(shown),
            per_head=per_head,
            head=head,
            box=self.preprocess.box(pixels, layout.covered),
            seen=self.preprocess.box(pixels, layout.seen(self.img_size)),
            image=pixels,
        )

    def _class_index(self, target: int | str) -> int:
        if isinstance(target, str):
            require_known([target], self.classes.names, "class")
            return self.classes.names.index(target)
        if not 0 <= target < len(self.classes):
            raise UsageError(f"expected a class index in 0..{len(self.classes) - 1}, got {target}")
        return target


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device asked for; "auto" is the GPU if there is one, else the CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"expected a device such as auto, cpu or cuda:0, got {str(device)!r}: {error}") from error
    return found


def load_predictor(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: Precision = "float32",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> Predictor:
    """Load a predictor of images.

    Args:
        source: a run folder (its ``best/`` weights), a folder of Vitrail, timm or transformers, or a hub id
            (``hf-hub:org/name``).
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "float32", or "bfloat16" for speed where the machine has it; scores are float32 in both.
        img_size: input size in pixels, an int or (H, W); default the card's. Any size that holds a patch works.
        batch_size: images that run through the model at once.

    Raises :class:`WeightsError` if there is no usable model at ``source``.
    """
    found = open_network(source)
    return Predictor(
        found.model, found.card, found.classes, device=device, dtype=dtype, img_size=img_size, batch_size=batch_size
    )
