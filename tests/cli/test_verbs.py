"""Every verb on a run that really trained: what it says, what it writes, and its one JSON line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from .conftest import tiny


def width(path) -> int:
    with Image.open(path) as picture:
        return picture.width


def test_train_ends_with_result_run_report_and_next_commands(vitrail, photos, tmp_path):
    ran = vitrail(*tiny("train", photos, "--out", tmp_path, "--name", "one"))
    assert ran.code == 0
    run = tmp_path / "classify" / "one"
    for words in (
        "accuracy",
        "8 test images",
        str(run),
        str(run / "report.html"),
        str(run / "explain" / "attention.png"),
    ):
        assert words in ran.out
    for verb in ("predict", "explain", "val"):
        assert f"vitrail {verb} " in ran.out.partition("Next:")[2]
    assert width(run / "explain" / "attention.png") > 300
    assert "epoch 2/2" in ran.err


def test_train_takes_recipe_files_pairs_and_set(vitrail, photos, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {name: test_vit}\ntrain: {batch_size: 8, epochs: 7, device: cpu}\n")
    ran = vitrail(
        "train",
        recipe,
        "epochs=1",
        "--data",
        photos,
        "--set",
        "optim.lr=1e-2",
        "--out",
        tmp_path,
        "--seed",
        3,
        "--json",
    )
    assert ran.code == 0
    said = ran.json
    resolved = (tmp_path / "classify" / "test_vit-1" / "recipe.yaml").read_text()
    for line in ("epochs: 1\n", "batch_size: 8\n", "lr: 0.01\n", "seed: 3\n", f"source: {photos}\n"):
        assert line in resolved
    assert said["ok"] is True
    assert said["folder"] == str(tmp_path / "classify" / "test_vit-1")
    assert said["summary"]["epochs"] == 1
    assert 0 <= said["metrics"]["top1"] <= 1


def test_the_environment_is_between_file_and_command_line(vitrail, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_TRAIN__EPOCHS", "1")
    ran = vitrail("train", photos, "model=test_vit", "batch=8", "device=cpu", "--out", tmp_path, "--json")
    assert ran.json["summary"]["epochs"] == 1
    ran = vitrail("train", photos, "model=test_vit", "batch=8", "device=cpu", "epochs=2", "--out", tmp_path, "--json")
    assert ran.json["summary"]["epochs"] == 2


@pytest.mark.parametrize("image_size", ["48", "24x40"])
def test_any_size_trains_and_predicts(vitrail, photos, tmp_path, image_size):
    ran = vitrail(*tiny("train", photos, "--out", tmp_path, "--name", "sized", "--img-size", image_size))
    assert ran.code == 0
    ran = vitrail("predict", tmp_path / "classify" / "sized", photos / "test" / "down" / "000.png", "--json")
    assert ran.json["predictions"][0]["label"] in ("across", "down")


def test_val_measures_the_held_out_split_as_training_did(vitrail, trained):
    said = vitrail("val", trained, "--json").json
    summary = json.loads((trained / "summary.json").read_text())
    assert said["split"] == "test"
    assert said["metrics"]["top1"] == summary["results"]["test"]["top1"]
    assert said["metrics"]["loss"] == pytest.approx(summary["results"]["test"]["loss"], rel=1e-6)
    assert np.array(said["confusion"]).sum() == 8
    shown = vitrail("val", trained, "--split", "val")
    assert "the val split" in shown.out
    assert [line.split()[0] for line in shown.out.splitlines()[-2:]] == ["across", "down"]


def test_val_measures_other_data_whole(vitrail, trained, photo_folder, tmp_path):
    other = photo_folder(tmp_path / "other", each=3)
    said = vitrail("val", trained, "--data", other, "--json").json
    assert said["metrics"]["count"] == 6
    assert "all images of" in vitrail("val", trained, "--data", other).out


def test_val_lists_what_it_could_not_read(vitrail, trained, photo_folder, tmp_path):
    other = photo_folder(tmp_path / "other", each=3)
    (other / "down" / "zzz.jpg").write_text("not an image at all")
    ran = vitrail("val", trained, "--data", other)
    assert ran.code == 0
    assert "1 images could not be read" in ran.out
    assert "zzz.jpg" in ran.out


def test_val_of_a_model_without_a_run_asks_for_data(vitrail, model_folder, photos):
    ran = vitrail("val", model_folder)
    assert ran.code == 2
    assert "--data" in ran.err
    assert vitrail("val", model_folder, "--data", photos).code == 0


def test_predict_takes_files_folders_and_patterns(vitrail, trained, photos):
    one, folder, pattern = photos / "test" / "down" / "000.png", photos / "val", f"{photos}/test/across/*.png"
    ran = vitrail("predict", trained, one, folder, pattern)
    assert ran.code == 0
    assert ran.out.count(".png") == 1 + 8 + 4
    said = vitrail("predict", trained, one, folder, pattern, "--json", "--top", 1).json["predictions"]
    assert len(said) == 13
    assert all(len(answer["top"]) == 1 for answer in said)


def test_predict_writes_csv(vitrail, trained, photos, tmp_path):
    ran = vitrail("predict", trained, photos / "val", "--csv", tmp_path / "answers.csv", "--top", 2)
    assert ran.code == 0
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["label"] for row in rows} <= {"across", "down"}
    assert vitrail("predict", trained, photos / "val", "--csv", tmp_path / "none" / "a.csv").code == 2


def test_best_and_last_and_the_run_itself_are_models(vitrail, trained, photos):
    image = photos / "test" / "down" / "000.png"
    said = [vitrail("predict", source, image, "--json").json for source in (trained, trained / "best")]
    assert said[0] == said[1]
    assert vitrail("predict", trained / "last", image).code == 0
    assert vitrail("val", trained / "last").code == 0  # finds the recipe of its run


def test_explain_draws_images(vitrail, trained, photos, tmp_path):
    image = photos / "test" / "down" / "000.png"
    said = vitrail("explain", trained, image, photos / "test" / "across" / "000.png", "--out", tmp_path, "--json").json
    names = ["000-rollout.png", "000-rollout-2.png"]
    assert said["pictures"] == [str(tmp_path / name) for name in names]
    assert all(width(path) > 300 for path in said["pictures"])
    said = vitrail("explain", trained, image, "--method", "class-token", "--per-head", "--out", tmp_path, "--json").json
    assert [path.rsplit("/", 1)[1] for path in said["pictures"]] == ["000-class-token.png", "000-heads.png"]


def test_explain_draws_held_out_images_and_figures(vitrail, trained):
    ran = vitrail("explain", trained)
    assert ran.out.strip() == str(trained / "explain" / "attention.png")
    said = vitrail("explain", trained, "--json").json["explanations"]
    assert [one["true"] for one in said[:4]] == ["across", "down"] * 2
    figures = vitrail("explain", trained, "--figures").out.split()
    assert [path.rsplit("/", 1)[1] for path in figures] == ["filters.png", "positions.png", "attention_distance.svg"]


def test_training_any_backbone_ends_with_a_picture(vitrail, photos, tmp_path):
    ran = vitrail("train", photos, "--model", "test_pvt_v2", "--img-size", "32", "--epochs", "1", "--out", tmp_path)
    assert ran.code == 0, ran.err
    assert "could not be drawn" not in ran.err
    assert width(next(tmp_path.glob("classify/*/explain/attention.png"))) > 300


def test_a_model_without_global_attention_is_explained_too(vitrail, photos, tmp_path):
    from vitrail.classes import ClassMap
    from vitrail.models import create_model
    from vitrail.weights import Card, save_folder

    model, card = create_model("test_swin", num_classes=2), Card(name="test_swin", input_size=(32, 32), num_classes=2)
    folder = save_folder(tmp_path / "swin", model, card=card, classes=ClassMap.of(["across", "down"]))
    image, out = photos / "test" / "down" / "000.png", tmp_path / "maps"
    said = vitrail("explain", folder, image, "--out", out, "--json").json
    assert said["pictures"] == [str(out / "000-grad-cam.png")]
    assert said["explanations"][0]["method"] == "grad_cam"
    ran = vitrail("explain", folder, image, "--method", "rollout")
    assert ran.code == 2
    assert "mend: --method grad-cam" in ran.err
    for spelling in ("grad_cam", "grad-cam"):
        said = vitrail("explain", folder, image, "--method", spelling, "--out", out, "--json").json
        assert said["explanations"][0]["method"] == "grad_cam"
    ran = vitrail("explain", folder, image, "--method", "gradcam")
    assert ran.code == 2
    assert "Did you mean 'grad-cam'" in ran.err
    ran = vitrail("explain", folder, "--data", photos, "--out", out)
    assert ran.out.strip() == str(out / "attention.png")
    ran = vitrail("explain", folder, image, "--figures", "--out", out)
    assert "positions.png is left out" in ran.out
    assert "attention_distance.svg is left out" in ran.out


def test_a_map_of_one_cell_says_that_it_has_no_places(vitrail, photos, tmp_path):
    from vitrail.classes import ClassMap
    from vitrail.models import create_model
    from vitrail.weights import Card, save_folder

    model = create_model("test_resnet", num_classes=2)
    card, classes = Card(name="test_resnet", input_size=(32, 32), num_classes=2), ClassMap.of(["across", "down"])
    folder = save_folder(tmp_path / "resnet", model, card=card, classes=classes)
    image, out = photos / "test" / "down" / "000.png", tmp_path / "maps"
    assert "one cell, so it says nothing about places" in vitrail("explain", folder, image, "--out", out).out
    assert "one cell" in vitrail("explain", folder, "--data", photos, "--out", out).out
    ran = vitrail("explain", folder, image, "--figures", "--out", out)
    assert "attention_distance.svg is left out: attention distance needs attention, and ResNet has none\n" in ran.out
    large = save_folder(tmp_path / "two", model, card=replace(card, input_size=(64, 64)), classes=classes)
    assert "one cell" not in vitrail("explain", large, image, "--out", out).out


def test_figures_of_bare_weights_need_no_data(vitrail, model_folder, tmp_path):
    ran = vitrail("explain", model_folder, "--figures", "--out", tmp_path)
    assert ran.code == 0
    assert "attention distance is left out" in ran.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filters.png", "positions.png"]


@pytest.mark.parametrize(
    "options",
    [
        ["--per-head"],
        ["IMAGE", "--per-head"],
        ["IMAGE", "--data", "x"],
        ["--figures", "--method", "rollout"],
        ["IMAGE", "--per-head", "--method", "rollout"],
    ],
)
def test_explain_refuses_options_without_effect(vitrail, model_folder, options):
    assert vitrail("explain", model_folder, *options).code == 2


def test_convert_makes_a_folder_that_predicts_the_same(vitrail, model_folder, photos, tmp_path):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(model_folder / "model.safetensors"), tmp_path / "old.pth")
    ran = vitrail("convert", tmp_path / "old.pth", tmp_path / "new", "--model", "test_vit", "--set", "num_classes=2")
    assert ran.code == 0, ran.err
    assert "no class names" in ran.out
    image = photos / "test" / "down" / "000.png"
    ours, theirs = (
        vitrail("predict", f, image, "--json").json["predictions"][0] for f in (model_folder, tmp_path / "new")
    )
    assert theirs["score"] == pytest.approx(ours["score"], abs=1e-6)
    assert theirs["label"] == f"class {theirs['index']}"


@pytest.mark.parametrize("layout", ["timm", "transformers", "original"])
def test_convert_writes_other_names_and_reads_them_back(vitrail, model_folder, tmp_path, layout):
    from safetensors.torch import load_file

    file = tmp_path / "out.safetensors"
    assert vitrail("convert", model_folder, file, "--layout", layout).code == 0
    ran = vitrail("convert", file, tmp_path / "back", "--model", "test_vit", "--set", "num_classes=2")
    assert ran.code == 0, ran.err
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["FOLDER", "x.safetensors"], 2),
        (["FOLDER", "x", "--layout", "timm"], 2),
        (["FOLDER", "FOLDER"], 2),
        (["FOLDER", "x", "--model", "test_vit"], 2),
        (["FOLDER/model.safetensors", "x"], 2),
        (["FOLDER/model.safetensors", "x", "--model", "test_vit"], 4),
        (["FOLDER/model.safetensors", "x", "--model", "test_vit", "--set", "numclasses=2"], 2),
        (["nowhere.pth", "x", "--model", "test_vit"], 4),
    ],
)
def test_convert_refuses(vitrail, model_folder, tmp_path, monkeypatch, words, code):
    monkeypatch.chdir(tmp_path)
    ran = vitrail("convert", *(word.replace("FOLDER", str(model_folder)) for word in words))
    assert ran.code == code, ran.err
    assert list(tmp_path.iterdir()) == []


def test_resume_of_a_finished_run_measures_it_again(vitrail, photos, tmp_path):
    assert vitrail(*tiny("train", photos, "--out", tmp_path, "--name", "r")).code == 0
    run = tmp_path / "classify" / "r"
    before = json.loads((run / "summary.json").read_text())["results"]
    said = vitrail("resume", run, "--json").json
    assert said["metrics"] == before["test"]
    assert vitrail("resume", tmp_path).code == 2


def test_convert_gives_advice_for_the_shell(vitrail, model_folder, tmp_path):
    weights = model_folder / "model.safetensors"
    ran = vitrail("convert", weights, tmp_path / "x", "--model", "test_vit")
    assert ran.code == 4
    assert ran.err.strip().endswith("got 2; mend: --set num_classes=2")
    assert "--model NAME" in vitrail("convert", weights, tmp_path / "x", "--model", "vit_pico_patch2_8").err


def test_convert_reads_image_sizes_as_train_does(vitrail, model_folder, tmp_path):
    from vitrail.weights import load_folder

    weights, target = model_folder / "model.safetensors", tmp_path / "x"
    words = ["--model", "test_vit", "--set", "num_classes=2", "--set", "img_size=48x64"]
    assert vitrail("convert", weights, target, *words).code == 0
    assert load_folder(target)[0].config.img_size == (48, 64)
    words[-1] = "img_size=huge"
    assert vitrail("convert", weights, tmp_path / "y", *words).code == 2
