"""The verbs for models that restore pictures: `predict`, `val` and `explain` hand over to here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.errors import UsageError

from .answers import ExplainOptions, PredictOptions, ValOptions, free_stem, give_predictions, refuse_options
from .console import result, say, table
from .source import existing

if TYPE_CHECKING:
    from vitrail.data.degrade import Degradation
    from vitrail.data.restoration import Photos
    from vitrail.infer.restorer import RestorationResult, Restorer

WHAT = "restores pictures"
PATCH, CONTEXT = 8, 48
"""Pixels of a side of the patch that is explained, and around it on each side that may contribute."""


def _open(model: str, device: str, tile: int | None = None) -> Restorer:
    from vitrail.infer.restorer import load_restorer

    return load_restorer(existing(model), device=device, tile=tile)


def predict(model: str, images: list[str], options: PredictOptions) -> None:
    """Restore images into ``out`` (default: ``restored/``), each with a picture of before and after."""
    refuse_options(model, WHAT, threshold=options.threshold, csv=options.csv, img_size=options.img_size)
    restorer = _open(model, options.device, options.tile)
    folder = options.out or Path("restored")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[str]] = []
    found, broken, taken = list[dict[str, Any]](), list["RestorationResult"](), set[str]()
    for answer in restorer.stream(images):  # its pictures are not kept
        told = answer.to_json()
        if answer.ok:
            told |= _write(answer, folder, taken)
            width, height = told["width_height"]
            rows.append([answer.name, f"{width} x {height}", str(answer.tiles), told["file"]])
        else:
            rows.append([answer.name, "error", "", str(answer.error)])
            broken.append(answer)
        found.append(told)
    table(["image", "size", "tiles", "file"], rows, right=["tiles"])
    give_predictions(broken, found, options.as_json)


def _write(answer: RestorationResult, folder: Path, taken: set[str]) -> dict[str, str]:
    """Write the picture, and before and after; return their files. Equal names get a number."""
    stem = free_stem(answer.name, taken)
    ending = ".tif" if Path(answer.name).suffix.lower() in (".tif", ".tiff") else ".png"
    shown = folder / f"{stem}_before_after.png"
    answer.plot(shown)
    return {"file": str(answer.save(folder / f"{stem}{ending}")), "before_after": str(shown)}


def val(model: str, options: ValOptions) -> None:
    """Measure PSNR and SSIM on each test set, beside the pictures that came in."""
    from vitrail.infer.testsets import measure_set

    restorer = _open(model, options.device)
    found = []
    for name, photos in _sets(model, restorer, options.data, options.split).items():
        found.append(measure_set(restorer, name, photos, told=lambda text: say(text, stream=sys.stderr)))
        for fault in found[-1].faults:
            say(f"left out: {fault}", stream=sys.stderr)
    came = "bicubic" if restorer.scale > 1 else "as it came"
    heads = ["set", "pictures", f"{came} PSNR", f"{came} SSIM", "PSNR", "SSIM"]
    rows = [
        [f.name, f.count, f"{f.base_psnr:.2f}", f"{f.base_ssim:.4f}", f"{f.psnr:.2f}", f"{f.ssim:.4f}"] for f in found
    ]
    table(heads, rows, right=heads[1:])
    border, channel = restorer.measure
    said = "luminance (BT.601)" if channel == "y" else "all channels"
    say(f"PSNR in dB and SSIM of {said} in 8 bits, {border} pixels cut off at the border; means over pictures")
    result("val", options.as_json, sets=found, border=border, channel=channel)


def _sets(model: str, restorer: Restorer, data: str | None, split: str | None) -> dict[str, Photos]:
    """Return name -> pictures: the sets in ``data``, or a held-out split of the run's own."""
    from vitrail.data.restoration import sets_in
    from vitrail.infer.testsets import open_set

    from .heldout import recipe_of, same_source

    recipe: Any = recipe_of(model)
    if data is not None and (recipe is None or not same_source(data, recipe.data.source)):
        if split is not None:
            raise UsageError("--split has no effect on data beside the run's own; mend: name the folder itself")
        degrade = _degradation(model, restorer)
        return {n: open_set(folder, degrade, restorer.channels) for n, folder in sets_in(data).items()}
    if recipe is None:
        raise UsageError(f"expected --data: {model} is not a run, so it does not say which data it belongs to")
    from vitrail.training.restorejob import RestoreJob

    parts: dict[str, Any] = RestoreJob.open_splits(recipe).parts()
    name = split or ("test" if "test" in parts else "val")
    if name not in parts:
        raise UsageError(f"expected a split of {', '.join(parts)}, got {name!r}")
    return {name: parts[name]}


def _degradation(model: str, restorer: Restorer) -> Degradation:
    """Return what a model was trained to undo, as its folder says it."""
    from vitrail.training.restorerecipe import RestoreRecipe, degradation
    from vitrail.weights import open_folder

    told = open_folder(model).extra.get("degrade")
    if told is None:
        if restorer.scale == 1:
            raise UsageError(
                f"{model} does not say which noise or quality it is for; mend: give pairs, a folder with HR/ and LR/"
            )
        told = {"kind": "downscale", "scale": restorer.scale}
    found: Degradation = degradation(RestoreRecipe.check({"task": "restore", "data": {"source": ""}, "degrade": told}))
    return found


def explain(model: str, images: list[str], options: ExplainOptions) -> None:
    """Draw which pixels a restored patch was made from; the patch around ``at``, or the one of most contrast."""
    from vitrail.infer.inputs import items_of

    refuse_options(model, WHAT, data=options.data)
    if not images:
        raise UsageError("expected images to explain, got none; mend: vitrail explain RUN IMAGE...")
    restorer = _open(model, options.device)
    folder = options.folder(model)
    found = []
    for item in items_of(images):
        path = folder / f"{Path(item.name).stem}_attribution.png"
        attribution = attribute(restorer, item.read(), options.at)
        attribution.plot(str(path))
        words = f"diffusion index {attribution.diffusion:.1f}, half within {attribution.half:.0f} pixels"
        say(f"{item.name}: {words}: {path}")
        told = {"name": item.name, "diffusion_index": attribution.diffusion, "half_within": attribution.half}
        found.append({**told, "file": str(path)})
    result("explain", options.as_json, explanations=found)


def attribute(restorer: Restorer, picture: Any, at: tuple[float, float] | None) -> Any:
    """Return the local attribution of the patch around a pixel (x, y), or of the patch of most contrast."""
    from vitrail.data.degrade import unit
    from vitrail.data.restoration import in_channels
    from vitrail.explain.local import local_attribution, patch_at, sharpest

    pixels = unit(in_channels(picture, restorer.channels))
    x, y = sharpest(pixels, PATCH) if at is None else at
    if not (0 <= x < pixels.shape[2] and 0 <= y < pixels.shape[1]):
        raise UsageError(f"expected --at within {pixels.shape[2]} x {pixels.shape[1]} pixels, got {x:g},{y:g}")
    crop, box = patch_at(pixels, (x, y), PATCH, CONTEXT)
    return local_attribution(restorer.with_gradients, crop, box, scale=restorer.scale)
