"""Tables for Swin: timm, transformers (Hub names and in-memory names), the authors' ``.pth``; classifiers, backbones.

Sources of the names: timm 1.0 ``SwinTransformer``; transformers 5 ``SwinForImageClassification``, ``SwinModel``,
``SwinBackbone``, and the backbone in ``UperNetForSemanticSegmentation``; microsoft/Swin-Transformer, and its detection
and segmentation code (mmdet, mmseg). timm merges tokens at the start of a stage, as we do, the others at the end of the
one before.
"""

from __future__ import annotations

from vitrail.weights.tables import CONCAT, Entry, Table, module, own_table

BUFFERS = ("*relative_position_index", "*attn_mask")
"""What files carry beside weights: tables that follow from the window."""

HEAD = ("head.*", "stage_norms.*")
"""What a classifier's file need not hold for a backbone that starts from it."""

_BLOCK = "stages.{i}.blocks.{j}"
_TABLE = f"{_BLOCK}.attn.positions.table"


def _merge(theirs: str) -> tuple[Entry, ...]:
    merge = "stages.{i}.merge"
    return (
        *module(f"{merge}.norm", f"{theirs}.norm"),
        Entry(f"{merge}.reduction.weight", (f"{theirs}.reduction.weight",)),
    )


def _entries(merge: str) -> tuple[Entry, ...]:
    """Everything below the final norm, as timm and the authors name it; ``merge`` is where they merge tokens."""
    block = "layers.{i}.blocks.{j}"
    return (
        *module("patch_embed.proj", "patch_embed.proj"),
        *module("patch_embed.norm", "patch_embed.norm"),
        *(
            entry
            for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
            for entry in module(f"{_BLOCK}.{part}", f"{block}.{part}")
        ),
        Entry(_TABLE, (f"{block}.attn.relative_position_bias_table",)),
        *_merge(merge),
    )


_NORM = module("norm", "norm")
_TIMM = (
    *_entries("layers.{i}.downsample"),
    *_NORM,
    *module("head", "head.fc"),
    *module("stage_norms.{i}", "stage_norms.{i}"),  # timm has none: our name, in folders of ours
)
_AUTHORS = _entries("layers.{i-1}.downsample")

VITRAIL = own_table(_TIMM, HEAD)
TIMM = Table("timm", "timm SwinTransformer", _TIMM, BUFFERS, head=HEAD)
ORIGINAL = Table("original", "Swin .pth", (*_AUTHORS, *_NORM, *module("head", "head")), BUFFERS, head=HEAD)


def backbone_title(stages: int) -> str:
    """Return how titles of tables call a backbone with a norm after each of its stages."""
    return f"backbone of {stages} stages"


def _stage_norms(theirs: str, stages: int) -> tuple[Entry, ...]:
    """One norm a stage: the last is our final norm. ``theirs`` has ``{i}`` for the number of the stage."""
    last = theirs.replace("{i+1}", str(stages)).replace("{i}", str(stages - 1))
    return (*module("stage_norms.{i}", theirs), *module("norm", last))


_OTHER_PARTS = ("neck.*", "decode_head.*", "auxiliary_head.*", "rpn_head.*", "roi_head.*", "bbox_head.*", "mask_head.*")
_DETECTION = tuple(
    Table(
        "original",
        f"Swin {backbone_title(stages)} of mmdet and mmseg",
        (*_AUTHORS, *_stage_norms("norm{i}", stages)),
        (*BUFFERS, *_OTHER_PARTS),
        prefixes=("", "backbone."),
        head=("head.*",),
    )
    for stages in (4, 3)
)


def _transformers(base: str, *, in_memory: bool) -> tuple[Entry, ...]:
    """Everything below the final norm, under the prefix ``base`` ("swin." or "")."""
    emb, layers = f"{base}embeddings", f"{base}encoder.layers"
    block = f"{layers}.{{i}}.blocks.{{j}}"
    if in_memory:
        qkv = tuple(f"{block}.attention.{x}_proj" for x in "qkv")
        proj, table = f"{block}.attention.o_proj", f"{block}.attention.relative_position_bias"
        fc1, fc2 = f"{block}.mlp.fc1", f"{block}.mlp.fc2"
    else:
        qkv = tuple(f"{block}.attention.self.{x}" for x in ("query", "key", "value"))
        proj, table = f"{block}.attention.output.dense", f"{block}.attention.self"
        fc1, fc2 = f"{block}.intermediate.dense", f"{block}.output.dense"
    return (
        *module("patch_embed.proj", f"{emb}.patch_embeddings.projection"),
        *module("patch_embed.norm", f"{emb}.norm"),
        *module(f"{_BLOCK}.norm1", f"{block}.layernorm_before"),
        *module(f"{_BLOCK}.norm2", f"{block}.layernorm_after"),
        *module(f"{_BLOCK}.attn.qkv", *qkv, transform=CONCAT),
        *module(f"{_BLOCK}.attn.proj", proj),
        *module(f"{_BLOCK}.mlp.fc1", fc1),
        *module(f"{_BLOCK}.mlp.fc2", fc2),
        Entry(_TABLE, (f"{table}.relative_position_bias_table",)),
        *_merge(f"{layers}.{{i-1}}.downsample"),
    )


_NAMES = {False: "Hub names", True: "names in memory"}
_MASKED_IMAGES = ("*mask_token", "decoder.*")  # what pre-training on masked images leaves in a file
TRANSFORMERS = tuple(
    Table(
        "transformers",
        f"transformers Swin{'ForImageClassification' if base else 'Model'} ({_NAMES[in_memory]})",
        (
            *_transformers(base, in_memory=in_memory),
            *module("norm", f"{base}layernorm"),
            *(module("head", "classifier") if base else ()),
        ),
        (*BUFFERS, *_MASKED_IMAGES),
        head=HEAD,
    )
    for in_memory in (False, True)
    for base in ("swin.", "")
)
_BACKBONES = tuple(
    Table(
        "transformers",
        f"transformers SwinBackbone, {backbone_title(stages)} ({_NAMES[in_memory]})",
        (
            *_transformers("swin." if in_memory else "", in_memory=in_memory),
            *_stage_norms("hidden_states_norms.stage{i+1}", stages),
        ),
        (*BUFFERS, "swin.layernorm.*", *_OTHER_PARTS),
        prefixes=("", "backbone."),
        head=("head.*",),
    )
    for stages in (4, 3)
    for in_memory in (False, True)
)

TABLES: tuple[Table, ...] = (VITRAIL, TIMM, *TRANSFORMERS, ORIGINAL, *_BACKBONES, *_DETECTION)
