"""The recorded maps are those that transformers returns for the same weights."""

import pytest
import torch

from tests.peers import randomise
from vitrail.explain import record
from vitrail.models import create_model
from vitrail.weights import load_weights

from .models import pictures


def test_recorded_maps_equal_the_attentions_of_transformers():
    pytest.importorskip("transformers")
    from tests.peers import transformers

    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        num_labels=10,
        attn_implementation="eager",
    )
    peer = randomise(transformers.ViTForImageClassification(config)).eval()
    model = create_model("test_vit", numerics={"norm_eps": config.layer_norm_eps}).eval()
    load_weights(model, peer.state_dict())
    images = pictures()
    with torch.no_grad():
        theirs = peer(images, output_attentions=True).attentions
        with record(model) as maps:
            model(images)
    assert len(theirs) == 2
    for ours, peers in zip(maps.square(), theirs, strict=True):
        torch.testing.assert_close(ours, peers, rtol=1e-5, atol=1e-6)
