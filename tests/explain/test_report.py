import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from vitrail.classes import ClassMap
from vitrail.data.sources import open_dataset
from vitrail.errors import DataError
from vitrail.explain import write_report
from vitrail.explain.matrix import confusion_svg, most_confused
from vitrail.explain.page import SCRIPT, STYLE
from vitrail.explain.sections import duration, margin, smooth
from vitrail.models import create_model
from vitrail.weights import Card, save_folder

from .models import randomise, tiny

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks nesting, and gathers tags, addresses, texts and inline handlers."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.handlers, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]
        self.handlers += [k for k, _ in attrs if k.startswith("on") or k == "style"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def make_run(root, source, classes, *, model=None):
    """Write the files of a finished run over the test split of ``source``, with seeded random scores."""
    images = open_dataset(source).test
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(len(classes)), len(images)).astype(np.float32)
    names = np.array([images.name(i) for i in range(len(images))])
    np.savez(
        root / "predictions_test.npz", names=names, labels=images.labels, scores=scores, indices=np.arange(len(images))
    )
    save_folder(
        root / "best",
        model or tiny(num_classes=len(classes)),
        card=Card(name="test_vit", input_size=(32, 32), crop_pct=0.8),
        classes=classes,
    )
    recipe = {"model": {"name": "test_vit"}, "data": {"source": str(source), "val_fraction": 0.1, "seed": 0}}
    (root / "recipe.yaml").write_text("# made by hand\n" + yaml.safe_dump(recipe))
    (root / "environment.json").write_text(json.dumps({"torch": "2.x", "command": ["vitrail", "train", "a b"]}))
    summary = {"params": 12345, "seconds": 4000, "best": {"epoch": 2}, "images": {"train": 24}, "notes": [EVIL]}
    (root / "summary.json").write_text(json.dumps({**summary, "unreadable": [f"{EVIL}.jpg"]}))
    lines = [
        {"kind": "train", "step": 3, "epoch": 1, "loss": 1.2, "lr": 1e-3},
        {"kind": "val", "step": 3, "epoch": 1, "loss": 1.1, "top1": 0.4},
        {"kind": "skip", "step": 4, "problem": "the loss is not finite"},
        {"kind": "train", "step": 6, "epoch": 2, "loss": "nan", "lr": 1e-4},
        {"kind": "val", "step": 6, "epoch": 2, "loss": 0.9, "top1": 0.6},
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    return images


@pytest.fixture(scope="module")
def run(tmp_path_factory, photo_folder):
    root = tmp_path_factory.mktemp("run")
    source = photo_folder(root / "photos", classes=("across", "do&wn<b>"), splits={"train": 4, "val": 2, "test": 5})
    images = make_run(root, source, open_dataset(source).classes)
    path = write_report(root, dataset=images)
    return root, path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_has_every_section(run):
    page = Page(run[1])
    for section in ("curves", "data", "confusion", "classes", "calibration", "predictions", "attention", "figures"):
        assert f'<section id="{section}">' in run[1]
    said = " ".join(page.texts)
    assert "vitrail predict" in said
    assert "12,345 parameters, 24 training images, 67 min" in said


def test_the_page_asks_for_nothing_and_runs_nothing_of_others(run):
    page = Page(run[1])
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert page.handlers == []
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert not re.search(r"@import|url\(", STYLE)
    for text, kind in ((STYLE, "style"), (SCRIPT, "script")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in run[1]


def test_names_of_users_stay_text(run):
    page = Page(run[1])
    assert "do&wn<b>" in page.texts
    assert EVIL in page.texts
    assert not {"b>", "img src=x"} & set(page.tags)
    assert EVIL not in run[1]


def test_the_numbers_are_those_of_the_predictions(run):
    root, html = run
    with np.load(root / "predictions_test.npz") as found:
        right = (found["scores"].argmax(1) == found["labels"]).mean()
    assert f"<b>{100 * right:.1f} %</b>" in html


def test_thumbnails_and_maps_are_inside(run):
    page = Page(run[1])
    pictures = [a for a in page.addresses if a.startswith("data:image/")]
    assert len(pictures) >= 10 + 3 * 8 - 2
    assert len(run[1]) < 3_000_000


def test_the_images_are_opened_again_when_no_dataset_is_given(run):
    root, html = run
    again = write_report(root).read_text(encoding="utf-8")
    assert again.count("data:image/") == html.count("data:image/")


def test_what_is_gone_is_said_and_the_rest_still_written(tmp_path, photo_folder):
    source = photo_folder(tmp_path / "photos", splits={"train": 4, "val": 2, "test": 3})
    make_run(tmp_path, source, open_dataset(source).classes)
    (tmp_path / "best" / "model.safetensors").unlink()
    source.rename(tmp_path / "elsewhere")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    Page(html)
    assert "could not be opened again" in html
    assert "no maps of where the model looked" in html
    assert '<section id="confusion">' in html
    assert '<section id="attention">' not in html


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {source: digits}")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    Page(html)
    assert "no predictions" in html


def test_other_folders_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="run folder"):
        write_report(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: 1")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json"):
        write_report(tmp_path)


def test_hundreds_of_classes_are_drawn_as_one_picture():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 3, (300, 300)) + 50 * np.eye(300, dtype=int)
    svg = confusion_svg(matrix, [f"class {i}" for i in range(300)])
    assert svg.count("<image") == 1
    assert len(svg) < 200_000


def test_confused_pairs_come_most_first():
    matrix = np.array([[5, 2, 0], [7, 1, 1], [0, 0, 4]])
    found = [(c.true, c.predicted, c.count) for c in most_confused(matrix)]
    assert found == [(1, 0, 7), (0, 1, 2), (1, 2, 1)]
    assert most_confused(matrix, 1)[0].share == pytest.approx(7 / 9)


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263
    low, high = 0.2553, 0.3662
    assert margin(81 / 263, 263) == pytest.approx((high - low) / 2, abs=1e-4)
    assert [duration(s) for s in (61.2, 400, 4000, 90000)] == ["61 s", "7 min", "67 min", "25 h 00 min"]


def test_attention_pooling_is_drawn_too(tmp_path, photo_folder):
    source = photo_folder(tmp_path / "photos", splits={"train": 4, "val": 2, "test": 3})
    model = randomise(tiny("map", num_classes=2), seed=3)
    make_run(tmp_path, source, ClassMap.of(["across", "down"]), model=model)
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert '<section id="attention">' in html


@pytest.mark.parametrize("name", ["test_resnet", "test_swin"])
def test_models_without_global_attention_are_reported_too(tmp_path, photo_folder, name):
    source = photo_folder(tmp_path / "photos", splits={"train": 4, "val": 2, "test": 3})
    make_run(tmp_path, source, ClassMap.of(["across", "down"]), model=create_model(name, num_classes=2))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Grad-CAM weights the channels" in html
    assert 'alt="Grad-CAM"' in html
    assert ("The map has one cell" in html) == (name == "test_resnet")


def test_without_best_weights_classes_have_numbers_and_damaged_predictions_are_refused(tmp_path, photo_folder):
    source = photo_folder(tmp_path / "photos", splits={"train": 4, "val": 2, "test": 3})
    make_run(tmp_path, source, ClassMap.of(["across", "down"]))
    (tmp_path / "best").rename(tmp_path / "worst")
    assert "class 1" in Page(write_report(tmp_path).read_text(encoding="utf-8")).texts
    (tmp_path / "predictions_test.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match="predictions_test"):
        write_report(tmp_path)


def test_smoothing_keeps_short_and_straight_curves_and_bridges_nan():
    short = [(0.0, 1.0), (1.0, 5.0)]
    assert smooth(short) == short
    straight = [(float(i), 2.0 * i) for i in range(200)]
    np.testing.assert_allclose(smooth(straight), straight)
    broken = [(x, float("nan") if x == 50 else y) for x, y in straight]
    assert all(np.isfinite(y) for _, y in smooth(broken))
