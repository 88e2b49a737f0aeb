"""Small images and data sets in every layout, made where the test runs."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    """A picture with something in it: smooth blobs, uint8 (H, W, 3), different for every seed."""
    draw = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(draw).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def encoded(seed: int, fmt: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, size)).save(buffer, fmt)
    return buffer.getvalue()


def write_image(path: Path | bytes, seed: int, fmt: str = "PNG", size: tuple[int, int] = (12, 10)) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(encoded(seed, fmt, size))


def write_parquet(
    path: Path,
    labels: list[object],
    names: list[str] | None = None,
    first_seed: int = 0,
    image: str = "struct",
    rows_a_group: int = 3,
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    blobs = [encoded(first_seed + i) for i in range(len(labels))]
    cells = blobs if image == "binary" else [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(blobs)]
    table = pa.table({"image": cells, "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows_a_group)


def write_tar(path: Path, members: list[tuple[str, bytes]], fmt: int = tarfile.GNU_FORMAT) -> Path:
    """Members in the order given, by Python's own tar writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=fmt, encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def samples(count: int, classes: int = 2, first: int = 0, label: str = "cls") -> list[tuple[str, bytes]]:
    """``count`` samples of webdataset's layout: image ``i`` is ``encoded(i)``, its class ``i % classes``."""
    found = []
    for i in range(first, first + count):
        found += [(f"{i:06d}.{label}", str(i % classes).encode()), (f"{i:06d}.png", encoded(i))]
    return found
