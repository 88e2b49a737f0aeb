"""Foreign files: what is read, and hostile ones, which may do nothing but give a clear error."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from vitrail.errors import WeightsError
from vitrail.weights import foreign_child
from vitrail.weights.foreign import read_foreign


def direct(path, key=None):
    """What the child does, without the cost of a child: for files that cannot harm."""
    return foreign_child._read_torch(path, key)


class Evil:
    """Touches a marker file when it is unpickled the careless way."""

    marker = ""

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    Evil.marker = str(tmp_path / "MARKER")
    yield tmp_path / "MARKER"
    assert not (tmp_path / "MARKER").exists(), "code from a file ran"


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


# ---- what is read


def test_a_training_file_through_the_child(tmp_path):
    options = argparse.Namespace(lr=0.1)
    torch.save({"model": STATE, "model_ema": STATE, "epoch": 3, "args": options}, tmp_path / "c.pth.tar")
    found = read_foreign(tmp_path / "c.pth.tar")
    assert found.notes == ["took the weights under 'model'; the file also holds model_ema"]
    assert {k: v.dtype for k, v in found.tensors.items()} == {k: v.dtype for k, v in STATE.items()}
    assert all(torch.equal(found.tensors[k], STATE[k]) for k in STATE)


def test_an_npz_through_the_child(tmp_path):
    brain = torch.tensor([1.5, -2.0, 3e38]).bfloat16()
    np.savez(
        tmp_path / "c.npz",
        **{
            "a/kernel": np.ones((2, 3), np.float32),
            "step": np.array(3),
            "b": brain.view(torch.int16).numpy().view("V2"),
        },
    )
    found = read_foreign(tmp_path / "c.npz")
    assert found.tensors["a/kernel"].shape == (2, 3)
    assert torch.equal(found.tensors["b"], brain.float())
    assert found.notes == ["left out step, an array of int64"]


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "params", "params_ema"])
def test_wrappers(tmp_path, wrapper):
    torch.save({wrapper: STATE, "meta": {"x": 1}}, tmp_path / "c.pt")
    found, notes = direct(tmp_path / "c.pt")
    assert found.keys() == STATE.keys()
    assert notes == [f"took the weights under {wrapper!r}"]


def test_a_set_of_weights_can_be_chosen(tmp_path):
    torch.save({"model": STATE, "teacher": {"b": torch.ones(1)}}, tmp_path / "c.pt")
    assert direct(tmp_path / "c.pt", "teacher")[0].keys() == {"b"}
    with pytest.raises(foreign_child.Refused, match="sets of weights in it: model, teacher"):
        direct(tmp_path / "c.pt", "student")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrapped_models_are_stripped(tmp_path, prefix):
    torch.save({prefix + k: v for k, v in STATE.items()}, tmp_path / "c.pt")
    assert direct(tmp_path / "c.pt")[0].keys() == STATE.keys()


def test_tied_tensors_come_apart(tmp_path):
    torch.save({"a": STATE["a.weight"], "b": STATE["a.weight"]}, tmp_path / "c.pt")
    found, _ = direct(tmp_path / "c.pt")
    assert found["a"].data_ptr() != found["b"].data_ptr()


def test_other_values_are_left_out_and_said(tmp_path):
    torch.save({**STATE, "version": 3}, tmp_path / "c.pt")
    assert direct(tmp_path / "c.pt")[1] == ["left out what is no tensor: version"]


def test_old_torch_files_without_archive(tmp_path):
    torch.save(STATE, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    assert direct(tmp_path / "c.pt")[0].keys() == STATE.keys()


# ---- hostile files, through the real child


def refuse(path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_foreign(path)
    text = str(caught.value)
    assert len(text) < 500, text
    return text


def test_code_in_an_archive(tmp_path, marker):
    torch.save({"w": Evil()}, tmp_path / "e.pt")
    assert re.search(r"holds code.*\.system", refuse(tmp_path / "e.pt"))


def test_code_in_a_bare_pickle_and_in_a_tar(tmp_path, marker):
    (tmp_path / "e.pth").write_bytes(pickle.dumps(Evil()))
    refuse_direct(tmp_path / "e.pth")
    with tarfile.open(tmp_path / "e.pth.tar", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Evil())
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    refuse_direct(tmp_path / "e.pth.tar")


def test_code_in_npz(tmp_path, marker):
    np.savez(tmp_path / "e.npz", w=np.array([Evil()], dtype=object))
    assert "pickled objects" in refuse(tmp_path / "e.npz")


def test_a_file_that_eats_memory_ends_the_child_only(tmp_path):
    """A pickle of a few bytes that asks for a terabyte, by a call that weights_only allows."""
    torch.save({"w": torch.ones(1)}, tmp_path / "c.pt")
    greedy = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R."
    with zipfile.ZipFile(tmp_path / "c.pt") as old, zipfile.ZipFile(tmp_path / "e.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, greedy if name.endswith("data.pkl") else old.read(name))
    assert "memory" in refuse(tmp_path / "e.pt")


def refuse_direct(path) -> str:
    with pytest.raises(foreign_child.Refused) as caught:
        direct(path)
    return str(caught.value)


def deflate(source, target):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def test_compressed_members(tmp_path):
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "c.pt")
    deflate(tmp_path / "c.pt", tmp_path / "e.pt")
    assert (tmp_path / "e.pt").stat().st_size < 50_000
    assert "compressed" in refuse_direct(tmp_path / "e.pt")
    np.savez_compressed(tmp_path / "e.npz", w=np.zeros(1_000_000, np.float32))
    with pytest.raises(foreign_child.Refused, match="compressed"):
        foreign_child._read_npz(tmp_path / "e.npz")


def test_a_tensor_larger_than_its_data(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "e.pt")
    assert "larger than its data" in refuse_direct(tmp_path / "e.pt")


def test_tensors_that_share_their_data_over_and_over(tmp_path):
    one = torch.zeros(100_000)
    torch.save({f"w{i}": one for i in range(1000)}, tmp_path / "e.pt")
    assert "over and over" in refuse_direct(tmp_path / "e.pt")


def test_shared_lists_without_end(tmp_path, monkeypatch):
    nested = [0] * 10
    for _ in range(30):
        nested = [nested] * 10
    torch.save({"w": torch.ones(1), "x": nested}, tmp_path / "e.pt")
    assert "nests deeper" in refuse_direct(tmp_path / "e.pt")
    monkeypatch.setattr(foreign_child, "MOST_ITEMS", 1000)
    torch.save({"w": torch.ones(1), "x": [[i] for i in range(1001)]}, tmp_path / "f.pt")
    assert "more than" in refuse_direct(tmp_path / "f.pt")


def test_torchscript_is_refused_with_the_way_out(tmp_path):
    code = zipfile.ZipFile(tmp_path / "e.pt", "w")
    with code:  # the members torch.jit.save writes; making a real one is deprecated in this torch
        code.writestr("m/constants.pkl", b"\x80\x02.")
        code.writestr("m/code/__torch__.py", "")
    assert "TorchScript" in refuse_direct(tmp_path / "e.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "e.pt").write_bytes(content)
    assert "mend:" in refuse_direct(tmp_path / "e.pt")
    (tmp_path / "e.npz").write_bytes(content)
    with pytest.raises(foreign_child.Refused, match="mend:"):
        foreign_child._read_npz(tmp_path / "e.npz")


def test_a_truncated_file(tmp_path):
    torch.save(STATE, tmp_path / "c.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "e.pt").write_bytes(whole[: len(whole) // 2])
    assert "mend:" in refuse_direct(tmp_path / "e.pt")


def test_files_without_weights(tmp_path):
    for thing in (torch.ones(2), {"epoch": 3}, [1, 2]):
        torch.save(thing, tmp_path / "e.pt")
        assert "save `model.state_dict()`" in refuse_direct(tmp_path / "e.pt")


def test_sparse_tensors(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "e.pt")
    assert "sparse" in refuse_direct(tmp_path / "e.pt")


def test_the_child_gives_up_what_it_does_not_need():
    """Limits, checked from inside a child that applies them to itself."""
    import subprocess
    import sys

    program = (
        "import resource, runpy\n"
        f"child = runpy.run_path({foreign_child.__file__!r})\n"
        "child['_restrict'](7)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_CORE)[0])\n"
        "child['_limit_memory'](2**28)\n"
        "bytearray(2**27)\n"
        "try:\n    bytearray(2**29)\nexcept MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "0", "refused"]


def test_a_file_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrail.weights.foreign.SECONDS_FLOOR", 0.01)
    torch.save(STATE, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match="was stopped"):
        read_foreign(tmp_path / "c.pt")


def test_a_child_without_memory_gives_a_readable_error(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(4_000_000)}, tmp_path / "c.pt")
    monkeypatch.setattr("vitrail.weights.foreign.MEMORY_FLOOR", -6 * (tmp_path / "c.pt").stat().st_size)
    with pytest.raises(WeightsError, match=r"limits|more memory"):
        read_foreign(tmp_path / "c.pt")
