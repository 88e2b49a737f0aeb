"""CoAtNet equals timm's with the same weights, both ways, in every form timm has; counts of every variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.peers import randomise, relative_difference, timm
from vitrail.models import build, create_model, list_models, variants
from vitrail.weights import export_weights, load_weights

TOLERANCE = 1e-5
PUBLISHED = {  # parameters as the paper's tables print them
    "coatnet_0": 25e6,
    "coatnet_1": 42e6,
    "coatnet_2": 75e6,
    "coatnet_3": 168e6,
    "coatnet_4": 275e6,
    "coatnet_5": 688e6,
    "coatnet_6": 1470e6,
    "coatnet_7": 2440e6,
}
SMALL = {"depths": (2, 1, 2, 2), "widths": (32, 64, 64, 96)}
IN_TIMM = [n for n in list_models("coatnet_*") if n.endswith(("_224", "_384"))]


def pair(name, side=(64, 96)):
    """Return timm's network and ours with fewer blocks and channels: every kind of block stays."""
    config = replace(variants()[name], **SMALL, stem_widths=(8, 16), img_size=side, num_classes=7)
    theirs = replace(
        timm.models.maxxvit.model_cfgs[name.rpartition("_")[0]],
        depths=SMALL["depths"],
        embed_dim=SMALL["widths"],
        stem_width=(8, 16),
        head_hidden_size=config.representation_size and 96,
    )
    if config.representation_size is not None:
        config = replace(config, representation_size=96)
    return randomise(timm.models.maxxvit.MaxxVit(theirs, img_size=side, num_classes=7), seed=2), build(config).eval()


def images(size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["coatnet_0_224", "coatnet_0_rw_224", "coatnet_bn_0_rw_224", "coatnet_pico_rw_224"])
@pytest.mark.parametrize("size", [(64, 96), (128, 64)])
def test_equals_timm(name, size):
    theirs, ours = pair(name, size)
    report = load_weights(ours, theirs.state_dict())
    assert report.layout == "timm"
    with torch.inference_mode():
        assert relative_difference(ours(images(size)), theirs(images(size))) <= TOLERANCE


@pytest.mark.parametrize("name", ["coatnet_1_rw_224", "coatnet_rmlp_1_rw_224", "coatnet_rmlp_nano_rw_224"])
def test_other_forms_equal_timm(name):
    theirs, ours = pair(name)
    load_weights(ours, theirs.state_dict())
    with torch.inference_mode():
        assert relative_difference(ours(images((64, 96))), theirs(images((64, 96)))) <= TOLERANCE


@pytest.mark.parametrize("name", ["coatnet_0_224", "coatnet_0_rw_224", "coatnet_rmlp_nano_rw_224"])
def test_export_is_what_timm_reads(name):
    theirs, ours = pair(name)
    load_weights(ours, theirs.state_dict())
    wanted = theirs.state_dict()
    theirs.load_state_dict(export_weights(ours, "timm"), strict=True)
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in theirs.state_dict().items())


def test_training_equals_timm():
    theirs, ours = pair("coatnet_0_224")
    load_weights(ours, theirs.state_dict())
    got, wanted = ours.train()(images((64, 96))), theirs.train()(images((64, 96)))
    assert relative_difference(got, wanted) <= TOLERANCE
    for (name, mean), (_, other) in zip(
        sorted((n, b) for n, b in ours.named_buffers() if n.startswith("stem") and b.ndim),
        sorted((n, b) for n, b in theirs.named_buffers() if n.startswith("stem") and b.ndim),
        strict=True,
    ):
        torch.testing.assert_close(mean, other, msg=name)


def test_tables_are_resized_when_loaded_for_other_images():
    theirs, ours = pair("coatnet_0_224")
    bigger = build(replace(ours.config, img_size=(128, 128))).eval()
    load_weights(ours, theirs.state_dict())
    report = load_weights(bigger, {k: v.clone() for k, v in ours.state_dict().items() if "table" not in k} | square())
    assert any("2x2 -> 4x4" in said for said in report.resized)


def square():
    """Return the tables of a model for 64 x 64 images."""
    _, small = pair("coatnet_0_224", (64, 64))
    return {k: v for k, v in small.state_dict().items() if "table" in k}


@pytest.mark.parametrize("name", IN_TIMM)
def test_counts_equal_timm(name):
    with torch.device("meta"):
        ours, theirs = create_model(name), timm.create_model(name, num_classes=1000)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_equal_the_paper(name):
    with torch.device("meta"):
        count = sum(p.numel() for p in create_model(name).parameters())
    assert abs(count / PUBLISHED[name] - 1) < 0.01
