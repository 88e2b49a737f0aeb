"""DeiT: data-efficient image transformers, with a distillation token; and DeiT III.

Sources: Touvron et al. 2021, arXiv 2012.12877, section 4 and table 1; Touvron et al. 2022, arXiv 2204.07118 (III).

Plain DeiT is ViT with another recipe, and DeiT III is ViT with LayerScale and positions on patch tokens only; both are
variants of :class:`~vitrail.models.vit.ViT`. The distilled form adds a token and a head.

B batch, I input channels, H·W pixels, N patch tokens, C width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitrail.nn.fused import Linear

from .vit import Numerics, ViT, ViTConfig, sized


@dataclass(frozen=True)
class DeiTConfig(ViTConfig):
    """Architecture of a distilled DeiT: a ViT with class and distillation token, a learned position for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = {"global_pool": "token", "class_token": True, "pos_embed": "learn", "representation_size": None}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"expected {name}={value!r} for a distilled DeiT, got {getattr(self, name)!r}")


class DeiT(ViT):
    """Distilled DeiT: tokens [class, distillation, patches] and a head for each of the first two.

    In training ``model(images)`` returns both logits, ((B, K), (B, K)): class head, distillation head. In evaluation it
    returns their mean (B, K), as section 4 of the paper does.
    """

    config: DeiTConfig
    after_maps = (*ViT.after_maps, "head_dist")

    def _add_prefix_tokens(self) -> None:
        super()._add_prefix_tokens()
        self.num_prefix_tokens += 1
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.config.embed_dim))

    def _add_head(self) -> None:
        super()._add_head()
        c = self.config
        self.head_dist = Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    def prefix_tokens(self) -> list[Tensor]:
        """Return class and distillation token, (1, 1, C) each."""
        return [*super().prefix_tokens(), self.dist_token]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """Images (B, I, H, W), normalised -> logits (B, K); a pair of them in training."""
        tokens = self.read(images)
        logits: Tensor = self.head(self.head_drop(tokens[:, 0]))
        distilled: Tensor = self.head_dist(self.head_drop(tokens[:, 1]))
        if self.training:
            return logits, distilled
        return (logits + distilled) / 2


DEIT = Numerics(init="trunc_normal")


def _distilled(size: str, side: int) -> DeiTConfig:
    plain = sized(size, 16, side, numerics=DEIT)
    return DeiTConfig(**vars(plain))


VARIANTS: dict[str, ViTConfig] = {
    # DeiT, table 1 and table 5
    "deit_tiny_patch16_224": sized("tiny", 16, 224, numerics=DEIT),
    "deit_small_patch16_224": sized("small", 16, 224, numerics=DEIT),
    "deit_base_patch16_224": sized("base", 16, 224, numerics=DEIT),
    "deit_base_patch16_384": sized("base", 16, 384, numerics=DEIT),
    "deit_tiny_distilled_patch16_224": _distilled("tiny", 224),
    "deit_small_distilled_patch16_224": _distilled("small", 224),
    "deit_base_distilled_patch16_224": _distilled("base", 224),
    "deit_base_distilled_patch16_384": _distilled("base", 384),
}
VARIANTS |= {
    # DeiT III, table 1
    f"deit3_{size}_patch{patch}_{side}": sized(
        size, patch, side, numerics=DEIT, init_values=1e-6, pos_embed="learn_patches"
    )
    for size, patch, sides in (
        ("small", 16, (224, 384)),
        ("medium", 16, (224,)),
        ("base", 16, (224, 384)),
        ("large", 16, (224, 384)),
        ("huge", 14, (224,)),
    )
    for side in sides
}
VARIANTS["test_deit"] = replace(
    ViTConfig((32, 32), 8, num_classes=10, embed_dim=32, depth=2, num_heads=2, pos_embed="learn_patches"),
    init_values=1e-6,
    numerics=DEIT,
)
VARIANTS["test_deit_distilled"] = DeiTConfig((32, 32), 8, num_classes=10, embed_dim=32, depth=2, num_heads=2)

MODELS = {DeiTConfig: DeiT}
