"""The recipe of a run on images: its sections, and which settings go together.

How a recipe is read, and what all of them share, is in baserecipe.py.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from .augmenting import Augment
from .baserecipe import BaseRecipe
from .sections import Data, Distill, Model, Train


class Recipe(BaseRecipe):
    """The whole description of a run on images with labels."""

    job: ClassVar[str] = "imagejob:ImageJob"

    task: Literal["auto", "classify", "multilabel"] = Field(
        "auto", description="classify: one label an image; multilabel: any number; auto: as the data have it"
    )
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    augment: Augment = Field(default_factory=Augment)
    train: Train = Field(default_factory=Train)
    distill: Distill | None = Field(None, description="a teacher: distillation; null: none")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        self._require_room_for_copies()
        if self.distill is not None and self.distill.unlabelled is not None and self.data.window is not None:
            raise ValueError(
                "data.window and distill.unlabelled exclude each other: images without labels lie in no shards; mend: "
                "leave one of them out"
            )
        if self.model.freeze == "backbone" and self.optim.layer_decay is not None:
            raise ValueError("optim.layer_decay has no effect with model.freeze: backbone; mend: leave it out")
        if self.model.freeze != "none" and self.optim.name == "muon":
            raise ValueError(
                f"optim.name: muon has no effect with model.freeze: {self.model.freeze}: it moves the matrices of the "
                "blocks, which are frozen; mend: optim.name: adamw"
            )
        if self.distill is not None and self.distill.cache == "on" and (causes := varied(self.augment)):
            raise ValueError(
                f"distill.cache: on needs images that are the same in every epoch, but {causes[0]}; mend: switch that "
                "off, or distill.cache: off (the teacher is asked about every image anew)"
            )
        return self

    def _require_room_for_copies(self) -> None:
        """Copies of an image stand in one batch; what is mixed must be another image."""
        a, batch = self.augment, self.train.batch_size
        if a.repeats > 1 and not varied(a) and "auto" not in a.model_dump().values():
            raise ValueError("augment.repeats has no effect: nothing varies the images, all copies are the same")
        if not isinstance(batch, int) or a.repeats == 1:
            return
        least = 2 * a.repeats if a.mix_prob not in ("auto", None, 0) else a.repeats
        if batch < least:
            raise ValueError(
                f"expected train.batch_size of at least {least} with augment.repeats: {a.repeats}"
                f"{' and mixing' if least > a.repeats else ''}, got {batch}"
            )

    @model_validator(mode="after")
    def _one_correction(self) -> Recipe:
        """Each of these makes up for unequal classes in full; two of them would favour the rare ones."""
        given = {
            "data.balance": self.data.balance != "none",
            "train.class_weights": self.train.class_weights != "none",
            "train.logit_adjustment": self.train.logit_adjustment > 0,
            "train.loss: asymmetric": self.train.loss == "asymmetric",
        }
        chosen = [key for key, on in given.items() if on]
        if len(chosen) > 1:
            raise ValueError(
                f"expected one correction for unequal classes, got {' and '.join(chosen)}, which would correct twice; "
                "mend: keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_task(self) -> Recipe:
        """What one kind of labels has no use for; ``auto`` is looked at again when it is settled."""
        several = self.task == "multilabel"
        if self.task == "auto":
            return self
        if several and self.distill is not None:
            raise ValueError("expected one label an image with a teacher, got several; mend: leave distill out")
        if several and self.data.balance != "none":
            raise ValueError(
                f"data.balance: {self.data.balance} has no meaning with several labels an image: one of them cannot be "
                "drawn alone; mend: train.class_weights: balanced"
            )
        losses = ("bce", "asymmetric") if several else ("ce", "bce")
        if self.train.loss not in ("auto", *losses):
            raise ValueError(f"expected train.loss of {', '.join(losses)} with {self.task}, got {self.train.loss!r}")
        if several and self.train.bce_threshold is not None:
            raise ValueError("train.bce_threshold is for one label an image; mend: leave it out")
        if not several and self.train.loss == "bce" and self.train.logit_adjustment:
            raise ValueError(
                "train.logit_adjustment is for loss: ce, where the classes compete; mend: train.class_weights: balanced"
            )
        fitting = ("map", "micro_f1", "macro_f1") if several else ("top1", "macro_recall", "macro_f1")
        if self.train.monitor not in ("auto", *fitting):
            raise ValueError(f"expected train.monitor of {', '.join(fitting)}, got {self.train.monitor!r}")
        return self


def varied(augment: Augment) -> list[str]:
    """Return the settings, known so far, that show an image otherwise in one epoch than in another."""
    still = {"crop": ("none",), "hflip": (0,), "vflip": (0,), "randaugment": (None,), "erasing": (0,)}
    still |= {"mix_prob": (None, 0), "three_augment": (False,), "color_jitter": (0,), "interpolation": (None,)}
    values = augment.model_dump(mode="json")
    return [f"augment.{k} is {values[k]}" for k, calm in still.items() if values[k] not in (*calm, "auto")]
