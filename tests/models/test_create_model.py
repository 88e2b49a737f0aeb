"""The doors to the architectures."""

import pytest
import torch

import vitrail
from vitrail import models
from vitrail.errors import UsageError, WeightsError
from vitrail.models.vit import ViTConfig


def test_names_and_wildcards():
    assert "vit_base_patch16_224" in vitrail.list_models("vit_*")
    assert vitrail.list_models("deit_tiny*") == ["deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"]
    assert not vitrail.list_models("test_*")


def test_keywords_users_know():
    model = vitrail.create_model("test_vit", num_classes=3, in_chans=1, img_size=(16, 24), drop_path_rate=0.1)
    assert model.training
    assert model.base_grid == (2, 3)
    assert model(torch.randn(2, 1, 16, 24)).shape == (2, 3)
    assert vitrail.create_model("test_vit", img_size=48).config.img_size == (48, 48)


@pytest.mark.parametrize(
    ("name", "keywords", "error", "words"),
    [
        ("vit_bse_patch16_224", {}, WeightsError, "Did you mean 'vit_base_patch16_224'"),
        ("test_vit", {"num_class": 3}, UsageError, "Did you mean 'num_classes'"),
        ("test_vit", {"img_size": (1, 2, 3)}, UsageError, r"positive int or \(height, width\)"),
        ("test_vit", {"img_size": 0}, UsageError, "positive int"),
        ("test_vit", {"numerics": {"eps": 1}}, UsageError, "unknown numerics keyword 'eps'"),
        ("test_vit", {"class_token": False}, UsageError, 'class_token=True for global_pool="token"'),
        ("test_deit_distilled", {"global_pool": "gap"}, UsageError, "for a distilled DeiT"),
    ],
)
def test_mistakes_are_named(name, keywords, error, words):
    with pytest.raises(error, match=words):
        vitrail.create_model(name, **keywords)


def test_a_tag_names_weights_not_architecture():
    assert models.config_of("vit_tiny_patch16_224.augreg_in21k") == models.config_of("vit_tiny_patch16_224")


def test_config_types_are_named():
    with pytest.raises(WeightsError, match=r"expected a config type of .*DeiTConfig.* got 'SwimConfig'"):
        models.config_from_dict({"type": "SwimConfig"})


def test_distilled_returns_both_heads_in_training_and_their_mean_after():
    model = vitrail.create_model("test_deit_distilled")
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 32, 32)
    first, second = model(x)
    torch.testing.assert_close(model.eval()(x), (first + second) / 2)


@pytest.mark.parametrize("pool", ["token", "avg", "gap", "map"])
@pytest.mark.parametrize("positions", ["learn", "learn_patches", "sincos2d"])
def test_pools_and_positions_at_another_size(pool, positions):
    keywords = {"global_pool": pool, "pos_embed": positions, "num_classes": 0}
    model = vitrail.create_model("test_vit", **keywords, class_token=pool == "token").eval()
    assert model(torch.randn(2, 3, 44, 30)).shape == (2, 32)


def test_positions_of_prefix_tokens_are_not_resized():
    model = vitrail.create_model("test_deit_distilled")
    table = model.positions((7, 2))
    assert table.shape == (1, 2 + 14, 32)
    assert torch.equal(table[:, :2], model.pos_embed[:, :2])


def test_one_size_up_equals_a_table_resized_once():
    """Resizing at run time and storing the resized table give the same output."""
    small = vitrail.create_model("test_vit", num_classes=0).eval()
    large = vitrail.create_model("test_vit", num_classes=0, img_size=(64, 40)).eval()
    state = small.state_dict() | {"pos_embed": small.positions((8, 5)).detach()}
    large.load_state_dict(state)
    x = torch.randn(2, 3, 64, 40)
    torch.testing.assert_close(small(x), large(x))


def test_representation_layer_stands_before_the_head():
    model = vitrail.create_model("test_vit", representation_size=6, num_classes=4).eval()
    assert model.head.in_features == 6
    pooled = model.pool(model.encode(torch.randn(2, 3, 32, 32))[0])
    assert model.pre_logits(pooled).abs().max() <= 1
    with pytest.raises(UsageError, match="no effect without a head"):
        vitrail.create_model("test_vit", representation_size=6, num_classes=0)


def test_hidden_width_of_every_variant_is_whole():
    for name, config in models.variants().items():
        if isinstance(config, ViTConfig):
            assert abs(config.embed_dim * config.mlp_ratio - config.hidden_dim) < 1e-6, name


@pytest.mark.parametrize("name", ["test_vit", "test_deit", "test_deit_distilled"])
def test_what_the_head_does_not_read_is_left_out_and_changes_nothing(name):
    """Logits and gradients are those of the whole last block; a hook on it gets every token."""
    torch.manual_seed(0)
    model = vitrail.create_model(name, num_classes=3).double()
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 32, 40, dtype=torch.float64)

    def run():
        model.zero_grad()
        logits = model(x)
        sum(part.square().sum() for part in (logits if isinstance(logits, tuple) else (logits,))).backward()
        return logits, {n: p.grad.clone() for n, p in model.named_parameters()}

    short, short_gradients = run()
    seen = []
    hook = model.blocks[-1].register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape[1]))
    whole, whole_gradients = run()
    hook.remove()
    assert seen == [20 + model.num_prefix_tokens]
    torch.testing.assert_close(short, whole)
    torch.testing.assert_close(short_gradients, whole_gradients)
    assert not torch.equal(model.read(x)[:, :1], model.encode(x)[0][:, -1:])
    assert model.read(x).shape[1] == model.num_prefix_tokens


def test_a_config_that_is_written_in_part_is_filled_with_its_own_defaults():
    for kind in {type(config) for config in models.variants().values()}:
        assert models.config_from_dict({"type": kind.__name__}) == kind()
