"""One sheet of held-out images with the model's attention over each, and its answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import DataError

if TYPE_CHECKING:
    from vitrail.data.imageset import ImageSet
    from vitrail.explain.draw import Tile
    from vitrail.explain.maps import Method
    from vitrail.infer import Explanation, Predictor

    from .heldout import HeldOut

MOST = 12
SIDE = 150  # pixels of each picture's longer side


def draw_samples(
    predictor: Predictor, chosen: HeldOut, method: Method | None, folder: Path
) -> tuple[list[dict[str, Any]], Path]:
    """Write ``attention.png`` into ``folder``; return what is known of each image, and the path.

    The images are the first of each class in turn, so the choice is not ours. Broken ones are passed over.
    """
    from vitrail.explain.draw import Bar, sheet
    from vitrail.infer.explanation import NAMES, measure_of

    predictor.classes.require_equal(chosen.images.classes, mine="the model", theirs=chosen.source)
    tiles: list[Tile] = []
    remark = ""
    drawn: list[dict[str, Any]] = []
    for i in in_turn(chosen.images):
        if len(tiles) == MOST:
            break
        true = chosen.images.label_words(i)
        try:
            found = predictor.explain(chosen.images.read(i), method=method)
        except DataError:
            continue
        tiles.append(_tile(found, true))
        method, remark = found.method, found.remark
        drawn.append({**found.to_json(), "name": chosen.images.name(i), "true": true})
    if not tiles or method is None:
        raise DataError(
            f"expected an image that can be read in {chosen.words}, got none; mend: vitrail data check {chosen.source}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / "attention.png").resolve()
    sheet(
        tiles,
        columns=4,
        title=f"Where {predictor.card.name or 'the model'} looks: {NAMES[method]}",
        note=f"{chosen.words[:1].upper()}{chosen.words[1:]}, the first of each class in turn. {remark}".strip(),
        bar=Bar("low", "high", measure_of(method), "ember"),
        gap=18,
    ).save(path)
    return drawn, path


def in_turn(images: ImageSet) -> list[int]:
    """Return positions: the first image of each class (or set of classes), then the second of each, and so on."""
    from vitrail.data.labels import label_groups

    seen: dict[int, int] = {}
    order = []
    for i, label in enumerate(label_groups(images.labels)[0].tolist()):
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], label, i))
    return [i for _, _, i in sorted(order)]


def _tile(found: Explanation, true: str) -> Tile:
    import numpy as np

    from vitrail.explain.draw import Tile, as_picture, resized

    image, over = resized(as_picture(found.image), most=SIDE), found.overlay(most=SIDE)
    between = np.full((image.shape[0], 4, 3), 255, dtype=np.uint8)
    said = f"{found.label}: {found.score:.0%}" + ("" if found.label == true else f"  (is {true})")
    return Tile(np.concatenate([image, between, over], axis=1), said)
