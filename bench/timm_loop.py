"""timm's training loop for ``time_to_accuracy.py``, from timm's own parts in the order of its train.py (timm 1.0).

The defaults of :class:`Settings` are those of train.py: SGD with momentum 0.9 at 0.1 an image batch of 256 (0.05 at
128), weight decay 2e-5, cosine by epochs with 5 epochs of warm-up, random resized crops of 8 to 100 % of the area,
flips, colour jitter 0.4, label smoothing 0.1, float32. Images are decoded before the clock starts.
"""

from __future__ import annotations

import copy
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.peers import timm

from vitrail.data.imageset import ImageSet
from vitrail.data.sources import open_dataset


@dataclass(frozen=True)
class Settings:
    """Options of train.py that the arms use."""

    opt: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 2e-5
    batch: int = 128
    warmup_epochs: int = 5
    sched_on_updates: bool = False
    clip_grad: float | None = None
    smoothing: float = 0.1
    amp: bool = False
    """bfloat16 autocast (``--amp --amp-dtype bfloat16``)."""
    light: bool = False
    """Shifts by 4 pixels and flips in place of resized crops and jitter, as DeiT's main.py does for CIFAR."""
    compile: bool = False
    ema: float | None = None
    workers: int = 0
    """Loading in the same process: on one core, processes of workers would only take turns with it."""


class Pictures(torch.utils.data.Dataset[Any]):
    """Decoded images as timm's data sets give them: (PIL image after ``transform``, label)."""

    def __init__(self, images: ImageSet) -> None:
        self.pictures = [Image.fromarray(images.read(i).permute(1, 2, 0).numpy()) for i in range(len(images))]
        self.labels = np.asarray(images.labels).tolist()
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def network(name: str) -> nn.Module:
    """timm's ViT of the same shape as ours, checked by the number of parameters."""
    from vitrail.models import config_of, create_model

    c: Any = config_of(name)
    shape = {"embed_dim": c.embed_dim, "depth": c.depth, "num_heads": c.num_heads, "num_classes": 10}
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=c.img_size, patch_size=c.patch_size, mlp_ratio=c.mlp_ratio, **shape
    )
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (create_model(name, num_classes=10), model))
    assert ours == theirs, f"expected equal networks, got {ours} and {theirs} parameters"
    return model


def loaders(data: Path, share: float, model: nn.Module, s: Settings) -> tuple[Any, Any]:
    """Return timm's loaders of the very images that Vitrail trains and validates on."""
    from timm.data import create_loader, resolve_model_data_config
    from torchvision.transforms import RandomCrop

    splits = open_dataset(data, val_fraction=0.1, seed=0, train_fraction=share)
    config = resolve_model_data_config(model)
    size = model.patch_embed.img_size
    common = {"input_size": (3, *size), "mean": config["mean"], "std": config["std"]}
    common |= {"num_workers": s.workers, "device": torch.device("cpu"), "persistent_workers": s.workers > 0}
    train = create_loader(
        Pictures(splits.train), batch_size=s.batch, is_training=True, interpolation="random", **common,
        **({"color_jitter": None} if s.light else {}),
    )  # fmt: skip
    if s.light:
        train.dataset.transform.transforms[0] = RandomCrop(size, padding=4)
    val = create_loader(Pictures(splits.val), batch_size=256, is_training=False, crop_pct=1.0, **common)
    return train, val


def train(name: str, data: Path, share: float, epochs: int, s: Settings, curve: Any, seed: int) -> None:
    """Train, and hand the accuracy after every epoch to ``curve``, which may end it by an exception."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3, dispatch_clip_grad, random_seed

    random_seed(seed)
    model = network(name)
    batches, val = loaders(data, share, model, s)
    print(batches.dataset.transform, flush=True)
    optimizer = create_optimizer_v2(model, opt=s.opt, lr=s.lr, weight_decay=s.weight_decay, momentum=0.9)
    ema = ModelEmaV3(model, decay=s.ema, use_warmup=True) if s.ema else None
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=s.warmup_epochs, warmup_lr=1e-5, min_lr=0.0,
        step_on_epochs=not s.sched_on_updates, updates_per_epoch=len(batches),
    )  # fmt: skip
    loss_of = LabelSmoothingCrossEntropy(s.smoothing)
    trained = warmed(model, s)
    updates = 0
    curve.clock.go()
    curve.clock.wall = curve.clock.cpu = 0.0
    schedule.step(0) if not s.sched_on_updates else schedule.step_update(0)
    for epoch in range(epochs):
        model.train()
        for images, labels in batches:
            with autocast(s):
                loss = loss_of(trained(images), labels)
            loss.backward()
            if s.clip_grad is not None:
                dispatch_clip_grad(model.parameters(), s.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
            if ema is not None:
                ema.update(model, step=updates)
            schedule.step_update(updates)
        curve.measure(epoch + 1, lambda: max(accuracy(m, val) for m in (model, *([ema.module] if ema else []))))
        schedule.step(epoch + 1)


def autocast(s: Settings) -> AbstractContextManager[Any]:
    """bfloat16 where train.py's ``--amp`` would have it."""
    return torch.autocast("cpu", torch.bfloat16) if s.amp else nullcontext()


def warmed(model: nn.Module, s: Settings) -> Any:
    """Return the network, compiled where that is asked; compiling is done here, before the clock starts."""
    if not s.compile:
        return model
    state = copy.deepcopy(model.state_dict())
    compiled = torch.compile(model)
    with autocast(s):
        compiled(torch.randn(s.batch, 3, 32, 32)).float().square().mean().backward()
    model.zero_grad()
    model.load_state_dict(state)
    return compiled


@torch.no_grad()
def accuracy(model: nn.Module, batches: Any) -> float:
    """Share of the images whose best class is the right one."""
    model.eval()
    right = [(model(images).argmax(1) == labels).sum() for images, labels in batches]
    return float(sum(right)) / len(batches.dataset)
