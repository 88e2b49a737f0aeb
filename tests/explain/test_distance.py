import math

import pytest
import torch

from vitrail.errors import UsageError
from vitrail.explain import attention_distances, record
from vitrail.explain.distance import attention_distance, patch_distances, uniform_distance

from .models import POOLINGS, distilled, pictures, tiny


def loop_distance(weights, grid, patch_size, prefix):
    """Measure one head of one image by a double loop over patches, in pure Python."""
    places = [(r * patch_size[0], c * patch_size[1]) for r in range(grid[0]) for c in range(grid[1])]
    total = 0.0
    for i, (y0, x0) in enumerate(places):
        row = [float(w) for w in weights[prefix + i, prefix:]]
        total += sum(w * math.hypot(y1 - y0, x1 - x0) for w, (y1, x1) in zip(row, places, strict=True)) / sum(row)
    return total / len(places)


@pytest.mark.parametrize(("grid", "patch", "prefix"), [((3, 5), (8, 8), 1), ((4, 2), (16, 4), 2), ((2, 2), (8, 8), 0)])
def test_distance_equals_the_double_loop(grid, patch, prefix):
    n = grid[0] * grid[1] + prefix
    weights = (3 * torch.randn(2, 3, n, n, generator=torch.Generator().manual_seed(0))).softmax(-1)
    found = attention_distance(weights, grid, patch, num_prefix_tokens=prefix)
    expected = torch.tensor([[loop_distance(weights[b, h], grid, patch, prefix) for h in range(3)] for b in range(2)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [*(tiny(p) for p in POOLINGS), distilled()], ids=[*POOLINGS, "distilled"])
def test_a_model_is_measured_layer_by_layer_and_head_by_head(model):
    images = pictures(24, 40, count=3)
    found = attention_distances(model, images)
    assert found.shape == (2, 2)
    with torch.no_grad(), record(model) as maps:
        model(images)
    prefix = model.num_prefix_tokens
    for depth, layer in enumerate(maps.square()):
        for head in range(2):
            each = [loop_distance(layer[b, head], (3, 5), (8, 8), prefix) for b in range(3)]
            assert found[depth, head].item() == pytest.approx(sum(each) / 3, rel=1e-4)


def test_batches_are_averaged_by_their_images():
    model, images = tiny(), pictures(count=5)
    torch.testing.assert_close(attention_distances(model, [images[:2], images[2:]]), attention_distances(model, images))


def test_known_patterns():
    eye = torch.eye(10).expand(1, 1, 10, 10)
    assert attention_distance(eye, (3, 3), (16, 16), num_prefix_tokens=1).item() == 0
    even = torch.full((1, 1, 10, 10), 0.1)
    assert attention_distance(even, (3, 3), (16, 16), num_prefix_tokens=1).item() == pytest.approx(
        uniform_distance((3, 3), (16, 16))
    )
    only_class = torch.zeros(1, 1, 5, 5)
    only_class[..., 0] = 1.0
    assert attention_distance(only_class, (2, 2), (8, 8), num_prefix_tokens=1).item() == 0


def test_distances_are_pixels_between_centres():
    distances = patch_distances((2, 3), (8, 4))
    assert distances[0, 5].item() == pytest.approx(math.hypot(8, 8))
    assert distances[1, 4].item() == 8


def test_weights_of_another_grid_are_refused():
    with pytest.raises(UsageError, match="3 x 3"):
        attention_distance(torch.ones(1, 1, 9, 9), (3, 3), (8, 8), num_prefix_tokens=1)


def test_no_images_is_an_error():
    with pytest.raises(UsageError, match="at least one image"):
        attention_distances(tiny(), [])
