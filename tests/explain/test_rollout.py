import pytest
import torch

from vitrail.errors import UsageError
from vitrail.explain import record, rollout
from vitrail.explain.rollout import drop_weakest, fuse_heads

from .models import pictures, tiny


def layers(count=3, batch=2, heads=4, tokens=5):
    scores = torch.randn(count, batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(0))
    return list((2 * scores).softmax(-1))


def loop_rollout(attentions, fuse):
    """Follow every path by hand: the paper's recursion, one image and one token pair at a time."""
    batch, _, n, _ = attentions[0].shape
    result = torch.zeros(batch, n, n, dtype=torch.float64)
    for b in range(batch):
        flow = torch.eye(n, dtype=torch.float64)
        for attention in attentions:
            step = torch.zeros(n, n, dtype=torch.float64)
            for i in range(n):
                for j in range(n):
                    step[i, j] = 0.5 * (fuse(attention[b, :, i, j].double()) + (i == j))
                step[i] /= step[i].sum()
            flow = step @ flow
        result[b] = flow
    return result


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_equals_the_recursion_written_out(fusion):
    maps = layers()
    expected = loop_rollout(maps, lambda heads: getattr(torch, fusion)(heads))
    torch.testing.assert_close(rollout(maps, head_fusion=fusion).double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_sum_to_one():
    torch.testing.assert_close(rollout(layers(), discard_ratio=0.5).sum(-1), torch.ones(2, 5))


def test_attention_to_oneself_alone_rolls_out_to_the_identity():
    eye = torch.eye(6).expand(1, 2, 6, 6)
    torch.testing.assert_close(rollout([eye] * 4), torch.eye(6)[None])


def test_a_chain_of_two_layers_reaches_two_tokens_back():
    shift = torch.zeros(1, 1, 3, 3)
    shift[0, 0, [0, 1, 2], [1, 2, 2]] = 1.0  # token i reads token i + 1
    flow = rollout([shift, shift])[0]
    torch.testing.assert_close(flow[0], torch.tensor([0.25, 0.5, 0.25]))


def test_discarding_takes_the_weakest_share_of_each_matrix():
    fused = fuse_heads(layers(1)[0])
    kept = drop_weakest(fused, 0.4)
    assert ((kept == 0).sum((1, 2)) == 10).all()
    for b in range(2):
        assert kept[b][kept[b] > 0].min() > fused[b][kept[b] == 0].max()


def test_a_batch_equals_its_images_one_by_one():
    model, images = tiny(), pictures(24, 32)
    with torch.no_grad(), record(model) as both:
        model(images)
    with torch.no_grad(), record(model) as one:
        model(images[1:])
    torch.testing.assert_close(rollout(both.square())[1:], rollout(one.square()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        ([], {}, "at least one"),
        ([torch.ones(1, 1, 3, 3), torch.ones(1, 1, 4, 4)], {}, "one N"),
        ([torch.ones(1, 1, 3, 3)], {"head_fusion": "median"}, "head_fusion"),
        ([torch.ones(1, 1, 3, 3)], {"discard_ratio": 1.0}, "discard_ratio"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(maps, options, message):
    with pytest.raises(UsageError, match=message):
        rollout(maps, **options)
