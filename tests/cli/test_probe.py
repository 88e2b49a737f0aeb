"""`vitrail probe`."""


def test_probe_prints_a_table_or_one_line(vitrail, model_folder, photos, tmp_path):
    words = ["probe", model_folder, photos, "--device", "cpu", "--out", tmp_path / "probe", "--draws", "3"]
    told = vitrail(*words)
    assert told.code == 0, told.err
    for word in ("linear", "knn", "k 5 (best on val)", "few-shot", "test 95 %"):
        assert word in told.out
    line = vitrail(*words, "--json").json
    assert line["verb"] == "probe"
    assert line["images"] == {"train": 24, "val": 8, "test": 8}


def test_a_run_is_probed_on_its_own_data_as_it_was_cut(vitrail, trained, photos, tmp_path):
    words = ["probe", trained, "--method", "knn", "--device", "cpu", "--out", tmp_path / "probe", "--json"]
    own = vitrail(*words).json
    assert own["data"] == str(photos)
    assert own["images"] == {"train": 24, "val": 8, "test": 8}
    refused = vitrail(*words, "--test-fraction", "0.2")
    assert refused.code == 2
    assert "as the run cut them" in refused.json["message"]


def test_refusals_name_the_way_out(vitrail, model_folder, photos):
    assert "expected DATA" in vitrail("probe", model_folder).err
    untrained = vitrail("probe", "vit_tiny_patch16_224", photos)
    assert untrained.code == 4
    assert "random features say nothing" in untrained.err
    assert vitrail("probe", "nowhere/at/all", photos).code == 4
