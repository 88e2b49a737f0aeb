"""The README's commands and Python run as they stand, on tiny data and with short trainings."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from .source import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [body for kind, body in BLOCKS if kind == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, body in BLOCKS
    if kind == "console"
    for line in body.splitlines()
    if line.strip()
]


@pytest.fixture
def home(tmp_path, photo_folder, monkeypatch):
    """Return a folder with photos/cat/1.jpg, where the README's commands are typed; trainings last one epoch."""
    photo_folder(tmp_path / "photos", classes=("cat", "dog"), each=12)
    from PIL import Image

    with Image.open(tmp_path / "photos" / "cat" / "000.png") as picture:
        picture.save(tmp_path / "photos" / "cat" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    for key, value in (("TRAIN__EPOCHS", "1"), ("MODEL__NAME", "test_vit"), ("TRAIN__DEVICE", "cpu")):
        monkeypatch.setenv(f"VITRAIL_{key}", value)
    return tmp_path


def test_every_kind_of_block_is_known():
    assert {kind for kind, _ in BLOCKS} <= {"python", "console"}
    assert {words[0] for words in COMMANDS} == {"make", "vitrail"}


def test_make_words_exist():
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[1] for words in COMMANDS if words[0] == "make"} <= targets


def test_commands_run(home, capsys):
    from vitrail.cli.main import main

    for words in COMMANDS:
        if words[0] == "vitrail":
            assert main(words[1:]) == 0, f"{words}: {capsys.readouterr().err}"
    shutil.rmtree(home / "runs")


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_runs(home, code):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


PAGES = [
    "docs/tour/attention.md",
    "docs/tour/hybrid.md",
    "docs/tour/igpt.md",
    "docs/tour/resnet.md",
    "docs/tour/retnet.md",
    "docs/tour/transformer.md",
    "docs/guide/models.md",
    "docs/guide/explain.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_documentation_runs(page, tmp_path, monkeypatch):
    """The pages whose examples stand alone."""
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for code in blocks:
        exec(compile(code, page, "exec"), {"__name__": "docs"})


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (REPOSITORY / target).exists(), f"README.md links to {target}"
