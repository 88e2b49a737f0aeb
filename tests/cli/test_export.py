"""`vitrail export` and `vitrail bench`, as people call them."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")


def test_a_run_is_exported_measured_and_used(vitrail, model_folder, photos, tmp_path):
    file = tmp_path / "model.onnx"
    ran = vitrail("export", model_folder, "--out", file)
    assert ran.code == 0, ran.err
    assert "images of 32 x 32, any batch" in ran.out
    assert "the same numbers as the model" in ran.out
    ours = vitrail("predict", model_folder, photos, "--json").json["predictions"]
    theirs = vitrail("predict", file, photos, "--json").json["predictions"]
    assert [p["label"] for p in ours] == [p["label"] for p in theirs]
    speeds = vitrail("bench", file, "--rounds", 3, "--json").json["engines"]
    assert [speed["engine"] for speed in speeds] == ["onnx"]


def test_what_is_wrong_is_said(vitrail, model_folder, tmp_path):
    assert vitrail("export", tmp_path / "nothing").code == 4
    assert vitrail("export", model_folder, "--format", "onix").code == 2
    ran = vitrail("bench", model_folder, "--engines", "float16")
    assert ran.code == 2
    assert "unknown engine 'float16'" in ran.err
