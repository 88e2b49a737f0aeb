"""Window by window equals an average worked out over the whole image; bands are finished in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from vitrail.nn.sliding import answer, enlarged, slide, starts


def network(images):
    """Logits of three classes at stride 2 that depend on where a pixel lies in its window: averages matter."""
    pooled = F.avg_pool2d(images, 2, ceil_mode=True)
    place = torch.linspace(0, 1, pooled.shape[2])[:, None] * torch.linspace(1, 2, pooled.shape[3])
    return pooled * (1 + place)


def explicit(image, window, overlap):
    height, width = image.shape[1:]
    padded = F.pad(image, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    total, count = torch.zeros(3, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    for top in starts(padded.shape[1], window[0], overlap):
        for left in starts(padded.shape[2], window[1], overlap):
            part = padded[:, top : top + window[0], left : left + window[1]]
            logits = F.interpolate(network(part[None]), size=window, mode="bilinear", align_corners=False)[0]
            total[:, top : top + window[0], left : left + window[1]] += logits
            count[top : top + window[0], left : left + window[1]] += 1
    return (total / count)[:, :height, :width]


@pytest.mark.parametrize("size", [(40, 50), (33, 16), (16, 70), (9, 11), (16, 16), (17, 90)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_bands_are_the_average_of_all_windows(size, overlap):
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    bands = list(slide(network, image, (16, 16), overlap=overlap, batch=3))
    assert [top for top, _ in bands] == [sum(b.shape[1] for _, b in bands[:i]) for i in range(len(bands))]
    assert all(band.shape[1] <= 16 for _, band in bands)
    whole = torch.cat([band for _, band in bands], dim=1)
    torch.testing.assert_close(whole, explicit(image, (16, 16), overlap), atol=1e-5, rtol=1e-5)


def test_windows_cover_a_side_evenly():
    assert starts(10, 16, 0.5) == [0]
    assert starts(32, 16, 0.0) == [0, 16]
    assert starts(33, 16, 0.0) == [0, 8, 17]
    for length in range(17, 90):
        found = starts(length, 16, 0.25)
        assert found[0] == 0
        assert found[-1] == length - 16
        assert max(b - a for a, b in pairwise(found)) <= 12


def test_one_window_is_the_network():
    image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    ((top, band),) = slide(network, image, (16, 16))
    expected = F.interpolate(network(image[None]), size=(16, 16), mode="bilinear", align_corners=False)[0]
    assert top == 0
    assert torch.equal(band, expected)


@pytest.mark.parametrize("size", [(300, 37), (17, 9), (128, 40), (7, 5)])
def test_enlarging_some_rows_at_a_time_is_enlarging_the_whole(size):
    logits = torch.randn(4, 11, 13, generator=torch.Generator().manual_seed(0))
    found = torch.cat([rows for _, rows in enlarged(logits, size)], dim=1)
    expected = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_answers_are_the_best_class_and_its_probability():
    logits = torch.randn(4, 200, 6, generator=torch.Generator().manual_seed(0))
    labels, scores = answer(enlarged(logits, (200, 6)), (200, 6))
    assert torch.equal(labels.long(), logits.argmax(0))
    torch.testing.assert_close(scores, logits.softmax(0).amax(0))
