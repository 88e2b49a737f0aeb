"""safetensors files that are damaged or made to do harm."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save, save_file

from vitrail import create_model
from vitrail.errors import WeightsError
from vitrail.weights import load_weights
from vitrail.weights.read import read_header, read_json, read_safetensors


def file(header, data=b""):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


GOOD = save({"w": torch.ones(4, 4)})
ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        GOOD[:20],
        GOOD[:-8],
        GOOD + b"more",
        struct.pack("<Q", 2**62) + b"{}",
        file({"w": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 6400]}}, b"\0" * 64),
        file({"w": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 16]}}, b"\0" * 16),
        file({"w": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        file({"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        file(b"{" + ONE + b"," + ONE + b"}", b"\0" * 4),
        file({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
        file(b"[1]"),
        file({"w": 3}),
    ],
)
def test_refused(tmp_path, raw):
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(WeightsError) as caught:
        read_safetensors(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 500


def test_a_missing_file(tmp_path):
    with pytest.raises(WeightsError, match="check the path"):
        read_header(tmp_path / "x.safetensors")


def test_names_like_paths_write_nothing(tmp_path):
    weights = dict(create_model("test_vit").state_dict()) | {"../../evil": torch.ones(1)}
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected: \.\./\.\./evil"):
        load_weights(create_model("test_vit"), tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_json_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError):
        read_json(tmp_path / "config.json")
