"""Transformer: encoder and decoder. The encoder alone is in :mod:`.encoder`, the decoder alone in :mod:`.decoder`.

Sources: Vaswani et al. 2017, arXiv 1706.03762, sections 3.1 to 3.5, table 3 (base, big); Xiong et al. 2020, arXiv
2002.04745 (pre-norm); Wu et al. 2021, arXiv 2105.14462, section 3.2 (tiny, for data as small as Multi30k).

B batch, S source tokens, T target tokens, C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vitrail.nn.attention import Attention
from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.decoder import CausalAttention, Decoder, DecoderLayer, DecoderState, Encoder, EncoderLayer, Mixer
from vitrail.nn.dropout import Dropout
from vitrail.nn.feedforward import FeedForward
from vitrail.nn.fused import Activation, Linear, linear
from vitrail.nn.init import initialise
from vitrail.nn.positions import Layout, SinusoidalPositions
from vitrail.nn.steps import Specials

Share = Literal["all", "target", "none"]


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture.

    Attributes:
        norm_eps: epsilon of the layer norms.
        layout: order of the sines and cosines; see :func:`~vitrail.nn.positions.sincos_1d`.
        first_position: number of the first position; fairseq's is its padding index + 1.
        act: activation of the feed-forward networks.
        scale_embedding: whether embeddings are multiplied by the root of their width.
        init: name of the initial weights; see :mod:`vitrail.nn.init`.
    """

    norm_eps: float = 1e-5
    layout: Layout = "interleaved"
    first_position: int = 0
    act: Activation = "relu"
    scale_embedding: bool = True
    init: Literal["transformer", "normal"] = "transformer"


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of an encoder-decoder Transformer.

    Attributes:
        vocab_size: tokens V of source and target together.
        specials: ids of padding, beginning and end.
        embed_dim: width C.
        encoder_depth: layers of the encoder.
        decoder_depth: layers of the decoder.
        num_heads: heads of each attention.
        hidden_dim: hidden width of the feed-forward networks.
        drop_rate: dropout of the embeddings and of every branch before it is added.
        attn_drop_rate: dropout of the attention weights.
        act_drop_rate: dropout after the activation of the feed-forward networks.
        norm_first: norms before the branches (pre-norm) instead of after the sums (the paper's post-norm).
        final_norm: a norm after the last layer of each stack; pre-norm needs it, and
            ``torch.nn.Transformer`` always has it.
        share: which of the three matrices (V, C) are one: "all" (source, target and output: the paper), "target"
            (target and output), "none".
        head_bias: whether the logits have a bias (Marian's ``final_logits_bias``).
        numerics: what differs between sources of the same architecture.
    """

    vocab_size: int = 37_000
    specials: Specials = field(default_factory=Specials)
    embed_dim: int = 512
    encoder_depth: int = 6
    decoder_depth: int = 6
    num_heads: int = 8
    hidden_dim: int = 2048
    drop_rate: float = 0.1
    attn_drop_rate: float = 0.0
    act_drop_rate: float = 0.0
    norm_first: bool = False
    final_norm: bool = False
    share: Share = "all"
    head_bias: bool = False
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        require_positive(vars(self), "embed_dim", "encoder_depth", "decoder_depth", "num_heads", "hidden_dim")
        require_heads([self.embed_dim], [self.num_heads])
        require_specials(self.specials, self.vocab_size)


def require_specials(specials: Specials, vocab_size: int) -> None:
    """Raise ValueError unless each special id is in the vocabulary."""
    for name, value in vars(specials).items():
        if not 0 <= value < vocab_size:
            raise ValueError(f"expected specials.{name} from 0 to vocab_size - 1 = {vocab_size - 1}, got {value}")


class EmbedTokens(nn.Module):
    """Rows of an embedding, scaled, with their positions and dropout; the embedding itself is handed in.

    Args:
        dim: width C.
        numerics: layout and first row of the positions, and whether to scale.
        drop: dropout of the sum.
    """

    def __init__(self, dim: int, numerics: Numerics, drop: float) -> None:
        super().__init__()
        self.scale = dim**0.5 if numerics.scale_embedding else 1.0
        self.positions = SinusoidalPositions(dim, layout=numerics.layout, first=numerics.first_position)
        self.drop = Dropout(drop)

    def forward(self, table: nn.Embedding, tokens: Tensor, start: int = 0) -> Tensor:
        """Tokens (B, T) int64 that stand from position ``start`` on -> (B, T, C)."""
        placed: Tensor = self.drop(table(tokens) * self.scale + self.positions(start, tokens.shape[1]))
        return placed


class Layers(Protocol):
    """The fields of a config that its layers are made by; :class:`TransformerConfig` says what they mean."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def hidden_dim(self) -> int: ...
    @property
    def drop_rate(self) -> float: ...
    @property
    def attn_drop_rate(self) -> float: ...
    @property
    def act_drop_rate(self) -> float: ...
    @property
    def norm_first(self) -> bool: ...
    @property
    def final_norm(self) -> bool: ...
    @property
    def numerics(self) -> Numerics: ...


def encoder_layer(c: Layers) -> EncoderLayer:
    """Return one layer of an encoder."""
    attn = Attention(c.embed_dim, c.num_heads, attn_drop=c.attn_drop_rate)
    eps = c.numerics.norm_eps
    return EncoderLayer(attn, feed_forward(c), c.embed_dim, eps=eps, drop=c.drop_rate, norm_first=c.norm_first)


def decoder_layer(c: Layers, mixer: Mixer | None = None, *, cross: bool) -> DecoderLayer:
    """Return one layer of a decoder, with attention to a source or without; ``mixer`` is causal attention if None."""
    return DecoderLayer(
        CausalAttention(c.embed_dim, c.num_heads, attn_drop=c.attn_drop_rate) if mixer is None else mixer,
        feed_forward(c),
        c.embed_dim,
        cross=Attention(c.embed_dim, c.num_heads, attn_drop=c.attn_drop_rate) if cross else None,
        eps=c.numerics.norm_eps,
        drop=c.drop_rate,
        norm_first=c.norm_first,
    )


def feed_forward(c: Layers) -> FeedForward:
    """Return the feed-forward network of one layer; its last dropout is the layer's."""
    return FeedForward(c.embed_dim, c.hidden_dim, act=c.numerics.act, act_drop=c.act_drop_rate)


def final_norm(c: Layers) -> nn.Module:
    """Return what stands after the last layer of a stack."""
    return nn.LayerNorm(c.embed_dim, eps=c.numerics.norm_eps) if c.final_norm else nn.Identity()


class Transformer(nn.Module):
    """Encoder-decoder Transformer: ``model(source, target, keep)`` gives logits (B, T, V).

    It decodes step by step as :class:`~vitrail.nn.steps.SequenceModel` says. The loss of a batch with padding needs
    the logits of the real tokens only: ``model.head(model.decode(target, *model.encode(source, keep))[real])``.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embed = self._table()
        self.target_embed = None if c.share == "all" else self._table()
        self.place = EmbedTokens(c.embed_dim, c.numerics, c.drop_rate)
        self.encoder = Encoder((encoder_layer(c) for _ in range(c.encoder_depth)), final_norm(c))
        self.decoder = Decoder((self._decoder_layer() for _ in range(c.decoder_depth)), final_norm(c))
        self.output = Linear(c.embed_dim, c.vocab_size, bias=False) if c.share == "none" else None
        self.output_bias = nn.Parameter(torch.zeros(c.vocab_size)) if c.head_bias else None
        initialise(self, c.numerics.init)

    def _table(self) -> nn.Embedding:
        return nn.Embedding(self.config.vocab_size, self.config.embed_dim, padding_idx=self.config.specials.pad)

    def _decoder_layer(self) -> DecoderLayer:
        return decoder_layer(self.config, cross=True)

    def _target_table(self) -> nn.Embedding:
        return self.embed if self.target_embed is None else self.target_embed

    def encode(self, source: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Source (B, S) int64, ``keep`` (B, S) bool or None -> (encoded source (B, S, C), ``keep``)."""
        return self.encoder(self.place(self.embed, source), keep), keep

    def decode(self, target: Tensor, context: Tensor, keep: Tensor | None = None) -> Tensor:
        """Target (B, T) int64, encoded source (B, S, C), ``keep`` (B, S) -> what the head reads (B, T, C)."""
        hidden: Tensor = self.decoder(self.place(self._target_table(), target), context, keep)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """(..., C) -> logits (..., V)."""
        table = self.output if self.output is not None else self._target_table()
        return linear(hidden, table.weight, self.output_bias)

    def hidden(self, source: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """What :meth:`head` maps to logits: source (B, S), target (B, T) -> (B, T, C)."""
        return self.decode(target, *self.encode(source, keep))

    def forward(self, source: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """Source (B, S), target (B, T) int64, ``keep`` (B, S) bool -> logits (B, T, V).

        The logits at t say what follows ``target[:, t]``. Padding at the end of a target needs no mask: nothing real
        looks that way.
        """
        return self.head(self.decode(target, *self.encode(source, keep)))

    def begin(self, source: Tensor, keep: Tensor | None = None) -> DecoderState:
        """Encode the source (B, S) and return the state before the first target token."""
        return self.decoder.begin(*self.encode(source, keep))

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read one more token a row, (R,) int64 -> logits (R, V) of the one after it; ``state`` moves on."""
        x = self.place(self._target_table(), tokens[:, None], state.length)
        return self.head(self.decoder.step(x, state)[:, 0])


_PAPER = TransformerConfig()
_SMALL = replace(_PAPER, vocab_size=10_000, drop_rate=0.3)
_SHORT = replace(_SMALL, norm_first=True, final_norm=True)  # pre-norm learns in far fewer steps

VARIANTS: dict[str, TransformerConfig] = {
    # table 3 of the paper; 37,000 byte pairs, section 5.1
    "transformer_base": _PAPER,
    "transformer_big": replace(_PAPER, embed_dim=1024, hidden_dim=4096, num_heads=16, drop_rate=0.3),
    # for tens of thousands of sentences: the sizes of tiny are Wu et al. 2021's, the others ours
    "transformer_tiny": replace(_SHORT, embed_dim=128, encoder_depth=4, decoder_depth=4, hidden_dim=256, num_heads=4),
    "transformer_mini": replace(_SHORT, embed_dim=256, encoder_depth=3, decoder_depth=3, hidden_dim=512, num_heads=4),
    "transformer_small": replace(_SHORT, embed_dim=256, hidden_dim=1024, num_heads=4),
    "test_transformer": replace(
        _SMALL, vocab_size=29, embed_dim=16, encoder_depth=2, decoder_depth=2, hidden_dim=24, num_heads=2
    ),
    "test_transformer_pre_norm": replace(
        _SMALL,
        vocab_size=29,
        embed_dim=16,
        encoder_depth=2,
        decoder_depth=2,
        hidden_dim=24,
        num_heads=2,
        norm_first=True,
        final_norm=True,
        share="none",
        head_bias=True,
        numerics=Numerics(layout="halves", act="silu", first_position=1, scale_embedding=False),
    ),
}

MODELS = {TransformerConfig: Transformer}
