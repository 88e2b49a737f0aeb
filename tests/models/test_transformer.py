"""Transformers: the counts of the paper, positions, initial weights, parts of a decoder."""

import pytest
import torch

from vitrail import models
from vitrail.errors import UsageError
from vitrail.models.transformer import Transformer
from vitrail.nn import DecoderLayer, FeedForward, SinusoidalPositions, initialise, sincos_1d


@pytest.mark.parametrize(("name", "count"), [("transformer_base", 63_082_496), ("transformer_big", 214_245_376)])
def test_as_many_parameters_as_the_paper_says(name, count):
    """Table 3 says 65 and 213 million; the arithmetic for 37,000 shared byte pairs is this."""
    with torch.device("meta"):
        model = models.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("layout", ["interleaved", "halves", "tensor2tensor"])
def test_positions_of_any_length(layout):
    rows = SinusoidalPositions(6, layout=layout, first=2)
    table = sincos_1d(1000, 6, layout=layout)
    assert torch.equal(rows(0, 5), table[2:7])
    assert torch.equal(rows(700, 20), table[702:722])
    assert torch.equal(rows(3, 5), table[5:10])
    assert rows.state_dict() == {}


def test_positions_keep_their_type_as_they_grow():
    rows = SinusoidalPositions(6).bfloat16()
    assert rows(0, 5000).dtype == torch.bfloat16


def test_the_slowest_sine_of_each_layout():
    paper, code = (sincos_1d(2, 8, layout=layout)[1, 3] for layout in ("halves", "tensor2tensor"))
    assert float(paper) == pytest.approx(10_000 ** (-6 / 8))
    assert float(code) == pytest.approx(1 / 10_000)


def test_initial_weights():
    torch.manual_seed(0)
    model = models.create_model("transformer_tiny", share="none", head_bias=True)
    for table in (model.embed, model.target_embed):
        assert not table.weight[model.config.specials.pad].any()
        assert float(table.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    assert float(model.output.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    fused = model.encoder.layers[0].attn.qkv.weight.detach()
    assert float(fused.abs().max()) == pytest.approx((6 / (4 * 128)) ** 0.5, rel=0.01)
    assert not model.output_bias.any()


def test_what_is_shared():
    counts = [
        sum(p.numel() for p in models.create_model("test_transformer", share=share).parameters())
        for share in ("all", "target", "none")
    ]
    assert counts[1] - counts[0] == counts[2] - counts[1] == 29 * 16


def test_logits_of_chosen_rows_only():
    torch.manual_seed(0)
    model = models.create_model("test_transformer").eval()
    source, target = torch.randint(4, 29, (2, 5)), torch.randint(4, 29, (2, 6))
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    with torch.inference_mode():
        hidden = model.decode(target, *model.encode(source))
        torch.testing.assert_close(model.head(hidden[real]), model(source, target)[real])


class Mean(torch.nn.Module):
    """The mean of all tokens so far: a mixer that is no attention."""

    class Sum:
        total, count = 0.0, 0

        def select(self, rows):
            if self.count:
                self.total = self.total[rows]

    def forward(self, x, memory=None):
        sums = x.cumsum(1)
        before = 0
        if memory is not None:
            sums, before = sums + memory.total, memory.count
            memory.total, memory.count = sums[:, -1:], memory.count + x.shape[1]
        return sums / torch.arange(before + 1, before + x.shape[1] + 1)[:, None]

    def new_memory(self):
        return self.Sum()


def test_another_mixer_takes_the_place_of_causal_attention():
    torch.manual_seed(0)
    model = models.create_model("test_transformer").eval()
    for i in range(2):
        layer = model.decoder.layers[i]
        model.decoder.layers[i] = DecoderLayer(Mean(), FeedForward(16, 24), 16, cross=layer.cross, eps=1e-5)
    source, target = torch.randint(4, 29, (2, 5)), torch.randint(4, 29, (2, 6))
    with torch.inference_mode():
        state = model.begin(source)
        steps = torch.stack([model.step(target[:, t], state) for t in range(6)], 1)
        torch.testing.assert_close(steps, model(source, target))


def test_a_decoder_alone_begins_rows_together():
    model = models.create_model("test_transformer_lm")
    with pytest.raises(ValueError, match="beginnings of one length"):
        model.begin(torch.ones(2, 3, dtype=torch.long), torch.tensor([[True] * 3, [False, True, True]]))


def test_an_encoder_for_classes_predicts_no_tokens():
    model = models.create_model("test_transformer_classes")
    with pytest.raises(ValueError, match="num_classes=0"):
        model.token_logits(torch.zeros(2, 16))


@pytest.mark.parametrize("keywords", [{"num_heads": 3}, {"vocab_size": 3}, {"share": "some"}, {"hidden_dim": 0}])
def test_numbers_that_make_no_network(keywords):
    with pytest.raises(UsageError, match="expected"):
        models.create_model("test_transformer", **keywords)


def test_rows_of_one_source_share_it():
    """Beams of a sentence are no copies of it, in whatever order they come, until they are of unequal number."""
    model: Transformer = models.create_model("test_transformer").eval()
    source = torch.randint(4, 29, (3, 5))
    with torch.inference_mode():
        state = model.begin(source)
        context = state.context
        state.select(torch.arange(3).repeat_interleave(2))
        model.step(torch.full((6,), 2), state)
        state.select(torch.tensor([1, 1, 2, 3, 5, 4]))
        assert state.context is context
        assert state.width == 2
        assert state.caches[0].read()[0].shape[0] == 3
        state.select(torch.tensor([0, 1, 4, 5]))
        assert (len(state.context), state.width) == (2, 2)
        state.select(torch.tensor([0, 1, 2]))
        assert (len(state.context), state.width) == (3, 1)


def test_the_scheme_of_bert_is_narrow():
    model = models.create_model("test_transformer_encoder")
    initialise(model, "normal")
    assert float(model.embed.weight.detach().abs().max()) < 0.12
