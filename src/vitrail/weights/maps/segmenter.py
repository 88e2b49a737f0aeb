"""Tables for networks that segment: our own; transformers (UPerNet on Swin, SegFormer); the ``.pth`` of mmseg and mmcv.

Sources of the names: transformers 5 ``UperNetForSemanticSegmentation`` and ``SegformerForSemanticSegmentation`` (Hub
names and in-memory names); mmseg's ``UPerHead``, ``FCNHead`` and ``FPNHead`` with mmdet's ``FPN``, as the segmentation
code of Swin and PVT uses them; the authors' SegFormer.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitrail.weights.tables import CONCAT, Entry, Table, batch_norm, module

from .backbones import below, own_entries, tables_of
from .pvt import BLOCK, STAGE

BACKBONE = "backbone.backbone."
HEAD = ("head.*", "head_auxiliary.*")


def _conv_norm(ours: str, theirs: str, norm: str) -> tuple[Entry, ...]:
    return (Entry(f"{ours}.conv.weight", (f"{theirs}.conv.weight",)), *batch_norm(f"{ours}.norm", f"{theirs}.{norm}"))


def _upernet(norm: str, classifier: str) -> tuple[Entry, ...]:
    """The head and the auxiliary head; ``norm`` and ``classifier`` are how a library calls these parts."""
    head = "decode_head"
    return (
        *_conv_norm("decode.pooling.pooled.{i}", f"{head}.psp_modules.{{i}}.1", norm),
        *_conv_norm("decode.pooling.fuse", f"{head}.bottleneck", norm),
        *_conv_norm("decode.laterals.{i}", f"{head}.lateral_convs.{{i}}", norm),
        *_conv_norm("decode.outputs.{i}", f"{head}.fpn_convs.{{i}}", norm),
        *_conv_norm("decode.fuse", f"{head}.fpn_bottleneck", norm),
        *module("head", f"{head}.{classifier}"),
        *_conv_norm("auxiliary", "auxiliary_head.convs.0", norm),
        *module("head_auxiliary", f"auxiliary_head.{classifier}"),
    )


_FPN = (
    *module("decode.neck.laterals.{i}", "neck.lateral_convs.{i}.conv"),
    *module("decode.neck.outputs.{i}", "neck.fpn_convs.{i}.conv"),
    *_conv_norm("decode.branches.{i}.{j}", "decode_head.scale_heads.{i}.{j}", "bn"),
    *module("head", "decode_head.conv_seg"),
)


def _decoders() -> tuple[Entry, ...]:
    """Everything of ours but the backbone, once."""
    names = dict.fromkeys(e.ours for e in (*_upernet("", ""), *_FPN, *_SEGFORMER_HEAD))
    pyramid = (f"backbone.pyramid.levels.{{i}}.{{j}}.{kind}" for kind in ("weight", "bias"))
    return tuple(Entry(name, (name,)) for name in (*names, *pyramid))


def _segformer_head(projection: str) -> tuple[Entry, ...]:
    return (
        *module("decode.projections.{i}", f"decode_head.{projection}.{{i}}.proj"),
        Entry("decode.fuse.conv.weight", ("decode_head.linear_fuse.weight",)),
        *batch_norm("decode.fuse.norm", "decode_head.batch_norm"),
        *module("head", "decode_head.classifier"),
    )


_SEGFORMER_HEAD = _segformer_head("linear_c")
_SEGFORMER_AUTHORS = (
    *module("decode.projections.{i}", "decode_head.linear_c{i+1}.proj"),
    Entry("decode.fuse.conv.weight", ("decode_head.linear_fuse.conv.weight",)),
    *batch_norm("decode.fuse.norm", "decode_head.linear_fuse.bn"),
    *module("head", "decode_head.linear_pred"),
)


def _segformer_encoder(*, in_memory: bool) -> tuple[Entry, ...]:
    stage, block = "segformer.stages.{i}", "segformer.stages.{i}.blocks.{j}"
    qkv = tuple(f"{block}.attention.{x}_proj" for x in "qkv")
    reduce, proj = f"{block}.attention.sequence_reduction", f"{block}.attention.o_proj"
    names = ("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2", f"{stage}.patch_embeddings", "layer_norm")
    shrink, last = f"{reduce}.sequence_reduction", f"{stage}.layer_norm"
    if not in_memory:
        block = "segformer.encoder.block.{i}.{j}"
        qkv = tuple(f"{block}.attention.self.{x}" for x in ("query", "key", "value"))
        reduce, proj = f"{block}.attention.self", f"{block}.attention.output.dense"
        shrink, last = f"{reduce}.sr", "segformer.encoder.layer_norm.{i}"
        names = (
            "layer_norm_1",
            "layer_norm_2",
            "mlp.dense1",
            "mlp.dense2",
            "segformer.encoder.patch_embeddings.{i}",
            "",
        )
    before, after, fc1, fc2, patches, _ = names
    return (
        *module(f"{STAGE}.patch_embed.proj", f"{patches}.proj"),
        *module(f"{STAGE}.patch_embed.norm", f"{patches}.layer_norm"),
        *module(f"{BLOCK}.norm1", f"{block}.{before}"),
        *module(f"{BLOCK}.attn.qkv", *qkv, transform=CONCAT),
        *module(f"{BLOCK}.attn.proj", proj),
        *module(f"{BLOCK}.reduce.proj", shrink),
        *module(f"{BLOCK}.reduce.norm", f"{reduce}.layer_norm"),
        *module(f"{BLOCK}.norm2", f"{block}.{after}"),
        *module(f"{BLOCK}.mlp.fc1", f"{block}.{fc1}"),
        *module(f"{BLOCK}.mlp.dwconv", f"{block}.mlp.dwconv.dwconv"),
        *module(f"{BLOCK}.mlp.fc2", f"{block}.{fc2}"),
        *module(f"{STAGE}.norm", last),
    )


def _with_backbone(table: Table, title: str, heads: Sequence[Entry]) -> Table:
    """Return the table of a whole network: that of its backbone below ``backbone.``, and its heads."""
    entries = (*below(table.entries, BACKBONE, "backbone."), *heads)
    ignored = (*(f"backbone.{name}" for name in table.ignored), "*num_batches_tracked")
    return Table(table.layout, f"{title}, {table.title}", entries, ignored, head=HEAD)


_MM_UPERNET, _HF_UPERNET = _upernet("bn", "conv_seg"), _upernet("batch_norm", "classifier")

VITRAIL = Table("vitrail", "Vitrail", (*own_entries(BACKBONE), *_decoders()), head=HEAD)
UPERNET = tuple(
    _with_backbone(table, "transformers UperNetForSemanticSegmentation", _HF_UPERNET)
    for table in tables_of("swin")
    if "SwinBackbone" in table.title
)
SEGFORMER = tuple(
    Table(
        "transformers",
        f"transformers SegformerForSemanticSegmentation ({title})",
        (*below(_segformer_encoder(in_memory=memory), BACKBONE, ""), *_segformer_head(projection)),
        head=HEAD,
    )
    for memory, title, projection in (
        (False, "Hub names", "linear_c"),
        (True, "names in memory", "linear_projections"),
    )
)
MMSEG = tuple(
    _with_backbone(table, title, heads)
    for family in ("swin", "pvt", "pvt_v2")
    for table in tables_of(family)
    if table.layout == "original" and ("backbone" in table.title or family != "swin")
    for title, heads in (
        ("mmseg UPerHead", _MM_UPERNET),
        ("mmseg FPNHead", _FPN),
        ("SegFormer .pth", _SEGFORMER_AUTHORS),
    )
)

TABLES: tuple[Table, ...] = (VITRAIL, *UPERNET, *SEGFORMER, *MMSEG)
