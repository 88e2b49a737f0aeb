"""What is printed is what was meant: no markup, no control characters, one line for machines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vitrail.cli import console


def test_markup_and_control_characters_are_printed_as_they_are(capsys):
    console.say("[bold]cat[/bold] \x1b[31m and \udcff")
    console.table(["name [x]", "n"], [["[red]dog[/red]\x07", 3]], right=["n"])
    out = capsys.readouterr().out
    assert "[bold]cat[/bold] \\x1b[31m and \\udcff" in out
    assert "[red]dog[/red]\\x07" in out
    assert "name [x]" in out
    assert "\x1b" not in out


def test_names_are_not_broken_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    console.table(["model", "width"], [["a_name_of_thirty_characters_in_all", "96-192-384-768"] * 1], whole=["model"])
    assert "a_name_of_thirty_characters_in_all" in capsys.readouterr().out


def test_tables_are_not_cut_where_nobody_watches(capsys):
    console.table(["name"], [["x" * 150]])
    assert "x" * 150 in capsys.readouterr().out


def test_json_mode_keeps_stdout_for_one_line(capsys):
    with console.machine_readable(True):
        print("noise")
        console.say("more noise")
        console.result("verb", True, path=Path("a"), numbers=np.array([1, 2]), bad=float("nan"))
        print("late noise")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"verb": "verb", "ok": True, "path": "a", "numbers": [1, 2], "bad": None}
    assert said.err == "noise\nmore noise\nlate noise\n"


def test_people_get_no_json(capsys):
    with console.machine_readable(False):
        console.result("verb", False, x=1)
    assert capsys.readouterr().out == ""


@dataclass
class Pair:
    a: int
    b: Path


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Pair(1, Path("x")), {"a": 1, "b": "x"}),
        ({3: (1, 2)}, {"3": [1, 2]}),
        (float("inf"), None),
        (np.float32(0.5), 0.5),
    ],
)
def test_results_become_plain_data(value, plain):
    assert console.to_plain_data(value) == plain
