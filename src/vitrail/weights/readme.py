"""The model card: README.md with the YAML front matter that the hub reads."""

from __future__ import annotations

from typing import Any

import yaml

from vitrail.classes import ClassMap
from vitrail.models import answers

from .cards import Card
from .families import family_of

PIPELINES = {"boxes": "object-detection", "masks": "image-segmentation", "pictures": "image-to-image"}
"""What a model answers -> the task's name on the hub."""


def model_card(card: Card, config: Any, classes: ClassMap | None) -> str:
    """Return the text of README.md."""
    family = family_of(config)
    for_timm = family.stored_layout == "timm"
    front: dict[str, Any] = {
        "license": card.licence or "unknown",
        "library_name": "vitrail",
        "pipeline_tag": PIPELINES.get(answers(config))
        or ("image-classification" if config.num_classes else "image-feature-extraction"),
        "tags": ["vitrail", *(["timm"] if for_timm else []), "vision-transformer"],
    }
    if card.hub_id:
        front["base_model"] = card.hub_id
    name = card.name or type(config).__name__
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# {name}",
        "",
        f"- Architecture: {family.describe(config)}",
        f"- Classes: {config.num_classes}"
        + (f" ({classes.summary()})" if classes else "")
        + (", any number of them an image (sigmoid)" if card.multi_label else ""),
        f"- Images: {card.input_size[0]} x {card.input_size[1]}, {card.interpolation}, {card.crop_mode}"
        f" (crop_pct {card.crop_pct:g}), mean {list(card.mean)}, std {list(card.std)}",
        f"- Licence: {card.licence or 'unknown'}",
        f"- Origin: {card.origin or card.hub_id or 'trained from scratch'}"
        + (f" (commit {card.revision})" if card.revision else ""),
        "",
        "Made with Vitrail. Use it:",
        "",
        "```python",
        "import vitrail",
        'predictor = vitrail.load("path/to/this/folder")',
        'predictor("image.jpg")',
        "```",
        "",
    ]
    if for_timm:
        lines += ['timm reads it too: `timm.create_model("local-dir:path/to/this/folder", pretrained=True)`.', ""]
    return "\n".join(lines)
