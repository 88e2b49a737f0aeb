"""Tables for ResNet: timm and torchvision's ``.pth`` (same names), transformers.

Sources of the names: timm 1.0 ``ResNet``; torchvision ``resnet50`` and its like; transformers 5
``ResNetForImageClassification``, ``ResNetModel``.
"""

from __future__ import annotations

from vitrail.weights.tables import Entry, Table, batch_norm, module, own_table

HEAD = ("head.*",)

_BLOCK = "stages.{i}.blocks.{j}"
_LAYER = "layer{i+1}.{j}"


def _conv(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}.weight", (f"{theirs}.weight",))


TORCHVISION_ENTRIES = (
    _conv("stem.conv", "conv1"),
    *batch_norm("stem.norm", "bn1"),
    *(_conv(f"{_BLOCK}.conv{n}", f"{_LAYER}.conv{n}") for n in (1, 2, 3)),
    *(entry for n in (1, 2, 3) for entry in batch_norm(f"{_BLOCK}.norm{n}", f"{_LAYER}.bn{n}")),
    _conv(f"{_BLOCK}.shortcut.conv", f"{_LAYER}.downsample.0"),
    *batch_norm(f"{_BLOCK}.shortcut.norm", f"{_LAYER}.downsample.1"),
    *module("head", "fc"),
)
VITRAIL = own_table(TORCHVISION_ENTRIES, HEAD)
TIMM = Table("timm", "timm ResNet", TORCHVISION_ENTRIES, head=HEAD)
TORCHVISION = Table("original", "torchvision ResNet .pth", TORCHVISION_ENTRIES, head=HEAD)


def _transformers(base: str) -> tuple[Entry, ...]:
    """Below the prefix ``base``: "resnet." with a classifier, "" in ``ResNetModel``."""
    layer = f"{base}encoder.stages.{{i}}.layers.{{j}}"
    places = [("stem.conv", "stem.norm", f"{base}embedder.embedder")]
    places += [(f"{_BLOCK}.shortcut.conv", f"{_BLOCK}.shortcut.norm", f"{layer}.shortcut")]
    places += [(f"{_BLOCK}.conv{n}", f"{_BLOCK}.norm{n}", f"{layer}.layer.{n - 1}") for n in (1, 2, 3)]
    entries: list[Entry] = []
    for conv, norm, theirs in places:
        entries += [_conv(conv, f"{theirs}.convolution"), *batch_norm(norm, f"{theirs}.normalization")]
    return tuple(entries)


TRANSFORMERS = (
    Table(
        "transformers",
        "transformers ResNetForImageClassification",
        (*_transformers("resnet."), *module("head", "classifier.1")),
        head=HEAD,
    ),
    Table("transformers", "transformers ResNetModel", _transformers(""), head=HEAD),
)

TABLES: tuple[Table, ...] = (VITRAIL, TIMM, *TRANSFORMERS, TORCHVISION)
