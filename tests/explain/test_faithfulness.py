from itertools import pairwise

import pytest
import torch
from torch import nn

from vitrail.errors import UsageError
from vitrail.explain import deletion_insertion
from vitrail.nn.patches import PatchEmbed

from .models import pictures, tiny


class Brightness(nn.Module):
    """Classifies by the patches that are bright: the truth about it is known."""

    num_prefix_tokens = 0

    def __init__(self):
        super().__init__()
        self.patch_embed = PatchEmbed(8, 3, 4)

    def forward(self, images):
        light = images.mean((1, 2, 3)) * 8
        return torch.stack([light, -light], 1)


def bright_spots():
    """Return two dark images with three bright patches each, and the map that knows them."""
    truth = torch.zeros(2, 4, 4)
    truth[0, 0, :3] = torch.tensor([3.0, 2.0, 1.0])
    truth[1, 2, 1:] = torch.tensor([1.0, 3.0, 2.0])
    return truth[:, None].repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1).clone(), truth


def test_the_true_map_beats_chance_and_its_opposite_loses():
    model = Brightness().eval()
    images, truth = bright_spots()
    good = deletion_insertion(model, images, truth)
    bad = deletion_insertion(model, images, -truth)
    assert (good.gain > 0.1).all()
    assert (bad.gain < -0.1).all()
    assert (good.deletion < good.random_deletion).all()
    assert (good.insertion > good.random_insertion).all()


def test_the_area_is_that_of_the_curve_followed_by_hand():
    model = Brightness().eval()
    images, truth = bright_spots()
    order = truth[0].flatten().argsort(descending=True, stable=True)
    scores, shown = [], images[:1].clone()
    for i in range(17):
        scores.append(model(shown).softmax(1)[0, 0].item())
        if i < 16:
            row, column = divmod(int(order[i]), 4)
            shown[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 0
    area = sum((a + b) / 2 for a, b in pairwise(scores)) / 16
    assert deletion_insertion(model, images, truth).deletion[0].item() == pytest.approx(area, abs=1e-5)


def test_it_repeats_by_seed_and_works_for_sizes_that_fill_no_whole_patch():
    model, images = tiny(), pictures(27, 33)
    maps = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    one, two = (deletion_insertion(model, images, maps, steps=3, random_orders=1, seed=5) for _ in range(2))
    torch.testing.assert_close(one.gain, two.gain)
    assert one.deletion.shape == (2,)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [((2, 3, 3), {}, "shape"), ((2, 4, 4), {"steps": 0}, "at least 1")],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    with pytest.raises(UsageError, match=message):
        deletion_insertion(tiny(), pictures(), torch.zeros(shape), **options)
