import io

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.errors import DataError, UsageError
from vitrail.infer.inputs import from_array, from_pil, is_single, items_of

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    for name in ("b.png", "a.PNG", "sub/c.jpg", ".hidden/x.png", ".dot.png", "sub/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.fromarray(PIXELS).save(path)
    return tmp_path


def names(source, root):
    return [item.name.removeprefix(f"{root}/") for item in items_of(source)]


def test_a_folder_is_walked_in_order_without_hidden_and_other_files(tree):
    assert names(tree, tree) == ["a.PNG", "b.png", "sub/c.jpg"]


def test_globs_lists_and_single_files(tree):
    assert names(str(tree / "*.png"), tree) == ["b.png"]
    assert names(str(tree / "**" / "*.jpg"), tree) == ["sub/c.jpg"]
    assert names([tree / "b.png", str(tree / "sub"), str(tree / "a*")], tree) == ["b.png", "sub/c.jpg", "a.PNG"]
    assert names(str(tree / "b.png"), tree) == ["b.png"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tree):
    (tree / "b.png").rename(tree / "b[1].png")
    assert names(str(tree / "b[1].png"), tree) == ["b[1].png"]
    assert is_single(tree / "b[1].png")


@pytest.mark.parametrize(
    ("source", "single"),
    [
        ("x.png", True), ("x*.png", False), (np.zeros((2, 2, 3), np.uint8), True), (torch.zeros(3, 2, 2), True),
        (torch.zeros(4, 3, 2, 2), False), ([], False), (Image.new("L", (2, 2)), True), (b"", True),
    ],
)  # fmt: skip
def test_one_image_is_told_from_several(source, single):
    assert is_single(source) is single


def test_all_kinds_of_arrays_give_the_same_pixels():
    expected = torch.from_numpy(PIXELS).permute(2, 0, 1)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    kinds = [PIXELS, expected, expected.float() / 255, Image.fromarray(PIXELS), buffer.getvalue()]
    for item in items_of(kinds):
        assert torch.equal(item.read(), expected)


def test_a_batch_gives_its_images():
    batch = torch.from_numpy(np.stack([PIXELS, 255 - PIXELS])).permute(0, 3, 1, 2)
    read = [item.read() for item in items_of(batch)]
    assert torch.equal(torch.stack(read), batch)
    assert [item.name for item in items_of(batch)] == ["image 0", "image 1"]


def test_grey_images_become_three_equal_channels():
    grey = PIXELS[..., 0]
    for kind in (from_array(grey), from_array(torch.from_numpy(grey)[None]), from_pil(Image.fromarray(grey))):
        assert torch.equal(kind, torch.from_numpy(grey).expand(3, -1, -1))


def test_pil_alpha_is_laid_over_white_as_files_are():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    assert (from_pil(rgba) == 255).all()


def test_pil_orientation_is_applied():
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = from_pil(Image.open(buffer))
    assert torch.equal(turned, torch.from_numpy(np.rot90(PIXELS, -1).copy()).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 4), np.uint8), "alpha"),
        (torch.randn(3, 4, 4) * 3, "do not normalise"),
        (torch.zeros(2, 4, 4), "3, H, W"),
        (torch.zeros(3, 0, 4), "3, H, W"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8"),
    ],
)
def test_arrays_that_are_no_images_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        from_array(bad)


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in ((tmp_path / "no.png", "nothing there"), (tmp_path / "empty", "found none")):
        with pytest.raises(DataError, match=message):
            items_of(source)
    with pytest.raises(DataError, match="match"):
        items_of(str(tmp_path / "*.png"))
    with pytest.raises(UsageError, match="download"):
        items_of("https://example.org/cat.jpg")
    with pytest.raises(UsageError, match="got int"):
        items_of(3)
