"""Tables for BiT: timm, transformers, and the original ``.npz``.

Sources of the names: timm 1.0 ``ResNetV2``; transformers 5 ``BitForImageClassification``, ``BitModel``;
google-research/big_transfer, whose kernels are (h, w, in, out).
"""

from __future__ import annotations

from vitrail.weights.tables import HWIO, SQUEEZE_1X1, Entry, Table, Transform, module, own_table

HEAD = ("head.*",)

_BLOCK = "stages.{i}.blocks.{j}"


def _trunk(stem: str, block: str, norm: str) -> tuple[Entry, ...]:
    """All but the head, as timm and transformers name the parts of a block."""
    return (
        Entry("stem.weight", (f"{stem}.weight",)),
        *(Entry(f"{_BLOCK}.conv{n}.weight", (f"{block}.conv{n}.weight",)) for n in (1, 2, 3)),
        *(entry for n in (1, 2, 3) for entry in module(f"{_BLOCK}.norm{n}", f"{block}.norm{n}")),
        Entry(f"{_BLOCK}.project.weight", (f"{block}.downsample.conv.weight",)),
        *module("norm", norm),
    )


_TIMM_HEAD = (Entry("head.weight", ("head.fc.weight",), SQUEEZE_1X1), Entry("head.bias", ("head.fc.bias",)))
TIMM_ENTRIES = (*_trunk("stem.conv", _BLOCK, "norm"), *_TIMM_HEAD)
VITRAIL = own_table(TIMM_ENTRIES, HEAD)
TIMM = Table("timm", "timm ResNetV2", TIMM_ENTRIES, head=HEAD)


def _transformers(base: str) -> tuple[Entry, ...]:
    """Below the prefix ``base``: "bit." with a classifier, "" in ``BitModel``."""
    return _trunk(f"{base}embedder.convolution", f"{base}encoder.stages.{{i}}.layers.{{j}}", f"{base}norm")


TRANSFORMERS = (
    Table(
        "transformers",
        "transformers BitForImageClassification",
        (*_transformers("bit."), *module("head", "classifier.1")),
        head=HEAD,
    ),
    Table("transformers", "transformers BitModel", _transformers(""), head=HEAD),
)

HEAD_KERNEL = Transform(  # a convolution of one pixel (1, 1, in, out) is a linear layer (out, in)
    "a (1, 1, in, out) kernel", lambda parts, n: parts[0][0, 0].T, lambda t, count, n: [t.T[None, None]]
)


def _kernel(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}.weight", (f"{theirs}/standardized_conv2d/kernel",), HWIO)


def _group_norm(ours: str, theirs: str) -> tuple[Entry, Entry]:
    return Entry(f"{ours}.weight", (f"{theirs}/gamma",)), Entry(f"{ours}.bias", (f"{theirs}/beta",))


_UNIT = "resnet/block{i+1}/unit{j+1:02}"
ORIGINAL = Table(
    "original",
    "BiT .npz",
    (
        _kernel("stem", "resnet/root_block"),
        *(_kernel(f"{_BLOCK}.conv{n}", f"{_UNIT}/{letter}") for n, letter in enumerate("abc", 1)),
        *(
            entry
            for n, letter in enumerate("abc", 1)
            for entry in _group_norm(f"{_BLOCK}.norm{n}", f"{_UNIT}/{letter}/group_norm")
        ),
        _kernel(f"{_BLOCK}.project", f"{_UNIT}/a/proj"),
        *_group_norm("norm", "resnet/group_norm"),
        Entry("head.weight", ("resnet/head/conv2d/kernel",), HEAD_KERNEL),
        Entry("head.bias", ("resnet/head/conv2d/bias",)),
    ),
    head=HEAD,
)

TABLES: tuple[Table, ...] = (VITRAIL, TIMM, *TRANSFORMERS, ORIGINAL)
