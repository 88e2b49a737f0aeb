"""Small folders of images with boxes, made for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = {3: "cat", 7: "dog"}  # ids with holes


def picture(path: Path, width: int = 40, height: int = 30, seed: int = 0, **save: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)


def annotation(number: int, image: int, box: Any, category: int = 3, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0, **more}


def coco(images: int, annotations: list[dict[str, Any]], width: int = 40, height: int = 30) -> dict[str, Any]:
    return {
        "images": [
            {"id": 10 * i, "file_name": f"{i}.png", "width": width, "height": height} for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
    }


def usual() -> list[dict[str, Any]]:
    """Boxes of four images; the fourth is empty, the third has a crowd."""
    return [
        annotation(1, 10, [2.5, 3, 10, 12]),
        annotation(2, 10, [20, 5, 15, 20], 7),
        annotation(3, 20, [0, 0, 40, 30]),
        annotation(4, 30, [1, 1, 20, 20], 7, iscrowd=1),
        annotation(5, 30, [5, 6, 7, 8]),
    ]


def write_coco(root: Path, annotations: list[dict[str, Any]] | None = None, *, split: str = "train") -> Path:
    """``annotations/instances_train2017.json`` with ``train2017/``."""
    content = coco(4, usual() if annotations is None else annotations)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    for i in range(1, 5):
        picture(root / f"{split}2017" / f"{i}.png", seed=i)
    return root
