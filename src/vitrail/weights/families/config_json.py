"""Parts that families share in reading and writing ``config.json`` of timm and transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vitrail.errors import WeightsError
from vitrail.models import as_size

GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh"}
"""transformers' ``hidden_act`` -> our ``gelu``."""

IDLE = {  # timm's arguments without effect on what the weights compute
    "drop_rate",
    "drop_path_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "dynamic_img_size",
    "strict_img_size",
    "weight_init",
    "fix_init",
}


def timm_args(data: Mapping[str, Any], *, read: Iterable[str], idle: Iterable[str] = ()) -> dict[str, Any]:
    """Return the ``model_args`` of timm's ``config.json``.

    Raises :class:`WeightsError` for one that is neither ``read`` nor without effect here.
    """
    args = dict(data.get("model_args") or {})
    strangers = sorted(args.keys() - {*read} - {*idle} - IDLE)
    if strangers:
        raise WeightsError(
            f"timm's {data['architecture']} was made with {strangers[0]}={args[strangers[0]]!r}, which Vitrail's lacks."
        )
    return args


def timm_size(data: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``num_classes``, and ``img_size`` if it is known, as timm's ``config.json`` has them."""
    look = data.get("pretrained_cfg") or data
    found: dict[str, Any] = {"num_classes": data.get("num_classes", look.get("num_classes", 1000))}
    size = args.get("img_size") or list(look.get("input_size", ()))[-2:]
    return found | ({"img_size": as_size(size)} if size else {})


def gelu_of(name: str) -> str:
    """Return our name of a GELU of transformers."""
    if name not in GELUS:
        raise WeightsError(f"expected hidden_act of {', '.join(GELUS)}, got {name!r}")
    return GELUS[name]


def gelu_for_transformers(gelu: str) -> str:
    """Return transformers' ``hidden_act`` of one of our GELUs."""
    return "gelu" if gelu == "erf" else "gelu_pytorch_tanh"


def classes_in(shapes: Mapping[str, tuple[int, ...]], *names: str) -> int:
    """Return the rows of the first classifier that a file holds, 0 if it has none."""
    return next((shapes[name][0] for name in names if name in shapes), 0)


def ratio_of(hidden: int, width: int) -> float:
    """Return the ratio that gives exactly ``hidden`` again when it is multiplied by ``width`` and cut off."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def side_or_pair(size: tuple[int, int]) -> int | list[int]:
    """Return an image size as transformers writes it."""
    return size[0] if size[0] == size[1] else list(size)


def labels_of(num_classes: int, names: list[str] | None) -> dict[str, Any]:
    """Return transformers' two label tables; nothing for a model without classifier."""
    if not num_classes:
        return {}
    labels = names or [f"LABEL_{i}" for i in range(num_classes)]
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
