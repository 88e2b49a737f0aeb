"""Importing is light, and `vitrail --help` answers at once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from .source import PACKAGE

HEAVY = ["torch", "numpy", "scipy", "pydantic", "PIL", "matplotlib", "pyarrow", "sklearn", "huggingface_hub"]


def loaded_after(statement: str) -> set[str]:
    code = f"import sys, json\n{statement}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_vitrail_loads_nothing_heavy():
    assert loaded_after("import vitrail, vitrail.errors, vitrail.classes") == set()


def test_importing_every_cli_module_loads_nothing_heavy():
    names = [f"vitrail.cli.{path.stem}" for path in (PACKAGE / "cli").glob("*.py") if path.stem != "__init__"]
    assert len(names) > 8
    assert loaded_after("import " + ", ".join(names)) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    statement = f"from vitrail.cli.main import main\nassert main({arguments!r}) == 0"
    assert loaded_after(statement) <= {"pydantic"}  # typer itself reads option types with it


def test_help_answers_in_under_a_third_of_a_second():
    """Counted in processor time, the best of a few, so that a busy machine does not fail it."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vitrail", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if times[-1] < 0.3:
            break
    assert min(times) < 0.3, f"vitrail --help took {min(times):.2f} s at best"
