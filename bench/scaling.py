"""How cost grows with the picture: attention of four kinds, and whole models; counted, and measured.

    python bench/scaling.py                       # all of it: pictures and the page, about 15 minutes on two idle cores
    python bench/scaling.py --quick               # a minute, to see that it works: small sides, one round, no files
    python bench/scaling.py --counted             # only the picture that needs no measuring

Attention: one layer of width 96 with 3 heads on patches of 4 x 4 pixels, of each kind: global (ViT), in windows of
7 x 7 (Swin), to keys reduced 8 x 8 (PVT), to keys pooled to 7 x 7 (PVT v2 linear). Its closed forms
(vitrail.metrics.complexity) are drawn as lines, what the counter of `vitrail models --cost` finds as dots.

Models: Swin-T and ViT-Ti/16, float32, batch 1, eval. ViT twice: with the fused kernel, which never holds the attention
matrix, and with plain products, which write it out.

Every case runs in a process of its own, which frees large blocks at once, looks at its resident memory, resets the
kernel's high-water mark, and runs once: peak is what was added. Then it is timed: the median of the rounds. Slopes are
fitted to the logarithms of the last points, where fixed costs matter least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitrail.explain.charts import Plot, Series
from vitrail.explain.colors import BLUE, GREEN, ORANGE, PINK
from vitrail.metrics import complexity
from vitrail.metrics.cost import cost
from vitrail.models import build, config_of
from vitrail.nn.attention import Attention
from vitrail.nn.reduction import PooledReduction, StridedReduction
from vitrail.nn.windows import WindowAttention

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
DIM, HEADS, PATCH, WINDOW, RATIO, POOL = 96, 3, 4, 7, 8, 7
KINDS: dict[str, Callable[[int], int]] = {  # kind -> multiply-adds of so many tokens
    "global": lambda hw: complexity.msa_macs(hw, DIM),
    "windows": lambda hw: complexity.window_msa_macs(hw, DIM, WINDOW),
    "reduced": lambda hw: complexity.reduced_msa_macs(hw, DIM, RATIO),
    "pooled": lambda hw: complexity.pooled_msa_macs(hw, DIM, POOL),
}
NAMES = {"global": "global", "windows": "windows 7x7", "reduced": "reduced 8x8", "pooled": "pooled to 7x7"}
COLORS = {"global": BLUE, "windows": ORANGE, "reduced": GREEN, "pooled": PINK}
FITTED = 3  # points at the end of a curve that its slope is fitted to


class Layer(nn.Module):
    """One attention layer of a kind, on the tokens of a map (B, C, h, w); returns tokens."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "windows":
            self.attn: nn.Module = WindowAttention(DIM, HEADS, (WINDOW, WINDOW))
            self.reduce: nn.Module | None = None
        else:
            self.attn = Attention(DIM, HEADS)
            reduce = {"reduced": StridedReduction, "pooled": PooledReduction}.get(kind)
            self.reduce = None if reduce is None else reduce(DIM, *([RATIO] if kind == "reduced" else []), eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if isinstance(self.attn, WindowAttention):
            return self.attn(x)
        context = None if self.reduce is None else self.reduce(x)
        return self.attn(x.flatten(1, 2), context=context)


# ---- one case, in a process of its own


def child(case: dict[str, Any]) -> dict[str, float]:
    """Run one case and return its seconds and the bytes it added at most."""
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    side = case["side"]
    if case["what"] in KINDS:
        module: nn.Module = Layer(case["what"]).eval()
        small, large = (torch.randn(1, DIM, s // PATCH, s // PATCH) for s in (case["first"], side))
    else:
        module = build(config_of(case["what"])).eval()
        small, large = (torch.randn(1, 3, s, s) for s in (case["first"], side))
    products = sdpa_kernel(SDPBackend.MATH) if case["written"] else nullcontext()
    with torch.inference_mode(), products:
        module(small)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
        module(large)
        peak = memory("VmHWM") - before
        seconds = []
        for _ in range(case["rounds"]):
            start = time.perf_counter()
            module(large)
            seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "peak": max(0, peak)}


def memory(key: str) -> int:
    """Return bytes of this process, as the kernel counts them."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def measure(what: str, side: int, args: argparse.Namespace, *, written: bool = False) -> dict[str, float]:
    """Run one case in a child and return what it found."""
    case = {
        "what": what,
        "side": side,
        "first": min(args.attention_sides if what in KINDS else args.sides),
        "written": written,
    }
    case |= {"threads": args.threads, "rounds": args.rounds}
    # blocks above 64 KiB go back to the system as soon as they are freed, so that the high-water mark is of live ones
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(args.threads)}
    command = [sys.executable, __file__, "--child", json.dumps(case)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        raise SystemExit(f"{case} failed:\n{ran.stderr}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    print(f"  {what:<32} {side:>5}  {found['seconds']:9.4f} s  {found['peak'] / 1e6:9.1f} MB", flush=True)
    return found


# ---- curves


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the exponent of a power law through the last points."""
    xs, ys = zip(*[(math.log(x), math.log(max(y, 1e-12))) for x, y in points[-FITTED:]], strict=True)
    mean_x, mean_y = statistics.fmean(xs), statistics.fmean(ys)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - mean_x) ** 2 for x in xs)


def plot(title: str, labels: tuple[str, str], series: list[Series]) -> str:
    """Draw curves on logarithmic axes."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points if y > 0]
    ranges = ((min(xs) / 1.1, max(xs) * 1.1), (min(ys) / 1.5, max(ys) * 1.5))
    return Plot(title, *labels, *ranges, (680, 400), log=True, top=46).svg(series)


SIDE = "side of the picture (pixels)"


def counted(sides: list[int]) -> str:
    """Draw multiply-adds of one layer against the side: closed forms as lines, what the counter finds as dots."""
    lines, dots = [], []
    for kind, closed in KINDS.items():
        found = [(s, cost(lambda k=kind: Layer(k), s // PATCH, DIM, training=False).macs) for s in sides]
        wrong = [s for s, macs in found if s % (PATCH * WINDOW * RATIO) == 0 and macs != closed((s // PATCH) ** 2)]
        assert not wrong, f"{kind}: the counter and the closed form differ at {wrong}"
        fine = [min(sides) * (max(sides) / min(sides)) ** (i / 60) for i in range(61)]
        lines.append(Series(NAMES[kind], [(s, closed(round((s / PATCH) ** 2))) for s in fine], COLORS[kind]))
        dots.append(Series("", [(s, float(macs)) for s, macs in found], COLORS[kind], dots=True))
    return plot("Multiply-adds of one attention layer", (SIDE, "multiply-adds"), [*lines, *dots])


def attention(args: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """Return pictures and lines of the page about one layer of attention."""
    sides = args.attention_sides
    found = {kind: [measure(kind, side, args) for side in sides] for kind in KINDS}
    times = {k: [(s, 1000 * one["seconds"]) for s, one in zip(sides, f, strict=True)] for k, f in found.items()}
    rows = ["| side | tokens | " + " | ".join(f"{NAMES[k]}: M MACs, ms, MB" for k in KINDS) + " |"]
    rows.append("| --- " * (2 + len(KINDS)) + "|")
    for i, side in enumerate(sides):
        hw = (side // PATCH) ** 2
        cells = [f"{KINDS[k](hw) / 1e6:,.0f}, {times[k][i][1]:.2f}, {found[k][i]['peak'] / 1e6:.1f}" for k in KINDS]
        rows.append(f"| {side} | {hw:,} | " + " | ".join(cells) + " |")
    slopes = {kind: slope([(s * s, ms) for s, ms in points]) for kind, points in times.items()}
    rows += ["", "Time grows with pixels to the power of: " + power(slopes)]
    lines = curves({NAMES[k]: points for k, points in times.items()}, {NAMES[k]: c for k, c in COLORS.items()})
    drawn = plot("Time of one attention layer", (SIDE, "milliseconds"), lines)
    return {"attention-cost.svg": counted(sides), "attention-time.svg": drawn}, rows


def power(slopes: dict[str, float]) -> str:
    """Return slopes as words."""
    return ", ".join(f"{NAMES.get(kind, kind)} {value:.2f}" for kind, value in slopes.items()) + "."


def models(args: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """Return pictures and lines of the page about whole models."""
    swin, vit = args.models
    cases = {"Swin-T": (swin, False), "ViT-Ti/16": (vit, False), "ViT-Ti/16, weights written out": (vit, True)}
    colors = dict(zip(cases, (ORANGE, BLUE, GREEN), strict=True))
    rows = ["| model | side | G MACs | seconds | peak, MB | counted, MB |", "| --- | --- | --- | --- | --- | --- |"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    peaks: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for name, (model, written) in cases.items():
        for side in args.sides:
            config = config_of(model)
            counted = cost(lambda c=config: build(c), side, training=False)
            found = measure(model, side, args, written=written)
            times[name].append((side * side, found["seconds"]))
            peaks[name].append((side * side, found["peak"] / 1e6))
            expected = "" if written else f"{counted.peak / 1e6:.1f}"
            rows.append(
                f"| {name} | {side} | {counted.gmacs:.2f} | {found['seconds']:.3f} | {found['peak'] / 1e6:.1f} |"
                f" {expected} |"
            )
    rows += [
        "",
        "Time grows with pixels to the power of: " + power({n: slope(p) for n, p in times.items()}),
        "",
        "Memory grows with pixels to the power of: " + power({n: slope(p) for n, p in peaks.items()}),
    ]
    pixels = "pixels of the picture"
    pictures = {
        "scaling-time.svg": plot("Time of one picture", (pixels, "seconds"), curves(times, colors)),
        "scaling-memory.svg": plot("Memory of one picture", (pixels, "megabytes"), curves(peaks, colors)),
    }
    return pictures, rows


def curves(points: dict[str, list[tuple[float, float]]], colors: dict[str, str]) -> list[Series]:
    """Return a line a case, with dots on it."""
    lines = [Series(name, found, colors[name]) for name, found in points.items()]
    return lines + [Series("", found, colors[name], dots=True) for name, found in points.items()]


PAGE = """# Cost against the size of the picture

```console
python bench/scaling.py
```

{machine}, float32, batch 1, {threads} threads. Every case in a process of its own; time is the median of {rounds} runs,
memory what one run added to the resident memory at most. Slopes are fitted to the logarithms of the last {fitted}
points.

## One layer of attention

Width {dim}, {heads} heads, patches of {patch} x {patch} pixels. Lines are the closed forms of
[`vitrail.metrics.complexity`](../api/tasks.md), dots what the counter of `vitrail models NAME --cost` finds: with the
projections, global attention takes 4hwC² + 2(hw)²C multiply-adds, windows of M x M take 4hwC² + 2M²hwC, keys reduced by
R take 3hwC² + 2hwC²/R² + 2(hw)²C/R² (on a grid that R divides), keys pooled to P x P take 2hwC² + 3P²C² + 2P²hwC.

![Multiply-adds of one attention layer against the side of the picture](../images/attention-cost.svg)

![Time of one attention layer against the side of the picture](../images/attention-time.svg)

{attention}

## Whole models

![Time of one picture against its pixels](../images/scaling-time.svg)

![Memory of one picture against its pixels](../images/scaling-memory.svg)

{models}

"Counted" is what `vitrail models NAME --cost` says of activations: every tensor of the plain forward pass. The measured
peak may be below it, where a CPU path works in pieces. The fused kernel never holds the attention matrix, so that even
global attention takes memory linear in pixels; its square is left in time, and comes back in memory wherever the
weights are written out: recording them, plain products, a learned bias in training on a CPU.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--counted", action="store_true")
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448, 672, 896, 1120, 1344])
    parser.add_argument("--attention-sides", type=int, nargs="+", default=[56, 112, 224, 448, 672])
    parser.add_argument("--models", nargs=2, default=["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return
    if args.counted:
        (IMAGES / "attention-cost.svg").write_text(counted(args.attention_sides) + "\n", encoding="utf-8")
        return
    if args.quick:
        args.sides = args.attention_sides = [56, 112, 224, 448]
        args.rounds, args.models = 1, ["test_swin", "test_vit"]
    about_attention, attention_rows = attention(args)
    about_models, model_rows = models(args)
    page = PAGE.format(
        machine=f"{platform.machine()}, torch {torch.__version__}",
        threads=args.threads,
        rounds=args.rounds,
        fitted=FITTED,
        dim=DIM,
        heads=HEADS,
        patch=PATCH,
        attention="\n".join(attention_rows),
        models="\n".join(model_rows),
    )
    if args.quick:
        print(page)
        return
    for name, svg in (about_attention | about_models).items():
        (IMAGES / name).write_text(svg + "\n", encoding="utf-8")
    (ROOT / "docs" / "benchmarks" / "scaling.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
