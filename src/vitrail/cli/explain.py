"""`vitrail explain`: where a model looked, and the known figures of its weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DataError, UsageError
from .console import Json, partial_result, result, say
from .source import open_predictor

if TYPE_CHECKING:
    from torch import Tensor

    from ..infer import Predictor


class Method(str, Enum):
    """The names people type; the library's are the same with an underscore."""

    rollout = "rollout"
    class_token = "class-token"
    gradient = "gradient"


def explain(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, model folder or hf-hub:org/name.")],
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]...", help="Files, folders or patterns.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="rollout: attention through all layers; class-token: the last layer's.")
    ] = None,
    per_head: Annotated[bool, typer.Option("--per-head", help="Also draw each head (method class-token).")] = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw patch filters, position similarity and, given images, attention distance.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the pictures go; default: explain/ in RUN.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw attention over images, and the known figures of a model."""
    images = images or []
    if not images and not figures:
        raise UsageError("expected an image to explain, or --figures; mend: vitrail explain RUN IMAGE")
    if not images and (method or per_head):
        raise UsageError("--method and --per-head are for images, got none; mend: name an image")
    if per_head and method is not Method.class_token:
        raise UsageError("--per-head needs the heads apart; mend: add --method class-token")
    predictor = open_predictor(model, device=device)
    folder = _folder(model, out)
    drawn, broken = _draw_each(predictor, images, method or Method.rollout, per_head, folder)
    known = _draw_known(predictor, images, folder) if figures else []
    for path in [*(path for one in drawn for path in one["pictures"]), *known]:
        say(path)
    facts = {"folder": folder.resolve(), "explanations": drawn, "figures": known}
    if broken:
        error = DataError(f"{len(broken)} of {len(broken) + len(drawn)} images could not be used:\n" + "\n".join(broken))
        partial_result("explain", as_json, error, **facts)
    result("explain", as_json, **facts)


def _folder(model: str, out: Path | None) -> Path:
    source = Path(model)
    folder = out or (source / "explain" if source.is_dir() else Path("explain"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _draw_each(
    predictor: Predictor, images: list[str], method: Method, per_head: bool, folder: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every image; return what is known of each, and a sentence for each that could not be read."""
    from ..infer.inputs import items_of

    drawn: list[dict[str, Any]] = []
    broken: list[str] = []
    taken: set[Path] = set()
    for item in items_of(images):
        try:
            found = predictor.explain(item.name, method=method.name)
        except DataError as error:
            broken.append(f"  {item.name}: {error}")
            continue
        pictures = [_free(folder, f"{Path(item.name).stem}-{method.value}", taken)]
        found.plot(pictures[0])
        if per_head:
            pictures.append(_free(folder, f"{Path(item.name).stem}-heads", taken))
            found.plot_heads(pictures[1])
        drawn.append({**found.to_json(), "pictures": [path.resolve() for path in pictures]})
    return drawn, broken


def _free(folder: Path, stem: str, taken: set[Path]) -> Path:
    """Return ``stem.png``, or ``stem-2.png`` and so on where another image of this call has that name."""
    path, n = folder / f"{stem}.png", 1
    while path in taken:
        n += 1
        path = folder / f"{stem}-{n}.png"
    taken.add(path)
    return path


def _draw_known(predictor: Predictor, images: list[str], folder: Path) -> list[Path]:
    from ..explain import draw_figures

    return [path.resolve() for path in draw_figures(predictor.model, folder, images=_batch(predictor, images))]


def _batch(predictor: Predictor, images: list[str], most: int = 128) -> Tensor | None:
    """Return up to ``most`` images as the model reads them; None without any (attention distance needs some)."""
    from itertools import islice

    from ..infer.inputs import items_of

    crops = [predictor.preprocess.crop(item.read()) for item in islice(items_of(images), most)] if images else []
    return predictor.preprocess.batch(crops, predictor.device, predictor.dtype) if crops else None
