"""Recurrent models: explicit torch references agree, texts of any length begin at their ends, alignment is recorded."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.contract.every import randomise
from vitrail import explain, models
from vitrail.errors import UsageError
from vitrail.models.rnn import RNNEncoderDecoder, RNNEncoderDecoderConfig, RNNLanguageModel
from vitrail.weights import export_weights, load_weights

KINDS = {name: config for name, config in models.text_variants().items() if config.__class__.__module__.endswith("rnn")}
TINY = sorted(name for name in KINDS if name.startswith("test_"))
PAIRS = [name for name in TINY if isinstance(KINDS[name], RNNEncoderDecoderConfig)]
ALONE = [name for name in TINY if name not in PAIRS]


def tokens(rows, count, seed=0):
    return torch.randint(4, 23, (rows, count), generator=torch.Generator().manual_seed(seed))


def made(name, **changes):
    return randomise(models.create_model(name, **changes)).eval()


def prefix(lengths, width):
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def whole(model, name, source, target, keep=None):
    return model(source, target, keep) if name in PAIRS else model(target)


@pytest.mark.parametrize("name", ALONE)
def test_texts_of_different_length_begin_at_their_ends(name):
    model, text, following = made(name), tokens(3, 6), tokens(3, 1, 5)[:, 0]
    with torch.inference_mode():
        together = model.step(following, model.begin(text, prefix((6, 2, 4), 6)))
        for row, length in enumerate((6, 2, 4)):
            alone = model.step(following[row : row + 1], model.begin(text[row : row + 1, :length]))
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_rnn_attention", "test_gru_attention", "test_lstm_attention"])
def test_the_alignment_is_recorded(name):
    model, source, target, keep = made(name), tokens(3, 6), tokens(3, 5, 1), prefix((6, 2, 4), 6)
    with torch.inference_mode():
        plain = model(source, target, keep)
        with explain.record(model) as tape:
            recorded = model(source, target, keep)
    assert torch.equal(recorded, plain)
    (weights,) = tape["attention"]
    assert weights.shape == (3, 1, 5, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1, 5))
    assert not weights[1, :, :, 2:].any()


def test_tied_models_hold_one_matrix_and_others_three():
    for tied, count in ((True, 1), (False, 3)):
        model = models.create_model("test_gru_attention", tied=tied)
        assert sum(23 in p.shape and p.ndim == 2 for p in model.parameters()) == count
    with pytest.raises(UsageError, match="embed_dim = hidden_dim"):
        models.create_model("test_rnn_lm", hidden_dim=24)
    with pytest.raises(UsageError, match="hidden_dim"):
        models.create_model("test_gru_attention", hidden_dim=15)


# ---- explicit references of torch's own modules, weights carried over by their names


class TorchLM(nn.Module):
    """Embedding, recurrent layers, linear head, under the names of PyTorch's word_language_model."""

    def __init__(self, kind, vocab, embed, hidden, depth):
        super().__init__()
        self.encoder = nn.Embedding(vocab, embed)
        make = {"gru": nn.GRU, "lstm": nn.LSTM}.get(kind, nn.RNN)
        extra = {"nonlinearity": kind} if make is nn.RNN else {}
        self.rnn = make(embed, hidden, depth, batch_first=True, **extra)
        self.decoder = nn.Linear(hidden, vocab)

    def forward(self, text):
        return self.decoder(self.rnn(self.encoder(text))[0])


@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
@pytest.mark.parametrize("depth", [1, 2])
def test_language_model_equals_torchs(cell, depth):
    theirs = randomise(TorchLM(cell, 23, 12, 16, depth)).eval()
    config = replace(KINDS["test_relu_lm"], cell=cell, embed_dim=12, hidden_dim=16, depth=depth)
    ours = models.build(config).eval()
    load_weights(ours, theirs.state_dict())
    text = tokens(3, 7)
    with torch.inference_mode():
        assert float((ours(text) - theirs(text)).abs().max()) <= 1e-6
    written = export_weights(ours, layout="torch")
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in theirs.state_dict().items())


def plain_translation(state, config, source, target, lengths):
    """The whole model, sentence by sentence: torch's layers, the bridge and the additive score written out."""
    make = {"gru": nn.GRU, "lstm": nn.LSTM}.get(config.cell, nn.RNN)
    extra = {"nonlinearity": config.cell} if make is nn.RNN else {}
    width, embed, both = config.hidden_dim, config.embed_dim, config.bidirectional
    encoder = make(embed, width // 2 if both else width, config.depth, batch_first=True, bidirectional=both, **extra)
    decoder = make(embed, width, config.depth, batch_first=True, **extra)
    for module, name in ((encoder, "encoder."), (decoder, "decoder.")):
        module.load_state_dict({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)})
    rows = []
    for row, length in enumerate(lengths):
        memory, last = encoder(F.embedding(source[row : row + 1, :length], state["embed.weight"]))
        parts = last if isinstance(last, tuple) else (last,)
        if both:
            h = torch.cat([parts[0][0::2], parts[0][1::2]], -1)
            first = [torch.tanh(h @ state["bridge.hidden.weight"].T + state["bridge.hidden.bias"])]
            if len(parts) == 2:
                c = torch.cat([parts[1][0::2], parts[1][1::2]], -1)
                first.append(c @ state["bridge.cell.weight"].T + state["bridge.cell.bias"])
        else:
            first = list(parts)
        words = F.embedding(target[row : row + 1], state.get("target_embed.weight", state["embed.weight"]))
        out = decoder(words, first[0] if len(first) == 1 else tuple(first))[0][0]
        if config.attention == "additive":
            contexts = []
            for s in out:
                asked = state["attention.query.weight"] @ s + state["attention.query.bias"]
                scores = torch.tanh(asked + memory[0] @ state["attention.key.weight"].T) @ state["attention.score"]
                contexts.append(scores.softmax(0) @ memory[0])
            out = torch.cat([out, torch.stack(contexts)], -1)
        read = torch.tanh(out @ state["readout.weight"].T + state["readout.bias"])
        rows.append(read @ state.get("output_weight", state["embed.weight"]).T + state["output_bias"])
    return torch.stack(rows)


@pytest.mark.parametrize("name", PAIRS)
def test_encoder_decoder_equals_an_explicit_one_of_torchs_modules(name):
    model, source, target, lengths = made(name), tokens(3, 6), tokens(3, 5, 1), (6, 2, 4)
    with torch.no_grad():
        expected = plain_translation(model.state_dict(), model.config, source, target, lengths)
        found = model(source, target, prefix(lengths, 6))
    assert float((found - expected).abs().max()) <= 1e-6


def test_names_of_classes():
    assert isinstance(models.create_model("test_gru_lm"), RNNLanguageModel)
    assert isinstance(models.create_model("test_gru_attention"), RNNEncoderDecoder)
