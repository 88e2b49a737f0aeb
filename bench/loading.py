"""Reading alone: a folder of files against tar shards, shards made smaller, and parquet, by stage, in one run.

    python bench/loading.py                                  # 1,500 made pictures of 500 x 375, about 2 minutes
    python bench/loading.py --data PHOTOS --workers 0 2 8    # your own

The ways take turns and the best of ``--rounds`` counts: a busy machine is busy for all of them alike. ``--cold`` asks
the operating system to forget the files before each measurement, so that the disk is measured and not memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.pack import pack
from vitrail.data.sources import read_layout
from vitrail.training.databench import STAGES, bench_data
from vitrail.training.recipe import Recipe


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", help="a folder of class folders; default: made pictures")
    words.add_argument("--count", type=int, default=1500, help="made pictures")
    words.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    words.add_argument("--seconds", type=float, default=2.0)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--img-size", type=int, default=224)
    words.add_argument("--cold", action="store_true")
    words.add_argument("--json", type=Path, help="also write all figures here")
    asked = words.parse_args()
    home = Path(tempfile.mkdtemp(prefix="vitrail-loading-"))
    try:
        report(measure(ways(asked, home), asked), asked)
    finally:
        shutil.rmtree(home)


def ways(asked: argparse.Namespace, home: Path) -> dict[str, Path]:
    """The same images in every form."""
    folder = Path(asked.data) if asked.data else make_folder(home / "folder", asked.count)
    size = asked.img_size * 8 // 7
    return {
        "folder of files": folder,
        "tar shards": pack(folder, home / "shards", shard_bytes=64 << 20).folder,
        f"tar shards, short side {size}": pack(folder, home / "small", shard_bytes=64 << 20, short_side=size).folder,
        "parquet": make_parquet(folder, home / "parquet"),
    }


def make_folder(root: Path, count: int) -> Path:
    """JPEGs of about 100 kB, as ImageNet's are: fields of colour with fine grain."""
    for i in range(count):
        draw = np.random.default_rng(i)
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        grain = draw.normal(0, 14, (375, 500, 1))
        path = root / f"class{i % 10}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (np.array(coarse) + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    return root


def make_parquet(folder: Path, out: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    part = read_layout(folder).parts["train"]
    rows = range(len(part.labels))
    cells = [{"bytes": part.store.blob(row), "path": part.store.name(row)} for row in rows]
    pq.write_table(pa.table({"image": cells, "label": part.labels}), out / "train.parquet", row_group_size=100)
    return out


def measure(found: dict[str, Path], asked: argparse.Namespace) -> dict[str, dict[tuple[int, str], float]]:
    """Images a second of each way, by workers and stage: the best of the rounds."""
    best: dict[str, dict[tuple[int, str], float]] = {way: {} for way in found}
    for _ in range(asked.rounds):
        for way, source in found.items():
            recipe = Recipe.load({}, {"data.source": str(source), "model.img_size": asked.img_size})
            for workers in asked.workers:
                if asked.cold:
                    forget(source)
                paces = bench_data(recipe, workers=[workers], batch=32, seconds=asked.seconds).paces
                for pace in paces:
                    key = (workers, pace.stage)
                    best[way][key] = max(best[way].get(key, 0.0), pace.images_per_s)
    return best


def forget(source: Path) -> None:
    """Drop a source's files from the memory of the operating system."""
    for path in source.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def report(best: dict[str, dict[tuple[int, str], float]], asked: argparse.Namespace) -> None:
    out = io.StringIO()
    base = best["folder of files"]
    print("| | workers | " + " | ".join(STAGES) + " |\n| --- | ---: |" + " ---: |" * len(STAGES), file=out)
    for way, paces in best.items():
        for workers in asked.workers:
            cells = [f"{paces[workers, s]:,.0f} ({paces[workers, s] / base[workers, s]:.2f})" for s in STAGES]
            print(f"| {way} | {workers} | " + " | ".join(cells) + " |", file=out)
    print(out.getvalue() + "\nimages/s, in brackets the ratio to the folder")
    if asked.json:
        flat = {way: {f"{stage}/{w}": pace for (w, stage), pace in paces.items()} for way, paces in best.items()}
        asked.json.write_text(json.dumps({"cores": os.cpu_count(), "cold": asked.cold, "images_per_s": flat}, indent=1))


if __name__ == "__main__":
    main()
