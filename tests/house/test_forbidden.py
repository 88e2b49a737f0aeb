"""Calls that would run a stranger's code or hide a fault: no pickle, no eval, no shell, one guarded torch.load."""

from __future__ import annotations

import ast

import pytest

from .source import PACKAGE, files, shown, tree

FOREIGN = PACKAGE / "weights"  # only files named foreign*.py there may call torch.load, always weights_only=True
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torchvision", "cv2"}
BANNED_NAMES = {"eval", "exec", "__import__"}
BANNED_CALLS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.hub.load"}


def calls(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def reads_foreign_files(path):
    return path.parent == FOREIGN and path.name.startswith("foreign")


def constant(call, keyword):
    for item in call.keywords:
        if item.arg == keyword and isinstance(item.value, ast.Constant):
            return item.value.value
    return None


@pytest.mark.parametrize("path", files(), ids=shown)
def test_no_dangerous_module(path):
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            assert name.split(".")[0] not in BANNED_MODULES, f"{shown(path)}:{node.lineno} imports {name}"


@pytest.mark.parametrize("path", files(), ids=shown)
def test_no_dangerous_call(path):
    for call, name in calls(path):
        where = f"{shown(path)}:{call.lineno}"
        assert name not in BANNED_NAMES | BANNED_CALLS, f"{where} calls {name}"
        assert constant(call, "shell") is not True, f"{where} runs a shell"
        assert not any(item.arg == "trust_remote_code" for item in call.keywords), f"{where} trusts remote code"
        if name.endswith(("np.load", "numpy.load")):
            assert constant(call, "allow_pickle") is False, f"{where}: np.load without allow_pickle=False"


@pytest.mark.parametrize("path", files(), ids=shown)
def test_torch_load_is_guarded(path):
    for call, name in calls(path):
        if name == "torch.load" or name.endswith(".torch.load"):
            assert reads_foreign_files(path), f"{shown(path)}:{call.lineno}: torch.load outside weights/foreign*.py"
            assert constant(call, "weights_only") is True, f"{shown(path)}:{call.lineno}: weights_only=True is missing"


def test_the_checks_see_what_they_forbid(tmp_path, monkeypatch):
    """A check that finds nothing in a file full of faults would be worthless."""
    import tests.house.source as source

    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\nimport torch, yaml\ntorch.load('x')\neval('1')\nyaml.load('x')\n")
    monkeypatch.setattr(source, "REPOSITORY", tmp_path)
    for check in (test_no_dangerous_module, test_no_dangerous_call, test_torch_load_is_guarded):
        with pytest.raises(AssertionError):
            check(bad)


def test_no_machine_paths_or_hosts_are_committed():
    """Nothing in the repository may depend on the machine it was written on."""
    from .source import REPOSITORY

    words = ["/" + tail for tail in ("work/", "root/", "opt/" + "pypi", "opt/" + "wheels")]
    texts = [REPOSITORY / n for n in ("README.md", "Makefile", "constraints.txt", "pyproject.toml", "CONTRIBUTING.md")]
    for folder in ("src", "tests", "docs", "recipes", "bench", ".ci"):
        texts += [
            p
            for p in (REPOSITORY / folder).rglob("*")
            if p.suffix in {".py", ".md", ".yaml", ".sh", ".txt", ".json", ""}
        ]
    for path in texts:
        if path.is_file() and "_build" not in path.parts:
            text = path.read_text(encoding="utf-8")
            for word in words:
                assert word not in text, f"{shown(path)} holds {word!r}"
