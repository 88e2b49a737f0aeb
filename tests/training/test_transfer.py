"""Fine-tuning: adapters, frozen backbones, heads of other classes, other sizes, and whose weights they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.classes import ClassMap
from vitrail.errors import UsageError, WeightsError
from vitrail.models import create_model
from vitrail.nn import freeze_backbone
from vitrail.training import RunResult, resume, train
from vitrail.training import run as run_module
from vitrail.training.loop import Loop
from vitrail.training.recipe import Recipe
from vitrail.training.sharding import require_shardable
from vitrail.training.signals import Interrupted
from vitrail.weights import Card, load_folder, open_folder, save_folder

QUICK = {
    "augment": {"randaugment": None, "erasing": 0, "mixup": 0, "cutmix": 0},
    "train": {"epochs": 2, "batch_size": 6, "precision": "fp32", "device": "cpu", "log_every": 2},
    "optim": {"lr": 1e-2, "name": "adamw"},
}
LORA = {"rank": 2, "layers": ["qkv", "fc1"]}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_report", lambda *_: None)


def tune(data: Path, out: Path, **more: Any) -> RunResult:
    said: list[str] = more.pop("said", [])
    return train(QUICK, {"data.source": str(data), "out": str(out), "data.workers": 0, **more}, say=said.append)


def weights(path: Path, name: str, size: int = 32, classes: tuple[str, ...] = ("down", "left"), **more: Any) -> Path:
    """Return a folder of random weights that name their classes."""
    torch.manual_seed(1)
    model = create_model(name, img_size=size, num_classes=len(classes), **more)
    for part in (p for n, p in model.named_parameters() if n.startswith("head")):
        torch.nn.init.normal_(part, std=0.2)
    return save_folder(path / name, model, card=Card(name=name, input_size=(size, size)), classes=ClassMap.of(classes))


def state(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_folder(folder)[0].state_dict()
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_trains_adapters_and_saves_a_plain_network(photos: Path, tmp_path: Path, precision: str) -> None:
    source, said = weights(tmp_path, "test_vit"), list[str]()
    result = tune(
        photos, tmp_path, said=said,
        **{"model.pretrained": str(source), "model.lora": LORA, "train.precision": precision, "train.ema_decay": 0.5},
    )  # fmt: skip
    assert any("adapters of rank 2 on 4 layers, qkv, fc1 (q, k and v have one each)" in line for line in said)
    trained = 2 * (3 * 2 * 32 + 96 * 2) + 2 * (2 * 32 + 128 * 2) + 2 * 33
    assert any(f"; {trained:,} of " in line for line in said)
    before, after = state(source), state(result.folder / "best")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        moved = not torch.equal(tensor, before[name])
        assert moved == (name.startswith("head") or name.endswith(("qkv.weight", "fc1.weight"))), name
    change = (after["blocks.0.mlp.fc1.weight"] - before["blocks.0.mlp.fc1.weight"]).double()
    assert torch.linalg.matrix_rank(change, atol=1e-5 * float(change.norm())) <= 2


@pytest.mark.parametrize("changes", [{"model.lora": LORA}, {"model.freeze": "backbone"}, {"model.freeze": "fixres"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_is_uninterrupted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], precision: str
) -> None:
    source = weights(tmp_path, "test_vit")
    changes = {**changes, "model.pretrained": str(source), "train.precision": precision, "model.drop_rate": 0.1}
    whole = tune(photos, tmp_path / "a", **changes)
    step = Loop._save_if_due

    def stop_after_three(self: Loop, stop: Any) -> None:
        if self.state.step == 3:
            self.hooks.save(wait=True)
            raise Interrupted("stopped", 130)
        step(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save_if_due", stop_after_three)
        with pytest.raises(Interrupted):
            tune(photos, tmp_path / "b", **changes)
    folder = next((tmp_path / "b" / "classify").iterdir())
    kept = {n for f in (folder / "checkpoints" / "step-3").glob("model.safetensors") for n in _names(f)}
    assert kept
    assert not any(n in kept for n in ("blocks.0.attn.qkv.weight", "pos_embed")), "frozen weights are not saved again"
    again = resume(folder, say=lambda _: None)
    for name in ("best", "last"):
        one, other = ((f / name / "model.safetensors").read_bytes() for f in (whole.folder, again.folder))
        assert one == other


def _names(path: Path) -> list[str]:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return list(json.loads(path.read_bytes()[8 : 8 + size]))


def test_other_weights_in_their_place_are_refused(photos: Path, tmp_path: Path) -> None:
    """The frozen part of a run lies in the folder it started from, and nowhere else."""
    source = weights(tmp_path, "test_vit")
    made = tune(photos, tmp_path, **{"model.pretrained": str(source), "model.freeze": "backbone", "train.epochs": 1})
    digest = Recipe.load(made.folder / "recipe.yaml", environment={}).model.sha256
    assert digest is not None
    shutil.rmtree(source)
    weights(tmp_path, "test_vit", drop_rate=0.1, init_values=0.5)
    with pytest.raises(UsageError, match=rf"expected the weights with model\.sha256 {digest}"):
        resume(made.folder, say=lambda _: None)


@pytest.mark.parametrize("name", ["test_resnet", "test_coatnet", "test_swin", "test_pvt_v2", "test_deit_distilled"])
def test_a_frozen_backbone_is_saved_as_it_was(photos: Path, tmp_path: Path, name: str) -> None:
    source = weights(tmp_path, name)
    made = tune(photos, tmp_path, **{"model.pretrained": str(source), "model.freeze": "backbone"})
    before, after = state(source), state(made.folder / "last")
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]) != key.startswith("head"), key


def test_rows_of_known_classes_stay(photos: Path, tmp_path: Path) -> None:
    source, said = weights(tmp_path, "test_vit", classes=("left", "down", "right")), list[str]()
    still = {"model.pretrained": str(source), "optim.lr": 1e-9, "schedule.min_lr": 0, "train.ema_decay": None}
    made = tune(photos, tmp_path, said=said, **still)
    assert any("kept the head's rows of 1 of 2 classes: down" in line for line in said)
    one, other = state(made.folder / "last")["head.weight"], state(source)["head.weight"]
    torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=0)
    assert float(one[0].abs().max()) < 1e-5, "a fresh row starts at zero"
    made = tune(photos, tmp_path, **still, **{"model.head": "new"})
    assert float(state(made.folder / "last")["head.weight"].abs().max()) < 1e-5
    other_names = weights(tmp_path / "b", "test_vit", classes=("x", "y"))
    with pytest.raises(WeightsError, match="none of the data's classes"):
        tune(photos, tmp_path, **{"model.pretrained": str(other_names), "model.head": "match"})


@pytest.mark.parametrize("name", ["test_vit", "test_swin", "test_pvt", "test_coatnet", "test_hybrid", "test_resnet"])
def test_from_a_run_at_another_size_without_naming_the_network(photos: Path, tmp_path: Path, name: str) -> None:
    first = tune(photos, tmp_path, **{"model.name": name, "model.img_size": 32, "train.epochs": 1})
    before = open_folder(first.folder / "best").config
    for more in ({"model.freeze": "fixres"}, {}):
        second = tune(
            photos, tmp_path,
            **{"model.pretrained": str(first.folder), "model.img_size": 48, "train.epochs": 1, **more},
        )  # fmt: skip
        after = open_folder(second.folder / "best")
        assert (after.config.img_size, after.card.input_size) == ((48, 48), (48, 48))
        assert type(after.config) is type(before)
        assert second.metrics["count"] == 8


def test_the_folder_says_which_network_it_is(photos: Path, tmp_path: Path) -> None:
    """Sizes that are of no variant come along as options, and the size of the pictures is the weights' own."""
    odd = {"embed_dim": 48, "num_heads": 3, "patch_size": 4, "numerics": {"gelu": "tanh"}}
    source = weights(tmp_path, "test_vit", size=24, **odd)
    made = tune(photos, tmp_path, **{"model.pretrained": str(source), "train.epochs": 1})
    recipe = Recipe.load(made.folder / "recipe.yaml", environment={})
    assert recipe.model.name == "test_vit"
    assert recipe.model.options == odd
    assert recipe.model.img_size == (24, 24)
    assert open_folder(made.folder / "best").config.embed_dim == 48
    asked = tune(photos, tmp_path, **{"model.pretrained": str(source), "model.options.numerics.norm_eps": 1e-5})
    numerics = open_folder(asked.folder / "best").config.numerics
    assert (numerics.norm_eps, numerics.gelu) == (1e-5, "tanh")


def test_a_file_does_not_say_which_network_it_is(photos: Path, tmp_path: Path) -> None:
    source = weights(tmp_path, "test_vit") / "model.safetensors"
    with pytest.raises(UsageError, match="which network are the weights for"):
        tune(photos, tmp_path, **{"model.pretrained": str(source)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.lora": {}}, "lora needs pretrained weights"),
        ({"model.freeze": "backbone"}, "freeze: backbone needs pretrained weights"),
        ({"model.head": "match"}, "head: match has no effect without pretrained"),
        ({"model.sha256": "0" * 16}, "sha256 has no effect"),
        ({"model.lora": {}, "model.freeze": "fixres", "model.pretrained": "x"}, "got both"),
        ({"model.freeze": "backbone", "model.pretrained": "x", "model.drop_path_rate": 0.1}, "drop_path_rate has no"),
        ({"model.freeze": "fixres", "model.pretrained": "x", "model.attn_drop_rate": 0.1}, "attn_drop_rate has no"),
        ({"model.freeze": "backbone", "model.pretrained": "x", "optim.layer_decay": 0.7}, "layer_decay has no"),
        ({"model.freeze": "backbone", "model.pretrained": "x", "optim.name": "muon"}, "muon has no effect"),
        ({"model.name": "hf-hub:a/b", "model.pretrained": "x"}, "names the weights too"),
        ({"model.pretrained": "x", "model.lora.rnak": 4}, r"Did you mean 'model\.lora\.rank'"),
        ({"model.pretrained": "x", "model.lora.layers": []}, "layers"),
    ],
)
def test_combinations_that_do_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Recipe.load({}, changes, {})


def test_layers_that_the_network_lacks_are_named(photos: Path, tmp_path: Path) -> None:
    source = weights(tmp_path, "test_vit")
    with pytest.raises(UsageError, match=r"model\.lora: expected names of linear layers.*fc1, fc2, proj, qkv"):
        tune(photos, tmp_path, **{"model.pretrained": str(source), "model.lora.layers": ["q"]})
    source = weights(tmp_path, "test_resnet")
    with pytest.raises(UsageError, match="linear layers to adapt"):
        tune(photos, tmp_path, **{"model.pretrained": str(source), "model.lora": {}})


def test_muon_moves_adapters(photos: Path, tmp_path: Path) -> None:
    source = weights(tmp_path, "test_vit")
    made = tune(photos, tmp_path, **{"model.pretrained": str(source), "model.lora": LORA, "optim.name": "muon"})
    assert not torch.equal(
        state(made.folder / "last")["blocks.0.attn.qkv.weight"], state(source)["blocks.0.attn.qkv.weight"]
    )


def test_frozen_weights_are_not_cut_into_slices() -> None:
    model = create_model("test_vit")
    require_shardable(model, "adamw")
    freeze_backbone(model)
    with pytest.raises(UsageError, match=r"frozen weights .*parallel=ddp"):
        require_shardable(model, "adamw")
