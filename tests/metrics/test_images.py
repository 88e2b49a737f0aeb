"""PSNR and SSIM, against what their papers write, computed the long way."""

import math

import numpy as np
import pytest
import torch

from vitrail.metrics.images import luminance, psnr, ssim


def pair(height=24, width=30, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    good = draw.random((channels, height, width))
    bad = (good + draw.normal(0, 0.1, good.shape)).clip(0, 1)
    return torch.from_numpy(bad), torch.from_numpy(good)


def eight(x):
    return np.round(x.numpy() * 255)


def explicit_ssim(one, other):
    """Wang et al., window by window, of one channel in levels (H, W)."""
    steps = np.arange(11) - 5
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for y in range(one.shape[0] - 10):
        for x in range(one.shape[1] - 10):
            a, b = one[y : y + 11, x : x + 11], other[y : y + 11, x : x + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            found.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


def y_of(levels):
    return 16 + (65.481 * levels[0] + 128.553 * levels[1] + 24.966 * levels[2]) / 255


def test_luminance_is_bt601():
    white, black = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    assert float(luminance(white)) == pytest.approx(235, abs=1e-4)
    assert float(luminance(black)) == 16
    grey = torch.rand(1, 4, 4)
    torch.testing.assert_close(luminance(grey), grey * 255)


@pytest.mark.parametrize("border", [0, 2, 4])
def test_psnr_of_luminance_and_of_all_channels(border):
    bad, good = pair()
    a, b = (eight(x)[:, border : 24 - border, border : 30 - border] for x in (bad, good))
    for channel, one, other in (("rgb", a, b), ("y", y_of(a), y_of(b))):
        expected = 10 * math.log10(255**2 / np.mean((one - other) ** 2))
        assert psnr(bad, good, border=border, channel=channel) == pytest.approx(expected, abs=1e-9)


def test_ssim_is_wangs():
    bad, good = pair()
    a, b = eight(bad), eight(good)
    assert ssim(bad, good, border=0, channel="y") == pytest.approx(explicit_ssim(y_of(a), y_of(b)), abs=1e-9)
    each = [explicit_ssim(a[c], b[c]) for c in range(3)]
    assert ssim(bad, good, border=0, channel="rgb") == pytest.approx(np.mean(each), abs=1e-9)


def test_equal_pictures():
    _, good = pair()
    assert psnr(good, good, border=0, channel="y") == math.inf
    assert ssim(good, good, border=0, channel="y") == pytest.approx(1)


def test_levels_are_rounded_to_unless_asked_not_to():
    good = torch.full((1, 16, 16), 0.5, dtype=torch.float64)
    near = good + 0.2 / 65535
    assert psnr(near, good, border=0, channel="rgb") == math.inf
    assert psnr(near, good, border=0, channel="rgb", levels=65535) == math.inf
    assert psnr(near, good, border=0, channel="rgb", levels=None) == pytest.approx(20 * math.log10(65535 / 0.2))


def test_what_cannot_be_compared_is_refused():
    bad, good = pair()
    with pytest.raises(ValueError, match="one shape"):
        psnr(bad, good[:, 1:], border=0, channel="y")
    with pytest.raises(ValueError, match="more than 24 pixels"):
        psnr(bad, good, border=12, channel="y")
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(bad, good, border=8, channel="y")
    with pytest.raises(ValueError, match="picture"):
        psnr(bad[0], good[0], border=0, channel="y")
