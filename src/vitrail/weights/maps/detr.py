"""Tables for DETR: transformers (Hub names and names in memory, boxes and masks), the authors' ``.pth``.

Sources of the names: transformers 5 ``DetrForObjectDetection`` and ``DetrForSegmentation``, whose backbone is timm's or
their own ResNet; facebookresearch/detr, whose backbone is torchvision's (files with masks have ``detr.`` before the
rest).
"""

from __future__ import annotations

from vitrail.weights.tables import CONCAT, SQUEEZE_1X1, Entry, Table, matches, module, with_prefix

from .backbones import below, own_entries
from .resnet import TORCHVISION_ENTRIES
from .resnet import TRANSFORMERS as RESNET_TRANSFORMERS

HEAD = ("head.*",)
BACKBONE = "backbone.backbone."


def without_head(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """Return entries without those of the classifier."""
    return tuple(e for e in entries if not matches(e.ours, HEAD))


TORCHVISION = without_head(TORCHVISION_ENTRIES)
NATIVE = without_head(RESNET_TRANSFORMERS[1].entries)


def authors_attention(ours: str, theirs: str) -> tuple[Entry, ...]:
    """Entries of torch's ``MultiheadAttention``."""
    return (
        Entry(f"{ours}.qkv.weight", (f"{theirs}.in_proj_weight",)),
        Entry(f"{ours}.qkv.bias", (f"{theirs}.in_proj_bias",)),
        *module(f"{ours}.proj", f"{theirs}.out_proj"),
    )


def hub_attention(ours: str, theirs: str, out: str) -> tuple[Entry, ...]:
    """Entries of attention in transformers; ``out`` is its name of the last projection."""
    qkv = (f"{theirs}.{x}_proj" for x in "qkv")
    return (*module(f"{ours}.qkv", *qkv, transform=CONCAT), *module(f"{ours}.proj", f"{theirs}.{out}"))


def _projection(theirs: str) -> tuple[Entry, ...]:
    weight = Entry("input_proj.weight", (f"{theirs}.weight",), SQUEEZE_1X1)
    return weight, Entry("input_proj.bias", (f"{theirs}.bias",))


def _authors() -> tuple[Entry, ...]:
    encoder, decoder = (f"transformer.{part}.layers.{{i}}" for part in ("encoder", "decoder"))
    return (
        *authors_attention("encoder.{i}.attn", f"{encoder}.self_attn"),
        *authors_attention("decoder.{i}.attn", f"{decoder}.self_attn"),
        *authors_attention("decoder.{i}.cross", f"{decoder}.multihead_attn"),
        *(
            entry
            for ours, theirs in (("encoder.{i}", encoder), ("decoder.{i}", decoder))
            for mine, other in (("mlp.fc1", "linear1"), ("mlp.fc2", "linear2"), *((f"norm{n}",) * 2 for n in (1, 2, 3)))
            for entry in module(f"{ours}.{mine}", f"{theirs}.{other}")
        ),
        *module("norm", "transformer.decoder.norm"),
        *_projection("input_proj"),
        Entry("query_embed", ("query_embed.weight",)),
        *module("head", "class_embed"),
        *module("box_head.layers.{i}", "bbox_embed.layers.{i}"),
        *below(TORCHVISION, BACKBONE, "backbone.0.body."),
    )


def hub_layers(decoder_cross: tuple[Entry, ...], *, in_memory: bool) -> tuple[Entry, ...]:
    """Entries of all layers of transformers' DETRs but the encoder's attention, below "model."."""
    encoder, decoder = (f"{part}.layers.{{i}}" for part in ("encoder", "decoder"))
    mlp = "mlp." if in_memory else ""
    names = {
        encoder: ("encoder.{i}", ("self_attn_layer_norm", "final_layer_norm")),
        decoder: ("decoder.{i}", ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")),
    }
    return (
        *hub_attention("decoder.{i}.attn", f"{decoder}.self_attn", "o_proj" if in_memory else "out_proj"),
        *decoder_cross,
        *(
            entry
            for theirs, (ours, norms) in names.items()
            for mine, other in (
                *((f"mlp.fc{n}", f"{mlp}fc{n}") for n in (1, 2)),
                *((f"norm{n}", norm) for n, norm in enumerate(norms, 1)),
            )
            for entry in module(f"{ours}.{mine}", f"{theirs}.{other}")
        ),
    )


def hub_backbone(native: bool, in_memory: bool) -> tuple[Entry, ...]:
    """Entries of a ResNet below transformers' "model.", timm's or their own."""
    where = "backbone.model." if in_memory else "backbone.conv_encoder.model."
    return below(NATIVE if native else TORCHVISION, BACKBONE, where)


def _hub(native: bool, in_memory: bool) -> tuple[Entry, ...]:
    out = "o_proj" if in_memory else "out_proj"
    inner = (
        *hub_attention("encoder.{i}.attn", "encoder.layers.{i}.self_attn", out),
        *hub_layers(hub_attention("decoder.{i}.cross", "decoder.layers.{i}.encoder_attn", out), in_memory=in_memory),
        *module("norm", "decoder.layernorm"),
        *_projection("input_projection"),
        Entry("query_embed", ("query_position_embeddings.weight",)),
        *hub_backbone(native, in_memory),
    )
    heads = (*module("head", "class_labels_classifier"), *module("box_head.layers.{i}", "bbox_predictor.layers.{i}"))
    return (*with_prefix(inner, "model."), *heads)


def _masks(attention: str) -> tuple[Entry, ...]:
    """The head of masks under the authors' names; ``attention`` ends those of its two projections."""
    head = "mask_head"
    return (
        *(e for x in "qk" for e in module(f"{head}.maps.{x}", f"bbox_attention.{x}_{attention}")),
        *(
            entry
            for ours, n in ((f"{head}.first", "1"), (f"{head}.second", "2"), (f"{head}.refine.{{i}}", "{i+3}"))
            for part, theirs in (("conv", "lay"), ("norm", "gn"))
            for entry in module(f"{ours}.{part}", f"{head}.{theirs}{n}")
        ),
        *module(f"{head}.adapters.{{i}}", f"{head}.adapter{{i+1}}"),
        *module(f"{head}.out", f"{head}.out_lay"),
    )


def _masks_in_memory() -> tuple[Entry, ...]:
    head, stage = "mask_head", "mask_head.fpn_stages.{i}"
    places = ((f"{head}.first", f"{head}.conv1"), (f"{head}.second", f"{head}.conv2"))
    return (
        *(e for x in "qk" for e in module(f"{head}.maps.{x}", f"bbox_attention.{x}_proj")),
        *(
            entry
            for ours, theirs in (*places, (f"{head}.refine.{{i}}", f"{stage}.refine"))
            for part in ("conv", "norm")
            for entry in module(f"{ours}.{part}", f"{theirs}.{part}")
        ),
        *module(f"{head}.adapters.{{i}}", f"{stage}.fpn_adapter"),
        *module(f"{head}.out", f"{head}.output_conv"),
    )


BACKBONES = {False: "timm's ResNet", True: "their own ResNet"}
NAMES = {False: "Hub names", True: "names in memory"}
TRANSFORMERS = tuple(
    Table("transformers", f"transformers {kind} on {BACKBONES[native]} ({NAMES[in_memory]})", entries, head=HEAD)
    for native in (False, True)
    for in_memory in (False, True)
    for kind, entries in (
        ("DetrForObjectDetection", _hub(native, in_memory)),
        (
            "DetrForSegmentation",
            (
                *with_prefix(_hub(native, in_memory), "detr."),
                *(_masks_in_memory() if in_memory else _masks("linear")),
            ),
        ),
    )
)
ORIGINAL = (
    Table("original", "DETR .pth", _authors(), head=HEAD),
    Table("original", "DETR .pth with masks", (*with_prefix(_authors(), "detr."), *_masks("linear")), head=HEAD),
)


def own_names(*tables: Table) -> tuple[Entry, ...]:
    """Return an entry under our own name for every tensor the tables speak of, whatever the backbone."""
    pyramid = (f"backbone.pyramid.levels.{{i}}.{{j}}.{kind}" for kind in ("weight", "bias"))
    names = dict.fromkeys(e.ours for table in tables for e in table.entries if not e.ours.startswith(BACKBONE))
    return (*own_entries(BACKBONE), *(Entry(name, (name,)) for name in (*names, *pyramid)))


VITRAIL = Table("vitrail", "Vitrail", own_names(*ORIGINAL), head=HEAD)

TABLES: tuple[Table, ...] = (VITRAIL, *TRANSFORMERS, *ORIGINAL)
