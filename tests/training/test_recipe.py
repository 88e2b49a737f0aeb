"""Recipes: layers, round trips, and errors that name the place and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrail.errors import UsageError
from vitrail.training.baserecipe import known_keys
from vitrail.training.recipe import Recipe


def load(*overrides: dict[str, object], environment: dict[str, str] | None = None) -> Recipe:
    return Recipe.load({}, *overrides, environment=environment or {})


def test_yaml_round_trip_with_a_header(tmp_path: Path) -> None:
    recipe = load({"train.epochs": 3, "model.options": {"depth": 2}, "augment.randaugment": None, "name": "x"})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml("why: because\n\n# more"))
    assert path.read_text().startswith("# why: because\n#\n# # more\ntask: auto\n")
    assert Recipe.load(path, environment={}) == recipe


def test_file_below_environment_below_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("train: {epochs: 1, batch_size: 1, seed: 1}\noptim.lr: 1e-3\n")
    surroundings = {"VITRAIL_TRAIN__EPOCHS": "2", "VITRAIL_TRAIN__BATCH_SIZE": "2", "VITRAIL_OFFLINE": "1"}
    recipe = Recipe.load(path, {"train.epochs": "3", "optim": {"betas": "[0.8, 0.9]"}}, surroundings)
    t = recipe.train
    assert (t.epochs, t.batch_size, t.seed) == (3, 2, 1)
    assert (recipe.optim.lr, recipe.optim.betas) == (1e-3, (0.8, 0.9))


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_TRAIN__SEED", "7")
    assert Recipe.load({}).train.seed == 7
    assert Recipe.load(load()).train.seed == 0  # a ready recipe is what it is
    monkeypatch.setenv("VITRAIL_TRAIN__SEEDS", "7")
    with pytest.raises(UsageError, match=r"unknown recipe key 'train\.seeds'"):
        Recipe.load({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train.epoch": 3}, r"unknown recipe key 'train\.epoch'\. Did you mean 'train\.epochs'\?"),
        ({"epochs": 3}, r"unknown recipe key 'epochs'\. Did you mean 'train\.epochs'\?"),
        ({"trian.epochs": 3}, r"unknown recipe key 'trian'\. Did you mean 'train'\?"),
        ({"augment.randaugment.num_op": 1}, r"\.num_op'\. Did you mean 'augment\.randaugment\.num_ops'"),
        ({"train.epochs": "many"}, r"^train\.epochs: .*integer.*'auto', got 'many'$"),
        ({"train.epochs": 0}, r"train\.epochs: .*greater than or equal to 1"),
        ({"augment.randaugment.magnitude": 99}, r"^augment\.randaugment\.magnitude: .*equal to 30, got 99$"),
        ({"augment.repeats": 3, "train.batch_size": 2}, r"batch_size of at least 3 with augment\.repeats: 3, got 2"),
        ({"augment.repeats": 3, "train.batch_size": 5, "augment.mix_prob": 1}, r"at least 6 .* and mixing, got 5"),
        ({"model.options.drop_rate": 0.1}, r"expected drop_rate as model\.drop_rate"),
        ({"optim.betas": [0.9, 1.0]}, r"optim\.betas: .*less than 1"),
        ({"schedule.name": "cosin"}, r"schedule\.name: .*'rsqrt' or 'constant', got 'cosin'"),
        ({"train": 5}, r"train: .*dictionary"),
        ({"train": {"epochs": 3}, "train.epochs": 4}, r"train\.epochs is given twice in the command line"),
        ({"name": "a/b"}, r"one folder name, got 'a/b'"),
        ({"model.options.num_classes": 3}, r"num_classes comes from the data"),
        ({"model.options.img_size": 3}, r"expected img_size as model\.img_size"),
        ({"data.val_fraction": 0.6, "data.test_fraction": 0.4}, r"nothing would be left"),
        ({"augment.scale": [0.9, 0.1]}, r"scale as \[least, most\]"),
        ({"train.accumulation": 9, "train.batch_size": 4}, r"cannot be cut in 9 pieces"),
        ({"train.epochs": 5, "schedule.warmup_epochs": 5}, r"warmup_epochs below train\.epochs"),
        ({"train.epochs": 2, "train.eval_every": 3}, r"eval_every <= epochs \(2\), got 3"),
        ({"optim.name": "lion", "optim.eps": 1e-6}, r"eps has no effect with name: lion; mend: name: adamw or muon"),
        ({"optim.name": "adamw", "optim.nesterov": True}, r"nesterov has no effect with name: adamw; mend: name: sgd"),
        ({"optim.name": "sgd", "optim.nesterov": True, "optim.momentum": 0}, r"no effect with momentum: 0"),
        ({"optim.name": "sgd", "optim.betas": [0.9, 0.99]}, r"betas has no effect with name: sgd"),
        ({"optim.name": "adam"}, r"optim\.name: .*'sgd', 'lion' or 'adafactor', or .*'auto', got 'adam'"),
        ({"optim.layer_decay": 1.0}, r"optim\.layer_decay: .*less than 1"),
        ({"schedule.cooldown_epochs": 1}, r"cooldown_epochs has no effect with name: cosine"),
        ({"schedule.name": "linear", "schedule.timescale_epochs": 1}, r"timescale_epochs has no effect with name: lin"),
        ({"schedule.name": "constant", "schedule.min_lr": 0.1}, r"min_lr has no effect .* without a cooldown"),
        ({"schedule.name": "rsqrt", "schedule.cooldown_epochs": 3, "train.epochs": 2}, r"at most 2, .* got 3"),
        ({"schedule.min_lr": 1.0, "optim.lr": 0.1}, r"min_lr <= optim\.lr"),
        ({"data.balance": "sqrt", "train.class_weights": "balanced"}, r"balance and train\.class_weights, .*twice"),
        ({"data.balance": "equal", "train.logit_adjustment": 1}, r"correct twice"),
        ({"train.class_weights": "effective", "train.logit_adjustment": 0.5}, r"correct twice"),
        ({"distill": {}}, r"^distill\.teacher: field required"),
        ({"distill.techer": "x"}, r"unknown recipe key 'distill\.techer'\. Did you mean 'distill\.teacher'\?"),
        ({"distill": "x"}, r"^distill: .*dictionary"),
        ({"distill.teacher": "x", "distill.weight": 0}, r"^distill\.weight: .*greater than 0, got 0"),
    ],
)  # fmt: skip
def test_errors_name_the_place_and_the_fix(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(given)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "given",
    [
        {"augment.crop": "none", "augment.scale": [0.1, 1]},
        {"augment.crop": "padded", "augment.ratio": [0.5, 2]},
        {"augment.crop": "resized", "augment.padding": 2},
        {"augment.mixup": 0, "augment.cutmix": 0, "augment.mix_prob": 0.5},
        {"schedule.name": "constant", "schedule.min_lr": 1e-6},
        {"train.class_weights": "balanced", "train.effective_beta": 0.99},
        {"augment.erasing": 0, "augment.erasing_mode": "const"},
        {"augment.mixup": 0, "augment.mix_switch": 0.5},
        {"augment.mixup": 0, "augment.cutmix": 0, "augment.mix_by": "image"},
        {"train.bce_threshold": 0.0},
        {
            "augment": {
                "repeats": 2,
                "crop": "none",
                "hflip": 0,
                "randaugment": None,
                "erasing": 0,
                "mixup": 0,
                "cutmix": 0,
                "mix_prob": None,
                "scale": None,
                "ratio": None,
                "padding": None,
            }
        },
        {"distill.teacher": "x", "distill.how": "hard", "distill.temperature": 2},
    ],
)
def test_an_option_that_would_do_nothing_is_an_error(given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="has no effect"):
        load(given)


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "just words"])
def test_files_that_are_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"r\.yaml"):
        Recipe.load(tmp_path / "r.yaml")
    with pytest.raises(UsageError, match="does not exist"):
        Recipe.load(tmp_path / "none.yaml")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(UsageError, match="YAML"):
        Recipe.load(tmp_path / "r.yaml")


def test_text_stays_text_and_numbers_become_numbers() -> None:
    recipe = load({"data.source": 2024, "model.img_size": "224", "train.ema_decay": "null", "optim.lr": "1e-3"})
    assert (recipe.data.source, recipe.model.img_size) == ("2024", 224)
    assert (recipe.train.ema_decay, recipe.optim.lr) == (None, 1e-3)


def test_a_teacher_is_a_section_that_may_be_left_out(tmp_path: Path) -> None:
    assert load().distill is None
    taught = load({"distill.teacher": "x", "augment.crop": "none"}).distill
    assert taught is not None
    assert (taught.how, taught.temperature, taught.weight) == ("soft", 3.0, 0.5)
    path = tmp_path / "r.yaml"  # the teacher need not be there for the recipe to be read
    path.write_text("distill: {teacher: nowhere, how: hard, cache: off}\n")
    found = Recipe.load(path, environment={})
    assert found.distill is not None
    assert (found.distill.temperature, found.distill.cache) == (None, "off"), "YAML reads off as a truth value"
    assert Recipe.load(path, {"distill": None}, {}).distill is None
    path.write_text(found.to_yaml())
    assert Recipe.load(path, environment={}) == found
    with pytest.raises(UsageError, match=r"distill\.cache: on needs .* augment\.crop is padded"):
        load({"distill.teacher": "x", "distill.cache": "on", "augment.crop": "padded"})


def test_every_option_is_described() -> None:
    from vitrail.training import augmenting, sections

    for name in ("Model", "Data", "RandAugment", "Augment", "Optim", "Schedule", "Train", "Distill"):
        section = getattr(sections, name, None) or getattr(augmenting, name)
        missing = [key for key, field in section.model_fields.items() if not field.description]
        assert not missing, f"{name}: {missing}"
    assert "train.epochs" in known_keys(Recipe)
    assert len(set(known_keys(Recipe))) == len(known_keys(Recipe))
