"""MixUp and CutMix: pixels and targets tell the same story, and unreadable images touch nobody."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.mixing import Mix
from vitrail.errors import UsageError

B, K, SIZE = 8, 4, (10, 12)
LABELS = torch.arange(B) % K
ALL = torch.ones(B, dtype=torch.bool)


def constants(batch: int = B) -> torch.Tensor:
    """Image b is b + 1 everywhere, so a pixel tells where it came from."""
    return (torch.arange(batch, dtype=torch.float32) + 1)[:, None, None, None].expand(batch, 3, *SIZE).clone()


@given(seed=st.integers(0, 1000), per_sample=st.booleans(), smoothing=st.sampled_from([0.0, 0.1]))
@settings(max_examples=60, deadline=None)
def test_targets_follow_the_pixels(seed: int, per_sample: bool, smoothing: float) -> None:
    mix = Mix(K, per_sample=per_sample, label_smoothing=smoothing)
    images, targets = mix(constants(), LABELS, ALL, seed=seed, epoch=0, batch_index=0)
    assert torch.allclose(targets.sum(1), torch.ones(B), atol=1e-6)
    own, partner = torch.arange(B) + 1.0, (torch.arange(B) + 1.0).roll(1)
    # Mean pixel = share * own + (1 - share) * partner, for MixUp and CutMix alike.
    share = (images.mean((1, 2, 3)) - partner) / (own - partner)
    plain = torch.nn.functional.one_hot(LABELS, K) * (1 - smoothing) + smoothing / K
    assert torch.allclose(targets, share[:, None] * plain + (1 - share[:, None]) * plain.roll(1, 0), atol=1e-5)


def test_it_is_a_function_of_seed_epoch_and_batch() -> None:
    mix = Mix(K, per_sample=True)

    def run(**where: int) -> torch.Tensor:
        return mix(constants(), LABELS, ALL, **{"seed": 0, "epoch": 0, "batch_index": 0, **where})[0]  # type: ignore[arg-type]

    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    assert torch.equal(first, run())
    for where in ({"seed": 1}, {"epoch": 1}, {"batch_index": 1}):
        assert not torch.equal(first, run(**where))


def test_one_or_the_other() -> None:
    def values(mix: Mix, seed: int) -> int:
        return len(mix(constants(), LABELS, ALL, seed=seed, epoch=0, batch_index=0)[0][1].unique())

    assert all(values(Mix(K, cutmix_alpha=0), seed) == 1 for seed in range(20))  # MixUp: one value everywhere
    cut = [values(Mix(K, mixup_alpha=0), seed) for seed in range(20)]
    assert set(cut) <= {1, 2}
    assert cut.count(2) > 12
    both = [values(Mix(K, switch_prob=0.5), seed) for seed in range(60)]
    assert 10 < both.count(2) < 50


def test_per_batch_shares_one_lambda_and_per_sample_does_not() -> None:
    own = torch.arange(B) + 1.0

    def shares(per_sample: bool) -> torch.Tensor:
        mix = Mix(K, cutmix_alpha=0, per_sample=per_sample)
        images, _ = mix(constants(), LABELS, ALL, seed=0, epoch=0, batch_index=0)
        return (images.mean((1, 2, 3)) - own.roll(1)) / (own - own.roll(1))

    assert shares(False).std() < 1e-5
    assert shares(True).std() > 1e-2


def test_lambda_follows_its_beta() -> None:
    mix = Mix(2, mixup_alpha=0.4, cutmix_alpha=0, per_sample=True)
    n = 4000
    images = torch.zeros(n, 1, 1, 1)
    _, targets = mix(images, torch.arange(n) % 2, torch.ones(n, dtype=torch.bool), seed=0, epoch=0, batch_index=0)
    share = targets[torch.arange(n), torch.arange(n) % 2]
    assert abs(share.mean() - 0.5) < 0.02
    # Var Beta(a, a) = 1 / (4 (2 a + 1)); smoothing 0.1 shrinks the spread to 0.9.
    assert abs(share.var() - 0.81 / (4 * 1.8)) < 0.01


def test_prob() -> None:
    mixed = 0
    for batch_index in range(100):
        images, _ = Mix(K, prob=0.3)(constants(), LABELS, ALL, seed=0, epoch=0, batch_index=batch_index)
        mixed += not torch.equal(images, constants())
    assert 15 < mixed < 45


@pytest.mark.parametrize("alpha", [{"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}])
def test_an_unreadable_image_touches_nobody(alpha: dict[str, float]) -> None:
    images = constants()
    images[3] = 1000.0  # would be seen anywhere
    keep = ALL.clone()
    keep[3] = False
    for seed in range(20):
        out, targets = Mix(K, label_smoothing=0.0, **alpha)(images, LABELS, keep, seed=seed, epoch=0, batch_index=0)
        assert (out[keep] < 100).all()
        assert torch.equal(out[4], images[4])
        assert targets[4].argmax() == LABELS[4]
        assert targets[4].max() == 1


def test_a_batch_of_one_is_left_alone() -> None:
    images, targets = Mix(K)(constants(1), LABELS[:1], ALL[:1], seed=0, epoch=0, batch_index=0)
    assert torch.equal(images, constants(1))
    assert targets.shape == (1, K)
    assert abs(float(targets.max()) - (0.9 + 0.1 / K)) < 1e-6


def test_boxes_stay_inside() -> None:
    mix = Mix(K, mixup_alpha=0, per_sample=True)
    share, boxes = mix.plan(500, SIZE, np.ones(500, bool), np.random.default_rng(0).random((500, 5)))
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height <= SIZE[0]).all()
    assert (left + width <= SIZE[1]).all()
    assert np.allclose(share, 1 - height * width / 120)


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 1},
        {"mixup_alpha": 0.0, "cutmix_alpha": 0.0},
        {"prob": 0.0},
        {"label_smoothing": 1.0},
        {"mixup_alpha": -1.0},
    ],
)
def test_impossible_settings(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"expected .*got"):
        Mix(**{"num_classes": 4, **options})  # type: ignore[arg-type]
