"""Crops of images and masks: pure functions of the draws, the same geometry for both, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrail.data.augment import Normalize
from vitrail.data.coloring import ColorJitter
from vitrail.data.maskcrops import CollateMasks, TrainCrop, Whole, resize_mask
from vitrail.data.maskrules import IGNORED
from vitrail.data.masks import Masked
from vitrail.errors import UsageError

PLAIN = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def sample(height=20, width=30):
    """An image whose red says its row and green its column, ten levels apart; the mask says the block of 10 pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y * 8, x * 8, torch.zeros_like(x)]).to(torch.uint8)
    return Masked(image, ((y // 10) * 3 + x // 10).to(torch.uint8))


def draws(crop, **chosen):
    found = np.full(crop.draws, 0.5)
    for name, value in chosen.items():
        found[{"scale": 0, "flip": 1, "top": 2, "left": 3}[name]] = value
    return found


def test_image_and_mask_are_cut_at_the_same_place():
    crop = TrainCrop((10, 10), PLAIN, scale=(1.0, 1.0), hflip=0.5, most=1.0)
    out = crop(sample(), draws(crop, top=0.99, left=0.0, flip=0.9))
    assert out.image.shape == (3, 10, 10)
    assert (out.mask == 3).all()
    assert torch.allclose(out.image[0, 0] * 255, torch.full((10,), 80.0))
    flipped = crop(sample(), draws(crop, top=0.99, left=0.0, flip=0.1))
    assert torch.equal(flipped.image, out.image.flip(-1))


def test_what_a_crop_lacks_is_ignored_and_of_the_mean_colour():
    crop = TrainCrop((40, 40), Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), scale=(1.0, 1.0))
    out = crop(sample(), draws(crop))
    assert (out.mask[20:] == IGNORED).all()
    assert (out.mask[:, 30:] == IGNORED).all()
    assert (out.mask[:20, :30] < 6).all()
    assert float(out.image[:, 20:].abs().max()) == 0


@pytest.mark.parametrize("scale", [0.5, 2.0, 1.37])
def test_scaling_keeps_image_and_mask_together(scale):
    crop = TrainCrop((16, 16), PLAIN, scale=(scale, scale), most=1.0, hflip=0.0)
    out = crop(sample(), draws(crop, top=0.3, left=0.6))
    inside = out.mask != IGNORED
    rows, columns = out.image[0] * 255 / 8, out.image[1] * 255 / 8
    block = (rows / 10).floor() * 3 + (columns / 10).floor()
    agree = (block == out.mask)[inside].float().mean()
    assert agree > 0.85  # all but the pixels along the borders of blocks


def test_a_crop_that_one_class_covers_is_tried_elsewhere():
    mask = torch.zeros(20, 30, dtype=torch.uint8)
    mask[:, 24:] = 1
    crop = TrainCrop((12, 12), PLAIN, scale=(1.0, 1.0), most=0.75)
    numbers = draws(crop)
    numbers[2:12] = np.array([[0.0, 0.0], [0.0, 0.1], [0.0, 0.99], [0.0, 0.0], [0.0, 0.0]]).reshape(-1)
    out = crop(Masked(sample().image, mask), numbers)
    assert 0.25 < float((out.mask == 1).float().mean()) <= 0.75


def test_short_side_and_colours_are_functions_of_the_draws():
    crop = TrainCrop((8, 8), PLAIN, short_side=10, jitter=ColorJitter(0.4))
    numbers = np.random.default_rng(0).random(crop.draws)
    one, two = crop(sample(), numbers), crop(sample(), numbers)
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.image, crop(sample(), numbers[::-1].copy()).image)


def test_whole_images_keep_their_masks():
    out = Whole(PLAIN, short_side=10)(sample(), np.zeros(0))
    assert out.image.shape == (3, 10, 15)
    assert out.mask.shape == (20, 30)
    assert Whole(PLAIN)(sample(), np.zeros(0)).image.shape == (3, 20, 30)


def test_masks_are_resized_to_the_nearest_centre():
    mask = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)
    assert resize_mask(mask, (4, 4)).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert resize_mask(resize_mask(mask, (6, 10)), (2, 2)).tolist() == mask.tolist()


def test_batches_hold_what_could_not_be_read_as_nothing():
    whole = Whole(PLAIN)
    found = [whole(sample(), np.zeros(0)), None, whole(sample(12, 14), np.zeros(0))]
    batch = CollateMasks((8, 8))(found, torch.arange(3))
    assert batch.images.shape == (3, 3, 20, 30)
    assert batch.keep.tolist() == [True, False, True]
    assert (batch.masks[1] == IGNORED).all()
    assert batch.masks[2].shape == (12, 14)
    assert batch.count == 2
    assert CollateMasks((8, 8))([None], torch.arange(1)).images.shape == (1, 3, 8, 8)


def test_options_are_checked():
    with pytest.raises(UsageError, match="low, high"):
        TrainCrop((8, 8), PLAIN, scale=(2.0, 1.0))
    with pytest.raises(UsageError, match="hflip"):
        TrainCrop((8, 8), PLAIN, hflip=2.0)
