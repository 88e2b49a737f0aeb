"""`vitrail models NAME --cost`: what one model costs, by layer, and the arithmetic of attention beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .console import say, table

if TYPE_CHECKING:
    from vitrail.metrics.cost import AttentionCost, Cost, LayerCost


def show_cost(name: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Print the cost of a model at an image size (None: its own) and return it as data."""
    from vitrail.metrics.cost import cost
    from vitrail.models import build, config_of

    config = config_of(name)
    found = cost(lambda: build(config), size or config.img_size, config.in_chans)
    height, width = found.img_size
    say(f"{name}, one image of {height} x {width} in float32 (half the bytes in bf16)")
    _show_sums(found)
    say()
    heads = ("layer", "parameters", "GFLOPs", "kept", "once", "attention", "entries", "bytes")
    table(heads, _rows(found), right=_RIGHT, whole=("layer",))
    if found.attention:
        _show_arithmetic(found, config.in_chans)
    return {"name": name, **_data(found)}


_RIGHT = ("parameters", "GFLOPs", "kept", "once", "entries", "bytes")


def _show_sums(found: Cost) -> None:
    entries = sum(call.entries for call in found.attention)
    say(f"  parameters           {found.params:,} ({_bytes(4 * found.params)}; AdamW trains them in four times that)")
    say(f"  GFLOPs               {found.gflops:.3f}, a multiply and an add as two")
    once = f" and, once a batch, {_bytes(found.kept_once)}" if found.kept_once else ""
    say(f"  activations          {_bytes(found.peak)} at most at one time; training keeps {_bytes(found.kept)}{once}")
    if entries:
        say(f"  attention matrices   {entries:,} entries, {_bytes(4 * entries)} if they were written out")


def _rows(found: Cost) -> list[tuple[str, ...]]:
    """Return a row a layer; neighbours that cost the same share one."""
    rows: list[tuple[str, ...]] = []
    runs: list[list[LayerCost]] = []
    for layer in found.layers:
        if runs and _alike(runs[-1][-1], layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    for run in runs:
        one, entries = run[0], sum(call.entries for call in run[0].attention)
        name = one.name or f"{one.kind} itself"
        rows.append(
            (
                name if len(run) == 1 else f"{name} to {run[-1].name.rpartition('.')[2]}, each",
                f"{one.params:,}",
                f"{2e-9 * one.macs:.3f}",
                _bytes(one.kept),
                _bytes(one.kept_once) if one.kept_once else "",
                "; ".join(_shape(call) for call in one.attention),
                f"{entries:,}" if entries else "",
                _bytes(4 * entries) if entries else "",
            )
        )
    return rows


def _alike(one: LayerCost, other: LayerCost) -> bool:
    if one.name.rpartition(".")[0] != other.name.rpartition(".")[0] or not one.name.rpartition(".")[2].isdigit():
        return False
    shapes = [[_shape(call) for call in layer.attention] for layer in (one, other)]
    figures = [(layer.params, layer.macs, layer.kept, layer.kept_once) for layer in (one, other)]
    return figures[0] == figures[1] and shapes[0] == shapes[1]


def _shape(call: AttentionCost) -> str:
    """Return "64 windows x 3 heads x 49 x 49" (queries x keys)."""
    windows = "" if call.windows == 1 else f"{call.windows} windows x "
    return f"{windows}{call.heads} heads x {call.queries} x {call.keys}"


def _show_arithmetic(found: Cost, channels: int) -> None:
    from vitrail.metrics.complexity import patch_entries, pixel_entries

    height, width = found.img_size
    sets: dict[tuple[int, ...], AttentionCost] = {}
    for call in found.attention:
        sets.setdefault((call.tokens, call.cells, call.dim, call.in_dim, call.queries, call.keys), call)
    say("\nThe arithmetic of attention (entries of one matrix; multiply-adds with the projections):")
    pixels, patches = pixel_entries(channels, height, width), patch_entries(height, width, 16)
    say(f"  every value of the picture a token: ({channels} x {height} x {width})^2 = {pixels:,}")
    if patches:
        kib = 4 * patches / 1024
        size = f"{kib:,.0f} KiB" if kib >= 10 else f"{4 * patches:,} bytes"
        say(f"  patches of 16 x 16: ({height // 16} x {width // 16})^2 = {patches:,}, {size} in float32")
    for call in sets.values():
        say(f"  {call.name}: {_arithmetic(found, call)}")


def _arithmetic(found: Cost, call: AttentionCost) -> str:
    """Return what attention of all to all would cost this layer, and what the layer's own costs and why."""
    from vitrail.metrics.complexity import msa_macs

    hw = call.cells if call.windows > 1 or call.cells < call.queries else call.tokens
    whole, own = msa_macs(hw, call.dim), found.macs_of(call.name)
    said = f"hw = {hw}, C = {call.dim}: all to all 4hwC^2 + 2(hw)^2C = {whole / 1e6:,.1f} M;"
    if own == whole:
        return f"{said} that is what it does"
    if call.windows == 1 and hw == call.queries == call.keys:
        made = f"q, k and v are made of {call.in_dim} channels" if call.in_dim != call.dim else "its output is wider"
        return f"{said} all to all here too, {own / 1e6:,.1f} M, since {made}"
    reduction = found.macs_of(f"{call.name.rpartition('.')[0]}.reduce")
    said += f" here {(own + reduction) / 1e6:,.1f} M, {_shape(call)}"
    if reduction:
        said += f", with {reduction / 1e6:,.1f} M for the layer that makes fewer keys"
    if call.tokens > hw:
        said += f"; it pads its map to whole windows, {call.tokens} tokens"
    return said


def _bytes(count: float) -> str:
    """Return "150 kB", "23.1 MB": powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _data(found: Cost) -> dict[str, Any]:
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "params": layer.params,
            "macs": layer.macs,
            "kept_bytes": layer.kept,
            "kept_once_bytes": layer.kept_once,
            "attention": [
                {
                    "name": call.name,
                    "windows": call.windows,
                    "heads": call.heads,
                    "queries": call.queries,
                    "keys": call.keys,
                    "entries": call.entries,
                    "bytes": call.bytes,
                }
                for call in layer.attention
            ],
        }
        for layer in found.layers
    ]
    return {
        "img_size": list(found.img_size),
        "params": found.params,
        "gflops": found.gflops,
        "peak_bytes": found.peak,
        "kept_bytes": found.kept,
        "kept_once_bytes": found.kept_once,
        "attention_entries": sum(call.entries for call in found.attention),
        "layers": layers,
    }
