"""Tables for PVT v1: the original ``.pth`` and the backbones of detection and segmentation files; transformers.

Sources of the names: whai362/PVT, branch v2, classification and detection; transformers 5
``PvtForImageClassification``. timm has no PVT v1.
"""

from __future__ import annotations

from vitrail.weights.convert import CONCAT, Q_KV, Entry, Table, module, own_table

STAGE, BLOCK = "stages.{i}", "stages.{i}.blocks.{j}"
NOT_BACKBONE = ("neck.*", "bbox_head.*", "rpn_head.*", "roi_head.*", "mask_head.*", "decode_head.*", "auxiliary_head.*")
"""What a detector or a segmenter holds beside its backbone."""


ORIGINAL_ENTRIES = (
    *module(f"{STAGE}.patch_embed.proj", "patch_embed{i+1}.proj"),
    *module(f"{STAGE}.patch_embed.norm", "patch_embed{i+1}.norm"),
    Entry(f"{STAGE}.pos_embed", ("pos_embed{i+1}",)),
    *module(f"{BLOCK}.norm1", "block{i+1}.{j}.norm1"),
    *module(f"{BLOCK}.attn.qkv", "block{i+1}.{j}.attn.q", "block{i+1}.{j}.attn.kv", transform=Q_KV),
    *module(f"{BLOCK}.attn.proj", "block{i+1}.{j}.attn.proj"),
    *module(f"{BLOCK}.reduce.proj", "block{i+1}.{j}.attn.sr"),
    *module(f"{BLOCK}.reduce.norm", "block{i+1}.{j}.attn.norm"),
    *module(f"{BLOCK}.norm2", "block{i+1}.{j}.norm2"),
    *module(f"{BLOCK}.mlp.fc1", "block{i+1}.{j}.mlp.fc1"),
    *module(f"{BLOCK}.mlp.fc2", "block{i+1}.{j}.mlp.fc2"),
    Entry("cls_token", ("cls_token",)),
    *module("norm", "norm"),
    *module("head", "head"),
)
ORIGINAL = Table(
    "original",
    "PVT .pth",
    ORIGINAL_ENTRIES,
    (*NOT_BACKBONE, "cls_token", "norm.weight", "norm.bias"),  # a dense head's backbone has neither
    prefixes=("", "backbone.", "module."),
)


def _transformers(base: str) -> tuple[Entry, ...]:
    """Everything but the classifier, below the prefix ``base`` ("pvt." or "")."""
    embed, block = f"{base}encoder.patch_embeddings.{{i}}", f"{base}encoder.block.{{i}}.{{j}}"
    attention = f"{block}.attention.self"
    qkv = [f"{attention}.{part}" for part in ("query", "key", "value")]
    return (
        *module(f"{STAGE}.patch_embed.proj", f"{embed}.projection"),
        *module(f"{STAGE}.patch_embed.norm", f"{embed}.layer_norm"),
        Entry(f"{STAGE}.pos_embed", (f"{embed}.position_embeddings",)),
        *module(f"{BLOCK}.norm1", f"{block}.layer_norm_1"),
        *module(f"{BLOCK}.attn.qkv", *qkv, transform=CONCAT),
        *module(f"{BLOCK}.attn.proj", f"{block}.attention.output.dense"),
        *module(f"{BLOCK}.reduce.proj", f"{attention}.sequence_reduction"),
        *module(f"{BLOCK}.reduce.norm", f"{attention}.layer_norm"),
        *module(f"{BLOCK}.norm2", f"{block}.layer_norm_2"),
        *module(f"{BLOCK}.mlp.fc1", f"{block}.mlp.dense1"),
        *module(f"{BLOCK}.mlp.fc2", f"{block}.mlp.dense2"),
        Entry("cls_token", (f"{base}encoder.patch_embeddings.3.cls_token",)),
        *module("norm", f"{base}encoder.layer_norm"),
    )


TRANSFORMERS = tuple(
    Table(
        "transformers",
        f"transformers Pvt{'ForImageClassification' if base else 'Model'}",
        (*_transformers(base), *(module("head", "classifier") if base else ())),
    )
    for base in ("pvt.", "")
)

TABLES: tuple[Table, ...] = (own_table(ORIGINAL_ENTRIES), *TRANSFORMERS, ORIGINAL)
