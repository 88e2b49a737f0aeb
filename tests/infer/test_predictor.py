import csv
import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.classes import ClassMap
from vitrail.errors import DataError, UsageError, VitrailError, WeightsError
from vitrail.infer import Predictor, load, results_to_csv, table_rows
from vitrail.models import create_model
from vitrail.weights import Card, load_folder

RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Five readable images of different sizes and, third by name, one that is cut off."""
    for i, shape in enumerate([(40, 60), (50, 30), (10, 10), (33, 33), (64, 20), (32, 32)]):
        path = tmp_path / f"{i}.jpg"
        Image.fromarray(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(path)
        if i == 2:
            path.write_bytes(path.read_bytes()[:-60])
    return tmp_path


def test_a_folder_is_predicted_in_order_and_a_broken_file_is_a_result(predictor, photos):
    results = predictor(photos)
    assert [r.name for r in results] == [str(photos / f"{i}.jpg") for i in range(6)]
    assert [r.ok for r in results] == [True, True, False, True, True, True]
    broken = results[2]
    assert (broken.reason, broken.label, broken.score, broken.top()) == ("truncated", None, None, [])
    assert "too early" in broken.error


def test_scores_are_the_softmax_of_the_model_on_the_evaluation_crop(predictor, folder, photos):
    model, _, _ = load_folder(folder)
    result = predictor(photos / "0.jpg")
    crop = predictor.preprocess.crop(_pixels(photos / "0.jpg"))
    logits = model.eval()(((crop.float() / 255 - 0.5) / 0.5)[None])
    np.testing.assert_allclose(result.scores, logits.softmax(1)[0].detach().numpy(), atol=1e-6)
    assert result.labels == ("ant", "bee", "cat", "dog", "eel")
    assert result.label == result.labels[int(result.scores.argmax())]


def _pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_alone_in_a_batch_and_streamed_are_the_same(predictor, photos):
    streamed = list(predictor.stream(sorted(photos.iterdir())))
    for result in streamed:
        alone = predictor(result.name)
        assert alone.error == result.error
        np.testing.assert_allclose(alone.scores, result.scores, atol=1e-6)


def test_one_image_gives_one_result_and_several_give_a_list(predictor):
    one = np.zeros((20, 20, 3), np.uint8)
    assert predictor(one).ok
    assert [r.ok for r in predictor([one])] == [True]
    assert predictor([]) == []
    assert len(predictor(np.zeros((3, 20, 20, 3), np.uint8))) == 3


def test_a_missing_file_in_a_list_is_a_result_but_alone_an_error(predictor, photos):
    good, gone = predictor([photos / "0.jpg", photos / "gone.jpg"])
    assert (good.ok, gone.reason) == (True, "missing")
    with pytest.raises(DataError, match="nothing there"):
        predictor(photos / "gone.jpg")


def test_a_stream_takes_from_a_generator_only_what_it_needs(predictor):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield np.zeros((8, 8, 3), np.uint8)

    assert all(r.ok for r in islice(predictor.stream(endless()), 5))
    assert len(taken) <= 5 + 3 * predictor.batch_size


def test_every_size_of_input_works_and_an_impossible_one_is_said(folder):
    image = np.zeros((50, 70, 3), np.uint8)
    for size in (8, (16, 40), (33, 57)):
        found = load(folder, device="cpu", img_size=size)
        assert found(image).scores.sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(UsageError, match="patch"):
        load(folder, device="cpu", img_size=4)


def test_bfloat16_tracks_float32(folder, predictor):
    image = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    found = load(folder, device="cpu", dtype="bfloat16")(image)
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores, predictor(image).scores, atol=0.1)


def test_json_has_a_stable_schema(predictor, photos):
    results = predictor(photos)
    data = json.loads(json.dumps([r.to_json(top=2) for r in results]))
    assert set(data[0]) == {"schema", "task", "name", "label", "index", "score", "top", "error"}
    assert data[0]["schema"] == 1
    assert [set(g) for g in data[0]["top"]] == [{"label", "index", "score"}] * 2
    assert data[0]["top"][0]["score"] == data[0]["score"]
    assert data[0]["error"] is None
    assert data[2]["error"]["reason"] == "truncated"
    assert data[2]["top"] == []


def test_csv_and_table_have_a_row_for_every_image(predictor, photos, tmp_path):
    results = predictor(photos)
    path = results_to_csv(results, tmp_path / "out.csv", top=2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "label", "index", "score", "label_2", "index_2", "score_2", "error"]
    assert [r["name"] for r in rows] == [r.name for r in results]
    assert rows[0]["label"] == results[0].label
    assert float(rows[0]["score"]) == pytest.approx(results[0].score, abs=1e-6)
    assert rows[2]["label"] == ""
    assert "too early" in rows[2]["error"]
    heads, cells = table_rows(results)
    assert len(heads) == len(cells[0]) == len(cells[2]) == 4


def test_names_that_are_not_utf8_survive_csv(predictor, tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.new("RGB", (9, 9)).save(tmp_path / name, "PNG")
    path = results_to_csv(predictor(tmp_path), tmp_path / "out.csv")
    assert b"caf\xe9.png" in path.read_bytes()


def test_top_and_plot(predictor, photos, tmp_path):
    result = predictor(photos / "1.jpg")
    assert [g.score for g in result.top(3)] == sorted(result.scores.tolist(), reverse=True)[:3]
    assert len(result.top(99)) == 5
    drawn = result.plot(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == drawn.size
    with pytest.raises(UsageError, match="at least 1"):
        result.top(0)
    with pytest.raises(DataError, match="too early"):
        predictor(photos / "2.jpg").plot()


def test_loading_through_the_front_door_takes_run_folders(folder):
    assert vitrail.load(folder.parent, device="cpu").classes.names == ("ant", "bee", "cat", "dog", "eel")


def test_what_cannot_be_loaded_is_said(tmp_path, folder):
    with pytest.raises(WeightsError):
        load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="device"):
        load(folder, device="tpu9")
    with pytest.raises(UsageError, match="dtype"):
        load(folder, dtype="float16")
    headless = create_model("test_vit", num_classes=0)
    with pytest.raises(UsageError, match="classifier"):
        Predictor(headless, Card(input_size=(32, 32)), device="cpu")
    with pytest.raises(VitrailError, match="class map of 2"):
        Predictor(create_model("test_vit"), Card(input_size=(32, 32)), ClassMap.of(["a", "b"]), device="cpu")


def test_the_model_is_in_eval_mode_and_classes_have_names_without_a_map():
    found = Predictor(create_model("test_vit", num_classes=3), Card(input_size=(32, 32)), device="cpu")
    assert not found.model.training
    assert found.classes.names == ("class 0", "class 1", "class 2")
