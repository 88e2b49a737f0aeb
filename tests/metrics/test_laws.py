"""Which runs are compared for which question, and what is said of them."""

from __future__ import annotations

import math

import pytest

from vitrail.errors import DataError
from vitrail.explain.scaling import draw_law, write_study
from vitrail.metrics.answers import answer, joint_answer, to_data
from vitrail.metrics.laws import Point, frontier, study


def point(images=1000, params=10_000, epochs=10, seed=0, error=None, model=None, **more) -> Point:
    if error is None:
        error = 0.02 + 0.3 * (images / 1000) ** -0.5 + 0.2 * (params / 1e4) ** -0.4 * (epochs / 10) ** -0.3
    own = {"kind": "ViT", "count": 10_000, "chance": 0.9, **more}
    name = model or f"vit_{params}"
    return Point(
        run=f"{name}-{images}-{epochs}-{seed}", model=name, params=params, images=images, epochs=epochs, seed=seed,
        flops=6.0 * params * images * epochs, wrong=round(error * own["count"]), **own,
    )  # fmt: skip


SHARES = (1000, 2000, 4000, 8000, 16_000)


def test_data_alone_answers_for_data_alone():
    found = study([point(d) for d in SHARES])
    (series,) = found.series
    assert (series.question, len(series.points)) == ("data", 5)
    assert set(found.unanswered) == {"model", "compute"}
    assert "--models" in found.unanswered["model"]
    assert "the law of data is the law of compute" in found.unanswered["compute"]
    first, *rest = answer(series)
    assert first.startswith("twice the training images (16,000 to 32,000) would lower the error by ")
    assert any("--seeds 3" in words for words in rest)
    assert "4 times the training images (16,000 to 64,000)" in answer(series, 4)[0]


def test_sizes_and_lengths_answer_for_size_and_compute():
    found = study([point(16_000, n, e) for n in (10_000, 30_000, 90_000) for e in (10, 20, 40)])
    assert [s.question for s in found.series] == ["model"] * 3 + ["compute"]
    assert "too few or too close" in found.unanswered["data"]
    compute = found.series[-1]
    assert "training FLOPs" in answer(compute)[0]
    assert {p.flops for p in compute.points} <= {p.flops for p in found.points}


def test_size_and_data_together():
    found = study([point(d, n, seed=s) for n in (10_000, 40_000, 160_000) for d in SHARES for s in (0, 1)])
    assert list(found.joint) == ["ViT, 10 epochs"]
    said = joint_answer("ViT", found.joint["ViT, 10 epochs"])
    assert "twice the parameters" in said[0]
    assert "alpha" in said[1]
    assert {s.question for s in found.series} == {"data", "model", "compute"}


def test_architectures_are_not_compared_in_size():
    kinds = {10_000: "ViT", 40_000: "Swin", 160_000: "ResNet"}
    found = study([point(d, n, kind=k) for n, k in kinds.items() for d in SHARES])
    assert "model" in found.unanswered
    assert not found.joint


def test_epochs_that_follow_the_images_are_one_law_and_mixed_lengths_are_not():
    follow = study([point(d, epochs=160_000 // d) for d in SHARES])
    assert follow.series[0].label.endswith("epochs by the number of images")
    mixed = study([point(d, epochs=e) for d in SHARES for e in (10, 20)])
    assert [s.label.rpartition(", ")[2] for s in mixed.series if s.question == "data"] == ["10 epochs", "20 epochs"]


def test_the_frontier_is_what_nothing_cheaper_beats():
    good, dear, bad = point(1000, 10_000), point(1000, 20_000, error=0.9), point(500, 10_000, error=0.6)
    lucky = point(1000, 10_000, seed=1, error=0.1)
    kept = frontier([good, dear, bad, lucky])
    assert kept == [good, lucky, bad]  # seeds stay together; the cheapest has no rival; the dear one is beaten


def test_runs_that_learnt_nothing_are_left_out_and_perfect_ones_count():
    points = [point(d) for d in SHARES] + [point(100, error=0.9), point(200, error=1.0), point(64_000, error=0.0)]
    found = study(points)
    assert len(found.points) == 6
    assert sum("no better than guessing" in note for note in found.notes) == 2
    with pytest.raises(DataError, match=r"got 0(.|\n)*no better than guessing"):
        study([point(d, error=1.0) for d in SHARES])


def test_one_size_of_everything_bears_no_law():
    with pytest.raises(DataError) as caught:
        study([point(seed=s) for s in range(4)])
    for words in ("--shares", "--models", "--epochs", "needed are 3 or more"):
        assert words in str(caught.value)


def test_cautions_are_said_where_they_hold():
    three = study([point(d) for d in SHARES[:3]]).series[0]
    assert any("nothing is left to check" in words for words in answer(three))
    assert any("far beyond the runs" in words for words in answer(three, 8))
    assert not any("far beyond" in words for words in answer(three, 2))
    flat = study([point(d, error=0.3, seed=s) for d in SHARES for s in range(3)]).series[0]
    assert "do not tell that more training images help" in answer(flat)[0]
    cliff = [point(d, error=e) for d, e in zip(SHARES, (0.64, 0.63, 0.62, 0.06, 0.02), strict=True)]
    assert any("do not lean on it" in words for words in answer(study(cliff).series[0]))
    off = [point(d, seed=s) for d in SHARES for s in range(4)] + [point(4000, seed=9, error=0.75)]
    assert any("standard errors off" in words for words in answer(study(off).series[0]))
    rates = [point(d, settings={"optim.lr": d, "train.log_every": d}) for d in SHARES]
    (differing,) = [w for w in answer(study(rates).series[0]) if "also differ" in w]
    assert "optim.lr" in differing
    assert "log_every" not in differing


def test_every_number_is_in_the_data():
    found = study([point(d, seed=s) for d in SHARES for s in range(2)])
    data = to_data(found)
    (law,) = data["laws"]
    assert law["gain"]["low"] <= law["gain"]["value"] <= law["gain"]["high"]
    assert law["now"]["amount"] * 2 == law["then"]["amount"]
    assert law["d"]["low"] == 0
    run, expected = law["then"]["one_run"], law["then"]["error"]
    assert run["low"] < expected["low"] < expected["high"] < run["high"]
    assert len(data["runs"]) == 10
    assert all(math.isfinite(law[k][v]) for k in "abc" for v in ("value", "low", "high"))


def test_the_page_holds_picture_words_and_runs_and_no_markup_of_users(tmp_path):
    evil = "<script>alert(1)</script>"
    found = study([point(d, n, model=f"{evil}{n}") for n in (10_000, 40_000, 160_000) for d in SHARES])
    files = write_study(found, tmp_path)
    text = files["page"].read_text()
    assert text.count("<svg") == 3
    assert "twice the training images" in text
    assert "Size and data together" in text
    assert evil not in text
    assert set(files) == {"page", "data", "model", "compute"}
    svg = draw_law("data", [s for s in found.series if s.question == "data"])
    assert svg.count("<polygon") == 3
    assert svg.count("stroke-dasharray") == 3
    assert svg.count('fill-opacity="0.72"') == 15
