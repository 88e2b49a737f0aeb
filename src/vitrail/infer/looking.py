"""What a query looked at: where the last decoder layer of a detector read the image for one of its answers.

Sources: Carion et al. 2020, arXiv 2005.12872, figure 6 (attention of a DETR's query); Zhu et al. 2021, arXiv
2010.04159, figure 6 (the points of a deformable one).
B batch, Q queries, H heads, S cells, (h, w) map, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitrail.data.boxes import cxcywh_to_xyxy
from vitrail.errors import UsageError
from vitrail.explain.draw import overlay, upsample
from vitrail.explain.maps import scale01
from vitrail.nn.deformable import DeformableAttention
from vitrail.nn.detection import Detections

from .detector import Detector, draw_boxes

CELLS = 48  # cells along the longer side that points are gathered in


def looking(detector: Detector, pixels: Tensor, at: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return what one query answered and where it read.

    Args:
        detector: with its network, not a file that was exported.
        pixels: one image, uint8 (3, H, W).
        at: a pixel (x, y): the surest answer whose box holds it; None: the surest of all.

    Returns:
        ``label`` its class index, ``name``, ``score``, ``box_xyxy`` in pixels, ``query`` its number, and ``heat``, a
        map (h, w) in 0..1 over the whole image.

    Raises :class:`UsageError` for a network that cannot be looked into, and for a pixel that no box holds.
    """
    layers = getattr(detector.model, "decoder", None)
    if layers is None:
        raise UsageError("expected a network from its own folder: an exported file cannot be looked into")
    cross = layers[-1].cross
    name = "looked" if isinstance(cross, DeformableAttention) else "tape"
    kept: list[Any] = []
    setattr(cross, name, kept)
    images, keep = detector.inputs([pixels])
    try:
        with torch.inference_mode():
            found: Detections = detector.model(images, keep).float()
    finally:
        setattr(cross, name, None)
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    query, label, score, box = _chosen(found, detector.background, size, at)
    heat = _of_points(kept[-1], query, size) if name == "looked" else _of_weights(kept[-1], query, images.shape[-2:])
    return {
        "label": label,
        "name": detector.classes.names[label],
        "score": score,
        "box_xyxy": [round(float(v), 2) for v in box],
        "query": query,
        "heat": scale01(heat.float().cpu()),
    }


def _chosen(
    found: Detections, background: bool, size: tuple[int, int], at: tuple[float, float] | None
) -> tuple[int, int, float, NDArray[np.float32]]:
    """Return query, class, score and corners in pixels of the answer asked for."""
    logits, boxes = found.layer(-1)
    scores = logits[0].softmax(-1)[:, :-1] if background else logits[0].sigmoid()
    best, labels = scores.max(-1)
    corners = cxcywh_to_xyxy(boxes[0]) * boxes.new_tensor([size[1], size[0], size[1], size[0]])
    if at is not None:
        point = corners.new_tensor(at)
        holds = ((corners[:, :2] <= point) & (point <= corners[:, 2:])).all(-1)
        if not bool(holds.any()):
            raise UsageError(f"expected a pixel that a box holds, got {at[0]:g},{at[1]:g}; mend: leave --at out")
        best = best.masked_fill(~holds, -1.0)
    query = int(best.argmax())
    return query, int(labels[query]), float(best[query]), corners[query].cpu().numpy()


def _of_points(looked: Any, query: int, size: tuple[int, int]) -> Tensor:
    """Gather the points of a query, each with what it counts, in cells of the image, and soften them: (h, w)."""
    places, weights = looked.places[0, query].reshape(-1, 2), looked.weights[0, query].reshape(-1)
    factor = CELLS / max(size)
    grid = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    cells = (places * places.new_tensor([grid[1], grid[0]])).floor().long()
    inside = ((cells >= 0) & (cells < cells.new_tensor([grid[1], grid[0]]))).all(-1)
    flat = torch.zeros(grid[0] * grid[1])
    flat.index_add_(0, (cells[inside, 1] * grid[1] + cells[inside, 0]).cpu(), weights[inside].float().cpu())
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    soft = (kernel[:, None] * kernel[None] / 256)[None, None]
    return torch.nn.functional.conv2d(flat.view(1, 1, *grid), soft, padding=2)[0, 0]


def _of_weights(weights: Tensor, query: int, size: Sequence[int]) -> Tensor:
    """The mean over heads of a query's attention (B, H, Q, S), on the map it read: (h, w)."""
    mean = weights[0, :, query].mean(0)
    for stride in (32, 16, 8, 4, 64):
        grid = [-(-side // stride) for side in size]
        if grid[0] * grid[1] == len(mean):
            return mean.view(grid[0], grid[1])
    raise UsageError(f"expected a map of a usual stride, got {len(mean)} cells of an image of {tuple(size)}")


def draw_looking(
    detector: Detector, pixels: Tensor, at: tuple[float, float] | None = None, path: str | Path | None = None
) -> dict[str, Any]:
    """Draw an answer's box and where its query read; return what :func:`looking` says, without the map."""
    told = looking(detector, pixels, at)
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    glow = overlay(pixels.permute(1, 2, 0).numpy(), upsample(told.pop("heat"), size))
    words = [f"{told['name']} {told['score']:.2f}"]
    boxes, labels = np.array([told["box_xyxy"]]), np.array([told["label"]])
    pair = [draw_boxes(p, boxes, labels, words) for p in (pixels, torch.from_numpy(glow).permute(2, 0, 1))]
    sheet = Image.new("RGB", (2 * pair[0].width + 8, pair[0].height), "white")
    for i, picture in enumerate(pair):
        sheet.paste(picture, (i * (pair[0].width + 8), 0))
    if path is not None:
        sheet.save(path)
    return told
