"""Tables for Deformable DETR: transformers (Hub names and names in memory), the authors' ``.pth``.

Sources of the names: transformers 5 ``DeformableDetrForObjectDetection``; fundamentalvision/Deformable-DETR. Without
refinement all layers share one head, which the authors' files hold once for each. With it, files hold the heads twice:
at the top and below the decoder.
"""

from __future__ import annotations

import torch

from vitrail.weights.tables import Entry, Table, Transform, module, with_prefix

from .backbones import below
from .detr import (
    BACKBONE,
    BACKBONES,
    NAMES,
    TORCHVISION,
    authors_attention,
    hub_backbone,
    hub_layers,
    own_names,
)

HEAD = ("heads.*", "head_labels.*")
LAYERS = 6  # of every published decoder

OFFSETS_AND_WEIGHTS = Transform(
    "offsets, then weights",
    lambda parts, n: torch.cat(list(parts)),
    lambda t, count, n: (t[: len(t) // 3 * 2], t[len(t) // 3 * 2 :]),
)
SHARED = Transform("shared", lambda parts, n: parts[0], lambda t, count, n: [t] * count)


def _sampling(ours: str, theirs: str) -> tuple[Entry, ...]:
    points = (f"{theirs}.sampling_offsets", f"{theirs}.attention_weights")
    return (
        *module(f"{ours}.points", *points, transform=OFFSETS_AND_WEIGHTS),
        *module(f"{ours}.value", f"{theirs}.value_proj"),
        *module(f"{ours}.proj", f"{theirs}.output_proj"),
    )


def _two_stages(base: str) -> tuple[Entry, ...]:
    names = (("propose.proj", "enc_output"), ("propose.norm", "enc_output_norm"), ("place", "pos_trans"))
    pairs = (*names, ("place_norm", "pos_trans_norm"), ("point_head", "reference_points"))
    return tuple(entry for ours, theirs in pairs for entry in module(ours, f"{base}{theirs}"))


def _levels(base: str) -> tuple[Entry, ...]:
    return (
        *module("levels.projs.{i}.conv", f"{base}input_proj.{{i}}.0"),
        *module("levels.projs.{i}.norm", f"{base}input_proj.{{i}}.1"),
    )


def _heads(classes: str, boxes: str) -> tuple[Entry, ...]:
    """A head of each layer, below one prefix for classes and another for boxes."""
    return (
        *module("heads.{i}", f"{classes}class_embed.{{i}}"),
        *module("box_heads.{i}.layers.{j}", f"{boxes}bbox_embed.{{i}}.layers.{{j}}"),
    )


def _shared_heads(count: int) -> tuple[Entry, ...]:
    """One head, as ``count`` copies."""
    classes = (f"class_embed.{k}" for k in range(count))
    boxes = (f"bbox_embed.{k}.layers.{{i}}" for k in range(count))
    return (
        *module("heads.0", *classes, transform=SHARED),
        *module("box_heads.0.layers.{i}", *boxes, transform=SHARED),
    )


def _authors() -> tuple[Entry, ...]:
    encoder, decoder = (f"transformer.{part}.layers.{{i}}" for part in ("encoder", "decoder"))
    linear = (("mlp.fc1", "linear1"), ("mlp.fc2", "linear2"))
    norms = {encoder: (1, 2), decoder: (2, 1, 3)}  # theirs: of a decoder's layer, that of the maps comes first
    return (
        *_sampling("encoder.{i}.attn", f"{encoder}.self_attn"),
        *authors_attention("decoder.{i}.attn", f"{decoder}.self_attn"),
        *_sampling("decoder.{i}.cross", f"{decoder}.cross_attn"),
        *(
            entry
            for ours, theirs in (("encoder.{i}", encoder), ("decoder.{i}", decoder))
            for mine, other in (*linear, *((f"norm{n}", f"norm{m}") for n, m in enumerate(norms[theirs], 1)))
            for entry in module(f"{ours}.{mine}", f"{theirs}.{other}")
        ),
        Entry("levels.level_embed", ("transformer.level_embed",)),
        Entry("query_embed", ("query_embed.weight",)),
        *_two_stages("transformer."),
        *_levels(""),
        *below(TORCHVISION, BACKBONE, "backbone.0.body."),
    )


def _hub(native: bool, in_memory: bool) -> tuple[Entry, ...]:
    cross = _sampling("decoder.{i}.cross", "decoder.layers.{i}.encoder_attn")
    inner = (
        *_sampling("encoder.{i}.attn", "encoder.layers.{i}.self_attn"),
        *hub_layers(cross, in_memory=in_memory),
        Entry("levels.level_embed", ("level_embed",)),
        Entry("query_embed", ("query_position_embeddings.weight",)),
        *_two_stages(""),
        *_levels(""),
        *hub_backbone(native, in_memory),
    )
    return with_prefix(inner, "model.")


_BELOW = ("model.decoder.bbox_embed.*", "model.decoder.class_embed.*")
_TOP = ("bbox_embed.*", "class_embed.*")
_HUB_HEADS = (  # how a file names its heads, what it may hold of them besides, and in words
    (_shared_heads(1), ("bbox_embed.[1-9]*", "class_embed.[1-9]*"), "one head"),
    (_heads("", "model.decoder."), _TOP, "heads that refine"),
    (_heads("model.decoder.", "model.decoder."), _TOP, "two stages"),
    (_heads("", ""), _BELOW, "heads at the top"),
)
TRANSFORMERS = tuple(
    Table(
        "transformers",
        f"transformers DeformableDetrForObjectDetection on {BACKBONES[native]}, {words} ({NAMES[in_memory]})",
        (*_hub(native, in_memory), *heads),
        ignored,
        head=HEAD,
    )
    for native in (False, True)
    for in_memory in (False, True)
    for heads, ignored, words in _HUB_HEADS
)
_REPEATED = ("transformer.decoder.bbox_embed.*", "transformer.decoder.class_embed.*")
ORIGINAL = (
    Table("original", "Deformable DETR .pth, one head", (*_authors(), *_shared_heads(LAYERS)), head=HEAD),
    Table("original", "Deformable DETR .pth, a head a layer", (*_authors(), *_heads("", "")), _REPEATED, head=HEAD),
)
_OURS = ("content", "anchors", "head_labels.weight")
_PLACES = module("box_positions.mlp.layers.{i}", "box_positions.mlp.layers.{i}")

VITRAIL = Table(
    "vitrail",
    "Vitrail",
    (*own_names(*ORIGINAL), *(Entry(name, (name,)) for name in _OURS), *_PLACES),
    head=HEAD,
)

TABLES: tuple[Table, ...] = (VITRAIL, *TRANSFORMERS, *ORIGINAL)
