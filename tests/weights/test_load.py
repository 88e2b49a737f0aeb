"""load_weights and export_weights on real models: what they accept, what they fit, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.peers import randomise, relative_difference, timm, transformers
from vitrail import create_model
from vitrail.errors import UsageError, WeightsError
from vitrail.models import build, config_of, image_variants
from vitrail.weights import export_weights, load_pretrained, load_weights

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def random_model(name="test_vit", **overrides):
    return randomise(create_model(name, **overrides), seed=5)


def same(one, other, x=X):
    with torch.no_grad():
        return relative_difference(one.eval()(x), other.eval()(x))


# ---- the original layouts, checked by timm's own readers


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [("vision_transformer", p) for p in ("", "opt/target/")]
    + [("big_vision", p) for p in ("", "params/", "params/img/")],
)
def test_flax_npz_as_timm_reads_it(tmp_path, prefix, kind):
    """What we write as .npz, timm's reader of Google's files takes for one, and so do we."""
    big = {"global_pool": "map", "class_token": False, "pos_embed": "learn"} if kind == "big_vision" else {}
    ours = random_model(**big)
    arrays = {prefix + k: v.numpy() for k, v in export_weights(ours, "original").items()}
    assert any("MlpBlock_3" in k for k in arrays) == (kind == "vision_transformer")
    np.savez(tmp_path / "m.npz", **arrays)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    more = {"global_pool": "map", "class_token": False} if big else {}
    peer = timm.models.vision_transformer.VisionTransformer(**sizes, **more)
    peer.load_pretrained(str(tmp_path / "m.npz"))
    assert same(ours, peer) <= 1e-6
    again = create_model("test_vit", **big)
    report = load_weights(again, {k: torch.from_numpy(v) for k, v in arrays.items()})
    assert report.layout == "original"
    assert same(ours, again) == 0.0


def test_scanned_big_vision_file_as_timm_reads_it(tmp_path):
    ours = random_model(global_pool="gap", class_token=False, pos_embed="learn")
    flat = {k: v.numpy() for k, v in export_weights(ours, "original").items()}
    stacked = {}
    for name in [n for n in flat if "encoderblock_0/" in n]:
        layers = [flat.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(2)]
        stacked[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(layers)
    np.savez(tmp_path / "m.npz", **{f"params/{k}": v for k, v in (flat | stacked).items()})
    peer = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10,
        global_pool="avg", fc_norm=False, class_token=False,
    )  # fmt: skip
    peer.load_pretrained(str(tmp_path / "m.npz"))
    assert same(ours, peer) <= 1e-6
    again = create_model("test_vit", global_pool="gap", class_token=False, pos_embed="learn")
    assert "scanned" in load_weights(again, tmp_path / "m.npz").title
    assert same(ours, again) == 0.0


def test_flax_pre_training_head(tmp_path):
    ours = random_model(representation_size=24)
    written = export_weights(ours, "original")
    assert written["pre_logits/kernel"].shape == (32, 24)
    again = create_model("test_vit", representation_size=24)
    load_weights(again, written)
    assert same(ours, again) == 0.0


def test_fine_tuning_drops_the_pre_training_head():
    written = export_weights(random_model(representation_size=24, num_classes=77), "original")
    ours = create_model("test_vit")
    report = load_weights(ours, written, new_head=True)
    assert report.new == ["head.weight", "head.bias"]
    assert set(report.ignored) >= {"pre_logits/kernel", "pre_logits/bias"}


@pytest.mark.parametrize("name", ["test_deit", "test_deit_distilled"])
def test_deit_names(name):
    """The official files have timm's names, but LayerScale is gamma_1 and gamma_2."""
    ours = random_model(name)
    written = export_weights(ours, "original")
    assert ("blocks.0.gamma_1" in written) == (name == "test_deit")
    again = create_model(name)
    load_weights(again, written)
    assert same(ours, again) == 0.0


@pytest.mark.parametrize("layout", ["vitrail", "timm", "transformers", "original"])
@pytest.mark.parametrize("name", ["test_vit", "test_deit", "test_deit_distilled"])
def test_every_layout_round_trips(layout, name):
    ours = random_model(name)
    if (layout, name) == ("transformers", "test_deit"):
        with pytest.raises(WeightsError, match=r"no place for blocks\.0\.ls1\.gamma"):
            export_weights(ours, layout)
        return
    written = export_weights(ours, layout)
    again = create_model(name)
    report = load_weights(again, written)
    assert report.matched == len(ours.state_dict())
    assert same(ours, again) == 0.0


def test_names_in_memory_and_hub_names_of_transformers(tmp_path):
    """transformers 5 renames tensors in memory; both forms load, told apart in the report."""
    t = transformers
    peer = randomise(
        t.ViTForImageClassification(
            t.ViTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
                image_size=32, patch_size=8, num_labels=10,
            )
        )
    )  # fmt: skip
    peer.save_pretrained(tmp_path)
    ours = create_model("test_vit")
    assert "in memory" in load_weights(ours, peer.state_dict()).title
    one = {k: v.clone() for k, v in ours.state_dict().items()}
    report = load_weights(ours, tmp_path)
    assert "Hub names" in report.title
    assert any("norm_eps=1e-12" in n for n in report.notes)
    assert all(torch.equal(one[k], v) for k, v in ours.state_dict().items())


# ---- what is fitted


def test_positions_of_prefix_tokens_move_into_the_tokens_and_back():
    """A table with a row for the class token, or none for it and the token changed: one function."""
    old = random_model(pos_embed="learn")
    new = create_model("test_vit", pos_embed="learn_patches")
    report = load_weights(new, old.state_dict())
    assert report.resized
    assert same(old, new) <= 1e-6
    again = create_model("test_vit", pos_embed="learn")
    load_weights(again, new.state_dict())
    assert same(old, again) <= 1e-6


@pytest.mark.parametrize("mode", ["bicubic_antialias", "bicubic", "bilinear", "bilinear_aligned"])
def test_a_resized_table_computes_what_run_time_resizing_computes(mode):
    config = replace(
        config_of("test_deit_distilled"), numerics=replace(config_of("test_vit").numerics, pos_resize=mode)
    )
    old = randomise(build(config), seed=5)
    new = build(replace(config, img_size=(48, 24)))
    report = load_weights(new, old.state_dict())
    assert report.resized == [f"pos_embed: 4x4 -> 6x3 ({mode})"]
    assert torch.equal(new.pos_embed[:, :2], old.pos_embed[:, :2])
    assert same(old, new, torch.randn(2, 3, 48, 24)) <= 1e-6


def test_a_non_square_table_needs_its_grid(tmp_path):
    from vitrail.weights import Card, save_folder

    old = random_model(img_size=(24, 56))
    new = create_model("test_vit", img_size=(56, 24))
    load_weights(new, old.state_dict())  # 21 rows: nothing but the model itself says how
    assert torch.equal(new.pos_embed, old.pos_embed)
    save_folder(tmp_path / "f", old, card=Card(input_size=(24, 56)))
    assert load_weights(new, tmp_path / "f").resized == ["pos_embed: 3x7 -> 7x3 (bicubic_antialias)"]
    with pytest.raises(WeightsError, match="position table with 22 rows"):
        load_weights(create_model("test_vit"), old.state_dict())


def test_fixed_positions_may_come_with_a_file_if_they_are_the_same():
    ours = random_model(global_pool="gap", class_token=False, pos_embed="sincos2d")
    written = export_weights(ours, "timm")
    assert "pos_embed" in written
    load_weights(ours, written)
    written["pos_embed"] = written["pos_embed"] + 1
    with pytest.raises(WeightsError, match="other positions"):
        load_weights(ours, written)


def test_create_model_is_told_what_it_takes(tmp_path):
    save_file(random_model(num_classes=12).state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match=r"create_model\(\.\.\., num_classes=10\)"):
        create_model("test_vit", tmp_path / "m.safetensors")
    assert create_model("test_vit", tmp_path / "m.safetensors", num_classes=10).head.out_features == 10
    assert create_model("test_vit", tmp_path / "m.safetensors", num_classes=12).head.out_features == 12


@pytest.mark.parametrize("name", [n for n in image_variants() if n.startswith("test_")])
def test_other_input_channels_are_named(name):
    """The model is the right one but for its channels: the advice is not to create the same again."""
    weights = create_model(name).state_dict()
    with pytest.raises(WeightsError, match=r"3 channels, the model for 1: create it with in_chans=3\.$"):
        load_weights(create_model(name, in_chans=1), weights)


def test_another_class_count_needs_a_new_head():
    weights = random_model(num_classes=12).state_dict()
    ours = create_model("test_vit")
    before = ours.head.weight.clone()
    with pytest.raises(WeightsError, match=r"10 classes, got 12.*num_classes=12.*new_head=True"):
        load_weights(ours, weights)
    report = load_weights(ours, weights, new_head=True)
    assert report.new == ["head.weight", "head.bias"]
    assert torch.equal(ours.head.weight, before)
    assert torch.equal(ours.norm.weight, weights["norm.weight"])


def test_new_head_keeps_a_head_that_fits():
    weights = random_model()
    ours = create_model("test_vit")
    assert load_weights(ours, weights.state_dict(), new_head=True).new == []
    assert same(weights, ours) == 0.0


def test_a_headless_model_drops_the_head():
    ours = create_model("test_vit", num_classes=0)
    assert load_weights(ours, random_model().state_dict()).ignored == ["head.weight", "head.bias"]


def test_half_precision_files_fill_float32_models():
    weights = {k: v.half() for k, v in random_model().state_dict().items()}
    ours = create_model("test_vit")
    load_weights(ours, weights)
    assert ours.norm.weight.dtype == torch.float32
    assert torch.equal(ours.norm.weight, weights["norm.weight"].float())


# ---- what is refused


def message(call) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) <= 7, text
    assert len(text) < 900, text
    return text


def test_a_checkpoint_of_another_family_is_told_apart():
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(1, 2), embed_dim=8, num_classes=3
    )
    text = message(lambda: load_weights(create_model("test_vit"), swin.state_dict()))
    assert "Swin" in text
    text = message(lambda: load_weights(create_model("test_vit"), create_model("test_deit_distilled").state_dict()))
    assert "distilled DeiT" in text


def test_a_checkpoint_of_another_size_names_the_size_it_fits():
    weights = create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    text = message(lambda: load_weights(create_model("vit_micro_patch16_224", num_classes=0), weights))
    assert "width 192, depth 12, patch 16" in text
    assert "vit_tiny_patch16" in text or "deit_tiny_patch16" in text
    text = message(lambda: load_weights(create_model("test_vit"), random_model(embed_dim=64).state_dict()))
    assert "expected (1, 1, 32), got (1, 1, 64)" in text


def test_the_model_is_unchanged_when_loading_fails():
    ours = random_model()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    weights = dict(create_model("test_vit").state_dict())
    weights["norm.bias"] = torch.full((32,), float("nan"))
    message(lambda: load_weights(ours, weights))
    assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())


def test_sources_that_are_not_weights(tmp_path):
    ours = create_model("test_vit")
    assert "no file or folder" in message(lambda: load_weights(ours, tmp_path / "nowhere.pth"))
    assert "no config.json" in message(lambda: load_weights(ours, tmp_path))
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"a pickle")
    assert "runs code" in message(lambda: load_weights(ours, tmp_path / "dcp"))
    (tmp_path / "x.txt").write_text("hello")
    assert "expected a weights file" in message(lambda: load_weights(ours, tmp_path / "x.txt"))
    assert "checkpoint['model']" in message(lambda: load_weights(ours, {"model": {}, "epoch": 3}))
    assert "vitrail.models" in message(lambda: load_weights(torch.nn.Linear(2, 2), {}))


def test_unknown_layout():
    with pytest.raises(UsageError, match="Did you mean 'transformers'"):
        export_weights(create_model("test_vit"), "transformer")


def test_what_transformers_cannot_express_is_refused():
    for changes in ({"global_pool": "avg"}, {"representation_size": 8}, {"global_pool": "map", "class_token": False}):
        ours = create_model("test_vit", **changes)
        assert "'timm' layout" in message(lambda ours=ours: export_weights(ours, "transformers"))


def test_positions_without_class_row_are_written_for_transformers():
    """A model whose class token has no position becomes one whose class token has position zero."""
    ours = random_model(pos_embed="learn_patches")
    written = export_weights(ours, "transformers")
    again = create_model("test_vit")
    load_weights(again, written)
    assert same(ours, again) <= 1e-6


def test_pretrained_keyword(tmp_path):
    ours = random_model()
    save_file(ours.state_dict(), tmp_path / "m.safetensors")
    assert same(create_model("test_vit", pretrained=tmp_path / "m.safetensors"), ours) == 0.0
    fewer = create_model("test_vit", pretrained=tmp_path / "m.safetensors", num_classes=3)
    assert torch.equal(fewer.norm.weight, ours.norm.weight)
    with pytest.raises(WeightsError, match="no public weights"):
        load_pretrained(ours, "vit_pico_patch4_32", True, new_head=False)
