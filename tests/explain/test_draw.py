import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.explain.charts import Plot, Series, log_ticks, nice_ticks, number, span_of, text_of
from vitrail.explain.colors import ANCHORS, colorize
from vitrail.explain.draw import Bar, Tile, data_uri, fit_text, font, overlay, place, resized, sheet, upsample


@pytest.mark.parametrize("name", ANCHORS)
def test_color_maps_get_lighter_all_the_way(name):
    linear = (colorize(np.linspace(0, 1, 256), name) / 255.0) ** 2.2
    light = linear @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -2e-3).all()
    assert light[-1] - light[0] > 0.7
    assert tuple(colorize(np.array(0.0), name)) == ANCHORS[name][0]


def test_values_beyond_the_ends_take_the_ends():
    assert (colorize(np.array([-3.0, 7.0])) == colorize(np.array([0.0, 1.0]))).all()


def test_upsampling_keeps_a_flat_map_and_the_place_of_a_peak():
    assert np.allclose(upsample(torch.full((3, 5), 0.4), (30, 50)), 0.4, atol=1e-5)
    heat = torch.zeros(3, 5)
    heat[1, 3] = 1
    y, x = np.unravel_index(upsample(heat, (31, 55)).argmax(), (31, 55))
    assert (abs(y - 15) <= 1, abs(x - 38) <= 1) == (True, True)


def test_a_map_is_placed_on_its_box_also_where_that_sticks_out():
    canvas = place(torch.ones(2, 2), (20, 30), (5, -4, 40, 10))
    assert np.allclose(canvas[:10, 5:], 1)
    assert canvas[10:].sum() == canvas[:, :5].sum() == 0


def test_overlays_keep_size_darken_low_and_fade_what_was_not_seen():
    picture = np.full((10, 20, 3), 128, np.uint8)
    heat = np.zeros((10, 20), np.float32)
    heat[:, 12:15] = 1
    drawn = overlay(picture, heat, (8, 0, 16, 10)).astype(int)
    assert drawn.shape == picture.shape
    assert drawn[5, 2].min() > 180
    assert drawn[5, 9].mean() < 128 < drawn[5, 13].mean()


def test_icons_are_enlarged_with_sharp_pixels_and_photographs_keep_their_ratio():
    icon = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (resized(icon, most=80)[5::10, 5::10] == icon).all()
    assert resized(np.zeros((300, 600, 3), np.uint8), most=100).shape == (50, 100, 3)


def test_a_sheet_holds_all_its_tiles_and_a_bar():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    tiles = [Tile(np.full((20, 30, 3), c, np.uint8), f"tile {i}") for i, c in enumerate(colors)]
    drawn = np.asarray(sheet(tiles, columns=2, title="Title", note="Note", bar=Bar("0", "1", "x"), axes=("a", "b")))
    for color in colors:
        assert (drawn == color).all(-1).sum() == 600


def test_text_is_cut_to_its_room():
    assert fit_text("short", 14, 200) == "short"
    cut = fit_text("a very long class name indeed", 14, 80)
    assert cut.endswith("…")
    assert font(14).getlength(cut) <= 80


def test_data_addresses_hold_the_picture():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    kind, _, payload = data_uri(picture).partition(",")
    assert kind == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(payload)))) == picture).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.043), (-3, 17), (1e-6, 9e-6), (100, 101), (0, 123456)])
def test_ticks_are_round_inside_and_evenly_spaced(low, high):
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert low - 1e-9 <= ticks[0]
    assert ticks[-1] <= high * (1 + 1e-5)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "1235"


def test_ticks_of_nothing_are_one():
    assert nice_ticks(2, 2) == [2]
    assert span_of([float("nan")])[0] < span_of([float("nan")])[1]


def test_numbers_are_short():
    values = (0, 0.25, 12, 25000, 2e-5, 0.1 + 0.2)
    assert [number(v) for v in values] == ["0", "0.25", "12", "25k", "2e-5", "0.3"]


def test_charts_are_well_formed_whatever_the_names_and_values():
    evil = '</svg><script>alert(1)</script>\x00\x1b & "quoted"'
    plot = Plot(evil, evil, "y", (0, 4), (0, 1), marks=[(3, evil)])
    svg = plot.svg(
        [
            Series(evil, [(0, 0.1), (1, float("nan")), (2, 0.5), (3, 0.7), (4, float("inf"))]),
            Series("dots", [(1, 0.2)], dots=True),
        ]
    )
    root = ET.fromstring(svg)
    assert "script" not in {e.tag.rpartition("}")[2] for e in root.iter()}
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert [len(e.get("points").split()) for e in lines] == [1, 2]  # broken at the value that is not finite
    assert "\x00" not in svg


def test_points_lie_where_the_axes_say():
    plot = Plot("t", "x", "y", (0, 10), (0, 100), size=(400, 300), left=50, right=10, top=40, bottom=30)
    assert (plot.x(0), plot.x(10), plot.y(0), plot.y(100)) == (50, 390, 270, 40)
    found = re.search(r'points="([\d., ]+)"', plot.svg([Series("a", [(5, 50), (10, 100)])]))
    assert found.group(1) == "220.0,155.0 390.0,40.0"


def test_text_is_escaped_for_attributes_too():
    assert text_of("<a href='x'>\"&") == "&lt;a href=&#x27;x&#x27;&gt;&quot;&amp;"
    assert text_of("\ud800\x07") == "\ufffd\ufffd"


def test_logarithmic_axes():
    assert log_ticks(5, 2000) == [10, 100, 1000]
    assert log_ticks(112, 896) == [200, 500]
    plot = Plot("t", "x", "y", (1, 100), (10, 1000), log=True)
    assert plot.x(10) == pytest.approx((plot.x(1) + plot.x(100)) / 2)
    assert plot.y(100) == pytest.approx((plot.y(10) + plot.y(1000)) / 2)
    assert "1e" not in plot.svg([Series("a", [(1, 10), (100, 1000)])])
