"""Files of `vitrail export`, opened: a network that runs in onnxruntime and is called like the one it was made from.

The file carries a passport, JSON under the key ``vitrail`` of its metadata: config, card, classes, and what the maker
kept beside the weights. Nothing in the file is executed but the operators of its graph.

B batch, H, W pixels.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.errors import WeightsError, require_extra
from vitrail.models import config_from_dict
from vitrail.weights import Card

from .forms import rebuild
from .network import Network

KEY, SCHEMA = "vitrail", 1


def passport(network: Network, size: tuple[int, int]) -> dict[str, Any]:
    """Return what a file says of its network, as plain data; ``size`` is the (H, W) it takes."""
    from vitrail.models import config_to_dict

    card = network.card.to_json() | {"input_size": list(size)}
    classes = None if network.classes is None else network.classes.to_json()
    config = config_to_dict(network.config)
    return {"schema": SCHEMA, "config": config, "card": card, "classes": classes, "extra": dict(network.extra)}


class OnnxNetwork(nn.Module):
    """A network in onnxruntime: takes images of one size, any batch, and gives float32.

    Args:
        session: an ``onnxruntime.InferenceSession``.
        config: of the network it was made from.
        size: (H, W) of its images.
    """

    def __init__(self, session: Any, config: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.session, self.config, self.size = session, config, size
        self.names = [i.name for i in session.get_inputs()]

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Any:
        """Images (B, C, H, W), and for boxes keep (B, H, W) or None -> what the network itself gives.

        Raises ValueError for images of another size than the file was exported for.
        """
        if tuple(images.shape[-2:]) != self.size:
            height, width = self.size
            raise ValueError(
                f"expected images of {height} x {width}, the size the file was exported for, got "
                f"{images.shape[-2]} x {images.shape[-1]}; mend: export it again with --img-size"
            )
        if keep is None:
            keep = torch.ones(len(images), *self.size, dtype=torch.bool)
        given = {"images": images.float(), "keep": keep}
        found = self.session.run(None, {name: np.ascontiguousarray(given[name].cpu()) for name in self.names})
        return rebuild(self.config, [torch.from_numpy(o).to(images.device) for o in found])


def open_exported(path: Path) -> Network:
    """Open a file of `vitrail export`; :class:`WeightsError` if it is none, or damaged."""
    said = read_passport(path)
    config, card = config_from_dict(said["config"]), Card.from_json(said["card"])
    classes = None if said["classes"] is None else ClassMap.from_json(said["classes"])
    model = OnnxNetwork(_session(*_identity(path)), config, card.input_size)
    return Network(model, config, card, classes, said["extra"])


def read_passport(path: Path) -> dict[str, Any]:
    """Return what a file says of its network; :class:`WeightsError` if it is no file of `vitrail export`."""
    told = _session(*_identity(path)).get_modelmeta().custom_metadata_map.get(KEY)
    if told is None:
        raise WeightsError(
            f"expected a file that `vitrail export` wrote, got {path}, which says nothing of its network"
        )
    try:
        said: dict[str, Any] = json.loads(told)
        schema = int(said["schema"])
        parts = {name: said[name] for name in ("config", "card", "classes", "extra")}
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"what {path} says of its network is damaged: {error!r}") from None
    if schema > SCHEMA:
        raise WeightsError(f"{path} was written by a newer Vitrail (schema {schema}); mend: update Vitrail")
    return parts


def _identity(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise WeightsError(f"expected a file of `vitrail export`, got {path}: {error.strerror}") from None
    return str(path), stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=1)
def _session(path: str, changed: int, size: int) -> Any:
    """Open a session of a file as it is now; that of the last file is kept."""
    require_extra("onnxruntime", "export", "an .onnx file")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime has a class for each fault, and no common one
        raise WeightsError(f"{path} is no network that onnxruntime can run: {str(error).splitlines()[0]}") from None
