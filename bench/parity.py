"""Parity of real sizes with timm and transformers: same weights, the native size and a non-square one.

    python bench/parity.py                       # every family, about ten minutes on two cores, up to 8 GB
    python bench/parity.py --only 'deit*'        # some of them
    python bench/parity.py --markdown FILE       # write the table, as docs/benchmarks/parity.md has it

A fresh peer hides faults (zero biases, unit scales, a zero head), so each peer's tensors are first filled with numbers
that keep activations O(1); they go through our tables into our model. The figure is the largest difference of the
logits over the largest logit, on the same float32 images. The giants keep their real widths but fewer blocks, to bound
memory and time; their full parameter counts are tested elsewhere. Exit code 1 if any figure is above 1e-5.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import peers

from vitrail.models import build, config_of, configure
from vitrail.weights import load_weights
from vitrail.weights.configs import to_timm, to_transformers

TOLERANCE = 1e-5
CLASSES = 1000
SHALLOW = {"giant": 4, "gigantic": 4, "enormous": 3}  # blocks that are built of the largest widths

FAMILIES = (
    "vit_tiny_patch16_224",
    "vit_small_patch32_224",
    "vit_small_patch16_224",
    "vit_small_patch8_224",
    "vit_base_patch32_224",
    "vit_base_patch16_224",
    "vit_base_patch16_384",
    "vit_base_patch8_224",
    "vit_base_patch16_gap_224",
    "vit_base_patch16_map_224",
    "vit_large_patch32_224",
    "vit_large_patch16_224",
    "vit_large_patch14_224",
    "vit_huge_patch14_224",
    "vit_giant_patch14_224",
    "vit_giant_patch14_map_224",
    "vit_gigantic_patch14_224",
    "vit_enormous_patch14_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit_small_distilled_patch16_224",
    "deit_base_distilled_patch16_224",
    "deit3_small_patch16_224",
    "deit3_medium_patch16_224",
    "deit3_base_patch16_224",
    "deit3_large_patch16_224",
    "deit3_huge_patch14_224",
)

Peer = tuple[nn.Module, Callable[[Tensor], Tensor]]


def config_for(name: str) -> Any:
    """Return the config to compare: the variant's, with learned positions (as the peers have) and depth bounded."""
    config = config_of(name)
    size = name.split("_")[1]
    if config.pos_embed == "sincos2d":
        config = replace(config, pos_embed="learn")
    return replace(config, depth=SHALLOW[size]) if size in SHALLOW else config


def unfilled(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model without initial weights: all of them are written next, and there are no buffers."""
    with torch.device("meta"):
        model = make()
    if list(model.buffers()):
        raise SystemExit(f"{type(model).__name__} has buffers, which would stay unfilled")
    return model.to_empty(device="cpu")


def timm_peer(name: str, config: Any) -> Peer:
    """Return timm's model with random weights, and how to call it."""
    architecture, arguments = to_timm(name, config)
    model = unfilled(
        lambda: peers.timm.create_model(architecture, num_classes=CLASSES, dynamic_img_size=True, **arguments)
    )
    return peers.randomise(model), model


def transformers_peer(name: str, config: Any) -> Peer | None:
    """Return transformers' model with random weights, and how to call it; None where it has no such model."""
    if config.global_pool != "token" or config.pos_embed != "learn" or config.init_values is not None:
        return None
    t = peers.transformers
    data = to_transformers(config, None)
    kinds = {
        "ViTForImageClassification": (t.ViTConfig, t.ViTForImageClassification),
        "DeiTForImageClassificationWithTeacher": (t.DeiTConfig, t.DeiTForImageClassificationWithTeacher),
    }
    make_config, make = kinds[data["architectures"][0]]
    model = peers.randomise(unfilled(lambda: make(make_config(**data))))
    return model, lambda x: model(x, interpolate_pos_encoding=True).logits


def sizes(config: Any) -> list[tuple[int, int]]:
    """Return the native size, and a non-square one whose sides differ from it by whole patches."""
    (height, width), patch = config.img_size, config.patch_size
    return [(height, width), (height - 2 * patch, width + 3 * patch)]


@torch.no_grad()
def compare(config: Any, peer: Peer) -> list[float]:
    """Load the peer's weights into ours; return the relative difference at each size."""
    model, run = peer
    ours = unfilled(lambda: build(config)).eval()
    report = load_weights(ours, model.state_dict())
    if report.new or report.ignored or report.resized:
        raise SystemExit(f"expected nothing to be fitted, got: {report}")
    found = []
    for height, width in sizes(config):
        images = torch.randn(1, config.in_chans, height, width, generator=torch.Generator().manual_seed(1))
        found.append(peers.relative_difference(ours(images), run(images)))
    return found


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return a row for each peer that has the model."""
    found = []
    for library, make in (("timm", timm_peer), ("transformers", transformers_peer)):
        config = config_for(name)
        if library == "transformers":  # its epsilon and its way to resize positions, as its cards say
            config = configure(config, {"numerics": {"norm_eps": 1e-12, "pos_resize": "bicubic"}})
        started = time.perf_counter()
        peer = make(name, config)
        if peer is None:
            continue
        native, other = compare(config, peer)
        found.append(
            {
                "name": name,
                "peer": library,
                "depth": f"{config.depth} of {config_of(name).depth}",
                "native": native,
                "native_size": "x".join(map(str, sizes(config)[0])),
                "other": other,
                "other_size": "x".join(map(str, sizes(config)[1])),
                "seconds": time.perf_counter() - started,
            }
        )
        del peer
        gc.collect()
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the page with the table."""
    libraries = (
        f"torch {torch.__version__}, timm {peers.timm.__version__}, transformers {peers.transformers.__version__}"
    )
    lines = [
        "# Parity with timm and transformers",
        "",
        "Largest difference of the logits over the largest logit, float32, one image, the same random weights in both",
        "(converted by our tables), at the native size and at a non-square one. The issue asks for 1e-5 at most.",
        "",
        f"Worst of all: **{max(max(r['native'], r['other']) for r in rows):.1e}**. Measured with {libraries} on"
        f" {platform.machine()}, {torch.get_num_threads()} thread(s).",
        "",
        "Made by `python bench/parity.py --markdown docs/benchmarks/parity.md`. The giants keep their widths but fewer",
        "blocks (memory). Against transformers our model takes its LayerNorm epsilon, 1e-12, and its way of resizing",
        "positions, from the card; transformers has no mean or attention pooling, no LayerScale, and gives every class",
        "token a position, so those rows are timm's alone. Names, both directions, layouts and parameter counts of all",
        "variants are checked in `tests/parity` and `tests/weights`.",
        "",
        "| model | peer | blocks | native | difference | non-square | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {r['peer']} | {r['depth']} | {r['native_size']} | {r['native']:.1e} |"
        f" {r['other_size']} | {r['other']:.1e} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", help="wildcard of model names")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in FAMILIES:
        if fnmatch.fnmatchcase(name, options.only):
            for row in rows_of(name):
                rows.append(row)
                print(
                    f"{row['name']:36} {row['peer']:13} {row['depth']:>9} blocks"
                    f"  {row['native_size']:>8} {row['native']:.1e}  {row['other_size']:>8} {row['other']:.1e}"
                    f"  {row['seconds']:5.1f} s",
                    flush=True,
                )
    if not rows:
        parser.error(f"no family matches {options.only!r}")
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    worst = max(max(r["native"], r["other"]) for r in rows)
    print(f"{len(rows)} comparisons, worst {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
