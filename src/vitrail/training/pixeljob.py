"""Runs on the pixels of images: an image GPT, its palette, no classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitrail.data.augment import Augment
from vitrail.data.loader import Loader
from vitrail.data.order import training_order
from vitrail.data.palette import Palette, palette_error
from vitrail.data.sources import Splits
from vitrail.errors import UsageError
from vitrail.models import build, config_of, configure
from vitrail.tasks import Task
from vitrail.tasks.evaluate import Evaluation
from vitrail.tasks.pixels import Pixels
from vitrail.weights import Card, load_weights, save_folder

from .defaults import measure, sentences
from .folder import write_json
from .imagejob import ImageJob
from .job import Say
from .palettes import fit, judge, normalised, own_error, sample, to_extra
from .pipeline import eval_crop, normalization, open_data, parts_of, threads
from .pixelrecipe import PixelRecipe, resolve_pixels
from .start import folder_of
from .world import ALONE, World

PALETTE = "palette.json"


class PixelJob(ImageJob):
    """A recipe, the images it names, and the palette fitted to them."""

    recipe: PixelRecipe

    def __init__(self, recipe: PixelRecipe, splits: Splits, palette: Palette | None = None) -> None:
        self.recipe, self.splits, self._palette = recipe, splits, palette

    @classmethod
    def open(cls, recipe: PixelRecipe, folder: Path | None, say: Say, world: World = ALONE) -> PixelJob:
        """Open the images; a resumed run has its palette in its folder."""
        return cls(recipe, open_data(recipe), None if folder is None else read_palette(folder / PALETTE))

    @property
    def palette(self) -> Palette:
        """The palette, once the recipe is settled."""
        assert self._palette is not None, "the palette is made when the recipe is settled"
        return self._palette

    def settle(self, device: torch.device, say: Say, world: World) -> list[str]:
        """Work out every ``auto`` from the images, and fit the palette."""
        facts = measure(self.splits.train)
        settled, made = resolve_pixels(self.recipe, facts, device, has_val="val" in parts_of(self.recipe))
        self.recipe = settled = PixelRecipe.check(world.share(settled.model_dump(mode="json")))
        card = self._card()
        if settled.model.pretrained is None:
            p, seed = settled.pixels, settled.data.seed
            found = world.lead(
                lambda: _plain(fit(self.splits.train, card, colours=p.colours, kind=p.palette, seed=seed))
            )
            self._palette = _palette(found)
            said = f"palette: {self.palette}"
        else:
            self._palette, said = self._pretrained(card)
        return [*sentences(made), said]

    def _pretrained(self, card: Card) -> tuple[Palette, str]:
        """Return the palette of the weights the run starts from, and a sentence on how it suits these images."""
        folder, model = folder_of(self.recipe.model), self._network()
        known = None if folder is None else own_error(folder.extra)
        said = judge(self.splits.train, card, model.palette, known)
        colours = model.palette * torch.tensor(card.std) + torch.tensor(card.mean)
        error = palette_error(sample(self.splits.train, card), colours) if known is None else known
        return Palette("pretrained", colours, error, len(colours)), said

    def _card(self) -> Card:
        m, d = self.recipe.model, self.recipe.data
        size = m.img_size if isinstance(m.img_size, tuple) else (int(m.img_size), int(m.img_size))
        folder = folder_of(m)
        own = Card() if folder is None else folder.card
        return Card(
            name=m.name,
            input_size=size,
            mean=own.mean,
            std=own.std,
            crop_pct=d.crop_pct or 1.0,
            licence=own.licence,
            origin=f"trained by Vitrail on {Path(d.source).name}"
            + (f", starting from {m.pretrained}" if m.pretrained else ""),
        )

    def _network(self) -> Any:
        """Return the network with fresh weights and palette, or with those it starts from."""
        r, m = self.recipe, self.recipe.model
        folder = folder_of(m)
        base = config_of(m.name) if folder is None else folder.config
        own: dict[str, Any] = {"num_classes": 0, "joint": False, "img_size": self._card().input_size}
        own |= {"drop_rate": m.drop_rate, "drop_path_rate": m.drop_path_rate, "objective": r.pixels.objective}
        if m.pretrained is None:
            own["colours"] = len(self.palette.colours)
        torch.manual_seed(r.train.seed)
        model = build(configure(base, own | m.options))
        if m.pretrained is not None:
            load_weights(model, m.pretrained, new_head=True)
        return model

    def keep_data(self, folder: Path) -> None:
        """Keep the palette."""
        write_json(folder / PALETTE, _plain(self.palette))

    def build_model(self, say: Say) -> tuple[nn.Module, Card]:
        """Return the network, which knows the palette, and its card."""
        model, card = self._network(), self._card()
        if self.recipe.model.pretrained is not None:
            say(f"pretrained: {self.recipe.model.pretrained}")
            return model, card
        model.palette.copy_(normalised(self.palette.colours, card))
        return model, card

    def build_task(self, card: Card, device: torch.device, say: Say, world: World = ALONE) -> Task:
        """Return cross entropy of colours, in order or of hidden pixels."""
        return Pixels(len(self.palette.colours), self.palette.colours.shape[1], hidden=self.recipe.pixels.hidden)

    def train_batches(self, card: Card, device: torch.device, part: tuple[int, int]) -> Loader:
        """Shuffled, flipped or not."""
        r, images = self.recipe, self.splits.train
        return Loader(
            images,
            batch_size=int(r.train.batch_size),
            crop=eval_crop(card),
            augment=Augment(hflip=float(r.pixels.hflip)),
            normalize=normalization(card),
            seed=r.train.seed,
            shuffle=True,
            order=training_order(images.labels, r.train.seed, r.data.balance, 1, int(r.train.batch_size)),
            workers=threads(r),
            drop_last=True,
            cache=r.data.cache,
            max_broken=r.data.max_broken,
            device=device,
            part=part,
        )

    def watch(self, batches: Any, say: Say) -> Callable[[int, dict[str, Any]], None]:
        """Small images are never waited for."""
        return lambda step, values: None

    def introduction(self, params: int, device: torch.device) -> str:
        """Model, images, palette, device."""
        s, r = self.splits, self.recipe
        test = f", {len(s.test):,} test" if s.test is not None else ""
        height, width = self._card().input_size
        return (
            f"{r.model.name}: {params:,} parameters; {len(s.train):,} training images, {len(s.val):,} validation{test};"
            f" {height} x {width} pixels of {len(self.palette.colours)} colours; {device}, {r.train.precision}"
        )

    def save(self, path: Path, model: nn.Module, card: Card, extra: dict[str, Any]) -> None:
        """Write a Vitrail folder; there are no classes."""
        save_folder(path, model, card=card, extra={**extra, **to_extra(self.palette)})

    def record(self, folder: Path, name: str, found: Evaluation) -> None:
        """Write bits of each image, and how often each colour occurs."""
        images = self._images(name)
        names = np.array([images.name(i) for i in found.index.tolist()], dtype=np.str_)
        with open(folder / f"predictions_{name}.npz", "wb") as file:
            np.savez(file, indices=found.index.numpy(), names=names, bits=found.rows["bits"].numpy())
        write_json(folder / f"details_{name}.json", {"metrics": found.finite(), **found.accumulator.describe()})

    def summary(self) -> dict[str, Any]:
        """Images and palette."""
        held = {name: len(self._images(name)) for name in self.names}
        p = self.palette
        told = {"kind": p.kind, "colours": len(p.colours), "asked": p.asked, "error": p.error}
        return {"images": {"train": len(self.splits.train), **held}, "palette": told}

    def report(self, folder: Path, name: str) -> Path | None:
        """Write samples.png: pictures the best weights paint; a masked model paints none."""
        if self.recipe.pixels.objective == "masked":
            return None
        from vitrail.infer.pixels import load_painter

        path = folder / "samples.png"
        painter = load_painter(folder, device=self.recipe.train.device)
        painter.sample(16, seed=self.recipe.train.seed).sheet().save(path)
        return path


def _plain(palette: Palette) -> dict[str, Any]:
    return {**vars(palette), "colours": palette.colours.tolist()}


def _palette(content: dict[str, Any]) -> Palette:
    return Palette(**{**content, "colours": torch.tensor(content["colours"], dtype=torch.float32)})


def read_palette(path: Path) -> Palette:
    """Read the palette of a run; :class:`UsageError` if it is gone."""
    try:
        return _palette(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"expected the palette of the run in {path}: {error}; mend: train anew") from None
