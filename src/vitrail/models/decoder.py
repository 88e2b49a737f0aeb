"""Transformer decoder alone: a language model.

Sources: Radford et al. 2018 and 2019 (GPT, GPT-2), section 2; Vaswani et al. 2017, arXiv 1706.03762 (its layers).

B batch, T tokens, R rows that are decoded, C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.decoder import Decoder, DecoderState
from vitrail.nn.fused import linear
from vitrail.nn.init import initialise
from vitrail.nn.steps import Specials

from .transformer import EmbedTokens, Numerics, decoder_layer, final_norm, require_specials

_GPT = Numerics(act="gelu_tanh", scale_embedding=True, init="transformer")


@dataclass(frozen=True)
class TransformerDecoderConfig:
    """Architecture of a decoder-only Transformer; the embedding is the output layer too.

    Attributes:
        vocab_size: tokens V.
        specials: ids of padding, beginning and end.
        embed_dim: width C.
        depth: number of layers.
        num_heads: heads of each attention.
        hidden_dim: hidden width of the feed-forward networks.
        drop_rate: dropout of the embeddings and of every branch before it is added.
        attn_drop_rate: dropout of the attention weights.
        act_drop_rate: dropout after the activation of the feed-forward networks.
        norm_first: norms before the branches (pre-norm) instead of after the sums.
        final_norm: a norm after the last layer; pre-norm needs it.
        numerics: what differs between sources of the same architecture.
    """

    vocab_size: int = 10_000
    specials: Specials = field(default_factory=Specials)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_dim: int = 3072
    drop_rate: float = 0.1
    attn_drop_rate: float = 0.0
    act_drop_rate: float = 0.0
    norm_first: bool = True
    final_norm: bool = True
    numerics: Numerics = _GPT

    def __post_init__(self) -> None:
        require_positive(vars(self), "embed_dim", "depth", "num_heads", "hidden_dim")
        require_heads([self.embed_dim], [self.num_heads])
        require_specials(self.specials, self.vocab_size)


class TransformerDecoder(nn.Module):
    """Language model: ``model(tokens)`` gives logits (B, T, V).

    It decodes step by step as :class:`~vitrail.nn.steps.SequenceModel` says.
    """

    def __init__(self, config: TransformerDecoderConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.embed = nn.Embedding(c.vocab_size, c.embed_dim, padding_idx=c.specials.pad)
        self.place = EmbedTokens(c.embed_dim, c.numerics, c.drop_rate)
        self.decoder = Decoder((decoder_layer(c, cross=False) for _ in range(c.depth)), final_norm(c))
        initialise(self, c.numerics.init)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> what the head reads (B, T, C)."""
        out: Tensor = self.decoder(self.place(self.embed, tokens))
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """(..., C) -> logits (..., V)."""
        return linear(hidden, self.embed.weight, None)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, T, V) of what follows each; padding at the end needs no mask."""
        return self.head(self.hidden(tokens))

    def begin(self, source: Tensor, keep: Tensor | None = None) -> DecoderState:
        """Read the beginning of a text (B, S), S from 0 on, and return the state behind it.

        Raises ValueError if ``keep`` leaves a token out: rows that are decoded together begin at one position.
        """
        if keep is not None and not bool(keep.all()):
            raise ValueError("expected beginnings of one length, got padding; mend: decode rows of each length apart")
        state = self.decoder.begin()
        if source.shape[1]:
            self.decoder.step(self.place(self.embed, source), state)
        return state

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read one more token a row, (R,) int64 -> logits (R, V) of the one after it; ``state`` moves on."""
        x = self.place(self.embed, tokens[:, None], state.length)
        return self.head(self.decoder.step(x, state)[:, 0])


_BASE = TransformerDecoderConfig()  # GPT-2's smallest, but for its positions and vocabulary

VARIANTS: dict[str, TransformerDecoderConfig] = {
    "transformer_lm_base": _BASE,
    "transformer_lm_tiny": replace(_BASE, embed_dim=128, depth=4, num_heads=4, hidden_dim=512),
    "test_transformer_lm": replace(_BASE, vocab_size=29, embed_dim=16, depth=2, num_heads=2, hidden_dim=24),
}

MODELS = {TransformerDecoderConfig: TransformerDecoder}
