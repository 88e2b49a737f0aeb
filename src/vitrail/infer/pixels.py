"""Painting: pictures drawn from an image GPT pixel by pixel, and the rest of pictures of which some is given.

Source: Chen et al. 2020, "Generative Pretraining from Pixels", figure 1 and section 5: samples, and completions of the
lower half.
n pictures, (H, W) pixels, N = H · w tokens of a picture, P of them given, V colours.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vitrail.errors import UsageError
from vitrail.explain.draw import Tile, as_picture, resized, sheet
from vitrail.explain.preprocess import Preprocess
from vitrail.nn.palette import decode
from vitrail.nn.steps import Specials
from vitrail.weights import load_model
from vitrail.weights.cards import Card

from .decode import Limits, sample
from .inputs import Images, items_of
from .predictor import pick_device

SIDE = 96  # pixels that a picture has on a sheet
GAP = 4
GREY = 160  # of what was not given


@dataclass(frozen=True)
class Painted:
    """Pictures that were painted.

    Attributes:
        images: uint8 (n, 3, H, W), on the CPU.
        tokens: int64 (n, N), the colour of each pixel.
        bits: float32 (n,), bits a painted pixel: how unlikely the model itself finds what it painted.
        given: pixels P of each that were not painted.
        originals: uint8 (m, 3, H, W), the pictures that were completed, in the palette; n / m completions in a row are
            of one of them. None for pictures painted from nothing.
    """

    images: Tensor
    tokens: Tensor
    bits: Tensor
    given: int = 0
    originals: Tensor | None = None

    def sheet(self, columns: int | None = None) -> Image.Image:
        """Return all pictures on one sheet; completions stand behind their original and what of it was given."""
        if self.originals is None:
            tiles = [_tile(picture, "") for picture in self.images]
            return sheet(tiles, columns=columns or math.ceil(math.sqrt(len(tiles))), gap=GAP)
        each, tiles = len(self.images) // len(self.originals), []
        for i, picture in enumerate(self.originals):
            shown = [picture, _shown(picture, self.given), *self.images[i * each : (i + 1) * each]]
            titles = ["original", "given", *([""] * each)] if i == 0 else [""] * (each + 2)
            tiles += [_tile(image, title) for image, title in zip(shown, titles, strict=True)]
        return sheet(tiles, columns=each + 2, gap=GAP)


def _tile(picture: Tensor, title: str) -> Tile:
    return Tile(resized(as_picture(picture), most=SIDE), title)


def _shown(picture: Tensor, given: int) -> Tensor:
    """Return a picture (3, H, W) with grey where nothing was given."""
    shown = picture.flatten(1).clone()
    shown[:, given:] = GREY
    return shown.view_as(picture)


class Painter:
    """Draws pictures from a trained image GPT. Made by :func:`load_painter`.

    Attributes:
        model: the network, on its device, in eval mode.
        card: what the weights ask of their images.
        img_size: (H, W) of the pictures.
    """

    def __init__(self, model: Any, card: Card, *, device: str | torch.device = "auto") -> None:
        config = model.config
        if not hasattr(config, "colours"):
            raise UsageError(f"expected an image GPT, got {type(model).__name__}, which does not predict pixels")
        if config.objective != "autoregressive" or not config.paints:
            what = "a masked model" if config.paints else "a classifier"
            raise UsageError(f"expected a model that predicts pixels in order, got {what}, which cannot paint")
        self.device = pick_device(device)
        self.model, self.card = model.to(self.device).eval(), card
        self.img_size: tuple[int, int] = config.img_size
        self.preprocess = Preprocess(card, self.img_size)

    def sample(
        self, count: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int = 0, batch_size: int = 64
    ) -> Painted:
        """Paint ``count`` pictures from nothing; the same seed and batch size give the same ones.

        Args:
            count: pictures.
            temperature: what logits are divided by; below 1 pictures get plainer.
            top_k: only so many of the likeliest colours of a pixel may be drawn.
            seed: of chance.
            batch_size: pictures painted at once.
        """
        if count < 1:
            raise UsageError(f"expected at least one picture to paint, got {count}")
        nothing = torch.empty(count, 0, dtype=torch.int64, device=self.device)
        return self._paint(nothing, temperature, top_k, seed, batch_size)

    def complete(
        self,
        images: Images,
        *,
        keep: float = 0.5,
        count: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Painted:
        """Paint the rest of pictures of which the upper rows are given, ``count`` times each.

        Args:
            images: see :mod:`.inputs` for what they may be.
            keep: share of the rows that is given, above 0 and below 1.
            count: completions of each.
            temperature: see :meth:`sample`; so with ``top_k``, ``seed`` and ``batch_size``.
            top_k: see there.
            seed: see there.
            batch_size: see there.
        """
        if not 0 < keep < 1:
            raise UsageError(f"expected a share of rows to keep above 0 and below 1, got {keep}")
        if count < 1:
            raise UsageError(f"expected at least one completion of each picture, got {count}")
        crops = [self.preprocess.crop(item.read()) for item in items_of(images)]
        tokens = self.model.tokens(self.preprocess.batch(crops, self.device, torch.float32))
        rows = min(max(1, round(keep * self.img_size[0])), self.img_size[0] - 1)
        given = tokens[:, : rows * self.img_size[1]].repeat_interleave(count, 0)
        found = self._paint(given, temperature, top_k, seed, batch_size)
        return dataclasses.replace(found, originals=self._colours(tokens))

    def _paint(self, given: Tensor, temperature: float, top_k: int | None, seed: int, batch_size: int) -> Painted:
        """Paint what follows the given tokens (n, P)."""
        start: int = self.model.config.start
        rest = self.img_size[0] * self.img_size[1] - given.shape[1]
        limits = Limits(Specials(pad=0, bos=start, eos=-1), max_length=rest, ends=False, banned=())
        generator = torch.Generator(self.device).manual_seed(seed)
        stream = torch.cat([torch.full_like(given[:, :1], start), given], 1) if given.shape[1] else None
        if stream is None:
            stream = torch.full((len(given), 1), start, dtype=torch.int64, device=self.device)
        found = []
        for piece in torch.split(stream, batch_size):
            options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "generator": generator}
            found.append(sample(self.model, piece[:, :-1], limits=limits, first=piece[:, -1:], **options))
        tokens = torch.cat([given, torch.cat([f.tokens for f in found])], 1)
        bits = -torch.cat([f.scores for f in found]).cpu() / math.log(2) / rest
        return Painted(self._colours(tokens), tokens.cpu(), bits, given.shape[1])

    def _colours(self, tokens: Tensor) -> Tensor:
        """Return pictures uint8 (n, 3, H, W) of tokens (n, N)."""
        pixels = decode(tokens, self.model.palette.float(), self.img_size).cpu()
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.card.mean, self.card.std))
        found = (255 * (pixels * std + mean)).round().clamp(0, 255).to(torch.uint8)
        return found.expand(-1, 3, -1, -1)


def load_painter(source: str | Path, *, device: str | torch.device = "auto") -> Painter:
    """Load what paints: a run on pixels (its ``best/`` weights), a folder of Vitrail or transformers, or a hub id.

    Raises :class:`WeightsError` if there is no usable model at ``source``, :class:`UsageError` if it cannot paint.
    """
    model, card, _ = load_model(source)
    return Painter(model, card, device=device)
