"""Hub access against a local server that serves folders written by timm, transformers and us, with random weights."""

from __future__ import annotations

import pytest
import torch

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail import create_model
from vitrail.errors import UsageError, WeightsError
from vitrail.weights import Card, load_model, load_weights, open_folder, save_folder
from vitrail.weights.source import is_hub_id

from .hub_server import GATED, running

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    peers = {
        "timm/tiny": randomise(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=3)),
        "google/vit": randomise(
            transformers.ViTForImageClassification(
                transformers.ViTConfig(
                    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                    image_size=32, patch_size=8, num_labels=3,
                )
            )
        ),
    }  # fmt: skip
    paths = {name: root / name.replace("/", "_") for name in [*peers, "acme/ours", "acme/pickled"]}
    timm.models.save_for_hf(peers["timm/tiny"], paths["timm/tiny"], safe_serialization="both")
    peers["google/vit"].save_pretrained(paths["google/vit"])
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(paths["google/vit"])
    peers["acme/ours"] = randomise(create_model("test_vit"))
    save_folder(paths["acme/ours"], peers["acme/ours"], card=Card(name="test_vit", input_size=(32, 32)))
    paths["acme/pickled"].mkdir()
    (paths["acme/pickled"] / "config.json").write_text("{}")
    for path in paths.values():  # what no one may fetch
        torch.save({"w": torch.ones(1)}, path / "pytorch_model.bin")
        (path / "modeling.py").write_text("raise SystemExit('remote code ran')")
    return paths, peers


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    """A running hub, an empty cache, and a user who may use the network."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "VITRAIL_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with running(folders[0]) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize("name", ["timm/tiny", "google/vit", "acme/ours"])
def test_models_from_the_hub_compute_what_their_makers_compute(hub, folders, name):
    peer = folders[1][name].eval()
    model, card, _ = load_model(f"hf-hub:{name}")
    with torch.no_grad():
        theirs = peer(X)
        assert relative_difference(model.eval()(X), getattr(theirs, "logits", theirs)) <= 1e-5
    assert (card.hub_id, card.revision) == (name, hub.commit(name))
    assert not [f for f in hub.asked if f.endswith((".bin", ".py"))]


def test_every_door(hub, folders):
    """A bare id, create_model, pretrained=, load_weights, and a revision."""
    weights = folders[1]["acme/ours"].state_dict()
    models = [
        load_model("acme/ours")[0],
        create_model("hf-hub:acme/ours"),
        create_model("test_vit", pretrained="hf-hub:acme/ours@v1"),
        create_model("test_vit"),
    ]
    load_weights(models[-1], f"acme/ours@{hub.commit('acme/ours')}")
    for model in models:
        assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_second_time_fetches_nothing(hub):
    load_model("acme/ours")
    fetched = len(hub.asked)
    load_model("acme/ours")
    assert len(hub.asked) == fetched


@pytest.mark.parametrize("variable", ["VITRAIL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(hub, monkeypatch, variable):
    load_model("acme/ours")
    monkeypatch.setenv(variable, "1")
    fetched = len(hub.asked)
    load_model("acme/ours")
    with pytest.raises(WeightsError, match=r"not in the cache.*VITRAIL_OFFLINE"):
        load_model("timm/tiny")
    assert len(hub.asked) == fetched


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("acme/nothing", r"no repository acme/nothing.*hf auth login"),
        (GATED, r"gated.*ask for access"),
        ("acme/ours@v9", r"no revision 'v9'"),
        ("acme/pickled", r"vitrail convert"),
        ("hf-hub:no", r"not a hub id|no repository"),
        ("hf-hub:a--b/c", r"not a hub id"),
    ],
)
def test_errors_say_what_to_do(hub, source, words):
    with pytest.raises(WeightsError, match=words) as caught:
        open_folder(source)
    assert len(str(caught.value)) < 500


def test_no_network(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"cannot fetch acme/ours.*check the network"):
        open_folder("acme/ours")


def test_without_the_extra(hub, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"vitrail\[hub\]"):
        open_folder("acme/ours")


def test_what_counts_as_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("hf-hub:timm/vit")
    assert is_hub_id("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k@main")
    assert not is_hub_id("./runs/best")
    assert not is_hub_id("model.pth")
    (tmp_path / "runs" / "best").mkdir(parents=True)
    assert not is_hub_id("runs/best")
    assert not is_hub_id("runs/bset")  # a slip of the fingers must not reach for the network
    assert not is_hub_id("nowhere/deit.pth")
    assert not is_hub_id("../nowhere")


def test_progress_bars_stay_off_the_log(hub, capfd):
    load_model("acme/ours")
    assert capfd.readouterr().err == ""
