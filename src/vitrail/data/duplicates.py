"""Finding copies: exact ones by hash, near ones by the Hamming distance of difference hashes.

Near pairs without comparing all with all: two 64-bit hashes at most ``DISTANCE`` bits apart are equal in at least one
of ``DISTANCE + 1`` bands (pigeon-hole), so only images that share a band are compared. A pair counts if its thumbnails
agree as well.
Shapes: n images; groups are arrays of positions, pairs (p, 2).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

DISTANCE = 4  # bits of 64
THUMB_DIFFERENCE = 5.0  # grey levels, mean over the thumbnail
FLAT = 10  # grey levels from darkest to brightest cell: nothing to recognise an image by
MOST_NEIGHBOURS = 2000  # partners compared in one band; more means thousands of look-alikes


def exact_groups(sha: NDArray[np.uint8], usable: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the groups of two or more usable images with equal bytes; each group in order."""
    numbers = np.flatnonzero(usable)
    keys = np.ascontiguousarray(sha[numbers]).view("V32").reshape(-1)
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
    return [np.sort(numbers[group]) for group in np.split(order, edges) if len(group) > 1]


def near_pairs(
    dhash: NDArray[np.uint64], thumb: NDArray[np.uint8], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], bool]:
    """Return pairs (p, 2) of usable images that look alike, and whether every candidate was compared.

    Give one of each group of exact copies only. Flat images (one colour) are left out: they all look alike.
    """
    flat = thumb.max(axis=1, initial=0) - thumb.min(axis=1, initial=255).astype(int) < FLAT
    numbers = np.flatnonzero(usable & ~flat)
    hashes = dhash[numbers]
    found = [np.zeros((0, 2), np.int64)]
    complete = True
    for key in _bands(hashes):
        order = np.argsort(key, kind="stable")
        key = key[order]
        left = np.arange(len(order))
        for step in range(1, MOST_NEIGHBOURS + 1):
            # Sorted by band, partners are neighbours: those still in the same band `step` places on.
            left = left[left + step < len(order)]
            left = left[key[left] == key[left + step]]
            if not len(left):
                break
            a, b = order[left], order[left + step]
            close = _popcount(hashes[a] ^ hashes[b]) <= DISTANCE
            found.append(_confirmed(numbers[a[close]], numbers[b[close]], thumb))
        else:
            complete = False
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0), complete


def _bands(hashes: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    edges = np.linspace(0, 64, DISTANCE + 2).astype(int)
    return [
        (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1) for low, high in itertools.pairwise(edges)
    ]


def _popcount(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Bits set in each word (Warren, "Hacker's Delight", figure 5-2); numpy has its own from 2.0 on only."""
    one, two, four = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333), np.uint64(0x0F0F0F0F0F0F0F0F)
    words = words - ((words >> np.uint64(1)) & one)
    words = (words & two) + ((words >> np.uint64(2)) & two)
    words = (words + (words >> np.uint64(4))) & four
    return (words * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _confirmed(a: NDArray[np.int64], b: NDArray[np.int64], thumb: NDArray[np.uint8]) -> NDArray[np.int64]:
    if not len(a):
        return np.zeros((0, 2), np.int64)
    difference = np.abs(thumb[a].astype(np.int16) - thumb[b]).mean(axis=1)
    keep = difference <= THUMB_DIFFERENCE
    return np.stack([a[keep], b[keep]], axis=1)
