"""The core path opens no socket at all: from data to a trained, explained model, and the first look at a hub id."""

from __future__ import annotations

import socket

import pytest

from tests.conftest import NetworkTouched


@pytest.fixture
def no_socket(monkeypatch):
    def refuse(*args, **kwargs):
        raise NetworkTouched("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_train_predict_and_explain_without_a_socket(no_socket, photos, tmp_path):
    import vitrail

    recipe = {
        "data.source": str(photos),
        "model.name": "test_vit",
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.device": "cpu",
        "out": str(tmp_path),
    }
    run = vitrail.train(recipe)
    predictor = vitrail.load(run.folder, device="cpu")
    picture = photos / "test" / "down" / "000.png"
    assert predictor(picture).label in {"across", "down"}
    assert predictor.explain(picture).grid_map.shape == (4, 4)


def test_the_guard_of_all_tests_works():
    with pytest.raises(NetworkTouched):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)  # an address reserved for examples
    with pytest.raises(NetworkTouched):
        socket.getaddrinfo("example.invalid", 443)


def test_a_mistyped_run_is_not_looked_up_on_the_hub(no_socket, capsys):
    from vitrail.cli.main import main

    assert main(["predict", "runs/vit-1", __file__]) == 4
    assert "hf-hub:" in capsys.readouterr().err
