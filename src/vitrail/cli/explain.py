"""`vitrail explain`: where a model looked, and the known figures of its weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vitrail.errors import DataError, UsageError, require_known

from .answers import ExplainOptions, parse_point, refuse_options, verbs_of
from .console import Json, partial_result, result, say
from .heldout import held_out, recipe_of
from .source import open_predictor
from .through_time import WORD, explain_gradients, require_length_wanted
from .translate import align, reads_text, refuse

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.explain.maps import Method as LibraryMethod
    from vitrail.infer import Predictor

MOST_MEASURED = 128  # images that attention distance is averaged over, as in the paper


class Method(StrEnum):
    """The names people type; the library's are the same with an underscore."""

    rollout = "rollout"
    class_token = "class-token"
    gradient = "gradient"
    grad_cam = "grad-cam"


def _method(text: str) -> Method:
    """Return the method of a name, written with a hyphen or as the library has it; :class:`UsageError` if none."""
    names = [method.value for method in Method]
    require_known([name := text.replace("_", "-")], names, "method")
    return Method(name)


def _of_library(method: Method | None) -> LibraryMethod | None:
    """Return the name as ``vitrail.explain`` has it."""
    return None if method is None else cast("LibraryMethod", method.name)


def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN | gradients",
            help="Run folder, model folder or hf-hub:org/name; or gradients: their norm through time.",
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE | SENTENCE]...",
            help="Files, folders, patterns; or sentences; none: held-out ones of the run.",
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            parser=_method,
            metavar="|".join(Method),
            help="Default: rollout (attention, all layers) for ViTs; grad-cam (last map) for any other.",
        ),
    ] = None,
    per_head: Annotated[bool, typer.Option("--per-head", help="Also draw each head (method class-token).")] = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw patch filters, position similarity and attention distance instead.")
    ] = False,
    at: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Of boxes, masks, restored images: the pixel to explain.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where held-out images come from; default: the run's data.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pictures go; default: explain/ in RUN.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Of gradients: how many steps; default: 100.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw over images what the answers were read from, or the known figures of a model."""
    images = images or []
    if model == WORD and not Path(model).exists():
        own = None if device == "auto" else device
        given = {"image": images, "method": method, "per-head": per_head, "figures": figures, "data": data, "at": at}
        return explain_gradients(length, {**given, "device": own}, out, as_json)
    require_length_wanted(model, length)
    if reads_text(model):
        refuse(model, method=method, figures=figures, data=data, at=at, **{"per-head": per_head})
        return align(model, images, out=out, device=device, as_json=as_json)
    if (verbs := verbs_of(model)) is not None:
        refuse_options(model, "does not classify", method=method, figures=figures, per_head=per_head)
        return verbs.explain(model, images, ExplainOptions(parse_point(at), data, out, device, as_json))
    refuse_options(model, "gives one answer an image", at=at)
    _require_sense(images, method, per_head, figures, data)
    predictor = open_predictor(model, device=device)
    folder = out or (Path(model) / "explain" if Path(model).is_dir() else Path("explain"))
    drawn: list[dict[str, Any]] = []
    broken: list[str] = []
    if figures:
        paths = _draw_figures(predictor, model, images, data, folder)
    elif images:
        drawn, broken = _draw_each(predictor, images, method, per_head, folder)
        paths = [path for one in drawn for path in one["pictures"]]
    else:
        from .samples import draw_samples

        drawn, path = draw_samples(predictor, held_out(model, data), _of_library(method), folder)
        paths = [path]
    for path in paths:
        say(path)
    if single := [one for one in drawn if one["grid"] == [1, 1]]:
        from vitrail.explain.maps import ONE_CELL

        say(ONE_CELL if len(single) == len(drawn) else f"{len(single)} of {len(drawn)} images: {ONE_CELL}")
    facts: dict[str, Any] = {"pictures": paths, "explanations": drawn}
    if broken:
        words = f"{len(broken)} of {len(broken) + len(drawn)} images could not be used:\n" + "\n".join(broken)
        partial_result("explain", as_json, DataError(words), **facts)
    result("explain", as_json, **facts)


def _require_sense(images: list[str], method: Method | None, per_head: bool, figures: bool, data: str | None) -> None:
    """Refuse options that would have no effect."""
    if images and data is not None:
        raise UsageError("--data has no effect beside images; mend: leave one out")
    if figures and (method or per_head):
        raise UsageError("--method and --per-head have no effect on --figures; mend: two calls")
    if per_head and (not images or method is not Method.class_token):
        raise UsageError(
            "--per-head needs an image and a method that keeps heads apart; "
            "mend: vitrail explain RUN IMAGE --method class-token --per-head"
        )


def _draw_each(
    predictor: Predictor, images: list[str], method: Method | None, per_head: bool, folder: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw every image; return what is known of each, and a sentence for each that could not be read."""
    from vitrail.infer.inputs import items_of

    drawn: list[dict[str, Any]] = []
    broken: list[str] = []
    taken: set[Path] = set()
    for item in items_of(images):
        try:
            found = predictor.explain(Path(item.name), method=_of_library(method))
        except DataError as error:
            broken.append(f"  {item.name}: {error}")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [_free(folder, f"{Path(item.name).stem}-{Method[found.method].value}", taken)]
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


def _draw_figures(predictor: Predictor, model: str, images: list[str], data: str | None, folder: Path) -> list[Path]:
    from vitrail.explain import draw_figures

    batch = _batch(predictor, model, images, data)
    if batch is None:
        say("attention distance is left out: it needs images; mend: name some, or --data")
    left_out: list[str] = []
    paths = draw_figures(predictor.model, folder, images=batch, left_out=left_out)
    for words in left_out:
        say(words)
    return [path.resolve() for path in paths]


def _batch(predictor: Predictor, model: str, images: list[str], data: str | None) -> Tensor | None:
    """Return images as the model reads them: those named, or held-out ones; None where there are none."""
    from itertools import islice

    from vitrail.data.decode import BrokenImage
    from vitrail.infer.inputs import items_of

    if images:
        crops = [predictor.preprocess.crop(item.read()) for item in islice(items_of(images), MOST_MEASURED)]
    elif data is not None or recipe_of(model) is not None:
        chosen, crops = held_out(model, data).images, []
        for i in range(min(MOST_MEASURED, len(chosen))):
            try:
                crops.append(predictor.preprocess.crop(chosen.read(i)))
            except BrokenImage:
                continue  # `vitrail val` and the data check name it; a mean over the others is what is wanted here
    else:
        return None
    return predictor.preprocess.batch(crops, predictor.device, predictor.dtype)
