"""RetNet: its forms, its decoding, its sizes."""

import pytest
import torch

from vitrail import models
from vitrail.models.retnet import RetNetConfig
from vitrail.nn.steps import Specials

NAMES = ("test_retnet", "test_retnet_paper")
FORMS = ("parallel", "recurrent", "chunkwise")
# architectures.md, section 3: without the table of tokens, and with one of 64,000 that is tied
COUNTS = {
    "retnet_1_3b": (1_220.6, 1_351.7),
    "retnet_2_7b": (2_523.3, 2_687.1),
    "retnet_6_7b": (6_509.8, 6_772.0),
}


@pytest.fixture(params=NAMES)
def model(request):
    made = models.create_model(request.param).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + noise * (0.5 if parameter.ndim > 1 else 0.2))
    return made.requires_grad_(False)


def text(length, batch=3, seed=0):
    return torch.randint(4, 19, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 4, 23])
def test_forms_agree(model, length):
    tokens = text(length)
    auto = model(tokens)
    assert auto.shape == (3, length, 19)
    for form in FORMS:
        torch.testing.assert_close(model(tokens, form=form), auto, atol=1e-9, rtol=0)
    torch.testing.assert_close(model.head(model.hidden(tokens)), auto, atol=0, rtol=0)


@pytest.mark.parametrize("start", [0, 1, 9])
def test_steps_give_the_logits_of_the_whole(model, start):
    tokens = text(21)
    whole = model(tokens)
    state = model.begin(tokens[:, :start])
    for i in range(start, 21):
        torch.testing.assert_close(model.step(tokens[:, i], state), whole[:, i], atol=1e-9, rtol=0)
        if i == 12:
            size = state.nbytes
    assert state.nbytes == size


def test_a_state_follows_its_rows(model):
    tokens, rows = text(12), torch.tensor([2, 2, 0])
    state = model.begin(tokens)
    state.select(rows)
    more = text(1, seed=5)
    whole = model(torch.cat([tokens[rows], more], 1))
    torch.testing.assert_close(model.step(more[:, 0], state), whole[:, -1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("left", [True, False])
def test_a_padded_batch_equals_single_rows(model, left):
    tokens, lengths = text(17), (17, 6, 11)
    keep = torch.stack([torch.arange(17) >= 17 - n if left else torch.arange(17) < n for n in lengths])
    batch = model(tokens.masked_fill(~keep, 0), keep)
    state = model.begin(tokens.masked_fill(~keep, 0), keep)
    after = model.step(torch.tensor([5, 6, 7]), state)
    for row in range(3):
        own = tokens[row : row + 1, keep[row]]
        torch.testing.assert_close(batch[row, keep[row]], model(own)[0], atol=1e-9, rtol=0)
        alone = model(torch.cat([own, torch.tensor([[5 + row]])], 1))
        torch.testing.assert_close(after[row], alone[0, -1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_learns_in_every_form(name):
    tokens = text(9)
    for form in FORMS:
        model = models.create_model(name, drop_rate=0.1, drop_path_rate=0.1)
        loss = torch.nn.functional.cross_entropy(
            model(tokens, form=form)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{key} got no gradient"
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), f"{key} got a gradient of zeros"


def test_compiles_and_exports(model):
    tokens = text(11)
    torch.compiler.reset()
    eager = model(tokens)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(tokens)
    torch.testing.assert_close(compiled, eager, atol=1e-9, rtol=0)
    program = torch.export.export(model, (tokens,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    more = text(11, batch=5)
    torch.testing.assert_close(program.module()(more), model(more), atol=1e-9, rtol=0)


def test_bf16_is_near_float32(model):
    tokens = text(11)
    exact = model(tokens)
    rough = model.bfloat16()(tokens)
    assert rough.dtype == torch.bfloat16
    assert float((rough.double() - exact).abs().mean()) < 0.1 * float(exact.abs().mean())


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_those_of_the_paper(name):
    with torch.device("meta"):
        model = models.create_model(name)
    whole = sum(parameter.numel() for parameter in model.parameters())
    table = model.embed_tokens.weight.numel()
    assert (round((whole - table) / 1e6, 1), round(whole / 1e6, 1)) == COUNTS[name]
    config = models.config_of(name)
    assert config.embed_dim == 256 * config.num_heads


def test_the_printed_form_has_twelve_squares_a_block():
    config = models.config_of("retnet_paper_1_3b")
    with torch.device("meta"):
        model = models.build(config)
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim > 1)
    assert block == 12 * config.embed_dim**2


def test_config_round_trip_and_errors():
    config = RetNetConfig(vocab_size=30, specials=Specials(1, 5, 6), embed_dim=24, num_heads=2, value_dim=16)
    assert models.config_from_dict(models.config_to_dict(config)) == config
    with pytest.raises(ValueError, match="num_heads"):
        RetNetConfig(embed_dim=30, num_heads=4)
    with pytest.raises(ValueError, match="chunk_size"):
        RetNetConfig(chunk_size=0)


@pytest.mark.parametrize("name", ["test_retnet_seq2seq", "test_retnet_seq2seq_pre_norm"])
def test_a_decoder_that_retains_gives_the_same_in_every_form(name):
    source, target = text(6), text(13, seed=1)
    keep = torch.arange(6) < torch.tensor([[6], [2], [4]])
    found = []
    for form in FORMS:
        torch.manual_seed(0)
        model = models.create_model(name, form=form, chunk_size=5).double().eval()
        with torch.no_grad():
            found.append(model(source, target, keep))
    torch.testing.assert_close(found[1], found[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[2], found[0], atol=1e-10, rtol=0)


def test_only_the_mixer_of_the_decoder_differs():
    ours, theirs = (models.create_model(f"{kind}_tiny") for kind in ("retnet_seq2seq", "transformer"))
    apart = set(ours.state_dict()) ^ set(theirs.state_dict())
    assert apart
    assert all(name.startswith("decoder.") and ".mixer." in name for name in apart)
    memories = ours.eval().begin(text(5))
    sizes = []
    for token in range(4, 10):
        ours.step(torch.full((3,), token), memories)
        sizes.append(sum(memory.nbytes for memory in memories.memories))
    assert len(set(sizes)) == 1, "what the decoder remembers of its text grows"
