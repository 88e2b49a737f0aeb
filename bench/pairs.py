"""Pairs of a model of ours and the same network of another library, for bench/parity.py and bench/speed.py.

What a library's constructor needs, the families know (``vitrail.weights.families``); what it cannot build has no pair.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import peers

from vitrail.errors import WeightsError
from vitrail.models import build
from vitrail.weights import configs, export_weights
from vitrail.weights.families import family_of


@dataclass(frozen=True)
class Peer:
    """The same network elsewhere.

    Attributes:
        library: "timm" or "transformers".
        model: its module, in evaluation, with random weights.
        run: images -> logits, or the list of maps of a backbone.
        config: our config that computes the same, with the numerics that library has.
    """

    library: str
    model: nn.Module
    run: Callable[[Tensor], Any]
    config: Any


def peers_of(name: str, config: Any) -> list[Callable[[], Peer]]:
    """Return how to make each peer of our model ``name`` with ``config``, without making it yet."""
    found: list[Callable[[], Peer]] = []
    architecture, arguments = configs.to_timm(name, config)
    if family_of(config).stored_layout == "timm" and peers.timm.is_model(architecture):
        found.append(lambda: timm_peer(architecture, arguments, config))
    try:
        data = configs.to_transformers(config, None)
        shapes = {n: tuple(t.shape) for n, t in export_weights(on_meta(config), "transformers").items()}
        theirs = configs.from_transformers(data, shapes)
    except WeightsError:
        return found
    return [*found, lambda: transformers_peer(data, theirs)]


def on_meta(config: Any) -> nn.Module:
    """Return our model without memory for its weights."""
    with torch.device("meta"):
        return build(config)


def timm_peer(architecture: str, arguments: dict[str, Any], config: Any) -> Peer:
    """Return timm's model; one that can resize its positions at run time does."""
    make = peers.timm.create_model
    if hasattr(config, "pos_embed"):
        arguments = arguments | {"dynamic_img_size": True}
    model = filled(lambda: make(architecture, num_classes=config.num_classes, **arguments))
    return Peer("timm", model, model, config)


def transformers_peer(data: dict[str, Any], config: Any) -> Peer:
    """Return transformers' model of a ``config.json``."""
    make: Any = getattr(peers.transformers, data["architectures"][0])
    more = {k: v for k, v in data.items() if k not in ("architectures", "model_type")}
    settings = peers.transformers.AutoConfig.for_model(data["model_type"], **more)
    model = filled(lambda: make(settings))
    resize = {"interpolate_pos_encoding": True}
    resize = resize if resize.keys() <= inspect.signature(model.forward).parameters.keys() else {}

    def run(images: Tensor) -> Any:
        out = model(images, **resize)
        return list(out.feature_maps) if "feature_maps" in out else out.logits

    return Peer("transformers", model, run, config)


def filled(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model whose every tensor is random; where none is a buffer, no time goes into initial weights."""
    with torch.device("meta"):
        empty = make()
    return peers.randomise(make() if list(empty.buffers()) else empty.to_empty(device="cpu"))


def give(peer: Peer, ours: nn.Module) -> None:
    """Copy the weights of ``ours`` to a peer, by names; transformers' own reader renames what it keeps otherwise."""
    state = export_weights(ours, peer.library)
    if peer.library == "timm":
        peer.model.load_state_dict(state)
        return
    model: Any = peer.model
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in state.items()}, Path(folder) / "model.safetensors", {"format": "pt"})
        model.load_state_dict(type(model).from_pretrained(folder).state_dict())
