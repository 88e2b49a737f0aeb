"""The folder of a model that reads text: like that of any other (folder.py), with ``tokenizer.json`` beside it.

``config.json``, ``model.safetensors`` (our names), ``tokenizer.json`` (that of the ``tokenizers`` library) and
``README.md``. It appears whole or not at all, and its hashes are checked when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from vitrail.errors import WeightsError
from vitrail.models import build, config_from_dict, config_to_dict

from . import configs
from .atomic import new_folder
from .cards import read_card
from .read import WEIGHTS, read_folder_tensors, read_json, sha256
from .source import to_folder

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TextCard:
    """What a model that reads text was made for.

    Attributes:
        name: model name.
        languages: from which to which it translates.
        max_tokens: tokens of a sentence it was trained with at most.
        beam: hypotheses that decoding keeps; 1 is greedy.
        length_penalty: alpha of ((5 + n) / 6) ** alpha, by which a hypothesis's log probability is divided.
        extra: tokens that a translation may be longer than its source.
        licence: SPDX-like name in lower case, or None if unknown.
        origin: who made the weights, from what.
    """

    name: str = ""
    languages: tuple[str, str] = ("source", "target")
    max_tokens: int = 256
    beam: int = 4
    length_penalty: float = 0.6
    extra: int = 50
    licence: str | None = None
    origin: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TextCard:
        """Read plain data; unknown keys are an error."""
        return read_card(cls, data)


@dataclass(frozen=True)
class TextFolder:
    """An opened folder; the weights are not read yet. ``tokenizer`` is the path of its ``tokenizer.json``."""

    path: Path
    name: str
    config: Any
    card: TextCard
    tokenizer: Path
    extra: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> nn.Module:
        """Return the network in train mode; :class:`WeightsError` if the files are not those that were written."""
        for name, digest in sha256(self.path / n for n in self.hashes).items():
            if digest != self.hashes[name]:
                raise WeightsError(
                    f"{self.path / name} is not the file that was saved: its SHA-256 differs from config.json."
                    " mend: copy the folder again, or use an earlier checkpoint."
                )
        model = build(self.config)
        model.load_state_dict(read_folder_tensors(self.path))
        return model


def is_text_folder(source: str | Path) -> bool:
    """Tell whether a folder (or a run's best weights) holds a model that reads text."""
    path = to_folder(source)
    return (path / TOKENIZER).is_file() and "vitrail" in read_json(path / "config.json")


def save_text_folder(
    path: str | Path, model: nn.Module, *, card: TextCard, tokenizer: str, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write ``model`` with the contents of its ``tokenizer.json``, replacing what is at ``path`` in one step."""
    from safetensors.torch import save_file

    config: Any = model.config
    with new_folder(Path(path)) as folder:
        tensors = {k: t.detach().cpu().contiguous().clone() for k, t in model.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        data = {
            "architecture": configs.name_of(config) or type(config).__name__,
            "vitrail": {
                "format_version": FORMAT_VERSION,
                "name": card.name,
                "config": config_to_dict(config),
                "card": asdict(card),
                "sha256": sha256((folder / WEIGHTS, folder / TOKENIZER)),
                "extra": dict(extra or {}),
            },
        }
        (folder / "config.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_readme(card, model), encoding="utf-8")
    return Path(path)


def open_text_folder(source: str | Path) -> TextFolder:
    """Open a folder that :func:`save_text_folder` wrote, or the run folder that holds it."""
    path = to_folder(source)
    data = read_json(path / "config.json")
    if not (path / TOKENIZER).is_file() or "vitrail" not in data:
        raise WeightsError(
            f"expected a folder of a model that reads text (config.json, model.safetensors, {TOKENIZER}), got {path}"
        )
    own = data["vitrail"]
    try:
        if own["format_version"] > FORMAT_VERSION:
            raise WeightsError(f"{path} has format {own['format_version']}; mend: update Vitrail.")
        config, card = config_from_dict(own["config"]), TextCard.from_json(own["card"])
        return TextFolder(path, own["name"], config, card, path / TOKENIZER, own.get("extra", {}), own["sha256"])
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path / 'config.json'} is damaged: {type(error).__name__}: {error}") from error


def _readme(card: TextCard, model: nn.Module) -> str:
    front = {
        "license": card.licence or "unknown",
        "library_name": "vitrail",
        "pipeline_tag": "translation",
        "language": list(card.languages),
        "tags": ["vitrail"],
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {card.name}",
        "",
        f"- Translates {card.languages[0]} to {card.languages[1]}, sentences of up to {card.max_tokens} tokens",
        f"- Parameters: {sum(p.numel() for p in model.parameters()):,}",
        f"- Decoding: beam {card.beam}, length penalty {card.length_penalty:g}",
        f"- Licence: {card.licence or 'unknown'}",
        f"- Origin: {card.origin or 'trained from scratch'}",
        "",
        "Made with Vitrail. Use it:",
        "",
        "```python",
        "import vitrail",
        'translator = vitrail.load("path/to/this/folder")',
        'print(translator("a sentence"))',
        "```",
        "",
    ]
    return "\n".join(lines)
