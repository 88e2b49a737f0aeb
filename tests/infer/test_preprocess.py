import pytest
import torch

from vitrail.explain.preprocess import Preprocess
from vitrail.weights import Card


def ramps(height, width):
    """Return an image whose red tells the column and whose green tells the row, 0..250 from edge to edge."""
    x = (torch.arange(width) + 0.5) / width * 250
    y = (torch.arange(height) + 0.5) / height * 250
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width), torch.zeros(height, width)]).round().byte()


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
@pytest.mark.parametrize("shape", [(90, 60), (50, 130), (40, 40)])
def test_the_box_is_where_the_crop_comes_from(shape, size, mode):
    image = ramps(*shape)
    preprocess = Preprocess(Card(crop_pct=0.8, crop_mode=mode, interpolation="bilinear"), size)
    crop = preprocess.crop(image).float()
    assert crop.shape == (3, *size)
    x0, y0, x1, y1 = preprocess.box(image)
    assert 0 <= x0 < x1 <= shape[1]
    assert 0 <= y0 < y1 <= shape[0]
    for i in (8, size[1] - 9):  # away from the edges, where a resize has no neighbours
        expected = (x0 + (i + 0.5) / size[1] * (x1 - x0)) / shape[1] * 250
        assert crop[0, 5, i].item() == pytest.approx(expected, abs=2.0)
    for i in (8, size[0] - 9):
        expected = (y0 + (i + 0.5) / size[0] * (y1 - y0)) / shape[0] * 250
        assert crop[1, i, 5].item() == pytest.approx(expected, abs=2.0)


def test_what_the_patches_cover_is_a_part_of_the_box():
    image, preprocess = ramps(60, 60), Preprocess(Card(crop_pct=1.0), (30, 30))
    assert preprocess.box(image, (24, 16)) == (0, 0, 32, 48)


def test_a_batch_is_normalised_by_the_card():
    preprocess = Preprocess(Card(mean=(0.5, 0.4, 0.2), std=(0.5, 0.2, 0.1)), (4, 4))
    white = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    batch = preprocess.batch([white, white], torch.device("cpu"), torch.float32)
    torch.testing.assert_close(batch[1, :, 0, 0], torch.tensor([1.0, 3.0, 8.0]))
