"""The section ``augment`` of a recipe: how training images are varied.

Each option names its source in docs/tour/training-tricks.md. Combinations in which one would do nothing are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .sections import Auto, Positive, Rate, Section, Share


class RandAugment(Section):
    """Random operations an image; Cubuk et al. 2020, arXiv 1909.13719."""

    num_ops: Positive = Field(2, description="operations an image")
    magnitude: Annotated[float, Field(ge=0, le=30)] = Field(9.0, description="strength, 0 to 10; some papers have more")
    noise: Annotated[float, Field(ge=0)] = Field(0.5, description="spread of the strength (timm's mstd); 0: none")


class Augment(Section):
    """How training images are varied."""

    crop: Literal["resized", "padded", "none"] | Auto = Field(
        "auto", description="resized: a random part; padded: shifted by padding; none: whole image"
    )
    scale: tuple[Share, Share] | Auto | None = Field("auto", description="area of a resized crop, least and most")
    ratio: tuple[Rate, Rate] | Auto | None = Field("auto", description="aspect ratio of a resized crop")
    padding: Positive | Auto | None = Field("auto", description="pixels of shift of a padded crop")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how training crops are resized; null: as evaluation does"
    )
    hflip: Share | Auto = Field("auto", description="probability of a left-right flip")
    vflip: Share = Field(0.0, description="probability of an upside-down flip")
    randaugment: RandAugment | Auto | None = Field("auto", description="null: off")
    three_augment: bool = Field(False, description="grey, solarize or blur, one of the three an image (DeiT III)")
    color_jitter: Share = Field(0.0, description="brightness, contrast and colour by up to this share; 0: off")
    erasing: Share | Auto = Field("auto", description="probability of erasing a rectangle")
    erasing_mode: Literal["pixel", "const"] | None = Field(
        None, description="what stands there: noise in each pixel (where there is erasing, the default), or the mean"
    )
    mixup: Annotated[float, Field(ge=0)] | Auto = Field("auto", description="alpha of MixUp; 0: off")
    cutmix: Annotated[float, Field(ge=0)] | Auto = Field("auto", description="alpha of CutMix; 0: off")
    mix_prob: Share | Auto | None = Field("auto", description="share of batches (by image: of images) that are mixed")
    mix_switch: Share | None = Field(None, description="share of CutMix where MixUp is on too; null: a half")
    mix_by: Literal["batch", "image"] = Field("batch", description="whether a batch or each image draws its own mix")
    repeats: Positive = Field(
        1, description="copies of an image in its batch, each varied anew; an epoch keeps its length (DeiT: 3)"
    )

    @model_validator(mode="after")
    def _crop_options(self) -> Augment:
        for key, crop in (("scale", "resized"), ("ratio", "resized"), ("padding", "padded")):
            if getattr(self, key) not in ("auto", None) and self.crop not in (crop, "auto"):
                raise ValueError(f"{key} has no effect with crop: {self.crop}; mend: crop: {crop}, or leave {key} out")
        for key in ("scale", "ratio"):
            pair = getattr(self, key)
            if isinstance(pair, tuple) and pair[0] > pair[1]:
                raise ValueError(f"expected {key} as [least, most], got {list(pair)}")
        return self

    @model_validator(mode="after")
    def _erasing_mode(self) -> Augment:
        if self.erasing == 0 and self.erasing_mode is not None:
            raise ValueError("erasing_mode has no effect with erasing: 0; mend: a probability, or leave the mode out")
        if self.erasing not in ("auto", 0) and self.erasing_mode is None:
            self.erasing_mode = "pixel"
        return self

    @model_validator(mode="after")
    def _mixing(self) -> Augment:
        off = self.mixup == 0 and self.cutmix == 0
        if off and self.mix_prob not in ("auto", None):
            raise ValueError("mix_prob has no effect with mixup: 0 and cutmix: 0; mend: set one, or leave mix_prob out")
        if off and self.mix_by == "image":
            raise ValueError("mix_by has no effect with mixup: 0 and cutmix: 0; mend: set one, or leave mix_by out")
        if 0 in (self.mixup, self.cutmix) and self.mix_switch is not None:
            raise ValueError("mix_switch has no effect without both mixup and cutmix; mend: set both, or leave it out")
        return self
