"""Image GPT: the order of pixels, both objectives, step by step = at once, features of every layer."""

from dataclasses import replace

import pytest
import torch

from tests.contract.every import randomise
from vitrail.models import build, create_model, variants
from vitrail.models.igpt import HOLE, IGPTConfig
from vitrail.nn.palette import decode

TINY = IGPTConfig((4, 4), colours=12, embed_dim=16, depth=3, num_heads=2)


def made(**changes):
    return randomise(build(replace(TINY, **changes))).eval()


def pictures(batch=2, size=(4, 4), seed=0):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def colours(model, batch=2, count=16, seed=0):
    return torch.randint(model.config.colours, (batch, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "count"),
    [("igpt_s", 76_571_648), ("igpt_m", 455_157_760), ("igpt_l", 1_362_250_752), ("igpt_xl", 6_810_875_904)],
)
def test_as_many_parameters_as_published(name, count):
    with torch.device("meta"):
        model = build(variants()[name])
        smaller = build(replace(variants()[name], img_size=(32, 32)))
    assert sum(p.numel() for p in model.parameters()) == count
    if name == "igpt_xl":
        assert round(sum(p.numel() for p in smaller.parameters()), -5) == 6_801_400_000


@torch.no_grad()
def test_a_pixel_is_predicted_from_those_before_it():
    model = made()
    tokens = colours(model)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 12
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(-1).all()


@torch.no_grad()
def test_step_by_step_equals_at_once():
    model = made()
    tokens = colours(model)
    whole = model.pixels(tokens)
    stream = torch.cat([torch.full((2, 1), model.config.start), tokens[:, :-1]], 1)
    for read in (0, 1, 5):
        state = model.begin(stream[:, :read])
        stepped = torch.stack([model.step(stream[:, i], state) for i in range(read, 16)], 1)
        torch.testing.assert_close(stepped, whole[:, read:], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="at most 16 tokens"):
        model.step(stream[:, 0], state)


@torch.no_grad()
def test_rows_of_a_state_can_be_chosen():
    model = made()
    tokens = colours(model, batch=3, count=6)
    state = model.begin(tokens[:, :5])
    rows = torch.tensor([2, 0, 0])
    state.select(rows)
    kept = model.begin(tokens[rows, :5])
    torch.testing.assert_close(model.step(tokens[rows, 5], state), model.step(tokens[rows, 5], kept))


@torch.no_grad()
def test_a_picture_of_another_size_is_painted():
    model = made()
    tokens = colours(model, count=15)
    stream = torch.cat([torch.full((2, 1), model.config.start), tokens[:, :-1]], 1)
    state = model.begin(stream[:, :14], grid=(3, 5))
    torch.testing.assert_close(model.step(stream[:, 14], state), model.pixels(tokens, (3, 5))[:, -1])


@torch.no_grad()
def test_the_beginning_of_a_picture_is_enough():
    model = made()
    tokens = colours(model)
    torch.testing.assert_close(model.pixels(tokens[:, :7]), model.pixels(tokens)[:, :7])


@torch.no_grad()
def test_a_masked_model_sees_all_but_the_holes():
    model = made(objective="masked")
    tokens = colours(model)
    tokens[:, 5] = HOLE
    before = model(tokens)
    last = tokens.clone()
    last[:, 15] = (last[:, 15] + 1) % 12
    assert (model(last)[:, 5] != before[:, 5]).any(-1).all()
    assert model.embed.weight.shape[0] == 12
    with pytest.raises(ValueError, match="cannot paint"):
        model.begin(tokens)
    with pytest.raises(ValueError, match="16 tokens"):
        model(tokens[:, :8])


def test_a_joint_model_gives_both_outputs_in_training_and_all_learns():
    model = made(num_classes=5, joint=True).train()
    x = pictures()
    classes, pixels = model(x)
    assert classes.shape == (2, 5)
    torch.testing.assert_close(pixels, model.pixels(model.tokens(x)))
    (classes.square().sum() + pixels.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert model.eval()(x).shape == (2, 5)


@torch.no_grad()
def test_features_of_every_layer():
    model = made(num_classes=0)
    x = pictures()
    pooled = model.pooled(x)
    assert pooled.shape == (2, 4, 16)
    for layer in range(4):
        found = model.features(x, layer=layer)
        torch.testing.assert_close(found.tokens.mean(1), pooled[:, layer])
    torch.testing.assert_close(model.features(x).tokens.mean(1), model(x))
    torch.testing.assert_close(model.pooled(x, [2])[:, 0], pooled[:, 2])
    with pytest.raises(ValueError, match="0 \\(the embeddings\\) to 3"):
        model.pooled(x, [4])


@torch.no_grad()
def test_what_classes_are_read_from():
    """The authors' form never sees the last pixel, transformers' does."""
    x = pictures()
    other = x.clone()
    other[:, :, -1, -1] = -other[:, :, -1, -1]
    for shift in (True, False):
        model = made(num_classes=5, numerics=replace(TINY.numerics, shift=shift))
        assert not torch.equal(model.tokens(x), model.tokens(other))
        assert torch.equal(model(x), model(other)) == shift


def test_a_fresh_model_knows_nothing_of_pixels():
    model = create_model("igpt_nano_8")
    assert not model(torch.zeros(1, 64, dtype=torch.int64)).any()
    assert float(model.blocks[0].attn.qkv.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)
    assert float(model.blocks[0].attn.proj.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.05)
    assert float(model.blocks[0].mlp.fc2.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.pos_embed.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_a_picture_in_its_own_colours_comes_back():
    model = made()
    tokens = colours(model)
    assert torch.equal(model.tokens(decode(tokens, model.palette, (4, 4))), tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joint": True}, "no effect without classes"),
        ({"joint": True, "num_classes": 3, "objective": "masked"}, 'expected objective="autoregressive"'),
        ({"num_heads": 3}, "num_heads"),
        ({"colours": 0}, "colours"),
    ],
)
def test_what_does_not_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **changes)


def test_a_classifier_paints_nothing():
    model = made(num_classes=3)
    with pytest.raises(ValueError, match="joint=True"):
        model(colours(model))
    with pytest.raises(ValueError, match="cannot paint"):
        model.begin(colours(model))
    with pytest.raises(ValueError, match="without padding"):
        made().begin(colours(model), torch.zeros(2, 16, dtype=torch.bool))
