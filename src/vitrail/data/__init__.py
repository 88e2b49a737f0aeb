"""Data for classification: sources, the one image reader, crops, augmentation, mixing, the loader and the data check.

Importing this package is light; torch loads with the module that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_DOORS = {
    "Augment": "augment",
    "Normalize": "augment",
    "RandomErasing": "augment",
    "BrokenImage": "decode",
    "probe_image": "decode",
    "read_image": "decode",
    "DataReport": "report",
    "check": "doctor",
    "ImageSet": "imageset",
    "Batch": "loader",
    "Loader": "loader",
    "Mix": "mixing",
    "RandAugment": "randaugment",
    "resize": "resample",
    "Splits": "sources",
    "open_dataset": "sources",
    "EvalCrop": "transforms",
    "PadCrop": "transforms",
    "TrainCrop": "transforms",
}

if TYPE_CHECKING:
    from .augment import Augment as Augment
    from .augment import Normalize as Normalize
    from .augment import RandomErasing as RandomErasing
    from .decode import BrokenImage as BrokenImage
    from .decode import probe_image as probe_image
    from .decode import read_image as read_image
    from .doctor import check as check
    from .imageset import ImageSet as ImageSet
    from .loader import Batch as Batch
    from .loader import Loader as Loader
    from .mixing import Mix as Mix
    from .randaugment import RandAugment as RandAugment
    from .report import DataReport as DataReport
    from .resample import resize as resize
    from .sources import Splits as Splits
    from .sources import open_dataset as open_dataset
    from .transforms import EvalCrop as EvalCrop
    from .transforms import PadCrop as PadCrop
    from .transforms import TrainCrop as TrainCrop

__all__ = sorted(_DOORS)


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
    raise AttributeError(f"module 'vitrail.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
