"""A set of images with boxes: what readers give, what loaders read, what an evaluation compares with.

Boxes are kept as COCO's files have them, ``xywh`` in pixels of the upright image, in float64 and unchanged: an
evaluation must see the very numbers of the file.
n objects of an image; H rows, W columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.data.decode import BrokenImage
from vitrail.data.imageset import Store

NO_CLASS = -1


@dataclass(frozen=True)
class Annotations:
    """Objects of one image: ``xywh`` float64 (n, 4), ``labels`` int64 (n,) class indices, ``crowd`` bool (n,),
    ``area`` float64 (n,) in square pixels (of the outline, where there is one), ``ids`` int64 (n,) of the source,
    ``shapes`` (n,) COCO segmentations or None.
    """

    xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    ids: NDArray[np.int64]
    shapes: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        xywh: ArrayLike,
        labels: ArrayLike,
        *,
        crowd: ArrayLike | None = None,
        area: ArrayLike | None = None,
        ids: ArrayLike | None = None,
        shapes: Sequence[Any] | None = None,
    ) -> Annotations:
        """Fill in what a source does not say: no crowd, the area of the box, no outline."""
        boxes = np.asarray(xywh, dtype=np.float64).reshape(-1, 4)
        n = len(boxes)
        return cls(
            boxes,
            np.asarray(labels, dtype=np.int64).reshape(n),
            np.zeros(n, dtype=bool) if crowd is None else np.asarray(crowd, dtype=bool).reshape(n),
            boxes[:, 2] * boxes[:, 3] if area is None else np.asarray(area, dtype=np.float64).reshape(n),
            np.arange(1, n + 1) if ids is None else np.asarray(ids, dtype=np.int64).reshape(n),
            (None,) * n if shapes is None else tuple(shapes),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Annotations:
        """Return the objects at these places."""
        where = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        parts = (self.xywh, self.labels, self.crowd, self.area, self.ids)
        return Annotations(*(part[where] for part in parts), tuple(self.shapes[i] for i in where))

    @property
    def xyxy(self) -> NDArray[np.float64]:
        """Corners in pixels, (n, 4)."""
        return np.concatenate([self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]], 1)


@dataclass(frozen=True)
class Scene:
    """An image, uint8 (3, H, W), with its objects; ``nbytes`` is what keeping it costs."""

    image: Tensor
    objects: Annotations

    @property
    def nbytes(self) -> int:
        return self.image.numel() + 200 * len(self.objects) + 1000

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True)
class DetectionSet:
    """One split. ``rows`` int64 (m,) of the store, ``ids`` (m,) what the source calls the images, ``sizes`` int64
    (m, 2) height and width as the source says (0 where it does not), ``objects`` (m,).
    """

    store: Store
    rows: NDArray[np.int64]
    ids: tuple[int | str, ...]
    sizes: NDArray[np.int64]
    objects: tuple[Annotations, ...]
    classes: ClassMap
    turned: dict[int, int] = field(default_factory=dict)
    """Position -> EXIF orientation of photographs whose boxes were turned upright with them."""

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        """What people call image ``i``."""
        return self.store.name(int(self.rows[i]))

    def read(self, i: int) -> Scene:
        """Image ``i``, upright, with its objects. Raises :class:`BrokenImage`, also where the size is another."""
        image = self.store.read(int(self.rows[i]))
        height, width = (int(n) for n in self.sizes[i])
        found = (int(image.shape[1]), int(image.shape[2]))
        if height and found != (height, width):
            raise BrokenImage(
                "corrupt",
                f"expected {width} x {height} pixels as the annotations say, got {found[1]} x {found[0]}: "
                "its boxes would lie elsewhere",
            )
        return Scene(image, self.objects[i])

    def subset(self, indices: Sequence[int] | ArrayLike) -> DetectionSet:
        """Return the images at these positions, in this order."""
        at = np.asarray(indices, dtype=np.int64)
        turned = {new: self.turned[old] for new, old in enumerate(at.tolist()) if old in self.turned}
        return replace(
            self,
            rows=self.rows[at],
            ids=tuple(self.ids[i] for i in at),
            sizes=self.sizes[at],
            objects=tuple(self.objects[i] for i in at),
            turned=turned,
        )

    @property
    def most(self) -> int:
        """Objects in the fullest image, crowds counted."""
        return max((len(found) for found in self.objects), default=0)

    def counts(self) -> NDArray[np.int64]:
        """Objects of each class, crowds left out, (number of classes,)."""
        total = np.zeros(len(self.classes), dtype=np.int64)
        for found in self.objects:
            total += np.bincount(found.labels[~found.crowd], minlength=len(self.classes))
        return total

    def digest(self) -> str:
        """Sixteen hex digits that change when a name, a box, a label or their order changes."""
        found = hashlib.sha256(self.classes.hash.encode())
        for i, objects in enumerate(self.objects):
            found.update(f"{self.name(i)}\0{self.ids[i]}\0".encode("utf-8", "surrogateescape"))
            for part in (objects.xywh, objects.labels, objects.crowd):
                found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:16]
