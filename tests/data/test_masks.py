"""Folders of masks: layouts, what values mean, and every fault named with its file before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.decode import BrokenImage, read_values
from vitrail.data.masklayout import looks_like_masks, read_mask_layout
from vitrail.data.maskrules import IGNORED, read_names
from vitrail.data.masks import Cut, image_counts, is_masks, open_masks
from vitrail.errors import DataError, UsageError

LAYOUTS = {
    "camvid": ("{split}", "{split}annot"),
    "ade": ("images/{split}", "annotations/{split}"),
    "mmseg": ("img_dir/{split}", "ann_dir/{split}"),
    "split first": ("{split}/images", "{split}/masks"),
}


def photo(path, size=(12, 16), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


def drawn(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(values)
    if mode is None:
        array = array.astype(np.uint8)
    Image.fromarray(array, mode=mode).save(path) if mode is None else Image.fromarray(array).save(path)


def mask(kind=0, size=(12, 16)):
    values = np.zeros(size, dtype=np.uint8)
    values[:, 4:8], values[:, 8:] = 1, 2
    values[0] = kind
    return values


def folder(root, layout="camvid", count=6, splits=("train", "val"), top=255):
    images, masks = LAYOUTS[layout]
    for split in splits:
        for i in range(count):
            photo(root / images.format(split=split) / f"{i}.jpg", value=20 * i)
            drawn(root / masks.format(split=split) / f"{i}.png", mask(top))
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts(tmp_path, layout):
    root = folder(tmp_path, layout)
    assert looks_like_masks(root)
    assert is_masks(str(root))
    found = open_masks(str(root))
    assert (len(found.train), len(found.val), found.test) == (6, 6, None)
    sample = found.train.read(2)
    assert sample.image.shape == (3, 12, 16)
    assert sample.mask.tolist()[0] == [IGNORED] * 16
    assert sample.mask.tolist()[1] == [0] * 4 + [1] * 4 + [2] * 8
    assert found.classes.names == ("0", "1", "2")


def test_a_folder_without_splits_is_cut(tmp_path):
    for i in range(20):
        photo(tmp_path / "images" / "deep" / f"{i}.png")
        drawn(tmp_path / "masks" / "deep" / f"{i}_mask.png", mask())
    found = open_masks(str(tmp_path), cut=Cut(val=0.2, test=0.1, seed=3))
    assert (len(found.train), len(found.val), len(found.test)) == (14, 4, 2)
    names = [split.name(i) for split in (found.train, found.val, found.test) for i in range(len(split))]
    assert len(set(names)) == 20
    again = open_masks(str(tmp_path), cut=Cut(val=0.2, test=0.1, seed=3))
    assert again.val.digest() == found.val.digest()
    assert open_masks(str(tmp_path), cut=Cut(0.2, 0.1, 1.0, 4)).val.digest() != found.val.digest()
    assert len(open_masks(str(tmp_path), cut=Cut(0.2, 0.1, 0.5, 3)).train) == 7


def test_no_layout_says_which_there_are(tmp_path):
    (tmp_path / "cats").mkdir()
    assert not looks_like_masks(tmp_path)
    with pytest.raises(DataError, match=r"trainannot.*got 'cats'"):
        read_mask_layout(tmp_path)


def test_images_without_masks_and_masks_without_images_are_named(tmp_path):
    root = folder(tmp_path)
    (root / "trainannot" / "3.png").rename(root / "trainannot" / "33.png")
    with pytest.raises(DataError, match=r"none for 1 of 6: .*train/3\.jpg"):
        open_masks(str(root))
    photo(root / "train" / "33.jpg")
    drawn(root / "trainannot" / "3.png", mask())
    drawn(root / "valannot" / "extra.png", mask())
    with pytest.raises(DataError, match=r"an image in .* for every mask, .*valannot/extra\.png"):
        open_masks(str(root))


def test_a_mask_of_another_size_is_named(tmp_path):
    root = folder(tmp_path)
    drawn(root / "valannot" / "2.png", mask(size=(6, 8)))
    with pytest.raises(
        DataError, match=r"1 masks or images.*\n.*valannot/2\.png: expected a mask of 16 x 12.*got 8 x 6"
    ):
        open_masks(str(root))


def test_an_image_that_is_stored_lying_fits_its_upright_mask(tmp_path):
    root = folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((16, 12, 3), dtype=np.uint8)).save(root / "train" / "2.jpg", exif=exif)
    assert open_masks(str(root)).train.read(2).image.shape == (3, 12, 16)


def test_jpeg_masks_and_broken_files_are_named(tmp_path):
    root = folder(tmp_path)
    (root / "trainannot" / "1.png").unlink()
    photo(root / "trainannot" / "1.jpg")
    (root / "val" / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        open_masks(str(root))
    assert "trainannot/1.jpg: lossy" in str(caught.value)
    assert "val/0.jpg: not_an_image" in str(caught.value)


def test_unknown_values_are_named_with_a_file(tmp_path):
    root = folder(tmp_path, top=7)
    with pytest.raises(
        DataError, match=r"neither one of the 3 named .*\n  7: 192 pixels, first in .*trainannot/0\.png"
    ):
        open_masks(str(root), classes=["a", "b", "c"])
    found = open_masks(str(root), classes=["a", "b", "c"], ignore=[7])
    assert found.classes.names == ("a", "b", "c")
    assert "(ignored)" in found.notes[-1]


def test_the_last_value_or_zero_may_be_no_class_and_that_is_asked(tmp_path):
    root = folder(tmp_path, top=2)
    with pytest.raises(DataError, match=r"data\.ignore: \[2\] .* or data\.reduce_zero_label: true"):
        open_masks(str(root), classes=["a", "b"])
    zero = open_masks(str(root), classes=["a", "b"], reduce_zero_label=True)
    assert zero.classes.ids == (1, 2)
    assert zero.train.read(0).mask.tolist()[1] == [IGNORED] * 4 + [0] * 4 + [1] * 8


def test_two_values_0_and_255_are_two_classes(tmp_path):
    root = tmp_path
    for i in range(4):
        photo(root / "images" / f"{i}.png")
        drawn(root / "masks" / f"{i}.png", np.where(mask() == 2, 255, 0))
    found = open_masks(str(root))
    assert found.classes.names == ("background", "object")
    assert any("0 and 255 only" in note for note in found.notes)
    assert set(found.train.read(0).mask.flatten().tolist()) == {0, 1}


def test_colours_by_a_table_or_as_they_are_found(tmp_path):
    colours = np.array([[0, 0, 0], [128, 64, 128], [250, 10, 10]], dtype=np.uint8)
    for i in range(4):
        photo(tmp_path / "images" / f"{i}.png")
        drawn(tmp_path / "masks" / f"{i}.png", colours[mask(2)])
    found = open_masks(str(tmp_path))
    assert found.classes.names == ("#000000", "#804080", "#fa0a0a")
    (tmp_path / "classes.txt").write_text("Road 128 64 128\nCar, 250, 10, 10\nvoid 0 0 0\n")
    named = open_masks(str(tmp_path), ignore=[0])
    assert named.classes.names == ("Road", "Car")
    assert named.train.read(0).mask.tolist()[1] == [IGNORED] * 4 + [0] * 4 + [1] * 8
    with pytest.raises(DataError, match="give the colours of the classes"):
        open_masks(str(tmp_path), classes=["a", "b"])


def test_palettes_bits_and_16_bits_hold_numbers(tmp_path):
    paletted = Image.fromarray(mask(), mode="P")
    paletted.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0] + [0] * 759)
    paletted.save(tmp_path / "p.png")
    Image.fromarray(mask().astype(np.uint16) * 300).save(tmp_path / "deep.png")
    Image.fromarray(mask() > 0).save(tmp_path / "bit.png")
    Image.fromarray(np.repeat(mask()[..., None], 3, axis=2)).save(tmp_path / "grey.png")
    assert read_values(tmp_path / "p.png")[0].tolist() == mask().tolist()
    assert read_values(tmp_path / "deep.png")[0].max() == 600
    assert set(np.unique(read_values(tmp_path / "bit.png")[0])) == {0, 1}
    assert read_values(tmp_path / "grey.png")[1]
    photo(tmp_path / "x.jpg")
    with pytest.raises(BrokenImage, match="keeps its values"):
        read_values(tmp_path / "x.jpg")


def test_grey_masks_saved_as_rgb_and_16_bit_masks_train(tmp_path):
    for i in range(4):
        photo(tmp_path / "images" / f"{i}.png")
        values = mask()
        picture = Image.fromarray(np.repeat(values[..., None], 3, axis=2)) if i % 2 else Image.fromarray(values)
        (tmp_path / "masks").mkdir(exist_ok=True)
        picture.save(tmp_path / "masks" / f"{i}.png")
    found = open_masks(str(tmp_path))
    assert found.classes.ids == (0, 1, 2)
    assert all(torch.equal(found.train.read(i).mask, found.train.read(0).mask) for i in range(len(found.train)))
    for i in range(4):
        Image.fromarray(mask().astype(np.uint16) * 300).save(tmp_path / "masks" / f"{i}.png")
    assert open_masks(str(tmp_path)).classes.ids == (0, 300, 600)


def test_colours_among_numbers_are_refused(tmp_path):
    root = folder(tmp_path)
    drawn(root / "trainannot" / "0.png", np.full((12, 16, 3), (200, 0, 0), dtype=np.uint8))
    with pytest.raises(DataError, match=r"got colours in .*trainannot/0\.png and numbers in .*1\.png"):
        open_masks(str(root))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "sky\nroad\n\n# two\n", {0: "sky", 1: "road"}),
        ("labels.txt", "0: sky\n7: road\n", {0: "sky", 7: "road"}),
        ("class_dict.csv", "name,r,g,b\nsky,0,0,255\nroad,1,2,3\n", {255: "sky", 66051: "road"}),
        ("classes.json", json.dumps(["sky", "road"]), {0: "sky", 1: "road"}),
        ("classes.json", json.dumps({"3": "sky", "4": "road"}), {3: "sky", 4: "road"}),
        ("classes.json", json.dumps({"sky": 3, "road": 4}), {3: "sky", 4: "road"}),
        ("classes.json", json.dumps({"sky": "#0000ff", "road": [1, 2, 3]}), {255: "sky", 66051: "road"}),
    ],
)
def test_names_from_files(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert read_names(tmp_path) == expected


def test_bad_names_are_refused(tmp_path):
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(DataError, match=r"classes\.json cannot be read"):
        read_names(tmp_path)
    with pytest.raises(DataError, match=r"once in data\.classes"):
        read_names(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(DataError, match="at least two classes"):
        read_names(tmp_path, ["a"])
    with pytest.raises(DataError, match="'a': None"):
        read_names(tmp_path, {"a": None, "b": 1})


def test_classes_that_no_training_mask_shows_are_said(tmp_path):
    root = folder(tmp_path)
    found = open_masks(str(root), classes=["a", "b", "c", "never"])
    assert any("no training mask shows never" in note for note in found.notes)


def test_strokes_are_fixed_and_cover_their_classes():
    pytest.importorskip("sklearn")
    found = open_masks("strokes")
    assert (len(found.train), len(found.val), len(found.test)) == (256, 48, 64)
    counts = image_counts(found.train, 4)
    assert (counts[0] > 2000).all()
    assert (counts[1] >= counts[0]).all()
    assert found.train.digest() == open_masks("strokes").train.digest()
    with pytest.raises(UsageError, match="no effect on the built-in"):
        open_masks("strokes", ignore=[0])


def test_digests_follow_names_sizes_and_meaning(tmp_path):
    root = folder(tmp_path)
    first = open_masks(str(root)).train.digest()
    assert open_masks(str(root), ignore=[255, 0]).train.digest() != first
    drawn(root / "trainannot" / "0.png", np.random.default_rng(0).integers(0, 3, (12, 16)))
    assert open_masks(str(root)).train.digest() != first
