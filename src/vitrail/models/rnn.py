"""Recurrent language models and encoder-decoders: plain, GRU and LSTM cells, with and without attention.

    S_t = f(U x_t + W S_(t-1)),    O_t = g(V S_t)

Sources: Mikolov et al. 2010, "Recurrent neural network based language model"; Sutskever et al. 2014, arXiv 1409.3215
(encoder-decoder; the last state is all the decoder gets); Bahdanau et al. 2015, arXiv 1409.0473 (additive attention,
bidirectional encoder); Luong et al. 2015, arXiv 1508.04025, section 3.1, equations 5 and 8 (attention after the
recurrence); Press and Wolf 2017, arXiv 1608.05859 (one matrix for embedding and head).

B batch, S source tokens, T target tokens, E width of the embedding, C width of the state, L layers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from vitrail.nn.checks import require_multiple, require_positive
from vitrail.nn.fused import Linear, linear
from vitrail.nn.init import initialise
from vitrail.nn.recurrent import AdditiveAttention, Cell, RecurrentState, recurrence, run
from vitrail.nn.steps import Specials

from .transformer import require_specials

AttentionKind = Literal["none", "additive"]


@dataclass(frozen=True)
class RNNLanguageModelConfig:
    """Architecture of a recurrent language model.

    Attributes:
        vocab_size: number of tokens V.
        specials: ids of the tokens with a meaning of their own.
        cell: "tanh" or "relu" (plain, with that f), "gru", "lstm".
        embed_dim: width E of the embedding.
        hidden_dim: width C of the state.
        depth: number of layers L.
        tied: whether embedding and head are one matrix; E and C are then the same.
        drop_rate: dropout on embeddings, between layers and before the head.
    """

    vocab_size: int = 10000
    specials: Specials = field(default_factory=Specials)
    cell: Cell = "tanh"
    embed_dim: int = 256
    hidden_dim: int = 256
    depth: int = 1
    tied: bool = True
    drop_rate: float = 0.3

    def __post_init__(self) -> None:
        require_positive(vars(self), "embed_dim", "hidden_dim", "depth")
        require_specials(self.specials, self.vocab_size)
        if self.tied and self.embed_dim != self.hidden_dim:
            raise ValueError(
                f"expected embed_dim = hidden_dim for tied weights, got {self.embed_dim} and {self.hidden_dim}; "
                "mend: tied=False"
            )


@dataclass(frozen=True)
class RNNEncoderDecoderConfig:
    """Architecture of a recurrent encoder-decoder.

    Attributes:
        vocab_size: number of tokens V, of source and target together.
        specials: ids of the tokens with a meaning of their own.
        cell: "tanh" or "relu" (plain, with that f), "gru", "lstm".
        embed_dim: width E of the embeddings, and of what the head reads.
        hidden_dim: width C of the decoder's state and of the memory; two directions have half of it each.
        depth: number of layers L of the encoder, and of the decoder.
        bidirectional: whether the encoder reads the source from both ends.
        attention: "none" (the decoder knows the source by its first state alone) or "additive".
        attention_dim: width A of the attention's hidden layer.
        tied: whether both embeddings and the head are one matrix.
        drop_rate: dropout on embeddings, between layers and before the head.
    """

    vocab_size: int = 10000
    specials: Specials = field(default_factory=Specials)
    cell: Cell = "gru"
    embed_dim: int = 256
    hidden_dim: int = 512
    depth: int = 1
    bidirectional: bool = True
    attention: AttentionKind = "additive"
    attention_dim: int = 256
    tied: bool = True
    drop_rate: float = 0.3

    def __post_init__(self) -> None:
        require_positive(vars(self), "embed_dim", "hidden_dim", "depth", "attention_dim")
        require_specials(self.specials, self.vocab_size)
        if self.bidirectional:
            require_multiple("hidden_dim", [self.hidden_dim], "directions", 2)


class _Words(nn.Module):
    """What both kinds share: a head of its own, or one whose matrix is the embedding of what it predicts."""

    def __init__(self, config: RNNLanguageModelConfig | RNNEncoderDecoderConfig, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.embed_dim)
        self.drop = nn.Dropout(config.drop_rate)
        self.output_weight = None if config.tied else nn.Parameter(torch.empty(config.vocab_size, width))
        self.output_bias = nn.Parameter(torch.empty(config.vocab_size))

    def head(self, hidden: Tensor) -> Tensor:
        """What :meth:`hidden` gives (..., width) -> logits (..., V)."""
        weight = self.embed.weight if self.output_weight is None else self.output_weight
        return linear(hidden, weight, self.output_bias)


class RNNLanguageModel(_Words):
    """Recurrent language model: embedding, layers, head. ``model(tokens)`` maps (B, T) int64 to logits (B, T, V)."""

    def __init__(self, config: RNNLanguageModelConfig) -> None:
        super().__init__(config, config.hidden_dim)
        self.config = config
        self.rnn = recurrence(config.cell, config.embed_dim, config.hidden_dim, config.depth, drop=config.drop_rate)
        initialise(self, "recurrent")

    def hidden(self, tokens: Tensor, state: RecurrentState | None = None) -> Tensor:
        """Tokens (B, T) -> states of the last layer (B, T, C), by one call; ``state`` is read and moves on."""
        out, last = run(self.rnn, self.drop(self.embed(tokens)), state)
        if state is not None:
            state.hidden, state.cell = last.hidden, last.cell
        states: Tensor = self.drop(out)
        return states

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) int64 -> logits (B, T, V): those at t say what follows token t."""
        return self.head(self.hidden(tokens))

    def begin(self, source: Tensor, keep: Tensor | None = None) -> RecurrentState:
        """Return the state after the text (B, S), S of 0 and more; see :class:`~vitrail.nn.steps.SequenceModel`."""
        return run(self.rnn, self.drop(self.embed(source)), keep=keep)[1]

    def step(self, tokens: Tensor, state: RecurrentState) -> Tensor:
        """Read one more token a row (B,) -> logits (B, V); ``state`` moves on."""
        return self.head(self.hidden(tokens[:, None], state))[:, 0]


@dataclass
class DecoderState:
    """What the decoder of an encoder-decoder remembers.

    Attributes:
        layers: the state of its layers, (L, B, C) each.
        memory: the encoder's states (B, S, C); None without attention, as the next two.
        keys: the same as the attention reads them (B, S, A).
        keep: (B, S) bool, True where the source is real; None if all of it is.
    """

    layers: RecurrentState
    memory: Tensor | None = None
    keys: Tensor | None = None
    keep: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (b,) int64, in that order: in place."""
        self.layers.select(rows)
        self.memory = None if self.memory is None else self.memory[rows]
        self.keys = None if self.keys is None else self.keys[rows]
        self.keep = None if self.keep is None else self.keep[rows]


class Bridge(nn.Module):
    """The encoder's last states -> the decoder's first: tanh of a linear layer over both directions of each layer.

    Bahdanau et al. 2015, appendix A.2.2, take the backward half alone; the LSTM's cell, which has no bound, gets a
    linear layer without tanh.
    """

    def __init__(self, dim: int, cell: bool) -> None:
        super().__init__()
        self.hidden = Linear(dim, dim)
        self.cell = Linear(dim, dim) if cell else None

    def forward(self, state: RecurrentState) -> RecurrentState:
        """States (L · 2, B, C / 2) -> (L, B, C)."""
        hidden = self.hidden(_side_by_side(state.hidden)).tanh()
        if self.cell is None or state.cell is None:
            return RecurrentState(hidden)
        return RecurrentState(hidden, self.cell(_side_by_side(state.cell)))


def _side_by_side(states: Tensor) -> Tensor:
    """(L · 2, B, C / 2), layer by layer -> (L, B, C), both directions of one layer side by side."""
    count, rows, width = states.shape
    return states.view(count // 2, 2, rows, width).transpose(1, 2).flatten(2)


class RNNEncoderDecoder(_Words):
    """Recurrent encoder-decoder. ``model(source, target, keep)`` maps (B, S) and (B, T) int64 to logits (B, T, V).

    The encoder's last state, at the true end of each source, starts the decoder: as it is, or through :class:`Bridge`
    where the encoder has two directions. Without attention that is all the decoder learns of the source.

    Attention is Bahdanau's additive score in Luong's order: the decoder's recurrence does not see the context, so one
    call runs it over the whole target; then all its states attend to the memory at once, and state s and context c give
    tanh(W_c [s; c]), which the head reads (Luong et al. 2015, equations 5 and 8, without input feeding). In Bahdanau's
    own order the context goes into the next state, which costs a loop over the target in training.
    Without attention the head reads tanh(W_c s).
    """

    def __init__(self, config: RNNEncoderDecoderConfig) -> None:
        super().__init__(config, config.embed_dim)
        self.config = config
        c, dim = config, config.hidden_dim
        self.target_embed = None if c.tied else nn.Embedding(c.vocab_size, c.embed_dim)
        each = dim // 2 if c.bidirectional else dim
        self.encoder = recurrence(c.cell, c.embed_dim, each, c.depth, drop=c.drop_rate, bidirectional=c.bidirectional)
        self.bridge = Bridge(dim, c.cell == "lstm") if c.bidirectional else nn.Identity()
        self.decoder = recurrence(c.cell, c.embed_dim, dim, c.depth, drop=c.drop_rate)
        attends = c.attention == "additive"
        self.attention = AdditiveAttention(dim, dim, c.attention_dim) if attends else None
        self.readout = Linear(2 * dim if attends else dim, c.embed_dim)
        initialise(self, "recurrent")

    def begin(self, source: Tensor, keep: Tensor | None = None) -> DecoderState:
        """Encode the source (B, S) int64; ``keep`` (B, S) bool is True where it is real: from the start of each row."""
        memory, last = run(self.encoder, self.drop(self.embed(source)), keep=keep)
        if self.attention is None:
            return DecoderState(self.bridge(last))
        memory = self.drop(memory)
        return DecoderState(self.bridge(last), memory, self.attention.key(memory), keep)

    def decode(self, target: Tensor, state: DecoderState) -> Tensor:
        """Read target tokens (B, T) -> what the head reads of each (B, T, E); ``state`` moves on."""
        embed = self.embed if self.target_embed is None else self.target_embed
        out, state.layers = run(self.decoder, self.drop(embed(target)), state.layers)
        if self.attention is not None and state.keys is not None and state.memory is not None:
            out = torch.cat([out, self.attention(out, state.keys, state.memory, state.keep)], -1)
        read: Tensor = self.drop(self.readout(out).tanh())
        return read

    def hidden(self, source: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """Source (B, S), target (B, T) -> what the head reads at each target token (B, T, E)."""
        return self.decode(target, self.begin(source, keep))

    def forward(self, source: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
        """Source (B, S), target (B, T) that begins with bos, ``keep`` (B, S) bool -> logits (B, T, V)."""
        return self.head(self.hidden(source, target, keep))

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Read one more token a row (B,) -> logits (B, V); ``state`` moves on."""
        return self.head(self.decode(tokens[:, None], state))[:, 0]


_KINDS: dict[str, Cell] = {"rnn": "tanh", "gru": "gru", "lstm": "lstm"}

VARIANTS: dict[str, RNNLanguageModelConfig | RNNEncoderDecoderConfig] = {
    # widths of ours, for a vocabulary of some thousand tokens and two CPU cores
    f"{name}_lm": RNNLanguageModelConfig(cell=cell, embed_dim=512, hidden_dim=512)
    for name, cell in _KINDS.items()
}
_ATTENTIONS: dict[str, AttentionKind] = {"seq2seq": "none", "attention": "additive"}
VARIANTS |= {
    f"{name}_{kind}": RNNEncoderDecoderConfig(cell=cell, attention=attention)
    for name, cell in _KINDS.items()
    for kind, attention in _ATTENTIONS.items()
}
_LM = RNNLanguageModelConfig(vocab_size=23, embed_dim=16, hidden_dim=16, drop_rate=0.0)
_PAIR = RNNEncoderDecoderConfig(vocab_size=23, embed_dim=12, hidden_dim=16, attention_dim=8, drop_rate=0.0)
VARIANTS |= {
    "test_rnn_lm": _LM,
    "test_relu_lm": replace(_LM, cell="relu", hidden_dim=24, depth=2, tied=False),
    "test_gru_lm": replace(_LM, cell="gru", depth=2),
    "test_lstm_lm": replace(_LM, cell="lstm"),
    "test_rnn_seq2seq": replace(_PAIR, cell="tanh", bidirectional=False, attention="none"),
    "test_gru_seq2seq": replace(_PAIR, depth=2, attention="none", tied=False),
    "test_lstm_seq2seq": replace(_PAIR, cell="lstm", attention="none"),
    "test_rnn_attention": replace(_PAIR, cell="tanh"),
    "test_gru_attention": replace(_PAIR, depth=2, tied=False),
    "test_lstm_attention": replace(_PAIR, cell="lstm", bidirectional=False),
}

MODELS = {RNNLanguageModelConfig: RNNLanguageModel, RNNEncoderDecoderConfig: RNNEncoderDecoder}
