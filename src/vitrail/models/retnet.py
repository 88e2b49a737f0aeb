"""RetNet: a decoder whose layers retain instead of attend, trained in parallel and read one token at a time.

Sources: Sun et al. 2023, arXiv 2307.08621 (section 2 and table 2, the sizes); torchscale, the authors' code: the gated
feed-forward network, root mean square norms, and the widths of its named sizes. Retention also takes the place of
causal self-attention in the decoder of a Transformer here (Vaswani et al. 2017, arXiv 1706.03762): that is ours.

B batch, S and T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.nn.checks import require_heads, require_positive
from vitrail.nn.decoder import DecoderLayer
from vitrail.nn.feedforward import FeedForward, GatedFeedForward
from vitrail.nn.fused import Activation, Linear
from vitrail.nn.init import initialise
from vitrail.nn.residual import DropPath, drop_path_rates
from vitrail.nn.retention import Form, Normaliser, Places, Retention, RetentionState
from vitrail.nn.steps import Specials

from .transformer import VARIANTS as TRANSFORMERS
from .transformer import Transformer, TransformerConfig, decoder_layer, require_specials

Hidden = Literal["swiglu", "geglu", "gelu"]
_GATED: dict[str, Activation] = {"swiglu": "silu", "geglu": "gelu"}


@dataclass(frozen=True)
class Numerics:
    """What differs between the sources of one architecture; the card of a checkpoint sets it.

    Attributes:
        norm_eps: epsilon of all norms.
        normaliser: what the sums of retention are divided by before their norm, see
            :class:`~vitrail.nn.retention.Retention`: "none", "signed" (torchscale 0.3.0 in its parallel form) or
            "absolute" (torchscale since November 2023). Only beside ``norm_eps`` does it matter.
        init: name of the initial weights; see :mod:`vitrail.nn.init`.
    """

    norm_eps: float = 1e-6
    normaliser: Normaliser = "none"
    init: Literal["retnet"] = "retnet"


@dataclass(frozen=True)
class RetNetConfig:
    """Architecture of a RetNet.

    Attributes:
        vocab_size: tokens V there are.
        specials: token ids with a meaning of their own.
        embed_dim: width C.
        depth: number of blocks.
        num_heads: heads of each block, each forgetting half as fast as the one before it.
        value_dim: width of all values of a block together.
        hidden_dim: hidden width of the feed-forward network.
        feedforward: "swiglu" or "geglu" (gated, torchscale), "gelu" (not gated, the paper).
        tie_embeddings: whether the output reads the table of tokens, or has a matrix of its own.
        drop_rate: dropout after the embedding, retention and the feed-forward network.
        drop_path_rate: stochastic depth of the last block; earlier ones get less.
        chunk_size: tokens of a chunk in the chunkwise form.
        form: how retention is computed where a call does not say; see :class:`~vitrail.nn.retention.Retention`.
        numerics: what differs between sources of the same architecture.
    """

    vocab_size: int = 64000
    specials: Specials = field(default_factory=Specials)
    embed_dim: int = 512
    depth: int = 6
    num_heads: int = 2
    value_dim: int = 864
    hidden_dim: int = 864
    feedforward: Hidden = "swiglu"
    tie_embeddings: bool = True
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    chunk_size: int = 128
    form: Form = "auto"
    numerics: Numerics = field(default_factory=Numerics)

    def __post_init__(self) -> None:
        names = ("vocab_size", "embed_dim", "depth", "num_heads", "value_dim", "hidden_dim", "chunk_size")
        require_positive(vars(self), *names)
        require_heads([self.embed_dim, self.value_dim], [self.num_heads] * 2)
        require_specials(self.specials, self.vocab_size)


@dataclass
class RetNetState:
    """What a RetNet remembers of the rows it is reading: one matrix a head and layer, at any length."""

    layers: list[RetentionState]

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order, repeats allowed: in place."""
        for layer in self.layers:
            layer.select(rows)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(layer.nbytes for layer in self.layers)


class RetNetBlock(nn.Module):
    """``x + path(drop(retention(norm1(x))))``, then ``x + path(mlp(norm2(x)))``."""

    def __init__(self, config: RetNetConfig, drop_path: float) -> None:
        super().__init__()
        c, eps = config, config.numerics.norm_eps
        self.norm1 = nn.RMSNorm(c.embed_dim, eps=eps)
        self.retention = Retention(
            c.embed_dim,
            c.num_heads,
            value_dim=c.value_dim,
            eps=eps,
            normaliser=c.numerics.normaliser,
            chunk_size=c.chunk_size,
            form=c.form,
        )
        self.drop = nn.Dropout(c.drop_rate)
        self.norm2 = nn.RMSNorm(c.embed_dim, eps=eps)
        self.mlp = _feedforward(c)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, memory: RetentionState | None = None, *, places: Places | None = None, form: Form | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); arguments are those of :class:`~vitrail.nn.retention.Retention`."""
        mixed = self.retention(self.norm1(x), memory, places=places, form=form)
        x = x + self.drop_path(self.drop(mixed))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


def _feedforward(config: RetNetConfig) -> nn.Module:
    dim, hidden, drop = config.embed_dim, config.hidden_dim, config.drop_rate
    if config.feedforward == "gelu":
        return FeedForward(dim, hidden, bias=False, drop=drop)
    return GatedFeedForward(dim, hidden, act=_GATED[config.feedforward], drop=drop)


class RetNet(nn.Module):
    """RetNet: a table of tokens, pre-norm blocks of retention and a feed-forward network, norm, output.

    ``model(tokens)`` maps tokens (B, T) int64 to logits (B, T, V): those at t say what follows ``tokens[:, t]``. No
    length is too long: nothing in it is as long as the text.
    """

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(RetNetBlock(config, rate) for rate in rates)
        self.norm = nn.RMSNorm(config.embed_dim, eps=config.numerics.norm_eps)
        self.output_projection = (
            None if config.tie_embeddings else Linear(config.embed_dim, config.vocab_size, bias=False)
        )
        initialise(self, config.numerics.init)

    def hidden(
        self,
        tokens: Tensor,
        keep: Tensor | None = None,
        *,
        state: RetNetState | None = None,
        form: Form | None = None,
    ) -> Tensor:
        """Tokens (B, T) int64 -> (B, T, C) after the last norm: what :meth:`head` reads.

        Args:
            tokens: token ids.
            keep: (B, T) bool, True where a token is real. The others are neither written nor counted, wherever they
                stand; what comes out at them means nothing.
            state: what was read before, from :meth:`begin`; moved on in place.
            form: "parallel", "recurrent", "chunkwise" or "auto"; default the config's. The numbers are the same.
        """
        x = self.drop(self.embed_tokens(tokens))
        states = [None] * len(self.blocks) if state is None else state.layers
        places = self._first.places(x, states[0], keep)
        for block, own in zip(self.blocks, states, strict=True):
            x = block(x, own, places=places, form=form)
        normed: Tensor = self.norm(x)
        return normed

    @property
    def _first(self) -> Retention:
        """The retention of the first block: that of the others stands at the same places."""
        first = self.blocks[0]
        assert isinstance(first, RetNetBlock)
        return first.retention

    def head(self, hidden: Tensor) -> Tensor:
        """(..., C) -> logits (..., V)."""
        if self.output_projection is None:
            return F.linear(hidden, self.embed_tokens.weight)
        logits: Tensor = self.output_projection(hidden)
        return logits

    def forward(self, tokens: Tensor, keep: Tensor | None = None, *, form: Form | None = None) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, T, V); arguments are those of :meth:`hidden`."""
        return self.head(self.hidden(tokens, keep, form=form))

    def begin(self, source: Tensor, keep: Tensor | None = None) -> RetNetState:
        """Return the state after the beginning of a text (B, S) int64, where S may be 0; ``keep`` as in `hidden`."""
        blocks = (block for block in self.blocks if isinstance(block, RetNetBlock))
        state = RetNetState([block.retention.new_memory() for block in blocks])
        if source.shape[1]:
            self.hidden(source, keep, state=state, form="chunkwise")
        return state

    def step(self, tokens: Tensor, state: RetNetState) -> Tensor:
        """Read one more token a row, (B,) int64 -> logits (B, V) of the one after it; ``state`` moves on in place."""
        return self.head(self.hidden(tokens[:, None], state=state, form="recurrent")[:, 0])


@dataclass(frozen=True)
class RetNetSeq2SeqConfig(TransformerConfig):
    """A Transformer whose decoder retains: causal self-attention is exchanged for retention, all else is kept.

    Attributes:
        value_ratio: width of all values of a layer together, over C: 1 is 5 C² of matrices beside attention's 4 C²,
            2 the paper's 8 C².
        chunk_size: tokens of a chunk in the chunkwise form.
        form: how retention is computed; see :class:`~vitrail.nn.retention.Retention`.
    """

    value_ratio: int = 1
    chunk_size: int = 128
    form: Form = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(vars(self), "value_ratio", "chunk_size")


class RetNetSeq2Seq(Transformer):
    """Transformer encoder, retaining decoder: ``model(source, target, keep)`` gives logits (B, T, V).

    Of the text it writes, a decoder layer remembers one matrix a head; of the source, keys and values as always.
    """

    config: RetNetSeq2SeqConfig

    def __init__(self, config: RetNetSeq2SeqConfig) -> None:
        super().__init__(config)

    def _decoder_layer(self) -> DecoderLayer:
        c = self.config
        values = c.value_ratio * c.embed_dim
        mixer = Retention(c.embed_dim, c.num_heads, value_dim=values, chunk_size=c.chunk_size, form=c.form)
        return decoder_layer(c, mixer, cross=True)


# name: width, width of the values and of the feed-forward network, heads, depth
SIZES: dict[str, tuple[int, int, int, int]] = {
    # ours, for one core
    "pico": (64, 128, 2, 2),
    "nano": (128, 256, 4, 4),
    "tiny": (256, 432, 4, 6),
    # torchscale's
    "base": (512, 864, 2, 6),
    "medium": (1024, 1728, 4, 16),
    # the paper's, table 2, with torchscale's widths
    "1_3b": (2048, 3456, 8, 24),
    "2_7b": (2560, 4280, 10, 32),
    "6_7b": (4096, 6912, 16, 32),
    # torchscale's
    "13b": (5120, 8560, 20, 40),
    "65b": (8192, 13824, 32, 64),
}


def _sized(width: int, inner: int, heads: int, depth: int, *, vocab_size: int = 64000) -> RetNetConfig:
    return RetNetConfig(vocab_size, Specials(), width, depth, heads, value_dim=inner, hidden_dim=inner)


def _seq2seq(name: str) -> RetNetSeq2SeqConfig:
    """Return the Transformer ``name`` with retention in its decoder."""
    return RetNetSeq2SeqConfig(**vars(TRANSFORMERS[name]))


def _as_printed(width: int, depth: int, heads: int) -> RetNetConfig:
    """The paper's own form, section 2.2: values and a hidden layer of width 2 C, GELU, no gate: 12 C² a block."""
    return RetNetConfig(
        64000, Specials(), width, depth, heads, value_dim=2 * width, hidden_dim=2 * width, feedforward="gelu"
    )


_SMALL = ("pico", "nano", "tiny")  # their vocabulary is that of a small corpus

VARIANTS: dict[str, RetNetConfig | RetNetSeq2SeqConfig] = {
    f"retnet_{name}": _sized(*size, vocab_size=8000 if name in _SMALL else 64000) for name, size in SIZES.items()
}
VARIANTS |= {
    f"retnet_paper_{name}": _as_printed(width, depth, heads)
    for name, (width, _, heads, depth) in SIZES.items()
    if name in ("1_3b", "2_7b", "6_7b")
}
VARIANTS["test_retnet"] = RetNetConfig(
    vocab_size=19, embed_dim=16, depth=2, num_heads=2, value_dim=24, hidden_dim=20, chunk_size=4
)
VARIANTS["test_retnet_paper"] = RetNetConfig(
    vocab_size=19,
    embed_dim=16,
    depth=2,
    num_heads=2,
    value_dim=32,
    hidden_dim=32,
    feedforward="gelu",
    tie_embeddings=False,
    chunk_size=4,
    numerics=Numerics(normaliser="signed"),
)

VARIANTS |= {
    "retnet_seq2seq_tiny": _seq2seq("transformer_tiny"),
    "retnet_seq2seq_mini": _seq2seq("transformer_mini"),
    "retnet_seq2seq_small": _seq2seq("transformer_small"),
    "retnet_seq2seq_base": _seq2seq("transformer_base"),
    "test_retnet_seq2seq": replace(_seq2seq("test_transformer"), chunk_size=4),
    "test_retnet_seq2seq_pre_norm": replace(_seq2seq("test_transformer_pre_norm"), value_ratio=2, form="recurrent"),
}

MODELS = {RetNetConfig: RetNet, RetNetSeq2SeqConfig: RetNetSeq2Seq}
