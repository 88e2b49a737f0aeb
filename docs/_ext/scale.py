"""``{scale-table} WHAT``: the tables of docs/scale.md, by ``vitrail.metrics.scale`` when the pages are built."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from generated import Generated
from sphinx.application import Sphinx

from vitrail.metrics import scale
from vitrail.metrics.cost import Cost

MODELS = {
    "B/16": "vit_base_patch16_224",
    "L/16": "vit_large_patch16_224",
    "H/14": "vit_huge_patch14_224",
    "g/14": "vit_giant_patch14_224",
    "G/14": "vit_gigantic_patch14_224",
    "e/14": "vit_enormous_patch14_224",
}
GPUS = (8, 64, 256, 1024)
LINK, NETWORK = 450e9, 50e9  # bytes a second each way: NVLink of an H100, and 400 Gbit/s a GPU
UTILISATION, BATCH = 0.4, 32  # assumed MFU, and images a GPU and step
SAVE_S, RESTART_S, FAULT_GPU_HOURS = 2.0, 300.0, 50_700.0
JPEG, DECODED_PER_CORE = 77e3, 423  # bytes of an ImageNet JPEG, images a second and core


@cache
def cost_of(name: str) -> Cost:
    from vitrail.metrics.cost import cost
    from vitrail.models import config_of, create_model

    return cost(lambda: create_model(name), config_of(name).img_size)


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size < 99.95e9 else f"{size / 1e9:,.0f}"


def block(found: Cost) -> int:
    return max(layer.params for layer in found.layers if layer.attention)


def cost_row(found: Cost) -> list[str]:
    peak = scale.PEAK_FLOPS["H100"]
    return [
        f"{found.params / 1e6:,.1f} M",
        f"{found.gflops:,.1f}",
        f"{scale.train_flops(found.macs, 1) / 1e9:,.0f}",
        *(f"{scale.images_per_s(share, found.macs, peak):,.0f}" for share in (0.3, 0.4, 0.5)),
    ]


def state_row(found: Cost) -> list[str]:
    sharded = [scale.state_bytes(found.params, n) + scale.gathered_bytes(block(found)) for n in (8, 64)]
    saved = scale.checkpoint_bytes(found.params)
    return [gb(scale.state_bytes(found.params)), *map(gb, sharded), gb(scale.gathered_bytes(block(found))), gb(saved)]


def activation_row(found: Cost) -> list[str]:
    whole, less = scale.activation_bytes(found), scale.activation_bytes(found, recompute=True)
    room = 0.9 * scale.GPU_MEMORY["H100"]
    free = [room - scale.state_bytes(found.params), room - scale.state_bytes(found.params, 8)]
    free[1] -= scale.gathered_bytes(block(found))
    fits = [f"{max(0, int(f // each)):,}" if f > each else "none" for f in free for each in (whole, less)]
    return [f"{whole / 1e6:,.0f}", f"{less / 1e6:,.0f}", *fits]


def traffic_row(found: Cost) -> list[str]:
    compute = BATCH / scale.images_per_s(UTILISATION, found.macs, scale.PEAK_FLOPS["H100"])
    cells = [f"{1000 * compute:,.0f}"]
    for how, count in (("ddp", 8), ("fsdp", 8), ("ddp", 64), ("fsdp", 64), ("hsdp", 64), ("hsdp", 1024)):
        sent = scale.traffic(how, found.params, count)
        cells.append(f"{gb(sent.within + sent.between)} GB, {1000 * sent.seconds(LINK, NETWORK):,.0f} ms")
    return cells


def fault_rows() -> list[tuple[str, list[str]]]:
    rows = []
    for gpus in (1, *GPUS):
        mtbf = 3600 * FAULT_GPU_HOURS / gpus
        best = scale.young_daly(SAVE_S, mtbf)
        kept = [f"{scale.goodput(interval, SAVE_S, RESTART_S, mtbf):.2%}" for interval in (best, 600.0)]
        rows.append((f"{gpus:,}", [f"{mtbf / 3600:,.0f} h", f"{best / 60:,.0f} min", *kept]))
    return rows


def feed_row(found: Cost) -> list[str]:
    rate = scale.images_per_s(UTILISATION, found.macs, scale.PEAK_FLOPS["H100"])
    cores = rate / DECODED_PER_CORE
    return [f"{rate:,.0f}", f"{cores:,.1f}", *(f"{gpus * rate * JPEG / 1e9:,.2f}" for gpus in GPUS)]


def by_model(row: Callable[[Cost], list[str]]) -> list[tuple[str, list[str]]]:
    return [(label, row(cost_of(name))) for label, name in MODELS.items()]


TABLES: dict[str, tuple[list[str], Callable[[], list[tuple[str, list[str]]]]]] = {
    "cost": (
        ["ViT", "parameters", "GFLOPs forward", "GFLOPs an image trained", "images/s at 30 %", "at 40 %", "at 50 %"],
        lambda: by_model(cost_row),
    ),
    "bytes": (
        ["held for each parameter", "bytes"],
        lambda: (
            [(what, [str(size)]) for what, size in scale.STATE.items()]
            + [("**whole copy (DDP)**", [str(sum(scale.STATE.values()))])]
            + [("evaluated copy, of its own only where weights are cut", [str(scale.SHOWN)])]
            + [("in a checkpoint", [str(scale.SAVED)])]
        ),
    ),
    "state": (
        ["ViT", "DDP, GB a GPU", "FSDP over 8", "FSDP over 64", "of it gathered", "checkpoint, GB"],
        lambda: by_model(state_row),
    ),
    "activations": (
        ["ViT", "MB an image", "recomputed", "images: DDP", "recomputed", "FSDP over 8", "recomputed"],
        lambda: by_model(activation_row),
    ),
    "traffic": (
        ["ViT", "compute, ms", "DDP, 8", "FSDP, 8", "DDP, 64", "FSDP, 64", "HSDP, 64", "HSDP, 1,024"],
        lambda: by_model(traffic_row),
    ),
    "faults": (
        ["GPUs", "time between faults", "best interval", "goodput with it", "goodput at 10 min"],
        fault_rows,
    ),
    "feed": (
        ["ViT", "images/s a GPU", "cores a GPU", *(f"GB/s for {gpus:,}" for gpus in GPUS)],
        lambda: by_model(feed_row),
    ),
}


class ScaleTable(Generated):
    """One table of docs/scale.md."""

    required_arguments = 1

    def lines(self) -> list[str]:
        heads, rows = TABLES[self.arguments[0]]
        body = [f"| {' | '.join([label, *cells])} |" for label, cells in rows()]
        return [f"| {' | '.join(heads)} |", "| --- " + "| ---: " * (len(heads) - 1) + "|", *body]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("scale-table", ScaleTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
