"""A classifier of other classes: which of its rows are kept."""

import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.errors import UsageError, WeightsError
from vitrail.models import create_model
from vitrail.weights import Card, HeadSwap, load_weights, save_folder


@pytest.fixture(scope="module", params=["test_vit", "test_deit_distilled", "test_swin"])
def weights(request, tmp_path_factory):
    """Return (name, model, folder) of a network with classes cat, dog, owl, fox."""
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=4)
    for name, parameter in model.named_parameters():
        if name.startswith("head"):
            torch.nn.init.normal_(parameter)
    classes = ClassMap.of(["cat", "dog", "owl", "fox"])
    path = tmp_path_factory.mktemp("weights")
    folder = save_folder(path / "named", model, card=Card(name=request.param), classes=classes)
    return request.param, model, folder, save_folder(path / "unnamed", model, card=Card(name=request.param))


def heads(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith("head")}


@pytest.mark.parametrize("how", ["keep", "match"])
def test_rows_follow_their_names(weights, how):
    name, theirs, folder, _ = weights
    model = create_model(name, num_classes=5)
    fresh = heads(model)
    report = load_weights(model, folder, head=HeadSwap(ClassMap.of(["ape", "fox", "bee", "cat", "elk"]), how))
    assert "kept the head's rows of 2 of 5 classes: fox, cat" in str(report)
    assert report.new == []
    for key, rows in heads(model).items():
        own = heads(theirs)[key]
        torch.testing.assert_close(rows[[1, 3]], own[[3, 0]])
        torch.testing.assert_close(rows[[0, 2, 4]], fresh[key][[0, 2, 4]])


def test_as_many_classes_of_other_names_get_a_new_head(weights):
    """Ten signs are not the ten classes of CIFAR-10, though the shapes agree."""
    name, _, folder, _ = weights
    model = create_model(name, num_classes=4)
    fresh = heads(model)
    other = ClassMap.of(["one", "two", "three", "four"])
    report = load_weights(model, folder, head=HeadSwap(other))
    assert "none of the data's classes is among those of the weights (cat, dog, owl, fox)" in str(report)
    assert set(report.new) == set(fresh)
    assert all(torch.equal(rows, fresh[key]) for key, rows in heads(model).items())
    with pytest.raises(WeightsError, match=r"none of the data's classes.*model\.head: keep"):
        load_weights(create_model(name, num_classes=4), folder, head=HeadSwap(other, "match"))


def test_new_means_new(weights):
    name, _, folder, _ = weights
    model = create_model(name, num_classes=4)
    fresh = heads(model)
    load_weights(model, folder, head=HeadSwap(ClassMap.of(["cat", "dog", "owl", "fox"]), "new"))
    assert all(torch.equal(rows, fresh[key]) for key, rows in heads(model).items())


def test_weights_that_do_not_name_their_classes(weights):
    name, theirs, _, unnamed = weights
    model = create_model(name, num_classes=4)
    report = load_weights(model, unnamed, head=HeadSwap(ClassMap.of(["a", "b", "c", "d"])))
    assert "does not name them" in str(report)
    assert all(torch.equal(rows, heads(theirs)[key]) for key, rows in heads(model).items())
    model = create_model(name, num_classes=3)
    report = load_weights(model, unnamed, head=HeadSwap(ClassMap.of(["a", "b", "c"])))
    assert report.new
    with pytest.raises(WeightsError, match="do not name their classes"):
        load_weights(create_model(name, num_classes=4), unnamed, head=HeadSwap(ClassMap.of(list("abcd")), "match"))


def test_a_name_that_two_classes_share_is_not_matched(tmp_path):
    model = create_model("test_vit", num_classes=3)
    classes = ClassMap(("crane", "crane", "owl"), ("bird", "machine", "owl"))
    folder = save_folder(tmp_path / "m", model, card=Card(name="test_vit"), classes=classes)
    report = load_weights(create_model("test_vit", num_classes=2), folder, head=HeadSwap(ClassMap.of(["crane", "owl"])))
    assert "rows of 1 of 2 classes: owl" in str(report)


def test_weights_without_a_head_leave_a_new_one(tmp_path):
    folder = save_folder(tmp_path / "m", create_model("test_vit", num_classes=0), card=Card(name="test_vit"))
    model = create_model("test_vit", num_classes=2)
    report = load_weights(model, folder, head=HeadSwap(ClassMap.of(["a", "b"])))
    assert set(report.new) == {"head.weight", "head.bias"}
    with pytest.raises(WeightsError, match="have no head"):
        load_weights(model, folder, head=HeadSwap(ClassMap.of(["a", "b"]), "match"))


def test_a_pyramid_has_no_head(tmp_path):
    pyramid = create_model("test_vit", features_only=True)
    with pytest.raises(UsageError, match="no effect"):
        load_weights(pyramid, {}, head=HeadSwap(ClassMap.of(["a", "b"])))
