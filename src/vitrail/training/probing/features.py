"""Frozen features: what a network's head reads of each image, computed once and kept on the disk.

A file of features is named after all that decides them: weights, architecture, preprocessing, layer, and each image by
name, size and time of change. Whatever changes makes another file; whoever wants the space deletes the folder.

B batch, N images or tokens, C width, (h, w) map.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.decode import BrokenImage
from vitrail.data.imageset import ImageSet
from vitrail.errors import DataError, UsageError, WeightsError
from vitrail.models import config_to_dict
from vitrail.training.blocks import blocks_of
from vitrail.training.pipeline import eval_loader
from vitrail.training.tensorfile import write_tensors
from vitrail.weights import Card
from vitrail.weights.read import read_safetensors

FORMAT = 1
HEADS = ("head", "head_dist")


@dataclass(frozen=True)
class FeatureSet:
    """``features`` float32 (N, C) and ``labels`` int64 (N,) of the images that could be read; ``lost`` could not."""

    features: Tensor
    labels: Tensor
    lost: int = 0

    def __len__(self) -> int:
        return len(self.labels)


class Reader:
    """Images -> one vector an image: what the head of a model reads, or the output of one block, pooled.

    Of two heads (distilled models) the mean of what they read, as their answers are averaged. A block's tokens are
    pooled as the model pools (its class token or the mean of the others), a map by its mean.

    Args:
        model: a model of ``vitrail.models``, in eval mode.
        layer: number of a block, from 0, or from the end below 0; None reads before the head.
    """

    def __init__(self, model: nn.Module, layer: int | None = None) -> None:
        self.model = model
        self.block: nn.Module | None = None
        self._channels: int | None = None
        self.heads = [part for name, part in model.named_children() if name in HEADS]
        if layer is not None:
            self.block = _block(model, layer)
        elif not self.heads:
            raise UsageError(f"expected a model with a head to read before, got {type(model).__name__}")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (B, I, H, W) -> features (B, C), float32, on the CPU."""
        if self.block is None:
            found = self._catch(images)
            return (sum(found[1:], found[0]) / len(found)).float().cpu()
        if self._channels is None:
            self._channels = self._find_channels(images)
        (out,) = self._catch(images)
        return self._pool(out, self._channels).float().cpu()

    def _catch(self, images: Tensor) -> list[Tensor]:
        """Run the model and return what went into its heads, or what came out of the block."""
        caught: list[Tensor] = []
        if self.block is None:
            hooks = [h.register_forward_pre_hook(lambda _, given: caught.append(given[0])) for h in self.heads]
        else:
            hooks = [self.block.register_forward_hook(lambda _, __, out: caught.append(out))]
        try:
            self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        return caught

    def _find_channels(self, images: Tensor) -> int:
        """Return the axis of a block's output that does not grow with the picture: its channels."""
        one = images[:1]
        small, large = (self._catch(x)[0].shape for x in (one, one.repeat(1, 1, 2, 2)))
        same = [axis for axis in range(1, len(small)) if small[axis] == large[axis]]
        if len(same) != 1:
            raise UsageError(
                f"expected a block that gives tokens or a map, got the shape {tuple(small)}; mend: another layer"
            )
        return same[0]

    def _pool(self, out: Tensor, channels: int) -> Tensor:
        prefix = int(getattr(self.model, "num_prefix_tokens", 0)) if out.ndim == 3 else 0
        if prefix and getattr(self.model.config, "global_pool", None) == "token":
            return out[:, :prefix].mean(1)
        if prefix:
            out = out[:, prefix:]
        return out.movedim(channels, -1).flatten(1, -2).mean(1)


def _block(model: nn.Module, layer: int) -> nn.Module:
    blocks = list(blocks_of(model).values())
    if not -len(blocks) <= layer < len(blocks):
        raise UsageError(f"expected a layer from 0 to {len(blocks) - 1}, or from -{len(blocks)} to -1, got {layer}")
    return blocks[layer]


def extract(
    reader: Reader, images: ImageSet, card: Card, *, batch_size: int, device: torch.device, show: Any = None
) -> FeatureSet:
    """Run all images through the model, each once, in order; :class:`DataError` if none can be read."""
    loader = eval_loader(images, card, batch_size=min(batch_size, len(images)), cache="none")
    features, labels = [], []
    for number, batch in enumerate(loader.epoch(0), 1):
        keep = batch.keep
        features.append(reader(batch.images.to(device))[keep])
        labels.append(batch.labels[keep])
        if show is not None:
            show(min(number * batch_size, len(images)), len(images))
    found = FeatureSet(torch.cat(features), torch.cat(labels), len(loader.problems))
    if not len(found):
        raise DataError("expected at least one readable image, got none; mend: run `vitrail data check`")
    return found


@dataclass(frozen=True)
class FeatureCache:
    """Features on the disk, below ``folder``; ``say`` receives a line for whatever was kept, found or damaged."""

    folder: Path
    say: Callable[[str], None]

    def get(self, key: str, compute: Callable[[], FeatureSet]) -> FeatureSet:
        """Return the features kept under ``key``, or compute and keep them. A damaged file is made anew."""
        path = self.folder / f"{key}.safetensors"
        if path.exists():
            try:
                held = read_safetensors(path)
                return FeatureSet(held["features"], held["labels"], int(held["lost"]))
            except (WeightsError, KeyError) as error:
                self.say(f"{path} is damaged and made anew: {error}")
        found = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            write_tensors(
                temporary,
                {"features": found.features, "labels": found.labels, "lost": torch.tensor(found.lost)},
                {"format": str(FORMAT)},
            )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self.say(f"features of {len(found):,} images kept in {path}")
        return found


def cache_key(model: nn.Module, weights: str, card: Card, images: ImageSet, layer: int | None) -> str:
    """Return the name under which features are kept; ``weights`` is :func:`weights_digest` of the model."""
    decided = {
        "format": FORMAT,
        "weights": weights,
        "config": config_to_dict(model.config),
        "preprocessing": [card.input_size, card.mean, card.std, card.interpolation, card.crop_pct, card.crop_mode],
        "layer": layer,
        "images": images_digest(images),
    }
    text = json.dumps(decided, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def weights_digest(model: nn.Module) -> str:
    """Return a hash of all that the model has learned: names, types and bytes of its state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def images_digest(images: ImageSet) -> str:
    """Return a hash of the images in their order: label, name, and size and time of the file, or else the bytes."""
    digest = hashlib.sha256(images.labels.tobytes())
    for i in range(len(images)):
        path = images.path(i)
        if path is not None and path.exists():
            told = path.stat()
            digest.update(f"{path.absolute()}\0{told.st_size}\0{told.st_mtime_ns}\0".encode())
        else:
            digest.update(f"{images.name(i)}\0".encode() + _bytes_of(images, i))
    return digest.hexdigest()


def _bytes_of(images: ImageSet, i: int) -> bytes:
    try:
        return hashlib.sha256(images.blob(i)).digest()
    except BrokenImage:
        return b"broken"
