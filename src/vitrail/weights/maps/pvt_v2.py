"""Tables for PVT v2: timm; transformers (classifier, model and backbone); the original ``.pth`` and the backbones of
detection and segmentation files.

Sources of the names: timm 1.0 ``PyramidVisionTransformerV2``; transformers 5 ``PvtV2ForImageClassification``;
whai362/PVT, branch v2.
"""

from __future__ import annotations

from vitrail.weights.convert import CONCAT, Q_KV, Entry, Table, module, own_table

from .pvt import BLOCK, NOT_BACKBONE, STAGE


def _block(theirs: str, dwconv: str) -> tuple[Entry, ...]:
    """A block, as timm and the original name it; they differ in the name of the depthwise convolution."""
    return (
        *module(f"{BLOCK}.norm1", f"{theirs}.norm1"),
        *module(f"{BLOCK}.attn.qkv", f"{theirs}.attn.q", f"{theirs}.attn.kv", transform=Q_KV),
        *module(f"{BLOCK}.attn.proj", f"{theirs}.attn.proj"),
        *module(f"{BLOCK}.reduce.proj", f"{theirs}.attn.sr"),
        *module(f"{BLOCK}.reduce.norm", f"{theirs}.attn.norm"),
        *module(f"{BLOCK}.norm2", f"{theirs}.norm2"),
        *module(f"{BLOCK}.mlp.fc1", f"{theirs}.mlp.fc1"),
        *module(f"{BLOCK}.mlp.dwconv", f"{theirs}.mlp.{dwconv}"),
        *module(f"{BLOCK}.mlp.fc2", f"{theirs}.mlp.fc2"),
    )


TIMM_ENTRIES = (
    *(
        entry
        for part in ("proj", "norm")
        for entry in (
            *module(f"stages.0.patch_embed.{part}", f"patch_embed.{part}"),
            *module(f"{STAGE}.patch_embed.{part}", f"stages.{{i}}.downsample.{part}"),
        )
    ),
    *_block("stages.{i}.blocks.{j}", "dwconv"),
    *module(f"{STAGE}.norm", "stages.{i}.norm"),
    *module("head", "head"),
)
TIMM = Table("timm", "timm PyramidVisionTransformerV2", TIMM_ENTRIES)

ORIGINAL = Table(
    "original",
    "PVT v2 .pth",
    (
        *module(f"{STAGE}.patch_embed.proj", "patch_embed{i+1}.proj"),
        *module(f"{STAGE}.patch_embed.norm", "patch_embed{i+1}.norm"),
        *_block("block{i+1}.{j}", "dwconv.dwconv"),
        *module(f"{STAGE}.norm", "norm{i+1}"),
        *module("head", "head"),
    ),
    NOT_BACKBONE,
    prefixes=("", "backbone.", "module."),
)


def _transformers(base: str) -> tuple[Entry, ...]:
    """Everything but the classifier, below the prefix ``base`` ("pvt_v2." or "")."""
    stage = f"{base}encoder.layers.{{i}}"
    block = f"{stage}.blocks.{{j}}"
    attention = f"{block}.attention"
    qkv = [f"{attention}.{part}" for part in ("query", "key", "value")]
    return (
        *module(f"{STAGE}.patch_embed.proj", f"{stage}.patch_embedding.proj"),
        *module(f"{STAGE}.patch_embed.norm", f"{stage}.patch_embedding.layer_norm"),
        *module(f"{BLOCK}.norm1", f"{block}.layer_norm_1"),
        *module(f"{BLOCK}.attn.qkv", *qkv, transform=CONCAT),
        *module(f"{BLOCK}.attn.proj", f"{attention}.proj"),
        *module(f"{BLOCK}.reduce.proj", f"{attention}.spatial_reduction"),
        *module(f"{BLOCK}.reduce.norm", f"{attention}.layer_norm"),
        *module(f"{BLOCK}.norm2", f"{block}.layer_norm_2"),
        *module(f"{BLOCK}.mlp.fc1", f"{block}.mlp.dense1"),
        *module(f"{BLOCK}.mlp.dwconv", f"{block}.mlp.dwconv.dwconv"),
        *module(f"{BLOCK}.mlp.fc2", f"{block}.mlp.dense2"),
        *module(f"{STAGE}.norm", f"{stage}.layer_norm"),
    )


CLASSIFIER = Table(
    "transformers",
    "transformers PvtV2ForImageClassification",
    (*_transformers("pvt_v2."), *module("head", "classifier")),
)
BACKBONE = Table("transformers", "transformers PvtV2Model", _transformers(""))

TABLES: tuple[Table, ...] = (own_table(TIMM_ENTRIES), TIMM, CLASSIFIER, BACKBONE, ORIGINAL)
