"""What a detector looked at for one of its answers: its box beside where its query read (:mod:`.explain.queries`).

B batch, Q queries, H, W pixels of the user's image, (h, w) a map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vitrail.data.boxes import cxcywh_to_xyxy
from vitrail.errors import UsageError
from vitrail.explain.draw import overlay, upsample
from vitrail.explain.maps import scale01
from vitrail.explain.queries import watch
from vitrail.nn.detection import Detections

from .detector import Detector, draw_boxes


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
    if not isinstance(detector.model, nn.Module) or not hasattr(detector.model, "decoder"):
        raise UsageError("expected a network from its own folder: an exported file cannot be looked into")
    seen = watch(detector.model, *detector.inputs([pixels]))
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    query, label, score, box = _chosen(seen.found.float(), detector.background, size, at)
    return {
        "label": label,
        "name": detector.classes.names[label],
        "score": score,
        "box_xyxy": [round(float(v), 2) for v in box],
        "query": query,
        "heat": scale01(seen.attention(query)[0].cpu()),
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
