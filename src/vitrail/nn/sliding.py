"""Answers for every pixel of an image of any size: window by window, or in one piece, in bounded memory.

Windows overlap; where several cover a pixel their logits are averaged, each counting the same (mmseg's "slide"). The
image is worked through in bands as high as a window: a row of the picture is finished as soon as no later window
reaches it, so that logits are held for one band, whatever the height of the image.

K classes, H·W pixels, (h, w) a window, (rows, W) a band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .dense import resize_map

Size = tuple[int, int]
Network = Callable[[Tensor], Tensor]
"""Images (B, 3, h, w) -> logits (B, K, h', w') at any stride."""
OVERLAP = 0.5
"""Of windows: the share of a side that a neighbour covers too."""
_ROWS = 128  # of the answer that are resized at once


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along a side: evenly, covering all of it, overlapping by ``overlap`` at least."""
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = 1 + -(-(length - window) // step)
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def slide(
    network: Network, image: Tensor, window: Size, *, overlap: float = OVERLAP, batch: int = 4
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, logits (K, rows, W)) of finished bands, from the top of the image to its end.

    Args:
        network: see :data:`Network`.
        image: normalised (3, H, W); what is smaller than a window is filled up with zeros, and cut off again.
        window: (h, w).
        overlap: share of a window that its neighbour covers too, below 1.
        batch: windows through the network at once.
    """
    height, width = image.shape[1:]
    missing = (max(0, window[0] - height), max(0, window[1] - width))
    if any(missing):
        image = F.pad(image, (0, missing[1], 0, missing[0]))
    tops, lefts = (starts(n, w, overlap) for n, w in zip(image.shape[1:], window, strict=True))
    shown = torch.zeros(image.shape[2])  # how many windows cover a column
    for left in lefts:
        shown[left : left + window[1]] += 1
    band: Tensor | None = None
    covered = torch.zeros(window[0])
    for i, top in enumerate(tops):
        row = _row(network, image[:, top : top + window[0]], window[1], lefts, batch)
        band = row if band is None else band + row
        covered += 1
        done = (tops[i + 1] if i + 1 < len(tops) else image.shape[1]) - top
        finished = band[:, :done] / (covered[:done, None] * shown).to(band.device)
        kept = min(top + done, height) - top
        if kept > 0:
            yield top, finished[:, :kept, :width]
        band = F.pad(band[:, done:], (0, 0, 0, done))
        covered = F.pad(covered[done:], (0, done))


def _row(network: Network, strip: Tensor, width: int, lefts: Sequence[int], batch: int) -> Tensor:
    """Return the sum of the logits (K, h, W) of all windows of a strip (3, h, W)."""
    total: Tensor | None = None
    for first in range(0, len(lefts), batch):
        some = lefts[first : first + batch]
        pieces = torch.stack([strip[:, :, left : left + width] for left in some])
        logits = resize_map(network(pieces).float(), (strip.shape[1], width))
        if total is None:
            total = logits.new_zeros(logits.shape[1], strip.shape[1], strip.shape[2])
        for left, found in zip(some, logits, strict=True):
            total[:, :, left : left + width] += found
    assert total is not None, "there is at least one window"
    return total


def answer(bands: Iterator[tuple[int, Tensor]], size: Size) -> tuple[Tensor, Tensor]:
    """Return (class indices uint8 (H, W), their probability float32 (H, W)) of logits that come in bands."""
    labels, scores = torch.empty(size, dtype=torch.uint8), torch.empty(size)
    for top, logits in bands:
        best, index = logits.softmax(0).max(0)
        rows = slice(top, top + logits.shape[1])
        labels[rows], scores[rows] = index.to(torch.uint8).cpu(), best.cpu()
    return labels, scores


def enlarged(logits: Tensor, size: Size) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, logits (K, rows, W)) of logits (K, h, w) resized to (H, W), some rows at a time.

    The numbers are those of a bilinear resize of the whole, corners not aligned.
    """
    height = logits.shape[1]
    for top in range(0, size[0], _ROWS):
        rows = torch.arange(top, min(top + _ROWS, size[0]), device=logits.device, dtype=torch.float32)
        at = ((rows + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
        low = at.floor().long()
        part = (at - low)[None, :, None]
        mixed = logits[:, low] * (1 - part) + logits[:, (low + 1).clamp(max=height - 1)] * part
        yield top, resize_map(mixed[None], (len(rows), size[1]))[0]
