import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitrail.errors import UsageError
from vitrail.explain import attention_distances, draw_figures
from vitrail.explain.charts import Plot, Series
from vitrail.explain.figures import (
    distance_figure,
    filter_components,
    filters_figure,
    position_similarity,
    positions_figure,
)
from vitrail.models import create_model

from .models import POOLINGS, distilled, pictures, randomise, tiny


def test_components_are_those_of_the_covariance():
    weight = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    components, shares = filter_components(weight, 5)
    flat = weight.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    torch.testing.assert_close(shares.double(), (values / values.sum()).flip(0)[:5], rtol=1e-4, atol=1e-6)
    cosines = (components.flatten(1).double() * vectors.flip(1)[:, :5].T).sum(1)
    torch.testing.assert_close(cosines.abs(), torch.ones(5, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_components_do_not_depend_on_the_sign_and_order_of_the_filters():
    weight = torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    one, _ = filter_components(weight, 4)
    other, _ = filter_components(-weight.flip(0), 4)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_filters_of_other_channel_counts_are_drawn_in_grey():
    drawn = np.asarray(filters_figure(tiny(in_chans=1)))
    assert drawn.shape[-1] == 3
    assert np.ptp(drawn.astype(int), axis=-1).max() < 30  # text is slightly blue, tiles are grey


@pytest.mark.parametrize("model", [tiny(img_size=(24, 40)), tiny("gap", img_size=(24, 40))], ids=["token", "gap"])
def test_similarity_compares_each_position_with_all(model):
    found = position_similarity(model)
    assert found.shape == (3, 5, 3, 5)
    table = model.pos_embed[0, model.num_prefix_tokens :].detach()
    for one, other in ((0, 0), (3, 11), (14, 7)):
        expected = torch.cosine_similarity(table[one], table[other], dim=0)
        torch.testing.assert_close(found.flatten(2).flatten(0, 1)[one, other], expected)


@pytest.mark.parametrize("model", [*(tiny(p) for p in POOLINGS), distilled()], ids=[*POOLINGS, "distilled"])
def test_all_figures_of_any_vit_are_written(model, tmp_path):
    paths = draw_figures(model, tmp_path, images=[pictures(24, 40), pictures(24, 40, count=1)])
    assert [p.name for p in paths] == ["filters.png", "positions.png", "attention_distance.svg"]
    for path in paths[:2]:
        with Image.open(path) as image:
            assert image.width > 300
            assert len(image.getcolors(1 << 20)) > 20
    ET.parse(paths[2])
    assert not model.training


def test_without_images_the_figures_of_the_weights_are_drawn(tmp_path):
    paths = draw_figures(tiny(), tmp_path / "new")
    assert [p.name for p in paths] == ["filters.png", "positions.png"]


def test_the_distance_chart_has_a_dot_for_every_head():
    distances = attention_distances(tiny(), pictures())
    root = ET.fromstring(distance_figure(distances, uniform=12.0))
    dots = [e for e in root.iter() if e.tag.endswith("circle") and e.get("fill-opacity")]
    assert len(dots) == distances.numel()


def test_what_has_no_patches_is_refused(tmp_path):
    with pytest.raises(UsageError, match="convolution"):
        draw_figures(nn.Linear(2, 2), tmp_path)
    with pytest.raises(UsageError, match="position table"):
        position_similarity(nn.Linear(2, 2))


def test_of_several_position_tables_the_first_stage_is_drawn(tmp_path):
    model = randomise(create_model("test_pvt", img_size=(24, 40)))
    found, table = position_similarity(model), model.stages[0].pos_embed[0].detach()
    assert found.shape == (6, 10, 6, 10)
    expected = torch.cosine_similarity(table[3], table[14], dim=0)
    torch.testing.assert_close(found.flatten(2).flatten(0, 1)[3, 14], expected)
    paths = draw_figures(model, tmp_path)
    assert [p.name for p in paths] == ["filters.png", "positions.png"]
    assert np.asarray(positions_figure(model)).shape == np.asarray(Image.open(paths[1])).shape


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("test_swin", "got Swin, whose positions are relative"),
        ("test_coatnet", "got CoAtNet, whose positions are relative"),
        ("test_coatnet_rw", "got CoAtNet, whose positions are relative"),
        ("test_resnet", "got ResNet, whose layers add none"),
        ("test_pvt_v2", "got PVTv2, whose layers add none"),
    ],
)
def test_a_model_without_position_table_is_told_what_it_has(name, has):
    with pytest.raises(UsageError, match=f"expected a model that adds a position table, {has}"):
        position_similarity(create_model(name))


def test_a_legend_stays_within_its_picture():
    names = [f"a_long_name_of_a_network_that_somebody_made_{i}" for i in range(3)]
    series = [Series(name, [(0.0, 0.0), (1.0, 1.0)]) for name in names]
    drawn = Plot("Title", "x", "y", (0.0, 1.0), (0.0, 1.0), (600, 400)).svg(series)
    starts = [float(x) for x in re.findall(r'<line x1="([-\d.]+)" y1="30"', drawn)]
    assert len(starts) == 3
    assert min(starts) >= 0
    assert drawn.count("…") == 3
    assert "…" not in Plot("Title", "x", "y", (0.0, 1.0), (0.0, 1.0), (600, 400)).svg(
        [Series("a", []), Series("b", [])]
    )
