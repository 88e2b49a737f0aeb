"""RetNet equals torchscale's with the same weights, in each of the three forms.

The numbers are read from ``tests/golden/retnet.safetensors``, which ``tests/golden/retnet.py`` wrote with torchscale
0.3.0; where torchscale can be imported, the same is done again with other weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.peers import relative_difference
from vitrail.errors import WeightsError
from vitrail.models import build
from vitrail.models.retnet import Numerics, RetNetConfig
from vitrail.weights import export_weights, load_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "retnet.safetensors"
NAMES = ("untied", "tied")
FORMS = ("parallel", "recurrent", "chunkwise")
NORMALISERS = {"parallel": "signed", "recurrent": "none", "chunkwise": "none"}  # of torchscale 0.3.0's forms
TOLERANCE = 1e-5


def read(path, name):
    with safe_open(path, "pt") as file:
        size = json.loads(file.metadata()["sizes"])[name]
        own = [key for key in file.keys() if key.startswith(f"{name}/")]  # noqa: SIM118 - it is no mapping
        return size, {key.removeprefix(f"{name}/"): file.get_tensor(key) for key in own}


def weights_of(found):
    return {k.removeprefix("weights/"): t for k, t in found.items() if k.startswith("weights/")}


def made(size, found, normaliser="none"):
    model = build(
        RetNetConfig(
            vocab_size=size["vocab_size"],
            embed_dim=size["decoder_embed_dim"],
            depth=size["decoder_layers"],
            num_heads=size["decoder_retention_heads"],
            value_dim=size["decoder_value_embed_dim"],
            hidden_dim=size["decoder_ffn_embed_dim"],
            feedforward="geglu" if size["activation_fn"] == "gelu" else "swiglu",
            tie_embeddings=size.get("share_decoder_input_output_embed", False),
            chunk_size=size["recurrent_chunk_size"],
            numerics=Numerics(normaliser=normaliser),
        )
    ).eval()
    report = load_weights(model, weights_of(found))
    assert report.layout == "torchscale"
    return model


def differences(path, name):
    """Return the relative difference of each form, with torchscale's own normaliser for it."""
    size, found = read(path, name)
    with torch.inference_mode():
        return {
            form: relative_difference(made(size, found, NORMALISERS[form])(found["tokens"], form=form), found[form])
            for form in FORMS
        }


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torchscale(name):
    assert GOLDEN.stat().st_size < 200_000
    assert max(differences(GOLDEN, name).values()) <= TOLERANCE


@pytest.mark.skipif(importlib.util.find_spec("torchscale") is None, reason="torchscale is not installed")
@pytest.mark.parametrize("seed", [2, 3])
def test_logits_are_those_of_torchscale_here_and_now(tmp_path, seed):
    """Weights by chance can be unkind: where a first score is near 0, its norm magnifies float32's own rounding.

    With seed 1 our own float32 is 5e-4 from our own float64, and torchscale as far from both.
    """
    path = tmp_path / "retnet.safetensors"
    command = [sys.executable, str(GOLDEN.with_suffix(".py")), str(path), "--seed", str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    for name in NAMES:
        assert max(differences(path, name).values()) <= TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_writes_what_torchscale_reads(name):
    size, found = read(GOLDEN, name)
    written = export_weights(made(size, found), "torchscale")
    theirs = {k: t for k, t in weights_of(found).items() if "retnet_rel_pos" not in k}
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[k], t) for k, t in theirs.items())


def test_reads_a_language_model_of_fairseq_and_what_is_tied():
    size, found = read(GOLDEN, "tied")
    model = made(size, found)
    load_weights(model, {f"decoder.{k}": t for k, t in weights_of(found).items()})
    other = {**weights_of(found), "output_projection.weight": torch.zeros(23, 32)}
    with pytest.raises(WeightsError, match="tie_embeddings=False"):
        load_weights(model, other)
    without = {k: t for k, t in weights_of(found).items() if k != "output_projection.weight"}
    assert load_weights(model, without).layout == "torchscale"
