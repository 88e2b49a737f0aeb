"""The base of every family: defaults that do nothing, or what is true of most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.weights.convert import Table, plan

if TYPE_CHECKING:
    from vitrail.weights.cards import Card
    from vitrail.weights.source import Source

Shapes = Mapping[str, tuple[int, ...]]
"""Name in a file -> shape of its tensor."""


class Family:
    """What the engine must know of one family beside its tables.

    Attributes:
        model_types: values of ``model_type`` in transformers' ``config.json`` that this family reads.
        stored_layout: layout of the weights in a Vitrail folder: "timm", or "vitrail" where timm lacks the family.
        first_conv: name of the first convolution, in timm.
        classifier: name (or names) of the classifier, in timm.
        fixed_input_size: whether timm's model of it takes one image size only.
    """

    model_types: tuple[str, ...] = ()
    stored_layout: str = "timm"
    first_conv: str = "patch_embed.proj"
    classifier: str | tuple[str, ...] = "head"
    fixed_input_size: bool = True

    def cards(self) -> list[Card]:
        """Return the cards of public checkpoints; a model's first is its default."""
        return []

    def numbers(self, config: Any) -> dict[str, int]:
        """Return the numbers that transforms need, such as ``num_heads``."""
        return {}

    def numerics(self, config: Any) -> dict[str, Any]:
        """Return what a card says of the numerics of a model: its ``numerics``, without the initial weights."""
        own = getattr(config, "numerics", None)
        return {} if own is None else {k: v for k, v in asdict(own).items() if k != "init"}

    def describe(self, config: Any) -> str:
        """Return the architecture in words: "width 192, depth 12, 3 heads, patch 16, made for 224 x 224 pixels"."""
        said = [text.format(_dashed(getattr(config, key))) for key, text in _WORDS.items() if hasattr(config, key)]
        return ", ".join([*said, f"made for {config.img_size[0]} x {config.img_size[1]} pixels"])

    def num_features(self, model: Any) -> int:
        """Return the width of the last feature map."""
        channels: dict[int, int] = model.feature_channels
        return channels[max(channels)]

    # ---- reading and writing weights

    def optional(self, config: Any) -> tuple[str, ...]:
        """Return names a file may hold though the model's state dict does not; :meth:`fit` takes them out again."""
        return ()

    def may_lack(self, config: Any) -> tuple[str, ...]:
        """Return names of tensors that a file may lack without fault: the model's own stay, and the report says so."""
        return ()

    def beside(self, path: Path) -> dict[str, Tensor]:
        """Return what a folder of transformers keeps of the model in other files than its weights'."""
        return {}

    def preprocessor(self, model: Any) -> dict[str, Any]:
        """Return what ``preprocessor_config.json`` says beside the card: data of the model that images are read by."""
        return {}

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """Make tables (positions, biases) fit the model, in place; returns sentences that say what was done.

        Args:
            tensors: what was read, under our names, complete, in shapes that may be the file's.
            model: the model they are meant for.
            source: where they come from; its ``config`` says, if known, which model the file was made with.
            layout: the file's layout.

        Raises:
            WeightsError: a table that cannot be fitted.
        """
        return []

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        """Return the state dict, under our names, as a layout wants it; :class:`WeightsError` if it has no place."""
        return dict(model.state_dict())

    def table_for_export(self, tables: Sequence[Table], tensors: Mapping[str, Tensor], config: Any) -> Table:
        """Return the table of a layout to write with: the fewest tensors without a name, then one with a head."""

        def misfit(table: Table) -> tuple[int, bool]:
            names_head = any(e.ours.startswith("head.") for e in table.entries)
            return len(plan(table, tensors).unmapped), names_head == (getattr(config, "num_classes", None) == 0)

        return min(tables, key=misfit)

    def hint(self, tensors: Mapping[str, Tensor]) -> str:
        """Say which variant has the sizes of a file's tensors, or ""."""
        return ""

    # ---- config.json of other libraries

    def in_timm(self, name: str) -> bool:
        """Whether timm has a model of ours by this name, and the same network under it."""
        return False

    def to_timm(self, name: str, config: Any) -> tuple[str, dict[str, Any]]:
        """Return (architecture, model arguments) with which timm builds the same network, the class count apart.

        The name is our variant, "" if the sizes are of none. What timm lacks is written as our own name, which timm
        refuses.
        """
        return name or "vitrail", {}

    def from_timm(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        """Return our config of a ``config.json`` that timm wrote; its architecture is one of :meth:`in_timm`.

        Raises :class:`WeightsError` for arguments that change the network in a way we lack; ``configs.timm_args``
        checks them.
        """
        raise WeightsError(f"{data['architecture']!r} of timm is not a model Vitrail reads from a folder.")

    def from_transformers(self, data: Mapping[str, Any], shapes: Shapes) -> Any:
        """Return our config of a transformers ``config.json`` whose ``model_type`` is one of ``model_types``."""
        raise WeightsError(f"model_type {data.get('model_type')!r} of transformers is not a model Vitrail reads.")

    def to_transformers(self, config: Any, names: list[str] | None) -> dict[str, Any]:
        """Return transformers' ``config.json`` of a model that ``export_weights`` can write in that layout."""
        _none_in_transformers(config)


_WORDS = {  # fields of configs, in the order in which they are told
    "layers": "layers {}",
    "embed_dim": "width {}",
    "embed_dims": "widths {}",
    "depth": "depth {}",
    "depths": "depths {}",
    "num_heads": "{} heads",
    "patch_size": "patch {}",
    "window_size": "window {}",
}


def _dashed(value: Any) -> str:
    return "-".join(str(v) for v in value) if isinstance(value, tuple | list) else str(value)


def _none_in_transformers(config: Any) -> NoReturn:
    raise WeightsError(f"transformers has no model like {type(config).__name__}. mend: export it in another layout.")
