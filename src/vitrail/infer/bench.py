"""How fast a network answers, in each engine there is for it: same weights, one process, turn by turn.

What a machine gives in one moment says little; the engines take turns, and each round compares them with each other.
What is timed is the network alone, on images that are ready: reading, resizing and drawing are not.

B batch, H, W pixels.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UsageError, VitrailError, require_known
from vitrail.models import as_size, config_of, create_model, variants
from vitrail.weights import card_for

from .export import export
from .exported import open_exported
from .forms import as_function, example, require_exportable
from .network import Network, is_exported, open_network
from .predictor import pick_device

ENGINES = ("float32", "bfloat16", "compiled", "onnx")
"""Eager in either precision, float32 through ``torch.compile``, float32 in onnxruntime."""
Run = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """One engine: seconds a batch (median over rounds), images a second, and times as fast as the first engine.

    ``low`` and ``high`` are the quartiles of that ratio over the rounds.
    """

    engine: str
    seconds: float
    images_per_s: float
    ratio: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def bench(
    source: str | Path,
    *,
    engines: Sequence[str] = ("float32", "bfloat16"),
    batch: int = 1,
    img_size: int | tuple[int, int] | None = None,
    device: str = "auto",
    rounds: int = 11,
) -> list[Speed]:
    """Measure a network in each of ``engines`` (:data:`ENGINES`), the first being what the others are compared with.

    Args:
        source: a run, a folder of weights, a hub id, an exported file (engine "onnx" alone), or the name of a model,
            whose weights are then random.
        engines: which, in order.
        batch: images at once.
        img_size: (H, W); default the card's.
        device: "auto", "cpu", "cuda".
        rounds: how often each engine is measured.

    Raises :class:`UsageError` for an engine there is not, and what opening and exporting raise.
    """
    engines = ("onnx",) if is_exported(source) else tuple(engines)
    require_known(engines, ENGINES, "engine")
    if not engines or len(set(engines)) != len(engines) or batch < 1 or rounds < 3:
        raise UsageError("expected engines, each once, a batch of at least 1, and at least 3 rounds")
    network, where = _open(source), pick_device(device)
    require_exportable(network.config)
    size = as_size(img_size) if img_size is not None else network.card.input_size
    inputs = tuple(t.to(where) for t in example(network.config, size, batch))
    with tempfile.TemporaryDirectory() as folder:
        runs = {engine: _run(engine, network, inputs, source, size, Path(folder)) for engine in engines}
        times = _alternate(runs, rounds, where)
    return [_speed(engine, times[engine], times[engines[0]], batch) for engine in engines]


def _open(source: str | Path) -> Network:
    """Open a source, or make the named model with random weights."""
    if str(source).partition(".")[0] in variants() and not Path(source).exists():
        model = create_model(str(source))
        return Network(model, config_of(str(source)), card_for(str(source)))
    return open_network(source)


def _run(
    engine: str, network: Network, inputs: tuple[Tensor, ...], source: str | Path, size: tuple[int, int], folder: Path
) -> Run:
    """Return one forward pass in an engine."""
    function: Callable[..., Any]
    if engine == "onnx":
        function = as_function(_in_onnx(network, source, size, folder), network.config)
    else:
        dtype = torch.bfloat16 if engine == "bfloat16" else torch.float32
        model = copy.deepcopy(network.model).to(inputs[0].device, dtype).eval()
        function = as_function(model, network.config)
        inputs = tuple(t.to(dtype) if t.is_floating_point() else t for t in inputs)
        function = torch.compile(function) if engine == "compiled" else function

    def run() -> object:
        with torch.inference_mode():
            return function(*inputs)

    return run


def _in_onnx(network: Network, source: str | Path, size: tuple[int, int], folder: Path) -> nn.Module:
    if is_exported(source):
        return network.model
    if not Path(source).exists() and not str(source).startswith("hf-hub:"):
        from vitrail.weights import save_folder

        source = save_folder(folder / "weights", network.model, card=network.card)
    path = folder / "model.onnx"
    export(source, path, img_size=size)
    return open_exported(path).model


def _alternate(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; runs take turns, and the order turns round too."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        try:
            run()
        except (RuntimeError, ValueError) as error:
            raise VitrailError(f"the engine {name} failed: {str(error).splitlines()[0]}") from error
    for i in range(rounds):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
    return times


def _speed(engine: str, own: list[float], first: list[float], batch: int) -> Speed:
    seconds = statistics.median(own)
    low, middle, high = statistics.quantiles([f / o for f, o in zip(first, own, strict=True)], n=4)
    return Speed(engine, seconds, batch / seconds, middle, low, high)
