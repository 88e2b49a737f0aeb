"""Parity of real sizes with timm and transformers: same weights, the native size and another one.

    python bench/parity.py                       # every family, about half an hour on two cores, up to 8 GB
    python bench/parity.py --only 'deit*'        # some of them
    python bench/parity.py --markdown FILE       # write the table, as docs/benchmarks/parity.md has it

A fresh peer hides faults (zero biases, unit scales, a zero head), so each peer's tensors are first filled with numbers
that keep activations O(1); they go through our tables into our model. The figure is the largest difference of the
outputs over the largest output, on the same float32 images. The giants keep their real widths but fewer blocks, to
bound memory and time; their full parameter counts are tested elsewhere. Exit code 1 if any figure is above 1e-5.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pairs import Peer, filled, peers, peers_of
from vitrail.models import build, config_of, list_models
from vitrail.weights import load_weights

TOLERANCE = 1e-5
SHALLOW = {"giant": 4, "gigantic": 4, "enormous": 3}  # blocks that are built of the largest ViTs
TOO_LARGE = ("resnetv2_152x4_bit", "coatnet_4*", "coatnet_5*", "coatnet_6", "coatnet_7", "coatnet_rmlp_3*")
Size = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One comparison; ``other`` is None where the peer runs at its native size only."""

    name: str
    peer: str
    blocks: str
    native_size: Size
    native: float
    other_size: Size | None
    other: float | None
    seconds: float

    @property
    def worst(self) -> float:
        return max(self.native, self.other or 0.0)

    def cells(self) -> list[str]:
        """Return the texts of the table."""
        other = "" if self.other_size is None else "{}x{}".format(*self.other_size)
        figure = "" if self.other is None else f"{self.other:.1e}"
        native = "{}x{}".format(*self.native_size)
        return [self.name, self.peer, self.blocks, native, f"{self.native:.1e}", other, figure]


def config_for(name: str) -> Any:
    """Return the config to compare: the variant's, with learned positions (as the peers have) and depth bounded."""
    config = config_of(name)
    size = name.split("_")[1] if "_" in name else ""
    if getattr(config, "pos_embed", None) == "sincos2d":
        config = replace(config, pos_embed="learn")
    return replace(config, depth=SHALLOW[size]) if size in SHALLOW else config


def blocks_of(config: Any) -> str:
    """Return the depth in words."""
    depth = getattr(config, "depth", None)
    return "-".join(map(str, config.depths)) if depth is None else str(depth)


def other_size(config: Any, library: str) -> tuple[Size | None, bool]:
    """Return a size that is not the native one, and whether both models are made anew for it.

    A library that computes what we do at any size runs there as it is. timm's Swin pads otherwise than its authors,
    so it gets a multiple of all windows; transformers' classifier of Swin and its PVT fail off their native size.
    """
    (height, width), kind = config.img_size, type(config).__name__
    if kind == "SwinConfig":
        runs_as_it_is = config.stage_norms  # the backbone, which equals the authors' code at any size
        if library == "transformers":
            return ((height - 24, width + 88) if runs_as_it_is else None), False
        return (height, 2 * width), True
    if kind == "CoAtNetConfig":
        return (height - 32, width + 64), True
    if kind == "PVTConfig":
        return (height - 64, width - 64), True
    if hasattr(config, "pos_embed"):
        patch = config.patch_size
        return (height - 2 * patch, width + 3 * patch), False
    return (height * 7 // 8 + 1, width * 5 // 4 + 3), False


@torch.no_grad()
def compare(peer: Peer, ours: nn.Module, size: Size) -> float:
    """Return the relative difference at a size; of a backbone's maps, the largest of all."""
    images = torch.randn(1, peer.config.in_chans, *size, generator=torch.Generator().manual_seed(1))
    theirs = peer.run(images)
    if not isinstance(theirs, list):
        return peers.relative_difference(ours(images), theirs)
    maps: Any = ours.features(images).maps.values()  # type: ignore[operator]
    return max(peers.relative_difference(a, b) for a, b in zip(maps, theirs, strict=True))


def loaded(peer: Peer) -> nn.Module:
    """Return our model with the peer's weights."""
    ours = filled(lambda: build(peer.config)).eval()
    report = load_weights(ours, peer.model.state_dict())
    if (
        report.new or report.resized or not all("swin.layernorm." in name for name in report.ignored)
    ):  # never used there
        raise SystemExit(f"expected nothing to be fitted, got: {report}")
    return ours


def row_of(name: str, config: Any, make: Callable[[], Peer], index: int) -> Row:
    """Compare with one peer at both sizes."""
    started = time.perf_counter()
    peer = make()
    ours = loaded(peer)
    native = compare(peer, ours, config.img_size)
    size, anew = other_size(peer.config, peer.library)
    if size is not None and anew:
        peer = peers_of(name, replace(config, img_size=size))[index]()
        ours = loaded(peer)
    other = None if size is None else compare(peer, ours, size)
    kind = " (backbone)" if getattr(peer.config, "stage_norms", False) else ""
    blocks = blocks_of(config) if config == config_of(name) else f"{blocks_of(config)} of {blocks_of(config_of(name))}"
    seconds = time.perf_counter() - started
    return Row(name, peer.library + kind, blocks, config.img_size, native, size, other, seconds)


def rows_of(name: str) -> Iterator[Row]:
    """Yield a row for each peer that has the model, and for the backbone that equals Swin's authors' code."""
    configs = [config_for(name)]
    if type(configs[0]).__name__ == "SwinConfig":
        always = replace(configs[0].numerics, always_shift=True)
        configs.append(replace(configs[0], num_classes=0, stage_norms=True, numerics=always))
    for config in configs:
        for index, make in enumerate(peers_of(name, config)):
            yield row_of(name, config, make, index)
            gc.collect()


def markdown(rows: list[Row]) -> str:
    """Return the page with the table."""
    libraries = (
        f"torch {torch.__version__}, timm {peers.timm.__version__}, transformers {peers.transformers.__version__}"
    )
    lines = [
        "# Parity with timm and transformers",
        "",
        "Largest difference of the outputs over the largest output, float32, one image, the same random weights in",
        "both (converted by our tables), at the native size and at another one. The issues ask for 1e-5 at most.",
        "",
        f"Worst of all: **{max(r.worst for r in rows):.1e}**. Measured with {libraries} on"
        f" {platform.machine()}, {torch.get_num_threads()} thread(s).",
        "",
        "Made by `python bench/parity.py --markdown docs/benchmarks/parity.md`. The giants keep their widths but fewer",
        "blocks (memory). Our model takes the numerics of the library it is compared with: transformers resizes",
        "positions otherwise than timm, and its PVT has one epsilon for all norms. What a library has no model of is",
        "left out: transformers has no mean or attention pooling, no LayerScale, no hybrid like Google's, no CoAtNet;",
        "timm has no PVT 1.",
        "",
        "The other size of timm's Swin is a multiple of all its windows (elsewhere timm pads otherwise than the",
        "authors), and that of timm's CoAtNet and transformers' PVT is one they are made anew for. Off the multiples,",
        "Swin is compared with transformers' `SwinBackbone`, which equals the authors' detection code; its classifier",
        "runs at its native size only. Names, both directions, layouts and parameter counts of all variants are",
        "checked in `tests/parity` and `tests/weights`.",
        "",
        "| model | peer | blocks | native | difference | other | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(r.cells())} |" for r in rows]) + "\n"


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", help="wildcard of model names")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    options = parser.parse_args()
    rows: list[Row] = []
    for name in list_models(options.only):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in TOO_LARGE):
            for row in rows_of(name):
                rows.append(row)
                texts = zip(row.cells(), (36, 24, 12, 8, 8, 8, 8), strict=True)
                print(" ".join(f"{text:<{width}}" for text, width in texts), f"{row.seconds:6.1f} s", flush=True)
    if not rows:
        parser.error(f"no model that matches {options.only!r} has a peer")
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    worst = max(r.worst for r in rows)
    print(f"{len(rows)} comparisons, worst {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
