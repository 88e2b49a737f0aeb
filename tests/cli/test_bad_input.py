"""What goes wrong at users' desks: each with a clear message, the right exit code, and nothing lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from PIL import Image

from .conftest import tiny


def write_huge_png(path: Path, side: int) -> None:
    """Write a valid 1-bit PNG of ``side`` x ``side`` white pixels in a few kilobytes, without holding it in memory."""
    row, packed = b"\0" + b"\xff" * ((side + 7) // 8), zlib.compressobj(9)
    data = b"".join([*(packed.compress(row) for _ in range(side)), packed.flush()])
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in chunks:
            file.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))


def digest(folder: Path) -> str:
    """Return a hash over names and bytes of everything below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


@pytest.fixture
def broken(tmp_path) -> dict[str, Path]:
    """Return three files that look like images and are none."""
    folder = tmp_path / "broken"
    folder.mkdir()
    text, cut, huge = folder / "text.jpg", folder / "cut.jpg", folder / "huge.png"
    text.write_text("dear diary, today I renamed a file\n" * 20)
    Image.effect_noise((200, 200), 80).convert("RGB").save(cut, quality=95)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    write_huge_png(huge, 20_000)
    return {"text": text, "cut": cut, "huge": huge}


@pytest.mark.parametrize(
    "words",
    [
        ["train", "no/such/photos"],
        ["train", "photso"],
        ["data", "check", "no/such/photos"],
        ["val", "RUN", "--data", "no/such/photos"],
        ["predict", "RUN", "no/such/cat.jpg"],
        ["predict", "RUN", "no/such/*.jpg"],
        ["explain", "RUN", "no/such/cat.jpg"],
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_missing_path(vitrail, model_folder, tmp_path, monkeypatch, words, as_json):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("RUN", str(model_folder)) for word in words]
    ran = vitrail(*words, *(["--json"] if as_json else []))
    assert ran.code == 3
    assert words[-1].partition("/")[0] in ran.err
    assert "Traceback" not in ran.err
    assert (ran.json["exit_code"] == 3) if as_json else (ran.out == "")
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


@pytest.mark.parametrize(
    "verb", [["predict", "no/such/run", __file__], ["val", "no/such/run"], ["explain", "no/such/run"]]
)
def test_a_missing_run(vitrail, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    ran = vitrail(*verb)
    assert ran.code == 4
    assert "no/such/run" in ran.err


def test_a_mistyped_run_is_told_the_nearest(vitrail, trained, photos):
    ran = vitrail("predict", trained.with_name("tinny"), photos / "val")
    assert ran.code == 4
    assert f"Did you mean '{trained}'" in ran.err


def test_a_missing_recipe(vitrail, tmp_path):
    ran = vitrail("train", tmp_path / "my.yaml")
    assert ran.code == 2
    assert "my.yaml" in ran.err


@pytest.mark.parametrize("verb", [["train"], ["data", "check"]])
def test_an_empty_folder(vitrail, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    ran = vitrail(*verb, tmp_path / "empty")
    assert ran.code == 3
    assert "expected one folder a class" in ran.err + ran.out


@pytest.mark.parametrize("verb", [["train"], ["data", "check"]])
def test_one_class_only(vitrail, tmp_path, photo_folder, verb):
    ran = vitrail(*verb, photo_folder(tmp_path / "only", classes=("cat",)))
    assert ran.code == 3
    assert "two classes" in ran.err + ran.out or "one class only" in ran.err + ran.out
    assert "cat" in ran.err + ran.out


@pytest.mark.parametrize(("kind", "words"), [("text", "text"), ("cut", "truncated"), ("huge", "pixels")])
def test_predict_goes_on_past_a_broken_image(vitrail, trained, photos, broken, kind, words):
    good = photos / "test" / "down" / "000.png"
    ran = vitrail("predict", trained, broken[kind], good)
    assert ran.code == 3
    assert broken[kind].name in ran.err
    assert words in ran.err
    said = vitrail("predict", trained, broken[kind], good, "--json")
    assert said.code == said.json["exit_code"] == 3
    first, second = said.json["predictions"]
    assert first["label"] is None
    assert words in first["error"]["message"]
    assert second["label"] in ("across", "down")


def test_a_huge_image_is_refused_before_memory_is_spent(vitrail, trained, broken):
    assert broken["huge"].stat().st_size < 100_000
    vitrail("predict", trained, broken["text"])  # everything is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ran = vitrail("predict", trained, broken["huge"])
    assert ran.code == 3
    assert "400 million" in ran.err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_explain_goes_on_past_a_broken_image(vitrail, trained, photos, broken, tmp_path):
    ran = vitrail("explain", trained, broken["cut"], photos / "test" / "down" / "000.png", "--out", tmp_path / "maps")
    assert ran.code == 3
    assert "cut.jpg" in ran.err
    assert (tmp_path / "maps" / "000-rollout.png").exists()


def test_training_sets_broken_images_aside_and_names_them(vitrail, tmp_path, photo_folder, broken):
    data = photo_folder(tmp_path / "data", each=16)
    for path in broken.values():
        shutil.copy(path, data / "down")
    before = digest(data)
    ran = vitrail(
        *tiny("train", data, "--out", tmp_path / "runs", "--name", "one", "--json", "--set", "data.max_broken=0.5")
    )
    assert ran.code == 0, ran.err
    assert digest(data) == before, "the user's files are never changed"
    checked = vitrail("data", "check", data)
    assert checked.code == 0
    for path in broken.values():
        assert path.name in checked.out


def test_data_check_leaves_the_data_alone_and_ends_well_on_good_data(vitrail, photos):
    before = digest(photos)
    ran = vitrail("data", "check", photos)
    assert ran.code == 0
    for word in ("across", "down", "train", "val", "test"):
        assert word in ran.out
    assert digest(photos) == before
    assert vitrail("data", "check", photos, "--json").json["ok"] is True


def test_weights_of_another_model(vitrail, model_folder, photos, tmp_path):
    weights = model_folder / "model.safetensors"
    ran = vitrail("convert", weights, tmp_path / "x", "--model", "vit_pico_patch2_8")
    assert ran.code == 4
    assert "test_vit" in ran.err or "width 32" in ran.err
    ran = vitrail(
        "train",
        photos,
        "--model",
        "vit_pico_patch4_32",
        "--set",
        f"model.pretrained={weights}",
        "--out",
        tmp_path / "runs",
    )
    assert ran.code == 4
    assert not (tmp_path / "x").exists()


def test_a_damaged_model_folder(vitrail, model_folder, photos, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    ran = vitrail("predict", copy, photos / "val")
    assert ran.code == 4
    assert "SHA-256" in ran.err


def test_classes_that_differ(vitrail, trained, photo_folder, tmp_path):
    other = photo_folder(tmp_path / "other", classes=("across", "dwon"))
    ran = vitrail("val", trained, "--data", other)
    assert ran.code == 3
    assert "only in the model: down" in ran.err
    assert "dwon" in ran.err
    assert "mend:" in ran.err


def test_a_run_name_that_exists_is_not_overwritten(vitrail, trained, photos):
    before = digest(trained)
    ran = vitrail(*tiny("train", photos, "--out", trained.parents[1], "--name", "tiny"))
    assert ran.code == 2
    assert "vitrail resume" in ran.err
    assert digest(trained) == before


def test_a_full_disk_ends_with_words_and_the_run_can_go_on(vitrail, photos, tmp_path, monkeypatch):
    from vitrail.training import checkpoint

    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    words = tiny("train", photos, "--out", tmp_path, "--name", "full", "--set", "train.save_every_steps=1")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        ran = vitrail(*words)
    assert ran.code == 1
    for part in ("No space left on device", "MiB free", "vitrail resume"):
        assert part in ran.err
    assert "Traceback" not in ran.err
    ran = vitrail("resume", tmp_path / "classify" / "full")
    assert ran.code == 0
    assert "accuracy" in ran.out


def stopped_while_training(words, number) -> tuple[int, str, str]:
    """Run the command in a process of its own, send a signal after its first epoch; return code, stdout, stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitrail", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    watchdog = threading.Timer(240, process.kill)  # a process that hangs must fail the test, not hang it
    watchdog.start()
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if line.startswith("epoch "):
            break
    process.send_signal(number)
    out, rest = process.communicate()
    watchdog.cancel()
    return process.returncode, out, "".join(said) + rest


def test_ctrl_c_saves_and_resume_goes_on_until_it_is_terminated(photos, tmp_path):
    words = tiny("train", photos, "--out", tmp_path, "--name", "long")
    words = [*words, "--set", "train.eval_every=1"]
    words[words.index("--epochs") + 1] = "4000"
    run = tmp_path / "classify" / "long"
    code, out, told = stopped_while_training(words, signal.SIGINT)
    assert code == 130, told
    assert f"go on with: vitrail resume {run}" in told
    assert "Traceback" not in told
    assert out == ""
    code, out, told = stopped_while_training(["resume", str(run), "--json"], signal.SIGTERM)
    assert code == 143, told
    assert "going on from step" in told
    assert json.loads(out)["exit_code"] == 143
