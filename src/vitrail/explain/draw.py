"""Pictures with numpy and Pillow alone: heat maps over photographs, sheets of titled tiles, colour bars.

Arrays are (H, W, 3) uint8 RGB unless said otherwise; heat maps (H, W) floats in 0..1; boxes (x0, y0, x1, y1) pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from .colors import INK, MUTED, PAPER, ColorMap, colorize

ICON = 64  # sides below this many pixels are shown pixel by pixel

Picture = NDArray[np.uint8]
Box = tuple[float, float, float, float]


def font(size: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font at ``size`` pixels."""
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def fit_text(text: str, size: float, width: float) -> str:
    """Return ``text``, shortened with an ellipsis until it is at most ``width`` pixels wide."""
    face = font(size)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def as_picture(image: Tensor | Image.Image | Picture) -> Picture:
    """Return an (H, W, 3) array of a uint8 (3, H, W) tensor, a PIL image or an array."""
    if isinstance(image, Tensor):
        return cast(Picture, np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()))
    return cast(Picture, np.asarray(image.convert("RGB"))) if isinstance(image, Image.Image) else image


def upsample(heat: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge an (h, w) map in 0..1 smoothly (bicubic) to ``size`` (H, W), clipped to 0..1."""
    large = F.interpolate(heat.detach().float().cpu()[None, None], size=size, mode="bicubic", align_corners=False)
    return cast("NDArray[np.float32]", large[0, 0].clamp(0, 1).numpy())


def place(heat: Tensor, size: tuple[int, int], box: Box, seen: Box | None = None) -> NDArray[np.float32]:
    """Return a (H, W) canvas of zeros with the (h, w) map enlarged onto ``box``, cut at the edges, and at ``seen``."""
    x0, y0, x1, y1 = (round(v) for v in box)
    large = upsample(heat, (max(1, y1 - y0), max(1, x1 - x0)))
    canvas = np.zeros(size, dtype=np.float32)
    limits = (x0, y0, x1, y1) if seen is None else tuple(round(v) for v in seen)
    top, left = max(0, y0, limits[1]), max(0, x0, limits[0])
    bottom, right = min(size[0], y1, limits[3]), min(size[1], x1, limits[2])
    canvas[top:bottom, left:right] = large[top - y0 : bottom - y0, left - x0 : right - x0]
    return canvas


def scaled(box: Box, fx: float, fy: float | None = None) -> Box:
    """Return a box in a picture enlarged by ``fx``, and by ``fy`` in height if that is another factor."""
    fy = fx if fy is None else fy
    return box[0] * fx, box[1] * fy, box[2] * fx, box[3] * fy


def overlay(picture: Picture, heat: NDArray[np.floating], box: Box | None = None) -> Picture:
    """Blend a heat map over a picture of the same size.

    The photograph is turned half towards grey so that colour means attention only; low attention darkens it, high
    attention glows. What lies outside ``box`` was not seen by the model: it is faded towards white.
    """
    photo = picture.astype(np.float64)
    grey = photo @ np.array([0.299, 0.587, 0.114])
    base = 0.45 * photo + 0.55 * grey[..., None]
    alpha = 0.38 + 0.32 * heat[..., None]
    mixed = (1 - alpha) * base + alpha * colorize(heat, "ember")
    if box is not None:
        x0, y0, x1, y1 = (round(v) for v in box)
        outside = np.ones(heat.shape, dtype=bool)
        outside[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = False
        mixed[outside] = 0.35 * grey[outside][:, None] + 0.65 * 255
    rounded: Picture = (mixed.clip(0, 255) + 0.5).astype(np.uint8)
    return rounded


def resized(picture: Picture, *, most: int) -> Picture:
    """Shrink or enlarge a picture so that the longer side is ``most`` pixels, keeping the aspect ratio.

    Icons (sides below 64 pixels) are enlarged with sharp pixels, as they are; others smoothly.
    """
    height, width = picture.shape[:2]
    factor = most / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    enlarge = Image.Resampling.NEAREST if max(height, width) < ICON else Image.Resampling.BICUBIC
    resample = Image.Resampling.LANCZOS if factor < 1 else enlarge
    return np.asarray(Image.fromarray(picture).resize(size, resample))


def enlarged(values: Picture, factor: int) -> Picture:
    """Repeat each pixel ``factor`` times in both directions: exact, sharp squares."""
    return values.repeat(factor, 0).repeat(factor, 1)


@dataclass(frozen=True)
class Bar:
    """A colour bar: its colour map, its two ends and what is measured."""

    low: str
    high: str
    label: str
    name: ColorMap = "sea"


def color_bar(height: int, bar: Bar, *, size: float = 14) -> Picture:
    """Return a vertical colour bar of ``height`` pixels, labelled at both ends and along its side."""
    ramp = colorize(np.linspace(1, 0, height)[:, None].repeat(14, 1), bar.name)
    face = font(size)
    wide = int(max(face.getlength(bar.low), face.getlength(bar.high), size * 1.5)) + 8
    canvas = Image.new("RGB", (14 + 8 + wide, height), PAPER)
    canvas.paste(Image.fromarray(ramp), (0, 0))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, 0, 13, height - 1), outline=MUTED)
    pen.text((20, 0), bar.high, fill=INK, font=face, anchor="la")
    pen.text((20, height - 1), bar.low, fill=INK, font=face, anchor="ld")
    room = height - 4 * size
    if face.getlength(bar.label) <= room:
        side = upright(bar.label, size, MUTED)
        canvas.paste(side, (20, (height - side.height) // 2))
    return np.asarray(canvas)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet, with an optional line of text above it."""

    picture: Picture
    title: str = ""


def sheet(
    tiles: Sequence[Tile],
    *,
    columns: int,
    title: str = "",
    note: str = "",
    bar: Bar | None = None,
    axes: tuple[str, str] | None = None,
    gap: int = 10,
    size: float = 14,
) -> Image.Image:
    """Lay tiles out in rows on white: a title above, a note below, a colour bar at the right.

    Tiles may differ in size; each row and column takes its largest. ``axes`` names what runs along the columns
    (written below) and along the rows (written at the left).
    """
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    widths = [max(r[c].picture.shape[1] for r in rows if c < len(r)) for c in range(min(columns, len(tiles)))]
    heights = [max(t.picture.shape[0] for t in row) for row in rows]
    label = int(size * 1.5) if any(t.title for t in tiles) else 0
    inner = (sum(widths) + gap * (len(widths) - 1), sum(heights) + (gap + label) * len(rows) - gap)
    margin, head, foot = 20, int(size * 2.4) if title else 0, int(size * 2) if note else 0
    side = int(size * 1.8) if axes else 0
    ramp = None if bar is None else color_bar(min(inner[1] - label, 560), bar, size=size)
    wide = side + inner[0] + (0 if ramp is None else ramp.shape[1] + 18)
    wide = max(wide, int(font(size * 1.25).getlength(title)), int(font(size * 0.9).getlength(note)))
    canvas = Image.new("RGB", (wide + 2 * margin, inner[1] + head + side + foot + 2 * margin), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((margin, margin), title, fill=INK, font=font(size * 1.25))
    left, y = margin + side, margin + head
    for row, height in zip(rows, heights, strict=True):
        x = left
        for tile, width in zip(row, widths, strict=False):
            if tile.title:
                pen.text((x, y), fit_text(tile.title, size, width), fill=INK, font=font(size))
            canvas.paste(Image.fromarray(tile.picture), (x, y + label))
            x += width + gap
        y += height + gap + label
    if ramp is not None:
        canvas.paste(Image.fromarray(ramp), (left + inner[0] + 18, margin + head + label))
    if axes:
        pen.text((left + inner[0] // 2, y), axes[0], fill=INK, font=font(size), anchor="ma")
        written = upright(axes[1], size, INK)
        canvas.paste(written, (margin - 4, margin + head + (inner[1] - written.height) // 2))
    pen.text((margin, y + side + int(size * 0.4)), note, fill=MUTED, font=font(size * 0.9))
    return canvas


def upright(text: str, size: float, color: str) -> Image.Image:
    """Return a line of text turned to be read from below, on white."""
    line = Image.new("RGB", (int(font(size).getlength(text)) + 2, int(size * 1.5)), PAPER)
    ImageDraw.Draw(line).text((0, 0), text, fill=color, font=font(size))
    return line.rotate(90, expand=True)


def data_uri(picture: Picture | Image.Image, *, kind: str = "PNG") -> str:
    """Return a picture as a ``data:`` address; ``kind`` PNG, or JPEG or WEBP for photographs."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    if kind == "PNG":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, kind, quality=82)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
