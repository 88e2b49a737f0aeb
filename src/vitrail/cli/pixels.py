"""`vitrail val` on a model that predicts pixels: bits a pixel, and how well its palette suits the pictures.

The verb itself is in val.py, which hands over to here what has no classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .console import result, say, table
from .heldout import HeldOut, held_out

if TYPE_CHECKING:
    from vitrail.weights import Card


def predicts_pixels(network: Any) -> bool:
    """Tell whether a model predicts pixels and no classes."""
    return hasattr(network.config, "colours") and not network.config.num_classes


def measure_pixels(
    network: Any, card: Card, model: str, data: str | None, split: str | None, *, batch: int, device: str, as_json: bool
) -> None:
    """Measure bits a pixel on held-out pictures, and say how far they are from the model's palette."""
    from vitrail.infer.predictor import pick_device
    from vitrail.tasks.evaluate import evaluate
    from vitrail.tasks.pixels import Pixels
    from vitrail.training.palettes import judge, own_error
    from vitrail.training.pipeline import eval_loader
    from vitrail.weights import open_folder

    config = network.config
    chosen = _pictures(model, data, split)
    said = judge(chosen.images, card, network.palette, own_error(open_folder(model).extra))
    target = pick_device(device)
    loader = eval_loader(chosen.images, card, batch_size=min(batch, len(chosen.images)))
    hidden = None if config.objective == "autoregressive" else 0.15
    task = Pixels(config.colours, config.in_chans, hidden=hidden)
    found = evaluate(task, network.to(target), loader.epoch(0), device=target)
    m = found.metrics
    say(f"{chosen.words}: {m['count']:.0f} images of {card.input_size[0]} x {card.input_size[1]} pixels\n")
    rows = [
        ("bits a pixel", f"{m['bits_per_pixel']:.3f}"),
        ("bits a dimension (channel of a pixel)", f"{m['bits_per_dim']:.3f}"),
        ("loss (nats a pixel)", f"{m['loss']:.4f}"),
        ("all colours alike would take, bits a pixel", f"{m['uniform_bits']:.3f}"),
        ("their shares alone would take, bits a pixel", f"{m['marginal_bits']:.3f}"),
    ]
    table(("figure", "value"), rows, right=("value",))
    say()
    say(said)
    if loader.problems:
        say(f"{len(loader.problems)} images could not be read and are not in these figures")
    problems = [vars(problem) for problem in loader.problems]
    words = {"data": chosen.source, "split": chosen.split, "palette": said}
    result("val", as_json, model=model, metrics=m, unreadable=problems, **words)


def _pictures(model: str, data: str | None, split: str | None) -> HeldOut:
    """Return the pictures to measure on: those held out, or all of a folder without classes."""
    from vitrail.data.pictures import all_pictures, is_pictures

    if data is None or not is_pictures(data):
        return held_out(model, data, split)
    return HeldOut(all_pictures(data)[0], data, "all", f"all pictures of {data}")
