"""Pairs for restoration: bicubic scaling, what makes pictures bad, patches, folders, faults."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data import rng
from vitrail.data.bicubic import bicubic
from vitrail.data.decode import BrokenImage
from vitrail.data.degrade import Downscale, Jpeg, Noise, RealWorld, unit
from vitrail.data.restoration import Photo, RandomPatch, Whole, collate, open_photos, open_splits, sets_in, turned
from vitrail.data.samples import SampleLoader
from vitrail.errors import DataError, UsageError


def picture(height=48, width=40, seed=0):
    """Smooth shapes with some texture, uint8 (3, H, W)."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (3 + c)) + np.cos(x / (4 + c)) for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 0.1, (3, height, width))
    return torch.from_numpy((127 + 50 * (np.stack(waves) + noise)).clip(0, 255).astype(np.uint8))


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        save(tmp_path / f"{i}.png", picture(seed=i))
    return tmp_path


def matlab(values, length):
    """imresize along one axis, written out: for each pixel the weights of all its taps, edges mirrored."""
    scale = length / len(values)
    kernel = lambda d: np.where(  # noqa: E731
        d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d <= 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0)
    )
    narrow = min(scale, 1)
    out = []
    for i in range(1, length + 1):
        centre = i / scale + 0.5 * (1 - 1 / scale)
        taps = np.arange(int(np.floor(centre - 4 / narrow)), int(np.ceil(centre + 4 / narrow)) + 1)
        weights = narrow * kernel(np.abs(narrow * (centre - taps)))
        weights /= weights.sum()
        mirrored = np.concatenate([np.arange(len(values)), np.arange(len(values))[::-1]])
        out.append((weights * values[mirrored[(taps - 1) % (2 * len(values))]]).sum())
    return np.array(out)


@pytest.mark.parametrize("length", [5, 8, 16, 32, 48, 3])
def test_bicubic_is_matlabs(length):
    values = np.random.default_rng(1).random(16)
    x = torch.from_numpy(values)[None, :, None].expand(1, 16, 4)
    found = bicubic(x, (length, 4))[0, :, 0].numpy()
    np.testing.assert_allclose(found, matlab(values, length), atol=1e-12)


def test_bicubic_rounds_eight_bits_after_each_axis():
    x = picture(20, 30)
    rows = bicubic(x.double(), (10, 30))
    rows = (rows + 0.5).floor().clamp(0, 255)
    both = (bicubic(rows, (10, 15)) + 0.5).floor().clamp(0, 255)
    assert torch.equal(bicubic(x, (10, 15)).double(), both)


def test_noise_of_evaluation_is_the_authors(folder):
    x = picture()
    # their script reads BGR (H, W, 3) and draws over it from seed 0
    bgr = x.flip(0).permute(1, 2, 0).numpy().astype(np.float32) / 255
    np.random.seed(0)  # noqa: NPY002
    noisy = bgr + np.random.normal(0, 25 / 255.0, bgr.shape)  # noqa: NPY002
    theirs = torch.from_numpy(noisy).permute(2, 0, 1).flip(0).float()
    torch.testing.assert_close(Noise((25, 25)).fixed(x), theirs, atol=1e-6, rtol=0)


def test_noise_of_training_has_its_level_and_its_draw():
    x = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    draws = np.array([0.5, 0.3])
    low = Noise((10, 20))(x, draws)
    assert float((low - 128 / 255).std()) * 255 == pytest.approx(15, rel=0.05)
    assert torch.equal(low, Noise((10, 20))(x, draws))
    assert not torch.equal(low, Noise((10, 20))(x, np.array([0.5, 0.4])))


def test_jpeg_is_pillows():
    x = picture()
    file = io.BytesIO()
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=10)
    theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(Jpeg((10, 40)).fixed(x), unit(theirs))


def test_a_patch_of_a_jpeg_is_that_of_the_whole_picture_but_for_the_edge_of_its_units():
    x, whole = picture(96, 96), Jpeg((30, 30))
    pair = RandomPatch(32, whole, turn=False)(Photo(x, None), np.array([0.4, 0.7, 0.0, 0.5]))
    top, left = int(0.4 * 65), int(0.7 * 65)
    there = whole.fixed(x)[:, top : top + 32, left : left + 32]
    assert torch.equal(pair.high, unit(x)[:, top : top + 32, left : left + 32])
    assert float((pair.low - there).abs().max()) <= 4 / 255  # colour is smoothed across units
    assert float((pair.low == there).float().mean()) > 0.8


@pytest.mark.parametrize("degrade", [Downscale(2), Noise((5, 50)), Jpeg((10, 40)), RealWorld(2), RealWorld(4)])
def test_bad_pictures_have_their_size_and_depend_on_their_draws_alone(degrade):
    x, s = picture(), degrade.scale
    draws = [np.full(degrade.draws, v) for v in (0.1, 0.9)]
    one, again, other = (degrade(x, d) for d in (draws[0], draws[0], draws[1]))
    assert one.shape == (3, 48 // s, 40 // s)
    assert one.dtype == torch.float32
    assert torch.equal(one, again)
    assert degrade.draws == 0 or not torch.equal(one, other)
    assert degrade.fixed(x).shape == one.shape


def test_levels_that_cannot_be_are_refused():
    for make in (lambda: Noise((0, 0)), lambda: Noise((20, 10)), lambda: Jpeg((0, 10)), lambda: Jpeg((40, 10))):
        with pytest.raises(UsageError, match="expected"):
            make()


def test_patches_lie_where_the_bad_picture_has_them(folder):
    photos = open_photos(str(folder), Downscale(2))
    photo = photos.read(0)
    assert torch.equal(photo.low, bicubic(photo.high, (24, 20)))
    pair = RandomPatch(8, Downscale(2), turn=False)(photo, np.array([0.99, 0.0, 0.0]))
    assert torch.equal(pair.low, unit(photo.low)[:, 16:24, :8])
    assert torch.equal(pair.high, unit(photo.high)[:, 32:48, :16])


def test_both_pictures_turn_alike():
    low, high = torch.rand(3, 4, 4), torch.rand(3, 8, 8)
    high = low.repeat_interleave(2, 1).repeat_interleave(2, 2)
    seen = set()
    for way in range(8):
        pair = turned(type(RandomPatch(4, Downscale(2))(Photo(picture(), None), np.zeros(3)))(low, high), way)
        assert torch.equal(pair.low.repeat_interleave(2, 1).repeat_interleave(2, 2), pair.high)
        seen.add(pair.low.numpy().tobytes())
    assert len(seen) == 8


def test_batches_depend_on_seed_epoch_and_index_alone(folder):
    photos, degrade = open_photos(str(folder), Noise((25, 25))), Noise((25, 25))

    def batches(workers, start=0, **how):
        loader = SampleLoader(
            photos, batch_size=4, prepare=RandomPatch(16, degrade), collate=collate, shuffle=True, visits=2,
            workers=workers, **how,
        )  # fmt: skip
        return list(loader.epoch(1, start=start))

    one, other = batches(0), batches(2, cache="none")
    assert len(one) == 3
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
    assert torch.equal(batches(0, start=2)[0].images, one[2].images)
    assert one[0].images.shape == (4, 3, 16, 16)


def test_a_picture_that_cannot_be_read_is_no_pair_of_its_batch(folder):
    (folder / "3.png").write_bytes(b"no image")
    photos = open_photos(str(folder), Downscale(2))
    loader = SampleLoader(photos, batch_size=1, prepare=Whole(Downscale(2)), collate=collate, workers=0)
    kept = [bool(batch.keep[0]) for batch in loader.epoch()]
    assert kept == [True, True, True, False, True, True]
    assert loader.problems[0].name.endswith("3.png")


def test_grey_is_luminance(folder):
    photo = open_photos(str(folder), Noise((25, 25)), channels=1).read(0)
    red, green, blue = open_photos(str(folder), Noise((25, 25))).read(0).high.double()
    assert photo.high.shape == (1, 48, 40)
    assert float((photo.high[0] - (0.299 * red + 0.587 * green + 0.114 * blue)).abs().max()) <= 0.5 + 1e-6


def test_given_pairs_are_read_by_name(tmp_path):
    for i in range(3):
        save(tmp_path / "HR" / f"{i}.png", picture(seed=i))
        save(tmp_path / "LR" / f"{i}{'x2' if i else ''}.png", picture(24, 20, seed=i + 9))
    photos = open_photos(str(tmp_path), Downscale(2))
    assert torch.equal(photos.read(1).low, picture(24, 20, seed=10))
    assert photos.digest() != open_photos(str(tmp_path / "HR"), Downscale(2)).digest()


def test_pairs_that_do_not_fit_are_named(tmp_path):
    save(tmp_path / "HR" / "a.png", picture())
    save(tmp_path / "LR" / "a.png", picture(24, 21))
    with pytest.raises(DataError, match=r"a\.png: expected a good picture 2 times .* 40 x 48 and 21 x 24"):
        open_photos(str(tmp_path), Downscale(2))
    save(tmp_path / "LR" / "b.png", picture(24, 20))
    with pytest.raises(DataError, match=r"1 of LR without one in HR: .*b\.png"):
        open_photos(str(tmp_path), Downscale(2))


def test_small_pictures_are_named(folder):
    save(folder / "tiny.png", picture(20, 90))
    with pytest.raises(DataError, match=r"at least 48 x 48 .* 1 smaller .*tiny\.png \(90 x 20\)|6 smaller|7 smaller"):
        open_photos(str(folder), Downscale(2), patch=24)
    with pytest.raises(DataError, match=r"1 smaller ones: .*tiny\.png"):
        open_photos(str(folder), Downscale(2), patch=12)


def test_missing_pictures_are_said(tmp_path):
    with pytest.raises(DataError, match="expected"):
        open_photos(str(tmp_path / "nowhere"), Downscale(2))
    with pytest.raises(DataError, match="expected images"):
        open_photos(str(tmp_path), Downscale(2))


def test_splits_hold_pictures_out_or_take_those_that_are_there(folder, tmp_path):
    how = {"channels": 3, "patch": 8, "val_fraction": 0.2}
    splits = open_splits(str(folder), Downscale(2), **how)
    names = {splits.train.name(i) for i in range(len(splits.train))}
    assert len(names) == 5
    assert splits.val.name(0) not in names
    again = open_splits(str(folder), Downscale(2), **how)
    assert again.val.name(0) == splits.val.name(0)
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            save(tmp_path / "own" / part / f"{i}.png", picture(seed=i))
    own = open_splits(str(tmp_path / "own"), Downscale(2), **how)
    assert [len(part) for part in own.parts().values()] == [3, 2, 1]


def test_sets_are_a_folder_or_its_folders(folder, tmp_path_factory):
    assert list(sets_in(str(folder))) == [folder.name]
    root = tmp_path_factory.mktemp("sets")
    for name in ("b", "a"):
        save(root / name / "HR" / "1.png", picture())
    assert list(sets_in(str(root))) == ["a", "b"]
    assert list(sets_in(str(root / "a"))) == ["a"]


def test_a_pair_that_changed_after_it_was_checked_is_broken(tmp_path):
    save(tmp_path / "HR" / "a.png", picture())
    save(tmp_path / "LR" / "a.png", picture(24, 20))
    photos = open_photos(str(tmp_path), Downscale(2))
    save(tmp_path / "LR" / "a.png", picture(24, 22))
    with pytest.raises(BrokenImage, match="2 times"):
        photos.read(0)


def test_draws_of_a_patch_are_enough():
    for degrade in (Downscale(2), Noise((1, 2)), Jpeg((10, 40)), RealWorld(2)):
        make = RandomPatch(8, degrade)
        draws = rng.uniforms(0, 0, [0], make.draws)[0]
        assert make(Photo(picture(), None), draws).low.shape == (3, 8, 8)
