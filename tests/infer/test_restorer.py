"""A restorer: pictures of any kind, 8 and 16 bits, figures against a reference, and what is refused."""

import numpy as np
import pytest
import torch

from tests.contract.every import randomise
from tests.training.test_restore import waves
from vitrail import models
from vitrail.data.sixteen import read_deep, save_picture
from vitrail.errors import DataError, UsageError
from vitrail.infer import load
from vitrail.infer.restorer import Restorer, load_restorer
from vitrail.metrics.images import psnr
from vitrail.weights import Card, save_folder

CARD = Card(name="test_swinir", mean=(0.0,) * 3, std=(1.0,) * 3)


def restorer(name="test_swinir", **how):
    return Restorer(randomise(models.create_model(name)), CARD, device="cpu", **how)


def test_a_picture_is_what_the_network_makes_of_it():
    found = restorer()
    picture = np.array(waves(0, side=21))
    with torch.inference_mode():
        made = found.model(torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)[None].float())[0]
    expected = (made.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(found(picture).image, expected)


def test_files_arrays_and_several_of_them(tmp_path):
    found, picture = restorer(), waves(0, side=20)
    picture.save(tmp_path / "a.png")
    one = found(tmp_path / "a.png")
    assert np.array_equal(one.image, found(picture).image)
    several = found([tmp_path / "a.png", np.asarray(picture), tmp_path / "no.png"])
    assert [result.ok for result in several] == [True, True, False]
    assert several[2].to_json()["error"]["reason"] == "missing"
    with pytest.raises(DataError, match=r"no\.png"):
        several[2].save(tmp_path / "x.png")


def test_sixteen_bits_stay_sixteen(tmp_path):
    found = restorer("test_swinir_denoise")
    deep = np.array(waves(0, side=20)).astype(np.uint16) * 257 + 3
    save_picture(tmp_path / "deep.png", deep)
    result = found(tmp_path / "deep.png")
    assert result.image.dtype == np.uint16
    assert np.array_equal(result.image, found(deep).image)
    eight = found((deep >> 8).astype(np.uint8)).image
    assert float(np.abs(result.image / 257 - eight).mean()) < 2
    assert np.array_equal(read_deep(result.save(tmp_path / "out.tif")), result.image)
    assert result.to_json()["bits"] == 16


def test_grey_networks_see_luminance_and_colour_networks_three_greys():
    grey = restorer("test_swinir_jpeg")
    colour = np.array(waves(0, side=20))
    light = np.array(waves(0, side=20).convert("L"))
    assert grey(colour).image.shape == (20, 20)
    assert np.abs(grey(colour).image.astype(int) - grey(light).image).max() <= 6
    deep = colour.astype(np.uint16) * 257
    assert grey(deep).image.shape == (20, 20)
    assert restorer("test_swinir_denoise")(light).image.shape == (20, 20, 3)


def test_figures_against_a_reference_are_those_of_the_measure():
    found = restorer(measure=(2, "y"))
    result = found(np.array(waves(0, side=20)))
    reference = np.array(waves(0, side=40))
    told = result.to_json(reference=reference)
    one, other = (torch.from_numpy(x / 255.0).permute(2, 0, 1) for x in (result.image, reference))
    assert told["psnr"] == pytest.approx(psnr(one, other, border=2, channel="y"))
    assert (told["border"], told["channel"]) == (2, "y")
    with pytest.raises(DataError, match="expected a reference"):
        result.figures(reference[1:])


def test_before_and_after_are_drawn(tmp_path):
    result = restorer()(np.array(waves(0, side=30)))
    drawn = result.plot(tmp_path / "x.png", reference=np.array(waves(0, side=60)))
    assert (tmp_path / "x.png").is_file()
    assert drawn.size[0] > 3 * 60


def test_load_opens_it_and_refuses_options_without_effect(tmp_path):
    save_folder(tmp_path / "net", randomise(models.create_model("test_swinir")), card=CARD)
    found = load(tmp_path / "net")
    assert isinstance(found, Restorer)
    assert found.measure == (2, "y")
    assert found(np.array(waves(0, side=20))).scale == 2
    with pytest.raises(UsageError, match="img_size has no effect"):
        load(tmp_path / "net", img_size=64)
    with pytest.raises(UsageError, match="two windows"):
        load_restorer(tmp_path / "net", tile=5)
    half = load(tmp_path / "net", dtype="bfloat16")(np.array(waves(0, side=20))).image
    assert np.abs(half.astype(int) - found(np.array(waves(0, side=20))).image).mean() < 3


def test_classifiers_restore_nothing():
    with pytest.raises(UsageError, match="restores pictures"):
        Restorer(models.create_model("test_swin"), CARD)
