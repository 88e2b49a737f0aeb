"""Deformable DETR: queries that read a few points of several maps, and boxes that get better from layer to layer.

Source: Zhu et al. 2021, arXiv 2010.04159, sections 4.1 and 4.2, appendix A.4. Options: Li et al. 2022, arXiv
2203.01305 (DN-DETR: denoising queries); Liu et al. 2022, arXiv 2201.12329 (DAB-DETR: queries are boxes); Zhang et al.
2023, arXiv 2203.03605, sections 3.4 and 3.5 (DINO: boxes of the encoder with learned contents, looking forward twice).

B batch, I input channels, H·W pixels, (h, w) a map, M maps (levels), S cells of all maps, C width, Q queries, N noised
boxes, K classes, L decoder layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.deformable import DeformableAttention, start_points
from vitrail.nn.detection import Detections, Noise, seen_by
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import Linear
from vitrail.nn.init import initialise
from vitrail.nn.levels import Levels, Maps
from vitrail.nn.proposals import BoxPositions, Proposer, box_sines, logit_of
from vitrail.nn.queries import MapLayer, Perceptron, QueryLayer, real_padding

from .detr import backbone_of
from .pvt_v2 import VARIANTS as PVT_V2
from .resnet import DEPTHS, ResNetConfig
from .resnet import VARIANTS as RESNET

PRIOR = 0.01
"""Probability of every class before training (Lin et al. 2017, arXiv 1708.02002, section 3.3)."""


@dataclass(frozen=True)
class Form:
    """How queries begin and move.

    Attributes:
        refine: every decoder layer moves the box of the one before, with a head of its own; without, all of them
            speak of the point a query began with.
        two_stage: queries begin with the boxes that the encoder's cells propose.
        anchors: queries are boxes: their positions are made of their boxes anew in every layer, and their contents are
            learned.
        denoising: boxes with noise may be given as further queries in training.
        look_twice: a layer's box teaches the layer before too.
    """

    refine: bool = False
    two_stage: bool = False
    anchors: bool = False
    denoising: bool = False
    look_twice: bool = False

    def __post_init__(self) -> None:
        for name, needed in (("two_stage", "refine"), ("anchors", "refine"), ("look_twice", "refine"),
                             ("denoising", "anchors")):  # fmt: skip
            if getattr(self, name) and not getattr(self, needed):
                raise ValueError(f"expected {needed}=True with {name}=True, got {needed}=False")


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Architecture of a Deformable DETR.

    Attributes:
        img_size: (H, W) it is meant for; any size works.
        in_chans: input channels.
        num_classes: classes K; the network asks of each by itself whether it is there.
        backbone: config of the network whose maps are read; its own size, channels and classes are set by ours.
        out_indices: which of its maps, counted from the finest, or below 0 from the coarsest.
        levels: maps that are read, M; those beyond the backbone's are made of its last one by convolutions of stride 2.
        embed_dim: width C.
        num_heads: heads of all attention.
        num_points: points that each head of a query reads on each map.
        encoder_layers: layers over the cells of the maps.
        decoder_layers: layers of the queries, L.
        hidden_dim: hidden width of the feed-forward networks.
        num_queries: Q.
        form: how queries begin and move.
        drop_rate: dropout of every branch, within the feed-forward networks and of the queries' attention weights.
    """

    answers: ClassVar[str] = "boxes"

    img_size: tuple[int, int] = (800, 1066)
    in_chans: int = 3
    num_classes: int = 91
    backbone: Any = field(default_factory=lambda: ResNetConfig(norm="frozen", num_classes=0))
    out_indices: tuple[int, ...] = (-3, -2, -1)
    levels: int = 4
    embed_dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden_dim: int = 1024
    num_queries: int = 300
    form: Form = field(default_factory=Form)
    drop_rate: float = 0.1

    def __post_init__(self) -> None:
        require_positive(
            vars(self), "in_chans", "num_classes", "levels", "embed_dim", "num_heads", "num_points", "decoder_layers",
            "hidden_dim", "num_queries",
        )  # fmt: skip
        require_heads([self.embed_dim], [self.num_heads])
        if self.embed_dim % 4:
            raise ValueError(f"expected an embed_dim that is a multiple of 4, got {self.embed_dim}")
        if not 0 < len(self.out_indices) <= self.levels:
            raise ValueError(f"expected out_indices of 1 to levels={self.levels} maps, got {self.out_indices}")

    @property
    def background(self) -> bool:
        """Whether the last class is "no object"."""
        return False

    @property
    def takes_noise(self) -> bool:
        """Whether the network may be given denoising queries."""
        return self.form.denoising


class DeformableDetr(nn.Module):
    """Deformable DETR: ``model(images, keep, noise)`` maps images (B, I, H, W) to :class:`Detections`, at any size."""

    def __init__(self, config: DeformableDetrConfig) -> None:
        super().__init__()
        self.config = c = config
        self.backbone = backbone_of(c, c.out_indices)
        self.levels = Levels(self.backbone.feature_info.channels(), c.embed_dim, c.levels)
        drop = c.drop_rate
        self.encoder = nn.ModuleList(
            MapLayer(self._sampler(), self._mlp(), c.embed_dim, drop=drop) for _ in range(c.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            QueryLayer(
                Attention(c.embed_dim, c.num_heads, attn_drop=drop),
                self._sampler(),
                self._mlp(),
                c.embed_dim,
                drop=drop,
            )
            for _ in range(c.decoder_layers)
        )
        count = c.decoder_layers + c.form.two_stage if c.form.refine else 1
        self.heads = nn.ModuleList(Linear(c.embed_dim, c.num_classes) for _ in range(count))
        self.box_heads = nn.ModuleList(Perceptron(c.embed_dim, (c.embed_dim, c.embed_dim, 4)) for _ in range(count))
        self._make_queries()
        self._initialise()

    def _sampler(self) -> DeformableAttention:
        c = self.config
        return DeformableAttention(c.embed_dim, c.num_heads, levels=c.levels, points=c.num_points)

    def _mlp(self) -> FeedForward:
        return FeedForward(self.config.embed_dim, self.config.hidden_dim, act="relu", act_drop=self.config.drop_rate)

    def _make_queries(self) -> None:
        c, dim = self.config, self.config.embed_dim
        if c.form.two_stage:
            self.propose = Proposer(dim)
        if c.form.anchors:
            self.content = nn.Parameter(torch.empty(c.num_queries, dim))
            self.box_positions = BoxPositions(dim)
            if not c.form.two_stage:
                self.anchors = nn.Parameter(torch.empty(c.num_queries, 4))
        elif c.form.two_stage:
            self.place, self.place_norm = Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim)
        else:
            self.query_embed = nn.Parameter(torch.empty(c.num_queries, 2 * dim))
            self.point_head = Linear(dim, 2)
        if c.form.denoising:
            self.head_labels = nn.Embedding(c.num_classes, dim)

    @torch.no_grad()
    def _initialise(self) -> None:
        """As the code of the paper does: each class improbable, boxes where they begin, points around the reference."""
        for part in (self.encoder, self.decoder):
            initialise(part, "detr")
        for name, parameter in self.named_parameters():
            if name in ("query_embed", "content"):
                nn.init.normal_(parameter)
            elif name == "anchors":
                nn.init.uniform_(parameter, -2.0, 2.0)
            elif name.startswith(("propose.proj", "place", "point_head")) and parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
            elif name == "point_head.bias":
                nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                for layer in (module.value, module.proj):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
                start_points(module)
        for head in self.heads:
            nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        for i, box_head in enumerate(self.box_heads):
            last: Any = box_head.layers[-1]  # type: ignore[index]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if i == 0 and not self.config.form.two_stage and not self.config.form.anchors:
                last.bias[2:] = -2.0

    def forward(self, images: Tensor, keep: Tensor | None = None, noise: Noise | None = None) -> Detections:
        """Images (B, I, H, W), normalised -> :class:`Detections` of all layers in training, else of the last.

        Args:
            images: padded at the right and bottom where they differ in size.
            keep: (B, H, W) bool, True on real pixels; None if nothing is padded.
            noise: boxes with noise on them, as further queries.

        Raises:
            ValueError: a ``keep`` that does not fit, or ``noise`` for a network without denoising.
        """
        if noise is not None and not self.config.form.denoising:
            raise ValueError("expected no noise: this network has no denoising; mend: form={'denoising': True}")
        maps = self._encode(images, real_padding(images, keep))
        content, positions, reference, proposals = self._begin(maps)
        if noise is not None:
            content = torch.cat((self.head_labels(noise.labels).to(content.dtype), content), 1)
            reference = torch.cat((noise.boxes_cxcywh01.float(), reference), 1)
        found = self._decode(maps, content, positions, reference, self._seen(noise, content))
        count = 0 if noise is None else noise.labels.shape[1]
        return Detections(
            found.logits[:, :, count:],
            found.boxes_cxcywh01[:, :, count:],
            proposals=proposals if self.training else None,
            noised=None
            if noise is None
            else Detections(found.logits[:, :, :count], found.boxes_cxcywh01[:, :, :count]),
        )

    def _seen(self, noise: Noise | None, content: Tensor) -> Tensor | None:
        if noise is None:
            return None
        count = noise.labels.shape[1]
        seen = seen_by(noise, content.shape[1] - count, content.device)
        assert seen is not None
        real = torch.ones(content.shape[:2], dtype=torch.bool, device=content.device)
        real[:, :count] = noise.keep
        return seen & real[:, None, None]

    def _encode(self, images: Tensor, keep: Tensor | None) -> Maps:
        maps, positions = self.levels(self.backbone(images), keep)
        reference, x = maps.own_places(), maps.tokens
        for layer in self.encoder:
            x = layer(x, lambda attn, y: attn(y + positions, y, reference, maps.grids, maps.keep))
        encoded: Maps = maps.with_tokens(x)
        return encoded

    def _begin(self, maps: Maps) -> tuple[Tensor, Tensor | None, Tensor, Detections | None]:
        """Return contents (B, Q, C), positions (None: of the boxes), points or boxes (B, Q, 2 or 4), proposals."""
        form, batch = self.config.form, maps.tokens.shape[0]
        if form.two_stage:
            return self._propose(maps)
        if form.anchors:
            reference = self.anchors.float().sigmoid().expand(batch, -1, -1)
            return self.content.expand(batch, -1, -1), None, reference, None
        positions, content = self.query_embed.expand(batch, -1, -1).chunk(2, -1)
        return content, positions, self.point_head(positions).float().sigmoid(), None

    def _propose(self, maps: Maps) -> tuple[Tensor, Tensor | None, Tensor, Detections | None]:
        """The same from the encoder's cells: those that most likely hold an object."""
        tokens, start = self.propose(maps)
        logits = self.heads[-1](tokens)
        count = min(self.config.num_queries, tokens.shape[1])
        if not self.config.form.anchors:
            boxes = self.box_heads[-1](tokens).float() + start
            best = logits[..., 0].topk(count, 1).indices
            chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach().sigmoid()
            placed = self.place_norm(self.place(box_sines(chosen, tokens.shape[-1]).to(tokens.dtype)))
            positions, content = placed.chunk(2, -1)
            return content, positions, chosen, Detections(logits[None, ..., :1], boxes.sigmoid()[None])
        score = logits.detach().amax(-1).masked_fill(start[..., 0].isinf(), float("-inf"))
        best = score.topk(count, 1).indices[..., None]
        tokens, logits = (t.gather(1, best.expand(-1, -1, t.shape[-1])) for t in (tokens, logits))
        boxes = (self.box_heads[-1](tokens).float() + start.gather(1, best.expand(-1, -1, 4))).sigmoid()
        content = self.content[:count].expand(tokens.shape[0], -1, -1)
        return content, None, boxes.detach(), Detections(logits[None], boxes[None])

    def _decode(
        self, maps: Maps, x: Tensor, positions: Tensor | None, reference: Tensor, seen: Tensor | None
    ) -> Detections:
        """Queries (B, N + Q, C) with their points or boxes -> those of each layer that speaks."""
        form, before = self.config.form, reference
        logits, boxes = [], []
        for i, layer in enumerate(self.decoder):
            at = maps.on_maps(reference)
            placed = self.box_positions(reference) if positions is None else positions
            x = layer(x, placed, lambda cross, y, at=at: cross(y, maps.tokens, at, maps.grids, maps.keep), seen)
            speaks = self.training or i == len(self.decoder) - 1
            head = i if form.refine else 0
            if not speaks and not form.refine:
                continue
            box = _move(before, self.box_heads[head](x).float())
            if speaks:
                logits.append(self.heads[head](x))
                boxes.append(box)
            if form.refine:
                reference = box.detach()
                before = box if form.look_twice else reference
        return Detections(torch.stack(logits), torch.stack(boxes))


def _move(before: Tensor, change: Tensor) -> Tensor:
    """Move points (B, Q, 2), which get a size by it, or boxes (B, Q, 4), by logits (B, Q, 4): boxes (B, Q, 4)."""
    start = logit_of(before)
    if start.shape[-1] == 2:
        return torch.cat((start + change[..., :2], change[..., 2:]), -1).sigmoid()
    return (start + change).sigmoid()


_R50 = DeformableDetrConfig(backbone=ResNetConfig(depths=DEPTHS[50], norm="frozen", num_classes=0))
_SMALL_FORM = Form(refine=True, two_stage=True, anchors=True, denoising=True, look_twice=True)

VARIANTS: dict[str, DeformableDetrConfig] = {
    # tables 1 and 2
    "deformable_detr_resnet50": _R50,
    "deformable_detr_resnet50_refine": replace(_R50, form=Form(refine=True)),
    "deformable_detr_resnet50_two_stage": replace(_R50, form=Form(refine=True, two_stage=True)),
    "deformable_detr_resnet50_single_scale": replace(_R50, out_indices=(-1,), levels=1),
    "deformable_detr_resnet50_single_scale_dc5": replace(
        _R50, out_indices=(-1,), levels=1, backbone=replace(_R50.backbone, output_stride=16)
    ),
}
# for small data, from scratch: DINO's remedies; ours
_NANO = DeformableDetrConfig(
    (128, 128), num_classes=10, backbone=replace(PVT_V2["pvt_v2_b0"], num_classes=0), levels=3, embed_dim=128,
    num_heads=4, encoder_layers=1, decoder_layers=3, hidden_dim=256, num_queries=50, form=_SMALL_FORM, drop_rate=0.0,
)  # fmt: skip
_SMALL_RESNET = ResNetConfig(
    (128, 128), num_classes=0, block="basic", depths=(1, 2, 2, 1), widths=(32, 64, 128, 192), stem_width=32
)
VARIANTS |= {
    "deformable_detr_nano": _NANO,
    "deformable_detr_micro": replace(
        _NANO, img_size=(320, 320), num_classes=80, encoder_layers=2, hidden_dim=512, num_queries=100
    ),
    # for small images and few cores; measured in docs/benchmarks/detection.md
    "deformable_detr_pico": replace(_NANO, backbone=_SMALL_RESNET, embed_dim=96, encoder_layers=0, num_queries=30),
}
_TEST = DeformableDetrConfig(
    (64, 64), num_classes=7, backbone=replace(RESNET["test_resnet"], norm="frozen", num_classes=0), levels=4,
    embed_dim=32, num_heads=4, num_points=2, encoder_layers=2, decoder_layers=2, hidden_dim=48, num_queries=9,
)  # fmt: skip
VARIANTS |= {
    "test_deformable_detr": _TEST,
    "test_deformable_detr_refine": replace(_TEST, form=Form(refine=True)),
    "test_deformable_detr_two_stage": replace(_TEST, form=Form(refine=True, two_stage=True)),
    "test_deformable_detr_anchors": replace(_TEST, form=Form(refine=True, anchors=True, denoising=True)),
    "test_deformable_detr_small": replace(
        _TEST, backbone=replace(PVT_V2["test_pvt_v2"], num_classes=0), levels=3, form=_SMALL_FORM
    ),
}

MODELS = {DeformableDetrConfig: DeformableDetr}
