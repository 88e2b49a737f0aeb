"""Transformer encoder alone: classes of a text from a class token, or the tokens that were masked in it.

Sources: Devlin et al. 2019, arXiv 1810.04805, sections 3 and 3.1 (the class token; the masked-token head: linear,
activation, norm, embedding with a bias); Vaswani et al. 2017, arXiv 1706.03762 (its layers and positions).

B batch, S tokens, C width, K classes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.decoder import Encoder
from vitrail.nn.fused import ACTIVATIONS, Linear, linear
from vitrail.nn.init import initialise
from vitrail.nn.steps import Specials
from vitrail.nn.tokens import prepend

from .transformer import EmbedTokens, Numerics, encoder_layer, final_norm, require_specials

_BERT = Numerics(norm_eps=1e-12, act="gelu", scale_embedding=True, init="transformer")


@dataclass(frozen=True)
class TransformerEncoderConfig:
    """Architecture of an encoder-only Transformer.

    Attributes:
        vocab_size: tokens V.
        specials: ids of padding, beginning and end.
        num_classes: classes K of a text; 0 predicts tokens instead.
        embed_dim: width C.
        depth: number of layers.
        num_heads: heads of each attention.
        hidden_dim: hidden width of the feed-forward networks.
        drop_rate: dropout of the embeddings, of every branch before it is added, and before the head.
        attn_drop_rate: dropout of the attention weights.
        act_drop_rate: dropout after the activation of the feed-forward networks.
        norm_first: norms before the branches (pre-norm) instead of after the sums.
        final_norm: a norm after the last layer; pre-norm needs it.
        numerics: what differs between sources of the same architecture.
    """

    vocab_size: int = 10_000
    specials: Specials = field(default_factory=Specials)
    num_classes: int = 0
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_dim: int = 3072
    drop_rate: float = 0.1
    attn_drop_rate: float = 0.0
    act_drop_rate: float = 0.0
    norm_first: bool = False
    final_norm: bool = False
    numerics: Numerics = _BERT

    def __post_init__(self) -> None:
        require_positive(vars(self), "embed_dim", "depth", "num_heads", "hidden_dim")
        require_heads([self.embed_dim], [self.num_heads])
        require_specials(self.specials, self.vocab_size)


class TokenHead(nn.Module):
    """Linear, activation, norm, and the embedding as the output layer: which token stood here."""

    def __init__(self, config: TransformerEncoderConfig) -> None:
        super().__init__()
        self.fc = Linear(config.embed_dim, config.embed_dim)
        self.act = config.numerics.act
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.numerics.norm_eps)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, table: nn.Embedding) -> Tensor:
        """(..., C) -> logits (..., V)."""
        return linear(self.norm(ACTIVATIONS[self.act](self.fc(hidden))), table.weight, self.output_bias)


class TransformerEncoder(nn.Module):
    """Encoder of texts: ``model(tokens, keep)`` gives logits (B, K) of a text's classes, or (B, S, V) of its tokens."""

    def __init__(self, config: TransformerEncoderConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embed = nn.Embedding(c.vocab_size, c.embed_dim, padding_idx=c.specials.pad)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.embed_dim))
        self.place = EmbedTokens(c.embed_dim, c.numerics, c.drop_rate)
        self.encoder = Encoder((encoder_layer(c) for _ in range(c.depth)), final_norm(c))
        self.head_drop = nn.Dropout(c.drop_rate)
        self.head: nn.Module = Linear(c.embed_dim, c.num_classes) if c.num_classes else TokenHead(c)
        initialise(self, c.numerics.init)

    def encode(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, S) int64, ``keep`` (B, S) bool -> class token, then tokens (B, 1 + S, C)."""
        x = prepend(self.place(self.embed, tokens), self.cls_token)
        if keep is not None:
            keep = torch.cat([keep.new_ones(len(keep), 1), keep], dim=1)
        encoded: Tensor = self.encoder(x, keep)
        return encoded

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, S) int64, ``keep`` (B, S) bool, True where real -> logits (B, K); (B, S, V) when K is 0."""
        x = self.head_drop(self.encode(tokens, keep))
        if self.config.num_classes:
            classes: Tensor = self.head(x[:, 0])
            return classes
        return self.token_logits(x[:, 1:])

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Encoded tokens (..., C), all or only those that were masked -> logits (..., V).

        Raises ValueError if the model has a head for classes.
        """
        if self.config.num_classes:
            raise ValueError(f"expected num_classes=0 to predict tokens, got {self.config.num_classes}")
        logits: Tensor = self.head(hidden, self.embed)
        return logits


_BASE = TransformerEncoderConfig()  # BERT's, but for its learned positions, segments and vocabulary

VARIANTS: dict[str, TransformerEncoderConfig] = {
    "transformer_encoder_base": _BASE,
    "transformer_encoder_tiny": replace(_BASE, embed_dim=128, depth=4, num_heads=4, hidden_dim=512),
    "test_transformer_encoder": replace(_BASE, vocab_size=29, embed_dim=16, depth=2, num_heads=2, hidden_dim=24),
    "test_transformer_classes": replace(
        _BASE, vocab_size=29, num_classes=5, embed_dim=16, depth=2, num_heads=2, hidden_dim=24
    ),
}

MODELS = {TransformerEncoderConfig: TransformerEncoder}
