"""The pictures of sine-cosine positions, and the identities they show."""

import pytest
import torch
from PIL import Image

from vitrail.errors import UsageError
from vitrail.explain.sinusoids import draw_position_figures, joined, rotation, rotation_error, similarity
from vitrail.nn.positions import sincos_1d


@pytest.mark.parametrize("shift", [1, 7, 100])
def test_moving_on_is_a_rotation(shift):
    assert rotation_error(32, 200, shift) < 1e-5  # the table is float32
    matrix = rotation(32, shift)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(32, dtype=torch.float64))
    torch.testing.assert_close(rotation(32, 1).matrix_power(shift), matrix)


def test_similarity_is_of_the_distance_alone():
    near = similarity(64, 50)
    for k in (1, 5, 30):
        assert float(near.diagonal(k).std()) < 1e-6
    assert near.diagonal(0).allclose(torch.ones(50, dtype=torch.float64))
    assert near[0, 1] > near[0, 3] > near[0, 10]


def test_adding_is_concatenating_with_one_matrix_for_both():
    weight, x, p = torch.randn(5, 8), torch.randn(3, 8), sincos_1d(3, 8)
    torch.testing.assert_close((x + p) @ weight.T, torch.cat([x, p], 1) @ joined(weight).T)


def test_four_pictures(tmp_path):
    paths = draw_position_figures(tmp_path / "new", dim=16, length=24)
    assert [path.name for path in paths] == [
        "positions-table.png",
        "positions-rotation.png",
        "positions-distance.svg",
        "positions-addition.png",
    ]
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.size[0] > 300
    assert paths[2].read_text().count("<polyline") == 3


@pytest.mark.parametrize(("dim", "length"), [(7, 20), (0, 20), (8, 1)])
def test_sizes_that_make_no_table(tmp_path, dim, length):
    with pytest.raises(UsageError, match="expected"):
        draw_position_figures(tmp_path, dim=dim, length=length)
