"""The strict two-way engine: a conversion is a table, and the table is the whole truth.

An :class:`Entry` says which of our tensors is made of which of theirs, and how; ``{i}`` and ``{j}`` in a name stand for
numbers, of a stage or a layer. The same table is read in both directions. Accounting is strict: every tensor of the
file is used exactly once or listed as ignorable, every tensor of the model is filled, every shape fits, every value is
finite. What does not add up is an error that names it. One thing is left out on both sides: how many batches a batch
norm has seen (``num_batches_tracked``), which no result depends on; it is written as zero where others expect it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrail.errors import WeightsError, did_you_mean

from .tables import (
    CONCAT,
    COUNTER,
    HWIO,
    Q_KV,
    SAME,
    SQUEEZE_1X1,
    TRANSPOSE,
    Entry,
    Numbers,
    Table,
    Transform,
    batch_norm,
    counted,
    matches,
    module,
    own_table,
    with_prefix,
)

__all__ = [
    "CONCAT",
    "COUNTER",
    "HWIO",
    "Q_KV",
    "SAME",
    "SQUEEZE_1X1",
    "TRANSPOSE",
    "Entry",
    "Numbers",
    "Table",
    "Transform",
    "batch_norm",
    "counted",
    "matches",
    "module",
    "own_table",
    "with_prefix",
]


@dataclass(frozen=True)
class Job:
    """One entry with its numbers filled in: ``ours`` holds all layers when the entry is stacked."""

    entry: Entry
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


@dataclass
class Plan:
    """What a table makes of a model's tensors, and of a file's."""

    table: Table
    prefix: str
    jobs: list[Job]
    unmapped: list[str]  # ours the table has no entry for
    missing: list[str] = field(default_factory=list)  # theirs the file lacks
    unexpected: list[str] = field(default_factory=list)  # theirs nobody asked for
    ignored: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return len(self.unmapped) + len(self.missing) + len(self.unexpected)


def plan(table: Table, ours: Iterable[str], prefix: str | None = None) -> Plan:
    """Fill a table's numbers in from the names of a model's tensors."""
    prefix = table.prefixes[0] if prefix is None else prefix
    jobs, unmapped = [], []
    layers: dict[Entry, dict[int, str]] = {}
    for name in ours:
        hit = None if counted(name) else table.entry_of(name)
        if hit is None:
            unmapped += [] if counted(name) else [name]
        elif hit[0].stacked:
            layers.setdefault(hit[0], {})[hit[1]["i"]] = name
        else:
            entry, numbers = hit
            jobs.append(Job(entry, (name,), tuple(prefix + t for t in entry.fill(numbers))))
    for entry, names in layers.items():
        ordered = tuple(names[i] for i in sorted(names))
        jobs.append(Job(entry, ordered, tuple(prefix + t for t in entry.theirs)))
    return Plan(table, prefix, jobs, unmapped)


def account(plan: Plan, theirs: Iterable[str]) -> Plan:
    """Compare a plan with the names in a file: fills ``missing``, ``unexpected`` and ``ignored``."""
    present = dict.fromkeys(name for name in theirs if not counted(name))
    wanted = {name for job in plan.jobs for name in job.theirs}
    plan.missing = sorted(wanted - present.keys())
    for name in present:
        if name not in wanted:
            outside = [name] if not plan.prefix else [name, name.removeprefix(plan.prefix)]
            known = any(matches(n, plan.table.ignored) for n in outside)
            (plan.ignored if known else plan.unexpected).append(name)
    return plan


def detect(tables: Sequence[Table], ours: Iterable[str], theirs: Iterable[str]) -> Plan:
    """Return the plan of the table that fits the names best; its ``faults`` say how well."""
    ours, theirs = list(ours), list(theirs)
    plans = [account(plan(t, ours, p), theirs) for t in tables for p in t.prefixes]
    return min(plans, key=lambda p: p.faults)


def excuse_head(found: Plan, *, model_has_head: bool, new_head: bool) -> list[str]:
    """Take the classifier out of the account where it may differ, and return our names left unfilled.

    A file's classifier is dropped if the model has none or a new one was asked for; a classifier the file lacks may
    be new only if that was asked for.
    """
    heads = [e for e in found.table.entries if matches(e.ours, found.table.head)]
    head_names = {found.prefix + t for e in heads for t in e.theirs}
    if new_head or not model_has_head:
        dropped = [n for n in found.unexpected if n in head_names]
        found.unexpected = [n for n in found.unexpected if n not in head_names]
        found.ignored += dropped
    if not new_head:
        return []
    lacking = [j for j in found.jobs if j.entry in heads and any(t in found.missing for t in j.theirs)]
    gone = {t for j in lacking for t in j.theirs}
    found.ignored += sorted(gone - set(found.missing))
    found.missing = [n for n in found.missing if n not in gone]
    found.jobs = [j for j in found.jobs if j not in lacking]
    unnamed = [n for n in found.unmapped if matches(n, found.table.head)]
    found.unmapped = [n for n in found.unmapped if n not in unnamed]
    return [name for j in lacking for name in j.ours] + unnamed


def excuse_parts(found: Plan, parts: Sequence[str]) -> None:
    """Take parts out of the account that were taken out of the model, such as a final norm that no map reads."""
    gone = {found.prefix + t for e in found.table.entries if e.ours.partition(".")[0] in parts for t in e.theirs}
    found.ignored += [n for n in found.unexpected if n in gone]
    found.unexpected = [n for n in found.unexpected if n not in gone]


def excuse_lacking(found: Plan, names: Sequence[str]) -> list[str]:
    """Take those of ``names`` (ours) that the file lacks out of the account; returns them."""
    lacking = [j for j in found.jobs if j.ours[0] in names and set(j.theirs) <= set(found.missing)]
    gone = {t for j in lacking for t in j.theirs}
    unnamed = [n for n in found.unmapped if n in names]
    found.missing = [n for n in found.missing if n not in gone]
    found.jobs = [j for j in found.jobs if j not in lacking]
    found.unmapped = [n for n in found.unmapped if n not in unnamed]
    return [name for j in lacking for name in j.ours] + unnamed


def to_ours(found: Plan, tensors: Mapping[str, Tensor], numbers: Numbers) -> dict[str, Tensor]:
    """Run a plan from their tensors to ours. Raises :class:`WeightsError` on a tensor that cannot be reshaped."""
    out: dict[str, Tensor] = {}
    for job in found.jobs:
        parts = [tensors[name] for name in job.theirs]
        if job.entry.stacked:
            _require_layers(job, parts)
            out |= {name: _make(job, [p[i] for p in parts], numbers) for i, name in enumerate(job.ours)}
        else:
            out[job.ours[0]] = _make(job, parts, numbers)
    return out


def to_theirs(table: Table, tensors: Mapping[str, Tensor], numbers: Numbers) -> dict[str, Tensor]:
    """Run a table from our tensors to theirs. Raises :class:`WeightsError` if it has no name for one of ours."""
    made = plan(table, tensors)
    if made.unmapped:
        raise WeightsError(
            f"{table.title} has no place for {_some(made.unmapped)}, so this model cannot be written in that layout."
            " mend: export it in the 'timm' layout."
        )
    out: dict[str, Tensor] = {}
    for job in made.jobs:
        entry = job.entry
        layers = [entry.transform.to_theirs(tensors[name], len(job.theirs), numbers) for name in job.ours]
        for k, name in enumerate(job.theirs):
            out[name] = (torch.stack([x[k] for x in layers]) if entry.stacked else layers[0][k]).contiguous()
    seen = [name.removesuffix("running_mean") + COUNTER for name in out if name.endswith(".running_mean")]
    return out | {name: torch.zeros((), dtype=torch.int64) for name in seen}


def _require_layers(job: Job, parts: Sequence[Tensor]) -> None:
    for name, part in zip(job.theirs, parts, strict=True):
        if part.ndim == 0 or part.shape[0] != len(job.ours):
            raise WeightsError(
                f"expected {name} to stack {len(job.ours)} layers along its first axis, got shape {tuple(part.shape)}."
                " mend: create the model with the depth of the file."
            )


def _make(job: Job, parts: Sequence[Tensor], numbers: Numbers) -> Tensor:
    try:
        return job.entry.transform.to_ours(parts, numbers)
    except WeightsError:
        raise  # it says itself what is wrong
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{n} {tuple(p.shape)}" for n, p in zip(job.theirs, parts, strict=True))
        raise WeightsError(
            f"cannot make {job.ours[0]} from {shapes}: its shape is not what {job.entry.transform.name!r} expects."
            " mend: the file is of another model or damaged."
        ) from error


def require_complete(found: Plan, what: str, hint: str = "") -> None:
    """Raise one short :class:`WeightsError` unless every name adds up; ``hint`` says what the file would fit."""
    if not found.faults:
        return
    used = sum(len(j.theirs) for j in found.jobs) - len(found.missing)
    lines = [
        f"{what} does not fit this model. Nearest layout: {found.table.title} ({used} names fit,"
        f" {len(found.missing) + len(found.unmapped)} missing, {len(found.unexpected)} unexpected)."
    ]
    if found.missing or found.unmapped:
        lines.append(f"  missing: {_some([*found.missing, *found.unmapped])}")
    if found.unexpected:
        first = found.unexpected[0]
        lines.append(f"  unexpected: {_some(found.unexpected)}.{did_you_mean(first, found.missing)}")
    family = looks_like(found.unexpected)
    look = f"this looks like a {family} checkpoint. " if family else ""
    lines.append(f"  mend: {look}{hint or 'create the model the file was made with (`vitrail models` lists them).'}")
    raise WeightsError("\n".join(lines))


def require_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], what: str, hint: str = "") -> None:
    """Raise :class:`WeightsError` naming the first tensors whose shape is not the model's."""
    wrong = [
        f"{name}: expected {tuple(wanted[name])}, got {tuple(t.shape)}"
        for name, t in tensors.items()
        if t.shape != wanted[name]
    ]
    if wrong:
        raise WeightsError(
            f"{what} has the names of this model but not its shapes ({len(wrong)} of {len(tensors)} differ):\n  "
            + "\n  ".join(wrong[:4])
            + f"\n  mend: {hint or 'create the model with the sizes of the file.'}"
        )


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise :class:`WeightsError` if a tensor is not of floating point or holds NaN or infinity."""
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise WeightsError(f"expected floating-point weights in {what}, got {t.dtype} for {name}.")
        if not bool(torch.isfinite(t).all()):
            raise WeightsError(
                f"{what} holds NaN or infinity in {name}. mend: the file is damaged or its training diverged;"
                " use an earlier checkpoint."
            )


_SIGNATURES = {  # part of a name -> the family that has it
    "relative_position_bias_table": "Swin",
    "patch_embeds.": "PVT",
    "patch_embed1.": "PVT",
    "image_encoder.": "SAM",
    "visual.transformer.": "CLIP",
    "vision_model.": "CLIP",
    "text_model.": "CLIP",
    "decoder_blocks.": "masked autoencoder (MAE)",
    "class_embed.": "DETR",
    "layers.0.residual_group": "SwinIR",
    "wpe": "image GPT",
    "gn_root": "hybrid ViT",
    "patch_embed.backbone.": "hybrid ViT",
    "standardized_conv2d": "BiT (ResNet v2)",
    "layer1.0.conv1": "ResNet",
    "dist_token": "distilled DeiT",
    "distillation_token": "distilled DeiT",
    "reg_token": "ViT with register tokens",
    "embeddings.cls_token": "ViT (transformers)",
    "Transformer/encoderblock": "ViT (Flax)",
    "blocks.0.attn.qkv": "ViT",
}


def looks_like(names: Iterable[str]) -> str | None:
    """Name the family whose tell-tale tensor names occur, or None."""
    names = list(names)
    return next((family for part, family in _SIGNATURES.items() if any(part in n for n in names)), None)


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
