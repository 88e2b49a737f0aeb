"""BiT as timm, transformers and Google know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models import config_of, configure
from vitrail.weights.cards import Card, timm_card

from .base import Family, Shapes
from .config_json import classes_in, labels_of, timm_args, timm_size
from .resnet import OWN_FIRST, hint_of_stages, require_mean_pool, require_value


class BiTFamily(Family):
    """BiT R50x1 to R152x4; timm builds no other depths or widths under these names."""

    model_types = ("bit",)
    first_conv = "stem.conv"
    classifier = "head.fc"
    fixed_input_size = False

    def cards(self) -> list[Card]:
        return [*_timm(), _google()]

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        return hint_of_stages(tensors, OWN_FIRST, 0, "BiTConfig")

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        if layout == "transformers" and model.config.output_stride != 32:
            raise WeightsError(
                "transformers' BiT does not dilate; this model has output_stride="
                f"{model.config.output_stride}. mend: export it in the 'timm' layout."
            )
        return super().for_export(model, layout)

    def in_timm(self, name: str) -> bool:
        return name.startswith("resnetv2_")

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        return name or "vitrail", {"in_chans": config.in_chans, "output_stride": config.output_stride}

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        read = ("in_chans", "num_classes", "output_stride", "global_pool")
        args = timm_args(data, read=read, idle=("zero_init_last",))
        require_mean_pool(data, args)
        changes = timm_size(data, args) | {k: args[k] for k in ("in_chans", "output_stride") if k in args}
        return configure(config_of(str(data["architecture"])), changes | {"numerics": {"std_eps": 1e-8}})

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        get = {**_TRANSFORMERS_DEFAULTS, **data}.__getitem__
        fixed = ("hidden_act", "layer_type", "global_padding", "embedding_dynamic_padding", "output_stride")
        for key in (*fixed, "width_factor"):
            require_value(key, get(key), _TRANSFORMERS_DEFAULTS[key])
        values = {
            "in_chans": get("num_channels"),
            "num_classes": classes_in(shapes, "classifier.1.weight"),
            "depths": tuple(get("depths")),
            "widths": tuple(get("hidden_sizes")),
            "stem_width": get("embedding_size"),
            "num_groups": get("num_groups"),
            "drop_path_rate": float(get("drop_path_rate")),
            "numerics": {"std_eps": 1e-8},
        }
        return configure(config_of("resnetv2_50x1_bit"), values)

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        """Widths are written with the factor in them: transformers' own factor leaves its last norm out."""
        return {
            **_TRANSFORMERS_DEFAULTS,
            "architectures": ["BitForImageClassification" if config.num_classes else "BitModel"],
            "model_type": "bit",
            "num_channels": config.in_chans,
            "embedding_size": config.stem_width,
            "hidden_sizes": list(config.widths),
            "depths": list(config.depths),
            "num_groups": config.num_groups,
            "drop_path_rate": config.drop_path_rate,
            **labels_of(config.num_classes, names),
        }


_TRANSFORMERS_DEFAULTS: dict[str, Any] = {  # config.json may leave out what is default
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": (256, 512, 1024, 2048),
    "depths": (3, 4, 6, 3),
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "num_groups": 32,
    "drop_path_rate": 0.0,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
    "width_factor": 1,
}


def _timm() -> list[Card]:
    m, fine = "BiT-M, ImageNet-21k (Google)", "BiT-M, ImageNet-21k, fine-tuned on ImageNet-1k (Google)"
    distilled = "distilled from BiT (arXiv 2106.05237), ImageNet-1k (Google)"
    teacher = "BiT teacher of arXiv 2106.05237, ImageNet-21k, fine-tuned on ImageNet-1k (Google)"
    found = [  # the default of a model first
        timm_card("resnetv2_50x1_bit", "goog_distilled_in1k", 1000, 0.875, distilled, side=224),
        timm_card("resnetv2_152x2_bit", "goog_teacher_in21k_ft_in1k", 1000, 0.875, teacher, side=224),
        timm_card("resnetv2_152x2_bit", "goog_teacher_in21k_ft_in1k_384", 1000, 1.0, teacher, side=384),
    ]
    for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4"):
        name, side = f"resnetv2_{size}_bit", 480 if size == "152x4" else 448
        found.append(timm_card(name, "goog_in21k_ft_in1k", 1000, 1.0, fine, side=side, interpolation="bilinear"))
        found.append(timm_card(name, "goog_in21k", 21843, 0.875, m, side=224, interpolation="bilinear"))
    return found


def _google() -> Card:
    """The name users of transformers know."""
    return Card(
        name="google/bit-50",
        input_size=(448, 448),
        interpolation="bilinear",
        num_classes=1000,
        licence="apache-2.0",
        origin="BiT-M, ImageNet-21k, fine-tuned on ImageNet-1k (Google)",
        hub_id="google/bit-50",
    )


FAMILY = BiTFamily()
