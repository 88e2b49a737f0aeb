"""DETR: a transformer that gives a set of boxes, each asked for by a learned query.

Source: Carion et al. 2020, arXiv 2005.12872, section 3.2, appendix A.3 and A.4; section 4.3 (masks).

The coarsest map of a backbone goes through an encoder; a decoder's queries read it and give a class and a box each,
after every layer in training. The last class is "no object".

B batch, I input channels, H·W pixels, (h, w) the coarsest map, S = h · w cells, C width, Q queries, K classes, L
decoder layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrail.models import build
from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.detection import Detections, Noise
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.pyramid import FeaturePyramid
from vitrail.nn.queries import MapLayer, Perceptron, QueryLayer, attend_placed, keep_cells, places, real_padding
from vitrail.nn.querymasks import MaskHead
from vitrail.nn.tokens import as_map, as_tokens

from .pvt_v2 import VARIANTS as PVT_V2
from .resnet import DEPTHS, ResNet, ResNetConfig
from .resnet import VARIANTS as RESNET


@dataclass(frozen=True)
class DetrConfig:
    """Architecture of a DETR.

    Attributes:
        img_size: (H, W) it is meant for; any size works.
        in_chans: input channels.
        num_classes: classes K; the network's logits have one more, "no object", as the last.
        backbone: config of the network whose coarsest map is read; its own size, channels and classes are set by ours.
        embed_dim: width C.
        num_heads: heads of all attention.
        encoder_layers: layers over the cells of the map.
        decoder_layers: layers of the queries, L.
        hidden_dim: hidden width of the feed-forward networks.
        num_queries: Q, and so the most objects that are found in an image.
        masks: whether there is a mask for each query.
        drop_rate: dropout of attention weights, of every branch and within the feed-forward networks.
    """

    answers: ClassVar[str] = "boxes"
    background: ClassVar[bool] = True
    takes_noise: ClassVar[bool] = False

    img_size: tuple[int, int] = (800, 1066)
    in_chans: int = 3
    num_classes: int = 91
    backbone: Any = field(default_factory=lambda: ResNetConfig(norm="frozen", num_classes=0))
    embed_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden_dim: int = 2048
    num_queries: int = 100
    masks: bool = False
    drop_rate: float = 0.1

    def __post_init__(self) -> None:
        require_positive(
            vars(self), "in_chans", "num_classes", "embed_dim", "num_heads", "decoder_layers", "hidden_dim",
            "num_queries",
        )  # fmt: skip
        require_heads([self.embed_dim], [self.num_heads])
        if self.embed_dim % 4:
            raise ValueError(f"expected an embed_dim that is a multiple of 4, got {self.embed_dim}")


class Detr(nn.Module):
    """DETR: ``model(images, keep)`` maps normalised images (B, I, H, W) to :class:`Detections`, at any (H, W)."""

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = c = config
        self.backbone = backbone_of(c, None if c.masks else (-1,))
        channels = self._channels()
        self.input_proj = Linear(channels[-1], c.embed_dim)
        self.query_embed = nn.Parameter(torch.empty(c.num_queries, c.embed_dim))
        self.encoder = nn.ModuleList(
            MapLayer(self._attention(), self._mlp(), c.embed_dim, drop=c.drop_rate) for _ in range(c.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            QueryLayer(self._attention(), self._attention(), self._mlp(), c.embed_dim, drop=c.drop_rate)
            for _ in range(c.decoder_layers)
        )
        self.norm = nn.LayerNorm(c.embed_dim)
        self.head = Linear(c.embed_dim, c.num_classes + 1)
        self.box_head = Perceptron(c.embed_dim, (c.embed_dim, c.embed_dim, 4))
        self.mask_head = MaskHead(c.embed_dim, c.num_heads, channels[-2:-5:-1]) if c.masks else None
        for part in (self.encoder, self.decoder):
            initialise(part, "detr")
        nn.init.normal_(self.query_embed)

    def _attention(self) -> Attention:
        c = self.config
        return Attention(c.embed_dim, c.num_heads, attn_drop=c.drop_rate)

    def _mlp(self) -> FeedForward:
        c = self.config
        return FeedForward(c.embed_dim, c.hidden_dim, act="relu", drop=0.0, act_drop=c.drop_rate)

    def _dilated(self) -> bool:
        """Whether a stage of the backbone has the stride of the one before, whose map a pyramid leaves out."""
        body = self.backbone.backbone
        return isinstance(body, ResNet) and len(set(body.feature_channels)) < len(body.config.widths)

    def _channels(self) -> list[int]:
        if self.config.masks and self._dilated():
            return list(self.backbone.backbone.config.widths)
        return self.backbone.feature_info.channels()

    def _maps(self, images: Tensor) -> list[Tensor]:
        body = self.backbone.backbone
        if self.config.masks and self._dilated():
            assert isinstance(body, ResNet)
            return body.every_map(images)
        maps: list[Tensor] = self.backbone(images)
        return maps

    def forward(self, images: Tensor, keep: Tensor | None = None, noise: Noise | None = None) -> Detections:
        """Images (B, I, H, W), normalised -> :class:`Detections` of all layers in training, else of the last.

        Args:
            images: padded at the right and bottom where they differ in size.
            keep: (B, H, W) bool, True on real pixels; None if nothing is padded.
            noise: none: these queries are no boxes.

        Raises:
            ValueError: a ``keep`` that does not fit, or ``noise``.
        """
        if noise is not None:
            raise ValueError(
                "expected no denoising queries, which DETR's are not; mend: a deformable_detr that has them"
            )
        keep = real_padding(images, keep)
        maps = self._maps(images)
        grid = (maps[-1].shape[2], maps[-1].shape[3])
        cells = None if keep is None else keep_cells(keep, grid)
        projected: Tensor = self.input_proj(as_tokens(maps[-1]))
        positions = places(grid, projected, cells)
        flat = None if cells is None else cells.flatten(1)
        memory = projected
        for layer in self.encoder:
            memory = layer(memory, lambda attn, y: attend_placed(attn, y, positions, keep=flat))
        states = self._decode(memory, memory + positions, flat)
        boxes = self.box_head(states).float().sigmoid()
        masks = None
        if self.mask_head is not None:
            before = as_map(projected, grid)
            masks = self.mask_head(states[-1], memory, before, maps[-2:-5:-1], flat)
        return Detections(self.head(states), boxes, masks=masks)

    def _decode(self, memory: Tensor, keys: Tensor, keep: Tensor | None) -> Tensor:
        """Cells (B, S, C), with their positions too -> the queries after each layer that speaks, (L, B, Q, C)."""
        positions = self.query_embed[None]
        x = positions.new_zeros(memory.shape[0], *self.query_embed.shape)
        states = []
        for layer in self.decoder:
            x = layer(x, positions, lambda cross, y: cross(y, context=memory, keys=keys, keep=keep))
            states.append(x)
        spoken: Tensor = self.norm(torch.stack(states if self.training else states[-1:]))
        return spoken


def backbone_of(config: Any, out_indices: tuple[int, ...] | None) -> FeaturePyramid:
    """Return the backbone of a detector's config, with its size and channels and without a classifier."""
    own = replace(config.backbone, img_size=config.img_size, in_chans=config.in_chans, num_classes=0)
    return FeaturePyramid(build(own), out_indices)


_R50 = ResNetConfig(depths=DEPTHS[50], norm="frozen", num_classes=0)
_R101 = replace(_R50, depths=DEPTHS[101])

VARIANTS: dict[str, DetrConfig] = {}
for _name, _resnet in (("detr_resnet50", _R50), ("detr_resnet101", _R101)):
    # table 1; DC5: the last stage of the backbone dilates instead of halving the map
    VARIANTS[_name] = DetrConfig(backbone=_resnet)
    VARIANTS[f"{_name}_dc5"] = DetrConfig(backbone=replace(_resnet, output_stride=16))
    # section 4.3: 250 numbers of classes of COCO's panoptic task
    VARIANTS[f"{_name}_panoptic"] = DetrConfig(backbone=_resnet, masks=True, num_classes=250)
VARIANTS["detr_resnet50_dc5_panoptic"] = replace(
    VARIANTS["detr_resnet50_panoptic"], backbone=replace(_R50, output_stride=16)
)
# for small data, from scratch; ours
VARIANTS["detr_nano"] = DetrConfig(
    (128, 128), num_classes=10, backbone=replace(PVT_V2["pvt_v2_b0"], num_classes=0), embed_dim=128, num_heads=4,
    encoder_layers=3, decoder_layers=3, hidden_dim=512, num_queries=50, drop_rate=0.0,
)  # fmt: skip
_TEST = DetrConfig(
    (64, 64), num_classes=7, backbone=replace(RESNET["test_resnet"], norm="frozen", num_classes=0), embed_dim=32,
    num_heads=4, encoder_layers=2, decoder_layers=2, hidden_dim=48, num_queries=9,
)  # fmt: skip
VARIANTS["test_detr"] = _TEST
VARIANTS["test_detr_pvt"] = replace(_TEST, backbone=replace(PVT_V2["test_pvt_v2"], num_classes=0))
VARIANTS["test_detr_masks"] = replace(_TEST, masks=True)

MODELS = {DetrConfig: Detr}
