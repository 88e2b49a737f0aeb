"""The teacher of a run: what it sees, whose answers it gives, and that a run with one keeps its promises."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.classes import ClassMap
from vitrail.data.augment import Normalize
from vitrail.data.sources import open_dataset
from vitrail.errors import DataError, UsageError, WeightsError
from vitrail.models import create_model
from vitrail.tasks.distil import Distil
from vitrail.training import resume, train
from vitrail.training import run as run_module
from vitrail.training.augmenting import Augment
from vitrail.training.pipeline import train_loader
from vitrail.training.recipe import Recipe, varied
from vitrail.training.sections import Distill
from vitrail.training.session import Session
from vitrail.training.signals import Interrupted
from vitrail.training.teacher import Answers, Remembered, Teacher, digest
from vitrail.weights import Card, load_folder, save_folder

from .test_run import QUICK, stop_at

CPU = torch.device("cpu")
CLASSES = ClassMap.of(["across", "down"])
CARD = Card(name="test_vit", input_size=(16, 16))
OWN = Card(name="test_resnet", input_size=(24, 24), mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
STILL = {
    "augment.crop": "none", "augment.hflip": 0, "augment.randaugment": None, "augment.erasing": 0,
    "augment.mixup": 0, "augment.cutmix": 0,
}  # fmt: skip


def save_teacher(
    path: Path, name: str = "test_vit", card: Card = CARD, classes: ClassMap | None = CLASSES, seed: int = 1
) -> str:
    torch.manual_seed(seed)
    count = len(classes) if classes is not None else 2
    model = create_model(name, img_size=card.input_size, num_classes=count)
    for parameter in model.parameters():  # heads start at zero: a teacher must have something to say
        nn.init.normal_(parameter, std=0.2)
    return str(save_folder(path, model, card=card, classes=classes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "one")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_report", lambda *_: None)


def distil(data: Path, out: Path, teacher: str, **more: Any) -> Any:
    said = more.pop("said", [])
    changes = {"data.source": str(data), "out": str(out), "data.workers": 0, "distill.teacher": teacher}
    return train(QUICK, {**changes, **more}, say=said.append)


def load(folder: str, classes: ClassMap = CLASSES, card: Card = CARD) -> Teacher:
    return Teacher.load(Distill(teacher=folder), classes, card, precision="fp32", device=CPU, theirs="photos")


def pixels(size: int = 16) -> Tensor:
    return torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_it_sees_the_students_images_with_its_own_mean_and_std(tmp_path: Path) -> None:
    own = replace(OWN, input_size=(16, 16))
    teacher = load(save_teacher(tmp_path / "t", card=own))
    model = load_folder(tmp_path / "t")[0].eval()
    student = Normalize(CARD.mean[:3], CARD.std[:3])(pixels())  # type: ignore[arg-type]
    with torch.no_grad():
        want = model(Normalize(own.mean[:3], own.std[:3])(pixels()))  # type: ignore[arg-type]
    torch.testing.assert_close(teacher.logits(student), want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(want, load_folder(tmp_path / "t")[0].eval()(student), atol=1e-2), "it makes a difference"


def test_another_size_is_resized(tmp_path: Path) -> None:
    teacher = load(save_teacher(tmp_path / "t", name="test_vit", card=OWN))
    seen: list[Tensor] = []
    teacher.model.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    flat = torch.full((2, 3, 16, 16), 0.5)
    assert teacher.logits(flat).shape == (2, 2)
    assert seen[0].shape == (2, 3, 24, 24)
    value = (0.5 * 0.5 + 0.5 - torch.tensor(OWN.mean)) / torch.tensor(OWN.std)  # a flat image stays flat
    torch.testing.assert_close(seen[0], value[None, :, None, None].expand(2, 3, 24, 24), rtol=1e-5, atol=1e-5)


def test_classes_in_another_order_are_put_in_order(tmp_path: Path, folder: str) -> None:
    names = ["b", "c", "a"]
    made = save_teacher(tmp_path / "t", classes=ClassMap.of(names))
    plain = load(made, ClassMap.of(names)).logits(torch.ones(1, 3, 16, 16))
    for order in (["a", "b", "c"], ["c", "b", "a"]):
        turned = load(made, ClassMap.of(order)).logits(torch.ones(1, 3, 16, 16))
        assert torch.equal(turned[0], torch.stack([plain[0, names.index(n)] for n in order]))


def test_other_classes_are_an_error_that_names_them(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match=r"(?s)only in the teacher .*: down.*only in photos: up"):
        load(folder, ClassMap.of(["across", "up"]))
    with pytest.raises(DataError, match="only in photos: both"):
        load(folder, ClassMap.of(["across", "down", "both"]))
    with pytest.raises(WeightsError, match="which does not name its classes"):
        load(save_teacher(tmp_path / "unnamed", classes=None))


def test_what_is_no_teacher(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(WeightsError, match="no file or folder"):
        distil(photos, tmp_path / "runs", str(tmp_path / "nowhere"))
    assert not list((tmp_path / "runs").glob("*/*"))


def test_the_digest_changes_with_all_that_decides_an_answer(tmp_path: Path, folder: str) -> None:
    first = digest(folder)
    assert first == digest(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert digest(str(tmp_path / "copy")) == first, "the place does not count"
    for i, change in enumerate(
        ({"seed": 2}, {"card": replace(CARD, mean=(0.1, 0.1, 0.1))}, {"classes": ClassMap.of(["down", "across"])})
    ):
        assert digest(save_teacher(tmp_path / str(i), **change)) != first, change


def test_bf16_keeps_batch_norms_and_answers_nearly_the_same(tmp_path: Path) -> None:
    made = save_teacher(tmp_path / "t", name="test_coatnet", card=replace(CARD, input_size=(32, 32)))
    slow, images = load(made), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fast = load(made).to(CPU, torch.bfloat16)
    assert {t.dtype for t in fast.model.state_dict().values()} >= {torch.bfloat16, torch.float32}
    found, want = fast.logits(images), slow.logits(images)
    assert found.dtype == torch.float32
    assert (found - want).norm() < 0.1 * want.norm()


def resolved(photos: Path, folder: str, **more: Any) -> Recipe:
    from vitrail.training.defaults import measure, resolve

    asked = Recipe.load(QUICK, {"data.source": str(photos), "data.workers": 0, "distill.teacher": folder, **more}, {})
    return resolve(asked, measure(open_dataset(photos).train), CPU, has_val=True)[0]


def test_kept_answers_are_those_of_every_batch(photos: Path, folder: str) -> None:
    recipe, splits, teacher = resolved(photos, folder, **STILL), open_dataset(photos), load(folder)
    assert recipe.distill is not None
    assert recipe.distill.cache == "on"
    from vitrail.training.build import _remembered

    kept = _remembered(teacher, recipe, splits, CARD, CPU)
    for epoch in (0, 1):
        for batch in train_loader(recipe, splits.train, CARD).epoch(epoch):
            torch.testing.assert_close(kept(batch), teacher(batch), rtol=1e-5, atol=1e-6)


def test_a_run_with_kept_answers_ends_as_one_without(photos: Path, folder: str, tmp_path: Path) -> None:
    states = []
    for cache in ("on", "off"):
        result = distil(photos, tmp_path, folder, name=cache, **STILL, **{"distill.cache": cache, "train.epochs": 1})
        states.append(load_folder(result.folder / "last")[0].state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-4, atol=1e-5)


def test_the_teacher_is_asked_once_an_image_where_answers_are_kept(
    photos: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    logits = Teacher.logits
    monkeypatch.setattr(Teacher, "logits", lambda self, x: asked.append(len(x)) or logits(self, x))
    distil(photos, tmp_path, folder, **STILL)
    assert sum(asked) == 24
    asked.clear()
    distil(photos, tmp_path, folder)
    assert sum(asked) == 2 * 24


@pytest.mark.parametrize(
    "varied",
    [
        {"augment.crop": "padded"}, {"augment.crop": "resized"}, {"augment.hflip": 0.5}, {"augment.vflip": 0.5},
        {"augment.randaugment": {"num_ops": 1}}, {"augment.erasing": 0.5}, {"augment.mixup": 1, "augment.mix_prob": 1},
    ],
)  # fmt: skip
def test_answers_are_kept_only_where_images_stay_the_same(photos: Path, folder: str, varied: dict[str, Any]) -> None:
    recipe = resolved(photos, folder, **{**STILL, **varied})
    assert recipe.distill is not None
    assert recipe.distill.cache == "off"
    name = next(iter(varied)) if "mixup" not in str(varied) else "augment.mix_prob"
    with pytest.raises(UsageError, match=rf"(?s)distill\.cache: on needs .*{name} is"):
        resolved(photos, folder, **{**STILL, **varied, "distill.cache": "on"})


def test_every_setting_of_augmentation_is_thought_of() -> None:
    """One that is new must say whether it varies images, or a kept answer would be that of another picture."""
    varying = {
        "crop": "padded", "hflip": 0.5, "vflip": 0.5, "randaugment": {"num_ops": 1}, "erasing": 0.5,
        "mix_prob": 0.5, "three_augment": True, "color_jitter": 0.1, "interpolation": "bilinear",
    }  # fmt: skip
    of_others = {"scale", "ratio", "padding", "erasing_mode", "mixup", "cutmix", "mix_switch", "mix_by", "repeats"}
    assert Augment.model_fields.keys() == varying.keys() | of_others
    calm = Augment(crop="none", hflip=0, randaugment=None, erasing=0, mixup=0, cutmix=0, mix_prob=None)
    assert varied(calm) == []
    for name, value in varying.items():
        (cause,) = varied(Augment(**{**calm.model_dump(), "mixup": 0.5, "mix_prob": None, name: value}))
        assert cause.startswith(f"augment.{name} is ")


def test_the_teacher_stays_as_it_is(photos: Path, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[Session] = []
    built = Session.__init__
    monkeypatch.setattr(Session, "__init__", lambda self, *a, **k: (built(self, *a, **k), sessions.append(self))[0])
    made = save_teacher(tmp_path / "t", name="test_coatnet", card=replace(CARD, input_size=(32, 32)))
    distil(photos, tmp_path / "runs", made)
    task = sessions[0].task
    assert isinstance(task, Distil)
    model = task.teacher.model  # type: ignore[attr-defined]
    assert not model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    for name, tensor in load_folder(made)[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_teacher_changes_what_is_learnt_and_the_recipe_pins_it(photos: Path, folder: str, tmp_path: Path) -> None:
    digests = set()
    for i, more in enumerate(
        ({}, {"distill.weight": 1.0}, {"distill.how": "hard"}, {"distill.temperature": 1.0}, {"distill": None})
    ):
        changes = {"distill.teacher": folder, **more} if "distill" not in more else more
        settings = {"data.source": str(photos), "out": str(tmp_path), "data.workers": 0, "name": str(i)}
        result = train(QUICK, {**settings, **changes, "train.epochs": 1}, say=lambda _: None)
        digests.add((result.folder / "last" / "model.safetensors").read_bytes())
    assert len(digests) == 5, "every option has an effect"
    recipe = Recipe.load(tmp_path / "classify" / "0" / "recipe.yaml", environment={})
    assert recipe.distill is not None
    assert recipe.distill.sha256 == digest(folder)
    other = save_teacher(tmp_path / "other", seed=2)
    with pytest.raises(UsageError, match=r"expected the teacher with distill\.sha256 .* in .*other"):
        train(recipe, {"name": "again", "distill.teacher": other}, say=lambda _: None)
    assert not (tmp_path / "classify" / "again").exists()


@pytest.fixture
def taught(photos: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A distilled DeiT with dropout and mixing, in bf16."""

    def start(name: str) -> Path:
        more = {
            "model.name": "test_deit_distilled", "model.drop_rate": 0.1, "model.options": {}, "model.img_size": 16,
            "augment.mixup": 0.5, "augment.mix_prob": 0.8, "train.precision": "bf16",
        }  # fmt: skip
        teacher = tmp_path / "teacher"
        made = str(teacher) if teacher.exists() else save_teacher(teacher)
        distil(photos, tmp_path / "runs", made, name=name, **more)
        return tmp_path / "runs" / "classify" / name

    return start


def test_a_stopped_run_ends_as_the_whole_one(
    taught: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = taught("whole")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Interrupted):
            taught("stopped")
    stopped = tmp_path / "runs" / "classify" / "stopped"
    shutil.move(tmp_path / "teacher", tmp_path / "kept")
    with pytest.raises(WeightsError, match="no file or folder"):
        resume(stopped, say=lambda _: None)
    save_teacher(tmp_path / "teacher", seed=2)
    with pytest.raises(UsageError, match=r"expected the teacher with distill\.sha256"):
        resume(stopped, say=lambda _: None)
    text = (stopped / "recipe.yaml").read_text()
    (stopped / "recipe.yaml").write_text(
        text.replace(digest(str(tmp_path / "kept")), digest(str(tmp_path / "teacher")))
    )
    with pytest.raises(UsageError, match=r"distill\.sha256: '\w+' then, '\w+' now"):
        resume(stopped, say=lambda _: None)
    (stopped / "recipe.yaml").write_text(text.replace(str(tmp_path / "teacher"), str(tmp_path / "kept")))
    resume(stopped, say=lambda _: None)  # the same teacher in another place
    for name in ("best", "last"):
        a, b = ((f / name / "model.safetensors").read_bytes() for f in (whole, stopped))
        assert a == b


def test_both_heads_of_a_distilled_student_learn(taught: Callable[[str], Path]) -> None:
    state = load_folder(taught("whole") / "last")[0].state_dict()
    assert state["head.weight"].abs().sum() > 0
    assert state["head_dist.weight"].abs().sum() > 0
    assert not torch.equal(state["head.weight"], state["head_dist.weight"])


def test_remembered_answers_are_told_by_index() -> None:
    from .fakes import batch

    mean = lambda b: b.images.mean((1, 2, 3))[:, None]  # noqa: E731
    broken = replace(batch(1), keep=torch.tensor([True, True, True, True, False, True]))
    kept = Remembered(mean, Answers(torch.cat([mean(batch(0)), mean(broken)]), torch.cat([batch(0).keep, broken.keep])))
    some = replace(batch(0), indices=torch.tensor([7, 0, 3, 3, 11, 2]))
    both = mean(replace(batch(0), images=torch.cat([batch(0).images, batch(1).images])))
    assert torch.equal(kept(some), both[some.indices])
    unread = replace(some, indices=torch.tensor([7, 0, 3, 3, 10, 2]))  # could not be read, and can be read now
    assert torch.equal(kept(unread), mean(unread))
