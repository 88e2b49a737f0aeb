"""Networks that segment in folders and files: read back whole, other classes, backbones of classifiers."""

from __future__ import annotations

import pytest
import torch

from tests.peers import randomise
from vitrail.classes import ClassMap
from vitrail.errors import WeightsError
from vitrail.models import create_model, variants_that
from vitrail.weights import Card, export_weights, load_folder, load_weights, save_folder
from vitrail.weights.configs import name_of
from vitrail.weights.maps import layouts

NAMES = sorted(name for name in variants_that("masks") if name.startswith("test_"))
FIVE = ClassMap.of(["a", "b", "c", "d", "e"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_folder_is_read_back_whole(tmp_path, name):
    model, images = randomise(create_model(name), seed=4), torch.randn(2, 3, 50, 67)
    path = save_folder(tmp_path / "f", model, card=Card(name=name, input_size=(32, 32)), classes=FIVE)
    again, card, classes = load_folder(path)
    assert again.config == model.config
    assert (card.name, classes) == (name, FIVE)
    assert torch.equal(again.eval()(images), model.eval()(images))
    assert "image-segmentation" in (path / "README.md").read_text()
    assert name_of(model.config) == name


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_round_trips(name):
    model = randomise(create_model(name), seed=4)
    written = 0
    for layout in layouts(model.config):
        try:
            tensors = export_weights(model, layout)
        except WeightsError:  # a layout without a place for a part of this model, which it names
            continue
        again = create_model(name)
        load_weights(again, tensors)
        written += 1
        for key, tensor in model.state_dict().items():
            assert key.endswith("num_batches_tracked") or torch.equal(again.state_dict()[key], tensor), (layout, key)
    assert written >= 1


def test_a_new_classifier_leaves_the_decoder_as_it_was(tmp_path):
    model = randomise(create_model("test_segmenter"))
    other = create_model("test_segmenter", num_classes=7)
    with pytest.raises(WeightsError, match="7 classes, got 5"):
        load_weights(other, export_weights(model, "vitrail"))
    report = load_weights(other, export_weights(model, "vitrail"), new_head=True)
    assert sorted(report.new) == ["head.bias", "head.weight", "head_auxiliary.bias", "head_auxiliary.weight"]
    assert torch.equal(other.decode.fuse.conv.weight, model.decode.fuse.conv.weight)


def test_a_classifier_gives_its_backbone():
    classifier, model = randomise(create_model("test_swin")), create_model("test_segmenter")
    report = load_weights(model.backbone.backbone, export_weights(classifier, "timm"), new_head=True)
    assert torch.equal(model.backbone.backbone.norm.weight, classifier.norm.weight)
    assert all(name.startswith("stage_norms") for name in report.new)
