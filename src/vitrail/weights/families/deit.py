"""The distilled DeiT as timm and transformers know it; and the cards of all DeiTs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.errors import WeightsError
from vitrail.weights.cards import IMAGENET_MEAN, IMAGENET_STD, Card, timm_card

from .base import Shapes
from .vit import ViTFamily


class DeiTFamily(ViTFamily):
    """A ViT with two prefix tokens and two heads; all else is fixed."""

    model_types = ("deit",)
    classifier = ("head", "head_dist")
    stand_in = "deit_tiny_distilled_patch16_224"
    test_size = "test_deit_distilled"
    transformers_class = ("DeiTModel", "DeiTForImageClassificationWithTeacher")

    def cards(self) -> list[Card]:
        return [*_deit(), *_deit3(), *_transformers()]

    def timm_pooling(self, config: Any) -> dict[str, Any]:
        return {}

    def seen(self, shapes: Shapes, config: Any, pool: str) -> dict[str, Any]:
        return {}

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        if "classifier.weight" in shapes:
            raise WeightsError(
                "these weights are of DeiTForImageClassification, which has the class head only: not the distilled"
                " model. mend: use a DeiTForImageClassificationWithTeacher folder."
            )
        return super().from_transformers(data, shapes)


_LOOK: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def _deit() -> list[Card]:
    names = [
        *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
        "deit_base_patch16_384",
        *(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")),
        "deit_base_distilled_patch16_384",
    ]
    origin = "DeiT, ImageNet-1k (Facebook AI Research)"
    return [timm_card(n, "fb_in1k", 1000, 1.0 if n.endswith("384") else 0.9, origin, **_LOOK) for n in names]


def _deit3() -> list[Card]:
    sizes = {"small": (16, (224, 384)), "medium": (16, (224,)), "base": (16, (224, 384))}
    sizes |= {"large": (16, (224, 384)), "huge": (14, (224,))}
    found = []
    for size, (patch, sides) in sizes.items():
        for side in sides:
            name = f"deit3_{size}_patch{patch}_{side}"
            crop = 1.0 if side == 384 else 0.9
            found += [
                timm_card(name, "fb_in1k", 1000, crop, "DeiT III, ImageNet-1k (Facebook AI Research)", **_LOOK),
                timm_card(
                    name, "fb_in22k_ft_in1k", 1000, 1.0, "DeiT III, ImageNet-22k, fine-tuned on ImageNet-1k", **_LOOK
                ),
            ]
    return found


def _transformers() -> list[Card]:
    """The names users of transformers know."""
    numerics = {"norm_eps": 1e-12, "pos_resize": "bicubic"}
    found = []
    for size, kind, side in (
        *((size, kind, 224) for size in ("tiny", "small", "base") for kind in ("", "distilled-")),
        ("base", "", 384),
        ("base", "distilled-", 384),
    ):
        hub = f"facebook/deit-{size}-{kind}patch16-{side}"
        crop = {224: 224 / 256, 384: 384 / 438}[side]
        found.append(
            Card(
                name=hub,
                input_size=(side, side),
                crop_pct=crop,
                num_classes=1000,
                origin="DeiT, ImageNet-1k (Facebook AI Research)",
                hub_id=hub,
                licence="apache-2.0",
                numerics=numerics,
                **_LOOK,
            )
        )
    return found


FAMILY = DeiTFamily()
