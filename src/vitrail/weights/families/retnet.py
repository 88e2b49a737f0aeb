"""RetNet as torchscale knows it; retention in the decoder of a Transformer nobody else has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitrail.errors import WeightsError
from vitrail.models.retnet import RetNetConfig

from .text import TextFamily

if TYPE_CHECKING:
    from vitrail.weights.source import Source

OUTPUT, TABLE = "output_projection.weight", "embed_tokens.weight"


class RetNetFamily(TextFamily):
    """Our own names are what is stored; torchscale's are read and written too."""

    def optional(self, config: Any) -> tuple[str, ...]:
        return (OUTPUT,) if _tied(config) else ()

    def fit(self, tensors: dict[str, Tensor], model: Any, source: Source, layout: str) -> list[str]:
        """An output that is tied is written twice by torchscale: both must be one."""
        if not _tied(model.config) or OUTPUT not in tensors:
            return []
        if not torch.equal(tensors.pop(OUTPUT), tensors[TABLE]):
            raise WeightsError(
                "expected one matrix for the tokens and the output, got two that differ. mend: create the model with"
                " tie_embeddings=False."
            )
        return []

    def for_export(self, model: Any, layout: str) -> dict[str, Tensor]:
        c = model.config
        own = super().for_export(model, layout)
        if layout != "torchscale":
            return own
        if not isinstance(c, RetNetConfig):
            raise WeightsError("torchscale has no RetNet that reads a source. mend: export it in the 'vitrail' layout.")
        if c.feedforward == "gelu":
            raise WeightsError(
                "torchscale's RetNet has a gated feed-forward network; this model has feedforward='gelu'."
                " mend: export it in the 'vitrail' layout."
            )
        return own | ({OUTPUT: own[TABLE]} if _tied(c) else {})


def _tied(config: Any) -> bool:
    return isinstance(config, RetNetConfig) and config.tie_embeddings


FAMILY = RetNetFamily()
