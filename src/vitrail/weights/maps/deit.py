"""Tables for the distilled DeiT: timm and the original ``.pth`` (same names), transformers' class with both heads.

Plain DeiT and DeiT III are ViTs: see :mod:`vitrail.weights.maps.vit`.
"""

from __future__ import annotations

from vitrail.weights.convert import Entry, Table, module

from .vit import BUFFERS, TIMM_ENTRIES, VITRAIL_ENTRIES, transformers_entries

_EXTRA = (Entry("dist_token", ("dist_token",)), *module("head_dist", "head_dist"))

VITRAIL = Table("vitrail", "Vitrail", (*VITRAIL_ENTRIES, *_EXTRA))
TIMM = Table("timm", "timm VisionTransformerDistilled", (*TIMM_ENTRIES, *_EXTRA), BUFFERS)
ORIGINAL = Table("original", "distilled DeiT .pth", (*TIMM_ENTRIES, *_EXTRA), BUFFERS)

_HEADS = (*module("head", "cls_classifier"), *module("head_dist", "distillation_classifier"))
TRANSFORMERS = tuple(
    Table(
        "transformers",
        f"transformers DeiT{'ForImageClassificationWithTeacher' if base else 'Model'}"
        f" ({'names in memory' if in_memory else 'Hub names'})",
        (*transformers_entries(base, in_memory=in_memory), *(_HEADS if base else ())),
        BUFFERS,
    )
    for in_memory in (False, True)
    for base in ("deit.", "")
)

TABLES: tuple[Table, ...] = (VITRAIL, TIMM, *TRANSFORMERS, ORIGINAL)
