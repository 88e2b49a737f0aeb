"""Features: what the head reads, of every family; kept on the disk under all that decides them."""

import os

import pytest
import torch

from vitrail import models
from vitrail.data.sources import open_dataset
from vitrail.errors import UsageError
from vitrail.training.probing.features import FeatureCache, FeatureSet, Reader, cache_key, extract, weights_digest
from vitrail.weights import Card

NAMES = sorted(name for name in models.image_variants() if name.startswith("test_"))


def randomised(name, **more):
    torch.manual_seed(0)
    model = models.create_model(name, **more).eval()
    for part in (model.head, getattr(model, "head_dist", None)):
        if part is not None:
            torch.nn.init.normal_(part.weight)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_head_makes_its_logits_of_them(name):
    model = randomised(name, num_classes=5)
    x = torch.randn(2, 3, 40, 32)
    features = Reader(model)(x)
    if hasattr(model, "head_dist"):  # the mean of what two heads read: equal heads give the model's answer
        model.head_dist.load_state_dict(model.head.state_dict())
    with torch.inference_mode():
        logits = model(x)
        answer = model.head(features)
    torch.testing.assert_close(answer, logits, atol=1e-5, rtol=1e-4)
    assert not [hook for part in model.modules() for hook in part._forward_hooks or part._forward_pre_hooks]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_every_family_can_be_read(name):
    model, x = randomised(name), torch.randn(2, 3, 32, 32)
    widths = {Reader(model, layer)(x).shape for layer in (0, -1)}
    assert all(shape[0] == 2 and len(shape) == 2 for shape in widths)
    assert max(shape[1] for shape in widths) <= 4 * max(model.feature_channels.values())
    with pytest.raises(UsageError, match="expected a layer from 0 to"):
        Reader(model, 99)


def test_a_block_is_pooled_as_the_model_pools():
    x = torch.randn(2, 3, 32, 32)
    token, mean = randomised("test_vit"), randomised("test_vit", global_pool="gap", class_token=False)
    for model in (token, mean):
        with torch.inference_mode():
            tokens = model.blocks(model.embed(x)[0])
        expected = tokens[:, 0] if model is token else tokens.mean(1)
        torch.testing.assert_close(Reader(model, -1)(x), expected)


def test_unreadable_images_are_left_out(tmp_path, photo_folder):
    data = photo_folder(tmp_path / "photos")
    (data / "across" / "003.png").write_bytes(b"no image")
    splits, model, card = open_dataset(data), randomised("test_vit"), Card(input_size=(32, 32))
    found = extract(Reader(model), splits.train, card, batch_size=4, device=torch.device("cpu"))
    whole = len(splits.train)
    assert (len(found), found.lost) in [(whole - 1, 1), (whole, 0)]
    assert found.features.shape == (len(found), 32)


def test_the_key_changes_with_whatever_decides_the_features(tmp_path, photo_folder):
    data = photo_folder(tmp_path / "photos")
    model, card = randomised("test_vit"), Card(input_size=(32, 32))

    def key(net=model, look=card, layer=None, images=None):
        return cache_key(net, weights_digest(net), look, images or open_dataset(data).train, layer)

    seen = [key(), key(layer=1), key(look=Card(input_size=(48, 48))), key(look=Card(input_size=(32, 32), crop_pct=0.9))]
    assert key() == seen[0]
    other = randomised("test_vit")
    other.blocks[1].mlp.fc2.bias.data[3] += 1e-6
    seen.append(key(other))
    seen.append(key(images=open_dataset(data, seed=1).train))
    for path in sorted(data.rglob("*.png")):
        os.utime(path, ns=(1, 1))  # another picture of the same size and name shows by its time
    seen.append(key())
    assert len(set(seen)) == len(seen)


def test_kept_features_are_not_computed_again_unless_damaged(tmp_path):
    said, calls = [], []

    def compute():
        calls.append(1)
        return FeatureSet(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 1]), 4)

    cache = FeatureCache(tmp_path / "features", said.append)
    first, second = cache.get("a", compute), cache.get("a", compute)
    assert len(calls) == 1
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.labels, second.labels)
    assert second.lost == 4
    (file,) = (tmp_path / "features").iterdir()
    assert str(file) in said[0]
    file.write_bytes(file.read_bytes()[:-3])
    cache.get("a", compute)
    assert len(calls) == 2
    assert "damaged" in said[1]
