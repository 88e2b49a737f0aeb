"""Tables for ViT: timm, transformers (Hub names and in-memory names), Flax ``.npz`` (old, new and scanned), DeiT III.

Sources of the names: timm 1.0 ``VisionTransformer``; transformers 5 ``ViTForImageClassification``, ``ViTModel``;
google-research/vision_transformer and big_vision ``.npz`` files; facebookresearch/deit ``models_v2``.
"""

from __future__ import annotations

from vitrail.weights.convert import CONCAT, HWIO, Q_KV, SAME, TRANSPOSE, Entry, Table, Transform, module

BUFFERS = ("*position_ids", "*num_batches_tracked", "*mask_token")
"""What files carry beside weights: index buffers, and the mask token of pre-training."""

# ---- timm, and our own names, which differ in the attention pool only

_SHARED = (
    Entry("cls_token", ("cls_token",)),
    Entry("pos_embed", ("pos_embed",)),
    *module("patch_embed.proj", "patch_embed.proj"),
    *(
        entry
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for entry in module(f"blocks.{{i}}.{part}", f"blocks.{{i}}.{part}")
    ),
    *module("norm", "norm"),
    *module("fc_norm", "fc_norm"),
    *module("head", "head"),
)
_SCALES = (
    Entry("blocks.{i}.ls1.gamma", ("blocks.{i}.ls1.gamma",)),
    Entry("blocks.{i}.ls2.gamma", ("blocks.{i}.ls2.gamma",)),
)
_POOL = (
    Entry("attn_pool.latent", ("attn_pool.latent",)),
    *(
        entry
        for ours, theirs in (
            ("attn.proj", "proj"),
            ("norm", "norm"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
        for entry in module(f"attn_pool.{ours}", f"attn_pool.{theirs}")
    ),
    *module("attn_pool.attn.qkv", "attn_pool.q", "attn_pool.kv", transform=Q_KV),
)

TIMM_ENTRIES = (*_SHARED, *_SCALES, *_POOL, *module("pre_logits.0", "pre_logits.fc"))
TIMM = Table("timm", "timm VisionTransformer", TIMM_ENTRIES, BUFFERS)

VITRAIL_ENTRIES = tuple(Entry(e.ours, (e.ours,)) for e in TIMM_ENTRIES)
VITRAIL = Table("vitrail", "Vitrail", VITRAIL_ENTRIES)

# facebookresearch/deit names LayerScale otherwise
DEIT3_ENTRIES = (
    *_SHARED,
    Entry("blocks.{i}.ls1.gamma", ("blocks.{i}.gamma_1",)),
    Entry("blocks.{i}.ls2.gamma", ("blocks.{i}.gamma_2",)),
)
DEIT3 = Table("original", "DeiT III .pth", DEIT3_ENTRIES, BUFFERS)

# ---- transformers


def transformers_entries(base: str, *, in_memory: bool) -> tuple[Entry, ...]:
    """Embeddings, blocks, final norm and pooler, below the prefix ``base`` ("vit.", "deit." or "")."""
    emb, layer = f"{base}embeddings", f"{base}layers.{{i}}" if in_memory else f"{base}encoder.layer.{{i}}"
    if in_memory:
        qkv = tuple(f"{layer}.attention.{x}_proj" for x in "qkv")
        proj, fc1, fc2 = f"{layer}.attention.o_proj", f"{layer}.mlp.fc1", f"{layer}.mlp.fc2"
    else:
        qkv = tuple(f"{layer}.attention.attention.{x}" for x in ("query", "key", "value"))
        proj, fc1, fc2 = f"{layer}.attention.output.dense", f"{layer}.intermediate.dense", f"{layer}.output.dense"
    return (
        Entry("cls_token", (f"{emb}.cls_token",)),
        Entry("dist_token", (f"{emb}.distillation_token",)),
        Entry("pos_embed", (f"{emb}.position_embeddings",)),
        *module("patch_embed.proj", f"{emb}.patch_embeddings.projection"),
        *module("blocks.{i}.norm1", f"{layer}.layernorm_before"),
        *module("blocks.{i}.norm2", f"{layer}.layernorm_after"),
        *module("blocks.{i}.attn.qkv", *qkv, transform=CONCAT),
        *module("blocks.{i}.attn.proj", proj),
        *module("blocks.{i}.mlp.fc1", fc1),
        *module("blocks.{i}.mlp.fc2", fc2),
        *module("norm", f"{base}layernorm"),
        *module("pre_logits.0", f"{base}pooler.dense"),
    )


_NAMES = {False: "Hub names", True: "names in memory"}
TRANSFORMERS = tuple(
    Table(
        "transformers",
        f"transformers ViT{'ForImageClassification' if base else 'Model'} ({_NAMES[in_memory]})",
        (*transformers_entries(base, in_memory=in_memory), *(module("head", "classifier") if base else ())),
        BUFFERS,
    )
    for in_memory in (False, True)
    for base in ("vit.", "")
)

# ---- Flax .npz: kernels are (in, out); q, k, v (C, H, D); out (H, D, C)

QKV_KERNEL = Transform(
    "three (width, heads, head width) kernels",
    lambda parts, n: CONCAT.to_ours([p.flatten(1).T for p in parts], n),
    lambda t, count, n: [p.T.reshape(p.shape[1], n["num_heads"], -1) for p in t.chunk(3)],
)
QKV_BIAS = Transform(
    "three (heads, head width) biases",
    lambda parts, n: CONCAT.to_ours([p.flatten() for p in parts], n),
    lambda t, count, n: [p.reshape(n["num_heads"], -1) for p in t.chunk(3)],
)
OUT_KERNEL = Transform(
    "a (heads, head width, width) kernel",
    lambda parts, n: parts[0].flatten(0, 1).T,
    lambda t, count, n: [t.T.reshape(n["num_heads"], -1, t.shape[0])],
)


def _dense(ours: str, theirs: str) -> tuple[Entry, Entry]:
    return Entry(f"{ours}.weight", (f"{theirs}/kernel",), TRANSPOSE), Entry(f"{ours}.bias", (f"{theirs}/bias",), SAME)


def _norm(ours: str, theirs: str) -> tuple[Entry, Entry]:
    return Entry(f"{ours}.weight", (f"{theirs}/scale",)), Entry(f"{ours}.bias", (f"{theirs}/bias",))


def _attention(ours: str, theirs: str) -> tuple[Entry, ...]:
    qkv = [f"{theirs}/{part}" for part in ("query", "key", "value")]
    return (
        Entry(f"{ours}.qkv.weight", tuple(f"{p}/kernel" for p in qkv), QKV_KERNEL),
        Entry(f"{ours}.qkv.bias", tuple(f"{p}/bias" for p in qkv), QKV_BIAS),
        Entry(f"{ours}.proj.weight", (f"{theirs}/out/kernel",), OUT_KERNEL),
        Entry(f"{ours}.proj.bias", (f"{theirs}/out/bias",)),
    )


def flax_entries(block: str, *, attention: int, norm2: int, mlp: int, positions: str) -> tuple[Entry, ...]:
    """The whole model; the numbers are those that Flax gave the modules of a block."""
    pool = "MAPHead_0"
    return (
        Entry("cls_token", ("cls",)),
        Entry("pos_embed", (positions,)),
        Entry("patch_embed.proj.weight", ("embedding/kernel",), HWIO),
        Entry("patch_embed.proj.bias", ("embedding/bias",)),
        *_norm("blocks.{i}.norm1", f"{block}/LayerNorm_0"),
        *_norm("blocks.{i}.norm2", f"{block}/LayerNorm_{norm2}"),
        *_attention("blocks.{i}.attn", f"{block}/MultiHeadDotProductAttention_{attention}"),
        *_dense("blocks.{i}.mlp.fc1", f"{block}/MlpBlock_{mlp}/Dense_0"),
        *_dense("blocks.{i}.mlp.fc2", f"{block}/MlpBlock_{mlp}/Dense_1"),
        *_norm("norm", "Transformer/encoder_norm"),
        Entry("attn_pool.latent", (f"{pool}/probe",)),
        *_attention("attn_pool.attn", f"{pool}/MultiHeadDotProductAttention_0"),
        *_norm("attn_pool.norm", f"{pool}/LayerNorm_0"),
        *_dense("attn_pool.mlp.fc1", f"{pool}/MlpBlock_0/Dense_0"),
        *_dense("attn_pool.mlp.fc2", f"{pool}/MlpBlock_0/Dense_1"),
        *_dense("pre_logits.0", "pre_logits"),
        *_dense("head", "head"),
    )


_EACH, _SCANNED = "Transformer/encoderblock_{i}", "Transformer/encoderblock"
_TRAINING_STATE = ("opt/*", "params/txt/*", "params/t", "params/b", "step", "extra/*")
FLAX = (
    Table(
        "original",
        "Flax .npz (vision_transformer)",
        flax_entries(_EACH, attention=1, norm2=2, mlp=3, positions="Transformer/posembed_input/pos_embedding"),
        _TRAINING_STATE,
        prefixes=("", "opt/target/"),
    ),
    *(
        Table(
            "original",
            f"Flax .npz (big_vision{', scanned' if block == _SCANNED else ''})",
            flax_entries(block, attention=0, norm2=1, mlp=0, positions="pos_embedding"),
            _TRAINING_STATE,
            prefixes=("", "params/", "params/img/"),
        )
        for block in (_EACH, _SCANNED)
    ),
)

TABLES: tuple[Table, ...] = (VITRAIL, TIMM, *TRANSFORMERS, *FLAX, DEIT3)
