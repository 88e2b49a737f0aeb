"""`vitrail data shard` and `data bench` on the command line."""

from __future__ import annotations

from pathlib import Path


def test_shard_then_check_then_bench(vitrail, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = vitrail("data", "shard", photos, out, "--size", "40K", "--resize", 16, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["verb"] == "data shard"
    assert sum(ran.json["shards"].values()) == sum(ran.json["images"].values())
    assert ran.json["smaller"] == sum(ran.json["images"].values())
    assert "Train on it:  vitrail train" in ran.err
    assert vitrail("data", "check", out).code == 0
    options = ("--workers", "0", "--batch", 4, "--seconds", 0.01, "--model", "test_vit", "--img-size", 32)
    ran = vitrail("data", "bench", out, *options, "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert [p["stage"] for p in ran.json["paces"]] == ["read", "crop", "full"]
    assert ran.json["model_images_per_s"] > 0
    ran = vitrail("data", "bench", out, "--workers", "0", "--seconds", 0.01)
    assert "decode, crop" in ran.out


def test_what_is_refused(vitrail, photos: Path, tmp_path: Path) -> None:
    assert vitrail("data", "shard", photos, tmp_path / "x", "--size", "big").code == 2
    assert vitrail("data", "shard", photos, tmp_path).code == 0, "an empty folder may be filled"
    assert vitrail("data", "shard", photos, tmp_path).code == 2
    assert vitrail("data", "shard", tmp_path / "none", tmp_path / "y").code == 3
    assert vitrail("data", "bench", photos, "--workers", "two").code == 2
    assert vitrail("data", "bench", photos, "--device", "cpu").code == 2
