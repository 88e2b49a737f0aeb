"""Vitrail's folder of weights, which others can read, and theirs, which we can read.

``config.json`` (timm's form, with our own part under "vitrail"), ``model.safetensors`` (timm's names, where timm has
the family), ``preprocessor_config.json`` (transformers' form), ``README.md`` (the model card) and ``classes.json``. A
folder appears whole or not at all; hashes of the weights and the classes are checked when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.errors import VitrailError, WeightsError
from vitrail.models import build, config_from_dict, config_to_dict, configure, reads_text

from . import configs
from .atomic import new_folder
from .cards import SINGLE_LABEL, Card
from .families import family_of
from .preprocess import read_preprocessor, write_preprocessor
from .read import WEIGHTS, read_folder_shapes, read_folder_tensors, read_json, sha256
from .readme import model_card
from .source import to_folder

FORMAT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a format version to the function that turns its "vitrail" part into that of the next."""


@dataclass(frozen=True)
class Folder:
    """An opened folder; the weights are not read yet.

    Attributes:
        path: where it is.
        made_by: "vitrail", "timm" or "transformers".
        name: model name, "" if its sizes are of no variant.
        config: our config of its model.
        card: what the weights ask of images, and where they come from.
        classes: the class map, if the folder has one.
        extra: what the maker put beside it (Vitrail folders).
        hashes: file name -> SHA-256 (Vitrail folders).
        notes: sentences to show to the user.
    """

    path: Path
    made_by: str
    name: str
    config: Any
    card: Card
    classes: ClassMap | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Read the weights; :class:`WeightsError` if they are not those that were written."""
        for name, digest in sha256(self.path / n for n in self.hashes if (self.path / n).is_file()).items():
            if digest != self.hashes[name]:
                raise WeightsError(
                    f"{self.path / name} is not the file that was saved: its SHA-256 differs from config.json."
                    " mend: copy the folder again, or use an earlier checkpoint."
                )
        more = family_of(self.config).beside(self.path) if self.made_by == "transformers" else {}
        return {**read_folder_tensors(self.path), **more}


def save_folder(
    path: str | Path,
    model: nn.Module,
    *,
    card: Card,
    classes: ClassMap | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``model`` as a Vitrail folder, replacing what is at ``path`` in one step; returns the path.

    Args:
        path: folder to make.
        model: a model of ``vitrail.models``.
        card: what the weights ask of images; its ``num_classes`` and ``numerics`` are set from the model.
        classes: the class map; its length must be the model's class count.
        extra: JSON data to keep beside the model, such as the metrics it reached.

    Raises:
        WeightsError: the class map does not fit the model.
    """
    from safetensors.torch import save_file

    from .load import export_weights

    config: Any = model.config
    if classes is not None and len(classes) != config.num_classes:
        raise WeightsError(f"expected a class map of {config.num_classes} classes, got {len(classes)}")
    family = family_of(config)
    card = replace(card, num_classes=config.num_classes, numerics=family.numerics(config))
    tensors = {k: t.cpu().contiguous().clone() for k, t in export_weights(model, family.stored_layout).items()}
    with new_folder(Path(path)) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if classes is not None:
            _write_json(folder / "classes.json", classes.to_json())
        hashes = sha256(p for p in (folder / WEIGHTS, folder / "classes.json") if p.exists())
        data = _config_json(model, card, classes, hashes, dict(extra or {}))
        _write_json(folder / "config.json", data)
        _write_json(folder / "preprocessor_config.json", write_preprocessor(card) | family.preprocessor(model))
        (folder / "README.md").write_text(model_card(card, config, classes), encoding="utf-8")
    return Path(path)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config_json(
    model: Any, card: Card, classes: ClassMap | None, hashes: Mapping[str, str], extra: dict[str, Any]
) -> dict[str, Any]:
    config, family = model.config, family_of(model.config)
    named, _, tag = card.name.partition(".")
    name = named if configs.is_variant(named, config) else configs.name_of(config)
    architecture, arguments = configs.to_timm(name, config)
    look = {
        "tag": tag or None,
        "custom_load": False,
        "input_size": [config.in_chans, *card.input_size],
        "fixed_input_size": family.fixed_input_size,
        "interpolation": card.interpolation,
        "crop_pct": card.crop_pct,
        "crop_mode": card.crop_mode,
        "mean": list(card.mean),
        "std": list(card.std),
        "num_classes": config.num_classes,
        "pool_size": None,
        "first_conv": family.first_conv,
        "classifier": family.classifier,
        "license": card.licence,
    }
    data: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        **({"problem_type": card.problem_type} if card.multi_label else {}),
        "num_features": family.num_features(model),
        "model_args": arguments,
        "pretrained_cfg": {k: v for k, v in look.items() if v is not None or k == "pool_size"},
    }
    if classes is not None:
        data["label_names"] = list(classes.names)
    data["vitrail"] = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "config": config_to_dict(config),
        "card": card.to_json(),
        "sha256": dict(hashes),
        "extra": extra,
    }
    return data


def open_folder(source: str | Path) -> Folder:
    """Open a folder of Vitrail, timm or transformers, a run folder, or a hub id, without reading its weights.

    Raises :class:`WeightsError` if it is none of these, or of a model that Vitrail lacks.
    """
    path = to_folder(source)
    data = read_json(path / "config.json")
    if "vitrail" in data and (path / "tokenizer.json").is_file():
        raise WeightsError(f"expected a model that reads images, got {path}, which translates text")
    try:
        if "vitrail" in data:
            folder = _open_vitrail(path, data)
        elif "architecture" in data:
            folder = _open_timm(path, data)
        elif "model_type" in data:
            folder = _open_transformers(path, data)
        else:
            raise WeightsError(f"{path / 'config.json'} is of no library Vitrail knows (vitrail, timm, transformers).")
    except VitrailError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path / 'config.json'} is damaged: {type(error).__name__}: {error}") from error
    return _with_origin(folder, str(source), data)


def _with_origin(folder: Folder, source: str, data: Mapping[str, Any]) -> Folder:
    """Add what the place it came from tells: hub id and commit, and that remote code was left alone."""
    from .hub import is_hub_id, repository_of

    notes = list(folder.notes)
    if "auto_map" in data:
        notes.append("config.json names code of its own (auto_map); it was ignored, Vitrail never runs remote code")
    card = folder.card
    if is_hub_id(source):
        card = replace(card, hub_id=repository_of(source), revision=folder.path.name)
    return replace(folder, card=card, notes=tuple(notes))


def _open_vitrail(path: Path, data: Mapping[str, Any]) -> Folder:
    own = dict(data["vitrail"])
    version = own["format_version"]
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format {version}; this Vitrail reads up to {FORMAT_VERSION}. mend: update Vitrail."
        )
    while version < FORMAT_VERSION:
        own = MIGRATIONS[version](own)
        version += 1
    classes = ClassMap.from_json(read_json(path / "classes.json")) if (path / "classes.json").exists() else None
    return Folder(
        path=path,
        made_by="vitrail",
        name=own["name"],
        config=config_from_dict(own["config"]),
        card=Card.from_json(own["card"]),
        classes=classes,
        extra=own.get("extra", {}),
        hashes=own["sha256"],
    )


def _open_timm(path: Path, data: Mapping[str, Any]) -> Folder:
    config = configs.from_timm(data, read_folder_shapes(path))
    look = data.get("pretrained_cfg") or data
    name, tag = str(data["architecture"]), look.get("tag")
    card = Card(
        name=f"{name}.{tag}" if tag else name,
        input_size=config.img_size,
        mean=tuple(look.get("mean", (0.5,) * 3)),
        std=tuple(look.get("std", (0.5,) * 3)),
        interpolation=look.get("interpolation", "bicubic"),
        crop_pct=look.get("crop_pct", 0.875),
        crop_mode="squash" if look.get("crop_mode") == "squash" else "center",
        num_classes=config.num_classes,
        licence=look.get("license"),
        problem_type=data.get("problem_type") or SINGLE_LABEL,
        origin=look.get("origin_url"),
        numerics=family_of(config).numerics(config),
    )
    return Folder(path, "timm", configs.name_of(config), config, card, _timm_classes(data, config.num_classes))


def _timm_classes(data: Mapping[str, Any], count: int) -> ClassMap | None:
    ids = data.get("label_names") or (data.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(ids, Mapping):
        ids = [ids[str(i)] for i in range(count)]
    if not ids or len(ids) != count:
        return None
    said = data.get("label_descriptions") or {}
    return ClassMap(tuple(str(said.get(i, i)) for i in ids), tuple(ids))


def _open_transformers(path: Path, data: Mapping[str, Any]) -> Folder:
    config = configs.from_transformers(data, read_folder_shapes(path))
    name = configs.name_of(config)
    if reads_text(config):
        made = Card(name=name, origin=data.get("_name_or_path") or None, numerics=family_of(config).numerics(config))
        return Folder(path, "transformers", name, config, made)
    card = Card(
        name=name,
        input_size=config.img_size,
        interpolation="bilinear",
        crop_mode="squash",
        num_classes=config.num_classes,
        origin=data.get("_name_or_path") or None,
        problem_type=data.get("problem_type") or SINGLE_LABEL,
        numerics=family_of(config).numerics(config),
    )
    notes: tuple[str, ...] = ()
    if (path / "preprocessor_config.json").exists():
        card = read_preprocessor(read_json(path / "preprocessor_config.json"), card)
    else:
        notes = ("no preprocessor_config.json: mean and std 0.5 were assumed",)
    labels = data.get("id2label") or {}
    names = [str(labels.get(str(i), labels.get(i, f"LABEL_{i}"))) for i in range(config.num_classes)]
    told = bool(names) and not all(n == f"LABEL_{i}" for i, n in enumerate(names))
    ids: tuple[str | int, ...] = tuple(names) if len(set(names)) == len(names) else tuple(range(len(names)))
    classes = ClassMap(tuple(names), ids) if told else None
    return Folder(path, "transformers", name, config, card, classes, notes=notes)


def load_folder(source: str | Path, **overrides: Any) -> tuple[nn.Module, Card, ClassMap | None]:
    """Return (model in train mode, card, class map) of anything :func:`open_folder` opens.

    ``overrides`` are fields of the model's config, as in ``create_model``; another ``num_classes`` starts a new head
    and leaves the class map out.
    """
    from .load import load_into

    folder = open_folder(source)
    config = configure(folder.config, overrides)
    model = build(config)
    load_into(model, folder, new_head="num_classes" in overrides)
    if reads_text(config):
        return model, folder.card, None
    same = config.num_classes == folder.config.num_classes
    size = config.img_size if "img_size" in overrides else folder.card.input_size
    thresholds = folder.card.thresholds if same else None
    card = replace(folder.card, num_classes=config.num_classes, input_size=size, thresholds=thresholds)
    return model, card, folder.classes if same else None


load_model = load_folder
