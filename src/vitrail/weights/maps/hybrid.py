"""Tables for hybrids: timm (with stages, and with the stem alone), and Flax ``.npz``.

Sources of the names: timm 1.0 ``vision_transformer_hybrid``; google-research/vision_transformer. The transformer's part
is that of :mod:`vitrail.weights.maps.vit`.
"""

from __future__ import annotations

from vitrail.weights.tables import HWIO, Entry, Table, Transform, module, own_table

from .vit import BUFFERS, TIMM_ENTRIES, flax_entries

_NET = "patch_embed.backbone"
_BLOCK = f"{_NET}.stages.{{i}}.blocks.{{j}}"


def _moved(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The entries of a ViT, with the projection of patches where a hybrid has it."""
    return tuple(Entry(e.ours.replace("patch_embed.", "patch_embed.patches."), e.theirs, e.transform) for e in entries)


def _conv(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}.weight", (f"{theirs}.weight",))


def _timm(stem: str) -> tuple[Entry, ...]:
    """All names, with those of the stem below ``stem``."""
    return (
        *_moved(TIMM_ENTRIES),
        _conv(f"{_NET}.stem.conv", f"{stem}.conv"),
        *module(f"{_NET}.stem.norm", f"{stem}.norm"),
        *(_conv(f"{_BLOCK}.conv{n}", f"{_BLOCK}.conv{n}") for n in (1, 2, 3)),
        *(entry for n in (1, 2, 3) for entry in module(f"{_BLOCK}.norm{n}", f"{_BLOCK}.norm{n}")),
        _conv(f"{_BLOCK}.shortcut.conv", f"{_BLOCK}.downsample.conv"),
        *module(f"{_BLOCK}.shortcut.norm", f"{_BLOCK}.downsample.norm"),
    )


TIMM = Table("timm", "timm hybrid VisionTransformer", _timm(f"{_NET}.stem"), BUFFERS)
TIMM_STEM = Table("timm", "timm hybrid VisionTransformer (stem alone)", _timm(_NET), BUFFERS)
VITRAIL = own_table(TIMM.entries)

FLATTEN = Transform(  # old files hold (1, 1, 1, C)
    "flatten", lambda parts, n: parts[0].flatten(), lambda t, count, n: [t]
)


def _kernel(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}.weight", (f"{theirs}/kernel",), HWIO)


def _group_norm(ours: str, theirs: str) -> tuple[Entry, Entry]:
    return (
        Entry(f"{ours}.weight", (f"{theirs}/scale",), FLATTEN),
        Entry(f"{ours}.bias", (f"{theirs}/bias",), FLATTEN),
    )


_UNIT = "block{i+1}/unit{j+1}"
_VIT = flax_entries(
    "Transformer/encoderblock_{i}",
    attention=1,
    norm2=2,
    mlp=3,
    positions="Transformer/posembed_input/pos_embedding",
)
FLAX = Table(
    "original",
    "Flax .npz (vision_transformer, hybrid)",
    (
        *_moved(_VIT),
        _kernel(f"{_NET}.stem.conv", "conv_root"),
        *_group_norm(f"{_NET}.stem.norm", "gn_root"),
        *(_kernel(f"{_BLOCK}.conv{n}", f"{_UNIT}/conv{n}") for n in (1, 2, 3)),
        *(entry for n in (1, 2, 3) for entry in _group_norm(f"{_BLOCK}.norm{n}", f"{_UNIT}/gn{n}")),
        _kernel(f"{_BLOCK}.shortcut.conv", f"{_UNIT}/conv_proj"),
        *_group_norm(f"{_BLOCK}.shortcut.norm", f"{_UNIT}/gn_proj"),
    ),
    prefixes=("", "opt/target/"),
)

TABLES: tuple[Table, ...] = (VITRAIL, TIMM, TIMM_STEM, FLAX)
