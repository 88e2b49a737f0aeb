"""Vitrail's folder, read by timm and transformers; theirs, read by us; and nothing half-written or altered."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail import create_model
from vitrail.classes import ClassMap
from vitrail.errors import DataError, WeightsError
from vitrail.models import build
from vitrail.weights import Card, load_folder, load_weights, open_folder, save_folder
from vitrail.weights import folder as folder_module
from vitrail.weights.preprocess import read_preprocessor

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WORDS = ClassMap.of([f"class {i}" for i in range(10)])
CARD = Card(
    name="test_vit",
    input_size=(32, 32),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    crop_pct=0.9,
    licence="apache-2.0",
    origin="random numbers",
    hub_id="someone/base",
)


def random_model(name="test_vit", **overrides):
    return randomise(create_model(name, **overrides), seed=5)


def same(one, other, x=X):
    with torch.no_grad():
        return relative_difference(one.eval()(x), other.eval()(x))


def saved(path, model=None, **more):
    return save_folder(path / "f", model or random_model(), **{"card": CARD, "classes": WORDS} | more)


def edit(path, **changes):
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


# ---- our own


def test_round_trip(tmp_path):
    ours = random_model()
    path = saved(tmp_path, ours, extra={"top1": 0.5})
    assert sorted(p.name for p in path.iterdir()) == [
        "README.md",
        "classes.json",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    model, card, classes = load_folder(path)
    assert model.training
    assert same(ours, model) == 0.0
    assert classes == WORDS
    assert (card.mean, card.crop_pct, card.origin, card.num_classes) == (CARD.mean, 0.9, "random numbers", 10)
    opened = open_folder(path)
    assert (opened.made_by, opened.name, opened.extra) == ("vitrail", "test_vit", {"top1": 0.5})
    assert opened.config == ours.config


@pytest.mark.parametrize("name", ["test_deit", "test_deit_distilled"])
def test_round_trip_of_the_others(tmp_path, name):
    ours = random_model(name)
    assert same(ours, load_folder(saved(tmp_path, ours))[0]) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"representation_size": 16},
        {"global_pool": "gap", "class_token": False, "pos_embed": "sincos2d"},
        {"global_pool": "map"},
        {"numerics": {"gelu": "tanh", "norm_eps": 1e-12}},
        {"img_size": (24, 40), "in_chans": 1, "num_classes": 0},
    ],
)
def test_round_trip_of_unusual_configs(tmp_path, changes):
    ours = random_model(**changes)
    path = saved(tmp_path, ours, classes=None)
    model = load_folder(path)[0]
    assert model.config == ours.config
    assert same(ours, model, torch.randn(2, ours.config.in_chans, 32, 32)) == 0.0


def test_overrides_and_a_new_head(tmp_path):
    path = saved(tmp_path)
    model, card, classes = load_folder(path, num_classes=3, img_size=48, drop_path_rate=0.1)
    assert model.config.num_classes == 3
    assert card.num_classes == 3
    assert card.input_size == (48, 48)
    assert classes is None


def test_a_class_map_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="class map of 10 classes, got 2"):
        saved(tmp_path, classes=ClassMap.of(["a", "b"]))
    assert list(tmp_path.iterdir()) == []


def test_readme_front_matter(tmp_path):
    text = (saved(tmp_path) / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "someone/base"
    assert "random numbers" in text


def test_saving_replaces_in_one_step_and_leaves_nothing_beside(tmp_path, monkeypatch):
    path = saved(tmp_path)
    second = random_model()
    with torch.no_grad():
        second.norm.bias += 1
    saved(tmp_path, second)
    assert same(second, load_folder(path)[0]) == 0.0
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    monkeypatch.setattr("vitrail.weights.atomic._exchange", lambda one, other: False)
    saved(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert same(random_model(), load_folder(path)[0]) == 0.0


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = (path / "config.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "model_card", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, random_model("test_deit"))
    assert (path / "config.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_every_changed_bit_is_noticed(tmp_path):
    path = saved(tmp_path)
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    rng = random.Random(0)
    for _ in range(100):
        broken = bytearray(whole)
        bit = rng.randrange(len(whole) * 8)
        broken[bit // 8] ^= 1 << bit % 8
        weights.write_bytes(broken)
        with pytest.raises(WeightsError, match="mend:"):
            load_folder(path)
    weights.write_bytes(whole)
    load_folder(path)


def test_an_altered_class_map_is_noticed(tmp_path):
    path = saved(tmp_path)
    data = json.loads((path / "classes.json").read_text())
    data["names"][0] = "cat"
    (path / "classes.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match="changed by hand"):
        load_folder(path)


def test_format_versions(tmp_path, monkeypatch):
    path = saved(tmp_path)
    own = json.loads((path / "config.json").read_text())["vitrail"]
    edit(path / "config.json", vitrail=own | {"format_version": 2})
    with pytest.raises(WeightsError, match="update Vitrail"):
        open_folder(path)
    old = {("old_" if k == "card" else "") + k: v for k, v in own.items()}
    edit(path / "config.json", vitrail=old | {"format_version": 0})
    monkeypatch.setitem(
        folder_module.MIGRATIONS, 0, lambda d: {k.removeprefix("old_"): v for k, v in d.items()} | {"format_version": 1}
    )
    assert open_folder(path).card.origin == "random numbers"


def test_shards(tmp_path):
    path = saved(tmp_path)
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    where = {n: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n] for n in names if where[n] == file}, path / file)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert same(random_model(), load_folder(path)[0]) == 0.0
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(WeightsError, match="plain"):
        load_folder(path)


# ---- others read ours


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_vit", {}),
        ("test_vit", {"global_pool": "avg"}),
        ("test_vit", {"global_pool": "gap", "class_token": False, "pos_embed": "sincos2d"}),
        ("test_vit", {"global_pool": "map", "mlp_ratio": 2.75}),
        ("test_vit", {"img_size": (24, 40), "in_chans": 1}),
        ("test_vit", {"num_classes": 0}),
        ("test_vit", {"numerics": {"gelu": "tanh"}}),
        ("test_deit", {}),
        ("test_deit_distilled", {}),
        ("vit_pico_patch4_32", {"num_classes": 10}),
        ("vit_tiny_patch16_224", {"depth": 1, "num_classes": 10}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1, "num_classes": 10, "img_size": 64}),
        ("deit3_small_patch16_224", {"depth": 1, "num_classes": 10}),
    ],
)
def test_timm_reads_ours(tmp_path, name, changes):
    ours = random_model(name, **changes)
    card = Card(name=name, input_size=ours.config.img_size)
    path = saved(tmp_path, ours, card=card, classes=WORDS if ours.config.num_classes == 10 else None)
    peer = timm.create_model(f"local-dir:{path}", pretrained=True)
    assert same(ours, peer, torch.randn(2, ours.config.in_chans, *ours.config.img_size)) <= 1e-5
    if name.startswith(("vit_tiny", "deit_tiny")):
        assert json.loads((path / "config.json").read_text())["architecture"] == name


@pytest.mark.parametrize("name", ["test_vit", "test_deit", "test_deit_distilled"])
def test_transformers_reads_ours_through_timm(tmp_path, name):
    """Its Auto classes know timm's folders, and so ours."""
    ours = random_model(name)
    peer = transformers.AutoModelForImageClassification.from_pretrained(saved(tmp_path, ours))
    with torch.no_grad():
        assert relative_difference(ours.eval()(X), peer.eval()(X).logits) <= 1e-5
    assert peer.config.id2label[3] == "class 3"


def test_timm_sees_our_card(tmp_path):
    peer = timm.create_model(f"local-dir:{saved(tmp_path)}", pretrained=True)
    look = timm.data.resolve_model_data_config(peer)
    assert tuple(look["mean"]) == CARD.mean
    assert tuple(look["std"]) == CARD.std
    assert look["input_size"] == (3, 32, 32)
    assert look["crop_pct"] == 0.9


@pytest.mark.parametrize("mode", ["squash", "center"])
def test_transformers_prepares_images_as_our_card_says(tmp_path, mode):
    from dataclasses import replace

    path = saved(tmp_path, card=replace(CARD, crop_mode=mode, crop_pct=0.9 if mode == "center" else 1.0))
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    image = np.asarray(Image.fromarray(image).resize((70, 50), Image.Resampling.BICUBIC))
    processor = transformers.ViTImageProcessor.from_pretrained(path)
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == (3, 32, 32)
    wanted = Image.fromarray(image)
    if mode == "squash":
        wanted = wanted.resize((32, 32), Image.Resampling.BICUBIC)
    else:
        wanted = wanted.resize((49, 35), Image.Resampling.BICUBIC).crop((8, 1, 40, 33))
    mine = torch.from_numpy(np.array(wanted)).permute(2, 0, 1) / 255
    mine = (mine - torch.tensor(CARD.mean)[:, None, None]) / torch.tensor(CARD.std)[:, None, None]
    assert (mine - theirs).abs().mean() < 0.03


# ---- we read theirs


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}),
        ("vit_base_patch16_gap_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}),
        ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg", "class_token": False}),
        ("vit_tiny_patch16_224", {"depth": 1, "global_pool": "avg"}),
        ("deit3_small_patch16_224", {"depth": 1}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}),
        ("vit_tiny_patch16_224", {"depth": 1, "act_layer": "gelu_tanh", "img_size": (48, 64)}),
    ],
)
def test_we_read_timm(tmp_path, name, arguments):
    peer = randomise(timm.create_model(name, num_classes=3, **{"img_size": 64} | arguments))
    timm.models.save_for_hf(
        peer, tmp_path, safe_serialization=True, model_config={"label_names": ["a", "b", "c"]},
        model_args={"num_classes": 3, "img_size": 64} | arguments,
    )  # fmt: skip
    model, card, classes = load_folder(tmp_path)
    assert same(model, peer, torch.randn(2, 3, *model.config.img_size)) <= 1e-5
    assert classes == ClassMap.of(["a", "b", "c"])
    assert card.mean == peer.pretrained_cfg["mean"]
    assert card.licence == "apache-2.0"


def test_timm_arguments_that_we_lack_are_refused(tmp_path):
    peer = timm.create_model("vit_tiny_patch16_224", depth=1, qk_norm=True)
    timm.models.save_for_hf(peer, tmp_path, safe_serialization=True, model_args={"depth": 1, "qk_norm": True})
    with pytest.raises(WeightsError, match="qk_norm=True"):
        load_folder(tmp_path)


def hf_config(kind, **more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 88}
    return getattr(transformers, kind)(**sizes | {"image_size": 32, "patch_size": 8} | more)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_we_read_transformers(tmp_path, kind):
    t = transformers
    labels = {0: "cat", 1: "dog", 2: "crane", 3: "crane"}
    more = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}, "layer_norm_eps": 1e-3}
    more["hidden_act"] = "gelu_pytorch_tanh"
    if kind == "vit":
        peer, processor = t.ViTForImageClassification(hf_config("ViTConfig", **more)), t.ViTImageProcessor
    else:
        peer = t.DeiTForImageClassificationWithTeacher(hf_config("DeiTConfig", **more))
        processor = t.DeiTImageProcessor
    randomise(peer).save_pretrained(tmp_path)
    crop = {"crop_size": {"height": 32, "width": 32}} if kind == "deit" else {}
    side = 40 if kind == "deit" else 32
    processor(size={"height": side, "width": side}, image_mean=[0.1, 0.2, 0.3], **crop).save_pretrained(tmp_path)
    model, card, classes = load_folder(tmp_path)
    with torch.no_grad():
        assert relative_difference(model.eval()(X), peer(X).logits) <= 1e-5
    assert classes.names == ("cat", "dog", "crane", "crane")
    assert card.mean == (0.1, 0.2, 0.3)
    assert card.crop_mode == ("center" if kind == "deit" else "squash")
    assert card.crop_pct == (0.8 if kind == "deit" else 1.0)
    assert (card.interpolation, card.input_size) == ("bicubic" if kind == "deit" else "bilinear", (32, 32))
    assert model.config.numerics.pos_resize == "bicubic"


def test_we_read_headless_transformers(tmp_path):
    randomise(transformers.ViTModel(hf_config("ViTConfig"))).save_pretrained(tmp_path)
    model, card, classes = load_folder(tmp_path)
    assert (model.config.num_classes, classes) == (0, None)
    assert "mean and std 0.5 were assumed" in open_folder(tmp_path).notes[0]
    tuned = load_folder(tmp_path, num_classes=4)[0]
    assert tuned.head.out_features == 4
    assert card.mean == (0.5, 0.5, 0.5)


def test_class_head_only_deit_is_refused(tmp_path):
    transformers.DeiTForImageClassification(hf_config("DeiTConfig")).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="WithTeacher"):
        open_folder(tmp_path)


def test_remote_code_is_ignored_with_a_notice(tmp_path):
    transformers.ViTForImageClassification(hf_config("ViTConfig")).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('code ran')")
    edit(tmp_path / "config.json", auto_map={"AutoModel": "evil.Model"})
    assert any("auto_map" in n for n in open_folder(tmp_path).notes)
    report = load_weights(create_model("test_vit", num_classes=2, mlp_ratio=2.75), tmp_path)
    assert any("auto_map" in n for n in report.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bert"}, r"model_type of .*\bvit\b"),
        ({"model_type": None}, "no library Vitrail knows"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"patch_size": [8, 16]}, "square patches"),
        ({"hidden_size": "many"}, "damaged"),
    ],
)
def test_configs_that_we_cannot_build(tmp_path, changes, words):
    transformers.ViTForImageClassification(hf_config("ViTConfig")).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(WeightsError, match=words):
        open_folder(tmp_path)


def test_a_folder_with_pickled_weights_only_says_how_to_convert(tmp_path):
    path = saved(tmp_path)
    (path / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="vitrail convert"):
        load_folder(path)


def test_run_folders_lead_to_their_best_weights(tmp_path):
    save_folder(tmp_path / "run" / "best", random_model(), card=CARD)
    assert same(random_model(), load_folder(tmp_path / "run")[0]) == 0.0


def test_a_scale_of_pixels_is_folded_into_mean_and_std():
    data = {"size": 32, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}
    card = read_preprocessor(data | {"image_std": [1.0] * 3}, Card())
    assert card.mean == pytest.approx((0.5,) * 3)
    assert card.std == pytest.approx((0.5,) * 3)


def test_build_uses_the_config_only(tmp_path):
    """The same folder opened twice gives equal configs: nothing depends on the process."""
    path = saved(tmp_path)
    assert build(open_folder(path).config).config == open_folder(path).config
