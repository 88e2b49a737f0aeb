"""``vitrail.load``: one door, whatever the model reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from vitrail.errors import UsageError
from vitrail.models import answers
from vitrail.weights.textfolder import is_text_folder

from .network import config_at, is_exported
from .pixels import Painter, load_painter
from .predictor import Precision, Predictor, load_predictor
from .translator import Translator, load_translator

LOADERS = {
    "boxes": "detector:load_detector",
    "masks": "segmenter:load_segmenter",
    "pictures": "restorer:load_restorer",
}
"""What a model answers -> module here and function that makes it ready for use; called as :func:`load` is."""


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: Precision = "float32",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 32,
) -> Any:
    """Load a trained model, ready for use: a :class:`Predictor`, ``Detector``, ``Segmenter`` or ``Restorer`` of images,
    a :class:`Translator` of text, or a :class:`Painter` of pictures.

    Args:
        source: a run folder (its ``best/`` weights), a folder of Vitrail, timm or transformers, a hub id
            (``hf-hub:org/name``), or an ``.onnx`` file of `vitrail export`.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        dtype: "float32", or "bfloat16" for speed where the machine has it; of images.
        img_size: input size in pixels, an int or (H, W), of images; default the card's.
        batch_size: images or sentences that run through the model at once.

    Raises:
        WeightsError: there is no usable model at ``source``.
        UsageError: an option of images for a model that reads text or paints.
    """
    text = not is_exported(source) and is_text_folder(source)
    other = None if text else LOADERS.get(answers(config_at(source)))
    if other is not None:
        module, _, name = other.partition(":")
        options = {"device": device, "dtype": dtype, "img_size": img_size, "batch_size": batch_size}
        return getattr(importlib.import_module(f"vitrail.infer.{module}"), name)(source, **options)
    if text or _paints(source):
        given = {"dtype": dtype != "float32", "img_size": img_size is not None}
        idle = [name for name, on in given.items() if on]
        if idle:
            raise UsageError(f"{idle[0]} has no effect on {source}, which classifies no images; mend: leave it out")
        return (
            load_translator(source, device=device, batch_size=batch_size)
            if text
            else load_painter(source, device=device)
        )
    return load_predictor(source, device=device, dtype=dtype, img_size=img_size, batch_size=batch_size)


def _paints(source: str | Path) -> bool:
    """Tell whether a source is an image GPT without classes."""
    config = config_at(source)
    return bool(getattr(config, "paints", False)) and not config.num_classes


__all__ = ["Painter", "Predictor", "Translator", "load"]
