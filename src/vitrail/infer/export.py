"""A network as one file that other runtimes run: written, opened again, and compared with the network it was made from.

A file that does not give the network's numbers is not left behind. The file carries what its user must know (mean and
std, classes, licence: the passport of exported.py), and a receipt beside it says what was compared.

B batch, H, W pixels.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitrail.errors import ExportError, UsageError, require_extra, require_known
from vitrail.models import answers, as_size

from .exported import KEY, open_exported, passport
from .forms import OUTPUTS, as_function, example, input_names, require_exportable
from .network import Network, is_exported, open_network

Format = Literal["onnx", "torch"]
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
BATCHES = (1, 2, 5)
"""Batches that a file is compared at."""
TOLERANCE = 1e-4
"""Largest difference that is taken for rounding, as a share of the largest number of the output."""
MOST_BYTES = 2**31 - 1
"""What one file of the ONNX format can hold."""


@dataclass(frozen=True)
class Check:
    """One output at one batch: the largest difference, the largest number, and their ratio."""

    batch: int
    output: str
    difference: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference as a share of the scale."""
        return self.difference / max(self.scale, 1e-12)


@dataclass(frozen=True)
class Receipt:
    """What was written and what was compared.

    Attributes:
        path: the file.
        format: "onnx" or "torch".
        img_size: (H, W) it takes; any batch.
        inputs, outputs: their names.
        bytes: size of the file.
        checks: what was compared.
    """

    path: str
    format: str
    img_size: tuple[int, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    checks: tuple[Check, ...]

    @property
    def largest(self) -> float:
        """The largest relative difference of all."""
        return max(check.relative for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        checks = [{**asdict(check), "relative": check.relative} for check in self.checks]
        return {**asdict(self), "checks": checks, "largest": self.largest, "tolerance": TOLERANCE}


def export(
    source: str | Path,
    path: str | Path | None = None,
    *,
    format: Format = "onnx",
    img_size: int | tuple[int, int] | None = None,
) -> Receipt:
    """Write the network at ``source`` as one file, and a receipt (``.receipt.json``) beside it.

    Args:
        source: a run, a folder of weights or a hub id.
        path: the file; default ``exported/<name>.onnx`` in the run, or here.
        format: "onnx" (onnxruntime and many others; :func:`vitrail.load` opens it), or "torch" (a program of
            ``torch.export``, for ``torch.export.load``).
        img_size: (H, W) that the file takes; default the card's.

    Raises:
        UsageError: a network that reads text, a file that is exported already, an ending that is not the format's.
        ExportError: the network cannot be written so, or the file gives other numbers.
    """
    require_known([format], ENDINGS, "format")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require_extra(package, "export", "exporting to ONNX")
    if is_exported(source):
        raise UsageError(f"expected a run or a folder of weights, got {source}, which is an exported file already")
    network = open_network(source)
    require_exportable(network.config)
    size = as_size(img_size) if img_size is not None else network.card.input_size
    target = _target(source, path, network, format)
    network.model.eval()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        with _in_words(target):
            _write(network, size, draft, format)
            checks = compare(network, draft, size, format)
        worst = max(checks, key=lambda check: check.relative)
        if not worst.relative <= TOLERANCE:  # NaN too
            raise ExportError(
                f"the file gives other numbers than the network: {worst.output} at a batch of {worst.batch} is "
                f"{worst.relative:.1e} of its scale away (at most {TOLERANCE:g} is rounding); nothing was written"
            )
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    names = OUTPUTS[answers(network.config)][: len({check.output for check in checks})]
    receipt = Receipt(
        str(target), format, size, input_names(network.config), names, target.stat().st_size, tuple(checks)
    )
    beside = target.with_name(target.name + ".receipt.json")
    beside.write_text(json.dumps(receipt.to_json(), indent=2) + "\n", encoding="utf-8")
    return receipt


def _target(source: str | Path, path: str | Path | None, network: Network, format: Format) -> Path:
    if path is None:
        folder = Path(source) if Path(source).is_dir() else Path()
        return folder / "exported" / f"{network.card.name.partition('.')[0] or 'model'}{ENDINGS[format]}"
    found = Path(path)
    if found.suffix != ENDINGS[format]:
        raise UsageError(f"expected a file that ends in {ENDINGS[format]} for format {format}, got {found.name}")
    return found


@contextlib.contextmanager
def _in_words(target: Path) -> Iterator[None]:
    """Say of an exporter's fault what it is; keep its own talk back."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations inside the exporter
            yield
    except (UsageError, ExportError, MemoryError):
        raise
    except Exception as error:  # exporters raise what they like
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"{target.name} cannot be made: {type(error).__name__}: {first}") from error
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _write(network: Network, size: tuple[int, int], path: Path, format: Format) -> None:
    function = as_function(network.model, network.config).eval()
    inputs = example(network.config, size, 2)
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = tuple({0: batch} for _ in inputs)
    said = json.dumps(passport(network, size), ensure_ascii=True)
    with torch.no_grad():
        program = torch.export.export(function, inputs, dynamic_shapes=shapes)
        if format == "torch":
            torch.export.save(program, path, extra_files={"vitrail.json": said})
            return
        names = list(OUTPUTS[answers(network.config)][: _count(function(*inputs))])
        found: Any = torch.onnx.export(
            program, inputs, dynamo=True, verbose=False, input_names=list(input_names(network.config)),
            output_names=names,
        )  # fmt: skip
    import onnx

    proto = found.model_proto
    onnx.helper.set_model_props(proto, {KEY: said})
    if proto.ByteSize() > MOST_BYTES:
        raise ExportError("the network has more than 2 GiB, which one file of ONNX cannot hold; mend: --format torch")
    path.write_bytes(proto.SerializeToString())


def _count(outputs: Tensor | Sequence[Tensor]) -> int:
    return 1 if isinstance(outputs, Tensor) else len(outputs)


@torch.no_grad()
def compare(network: Network, path: Path, size: tuple[int, int], format: Format) -> list[Check]:
    """Return how far a file is from its network, each output at each of :data:`BATCHES`."""
    function = as_function(network.model, network.config).eval()
    theirs: nn.Module
    if format == "torch":
        theirs = torch.export.load(path).module()
    else:
        theirs = as_function(open_exported(path).model, network.config)
    names, checks = OUTPUTS[answers(network.config)], []
    for batch in BATCHES:
        inputs = example(network.config, size, batch, seed=batch)
        ours, other = (_listed(f(*inputs)) for f in (function, theirs))
        for name, mine, its in zip(names, ours, other, strict=False):
            gap = (mine - its).abs().max()
            checks.append(Check(batch, name, float(gap), float(mine.abs().max())))
    return checks


def _listed(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


__all__ = ["BATCHES", "TOLERANCE", "Check", "Format", "Receipt", "compare", "export"]
