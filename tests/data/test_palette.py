"""Palettes: k-means finds the colours that are there, few colours stay few, levels are levels, a seed is a seed."""

import pytest
import torch

from vitrail.data import palette as module
from vitrail.data.palette import fit_palette, palette_error
from vitrail.errors import UsageError


def noise(batch=4, side=16, seed=0, channels=3):
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def blobs(seed=0):
    """Pixels around five colours."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.9]])
    pixels = centres[torch.randint(5, (4, 16, 16), generator=generator)]
    return (pixels + 0.01 * torch.randn(pixels.shape, generator=generator)).permute(0, 3, 1, 2), centres


def test_clusters_are_found():
    images, centres = blobs()
    found = fit_palette(images, 5)
    assert found.colours.shape == (5, 3)
    assert float(torch.cdist(centres, found.colours).min(1).values.max()) < 0.01
    assert found.error == pytest.approx(0.01 * 255, rel=0.1)


def test_a_fit_beats_its_start_and_levels():
    images = noise() ** 2
    fitted, levels = fit_palette(images, 64), fit_palette(images, 64, kind="levels")
    assert fitted.error < 0.8 * levels.error
    assert palette_error(images, fitted.colours) == pytest.approx(fitted.error)


def test_the_same_seed_gives_the_same_palette():
    images = noise()
    assert torch.equal(fit_palette(images, 20, seed=3).colours, fit_palette(images, 20, seed=3).colours)
    assert not torch.equal(fit_palette(images, 20, seed=3).colours, fit_palette(images, 20, seed=4).colours)


def test_few_colours_stay_few_and_it_is_said():
    images = (noise(channels=1) * 4).floor() / 4
    found = fit_palette(images, 512)
    assert len(found.colours) == 4
    assert found.error == 0
    assert "4 colours by kmeans (512 asked for: the pictures have no more), 0.0 of 255" in str(found)


def test_colours_go_from_dark_to_bright():
    brightness = fit_palette(noise(), 30).colours.mean(1)
    assert (brightness.diff() > -1e-3).all()


@pytest.mark.parametrize(("colours", "channels", "count"), [(512, 3, 512), (500, 3, 343), (16, 1, 16), (8, 3, 8)])
def test_levels_are_all_combinations(colours, channels, count):
    found = fit_palette(noise(channels=channels), colours, kind="levels")
    assert len(found.colours) == count
    assert len(found.colours.unique(dim=0)) == count
    assert [float(found.colours.min()), float(found.colours.max())] == [0.0, 1.0]


def test_many_pixels_are_sampled(monkeypatch):
    images = noise(batch=8)
    monkeypatch.setattr(module, "MOST_PIXELS", 500)
    monkeypatch.setattr(module, "PIECE", 100)
    assert fit_palette(images, 12).colours.shape == (12, 3)


def test_other_pictures_are_further_away():
    red = noise() * torch.tensor([1.0, 0.1, 0.1]).view(1, 3, 1, 1)
    blue = noise(seed=1) * torch.tensor([0.1, 0.1, 1.0]).view(1, 3, 1, 1)
    found = fit_palette(red, 32)
    assert palette_error(blue, found.colours) > 5 * found.error


@pytest.mark.parametrize(
    ("images", "colours", "kind", "words"),
    [
        (noise(), 1, "kmeans", "at least 2 colours"),
        (noise(), 7, "levels", "at least 8 colours"),
        (noise()[:0], 8, "kmeans", "got none"),
        (noise(), 8, "kmean", "kmeans"),
    ],
)
def test_what_cannot_be_fitted(images, colours, kind, words):
    with pytest.raises(UsageError, match=words):
        fit_palette(images, colours, kind=kind)
