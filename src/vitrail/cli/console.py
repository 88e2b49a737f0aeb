"""What a verb says, and where: words and tables for people, one JSON line for machines.

With ``--json`` stdout carries exactly one line, the result; everything else goes to stderr. Text from users and
files is printed as it is: never read as markup, its control characters made visible.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line on stdout; logs go to stderr.")]


def plain(text: object) -> str:
    """Return a text safe to print: control characters and half characters (odd file names) are escaped."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(text: object = "", *, stream: IO[str] | None = None) -> None:
    """Print a line for people (in ``--json`` mode stdout already points at stderr)."""
    target = stream or sys.stdout
    encoding = getattr(target, "encoding", None) or "utf-8"
    target.write(plain(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """Print rows under headings; columns in ``right`` are set flush right, cells in ``whole`` are never broken."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        side: Literal["left", "right"] = "right" if name in right else "left"
        grid.add_column(Text(name), justify=side, overflow="fold", no_wrap=name in whole)
    for row in rows:
        grid.add_row(*(Text(plain(cell)) for cell in row))
    draw(grid)


def draw(grid: RenderableType, *, markup: bool = False) -> None:
    """Draw a table on stdout, in colour only on a terminal; a pipe or file gets full-width lines.

    ``markup`` is for what our own code marked up; whoever sets it has escaped what users wrote.
    """
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        markup=markup,
        highlight=False,
        emoji=False,
        width=None if terminal else 200,
        no_color=not terminal or "NO_COLOR" in os.environ,
    )
    with console.capture() as held:
        console.print(grid)
    for line in held.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def counter(words: str) -> Callable[[int, int], None] | None:
    """Return a function that shows ``done of total`` on one line of a terminal, or None where nobody watches."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        sys.stderr.write(f"\r{words} {done:,} of {total:,}" + ("\r\033[K" if done >= total else ""))
        sys.stderr.flush()

    return show


def to_plain_data(value: object) -> Any:
    """Turn results into what JSON holds: dataclasses, paths, arrays and tensors become dicts, strings and lists."""
    if hasattr(value, "to_dict"):
        return to_plain_data(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain_data(asdict(value))
    if isinstance(value, dict):
        return {str(key): to_plain_data(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return to_plain_data(value.tolist())
    if isinstance(value, list | tuple | set):
        return [to_plain_data(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None  # JSON has no word for it
    return value


def result(verb: str, as_json: bool, **fields: object) -> None:
    """Give a verb's result, its last word; printed only with ``--json`` (people were told in words)."""
    if as_json:
        emit({"verb": verb, "ok": True, **fields})


def partial_result(verb: str, as_json: bool, error: VitrailError, **fields: object) -> NoReturn:
    """Give what could be done although ``error`` came, say the error, and leave with its exit code."""
    say(f"vitrail: {error}", stream=sys.stderr)
    if as_json:
        failed = {"ok": False, "exit_code": error.exit_code, "error": type(error).__name__, "message": str(error)}
        emit({"verb": verb, **failed, **fields})
    raise typer.Exit(error.exit_code)


_machine: IO[str] | None = None  # the true stdout while `machine_readable` has turned stdout to stderr


def emit(fields: dict[str, object]) -> None:
    """Write one JSON line to the true stdout."""
    line = json.dumps(to_plain_data(fields), ensure_ascii=True, allow_nan=False)
    stream = _machine or sys.stdout
    stream.write(line + "\n")
    stream.flush()


@contextmanager
def machine_readable(on: bool) -> Iterator[None]:
    """Keep stdout for the one JSON line: whatever else is printed meanwhile goes to stderr."""
    global _machine
    if not on:
        yield
        return
    _machine, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, _machine = _machine, None
