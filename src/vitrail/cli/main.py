"""The `vitrail` command: collects the verbs and is the one place where errors become exit codes.

0 fine, 1 failure at run time, 2 usage, 3 data, 4 model or weights, 5 export, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn

import typer

from vitrail import __version__
from vitrail.errors import VitrailError

from . import (
    bench,
    convert,
    data,
    data_bench,
    data_shard,
    explain,
    export,
    models,
    plan,
    predict,
    probe,
    resume,
    sample,
    scaling,
    soup,
    train,
    val,
)
from .console import emit, machine_readable, say

FAILURE, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143

app = typer.Typer(
    name="vitrail",
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would take a third of the time `--help` may take
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Look at data, pack them, measure how fast they are read."
)
data_app.command("check")(data.check)
data_app.command("shard")(data_shard.shard)
data_app.command("bench")(data_bench.bench)

app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("resume")(resume.resume)
app.command("val")(val.val)
app.command("predict")(predict.predict)
app.command("sample")(sample.sample)
app.command("probe")(probe.probe)
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("models")(models.models)
app.command("scaling")(scaling.scaling)
app.add_typer(data_app, name="data")
app.command("convert")(convert.convert)
app.command("soup")(soup.soup)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"vitrail {__version__}")
        raise typer.Exit


@app.callback()
def vitrail(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Vision transformers, from the lecture to production: train, evaluate, explain and use them on your own images.

    Try `vitrail train digits`, then `vitrail train FOLDER` with one sub-folder of images a class.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing but this maps errors to codes."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    with machine_readable(as_json), _terminated_politely():
        try:
            code = app(args=arguments, prog_name="vitrail", standalone_mode=False)
        except VitrailError as error:
            return _fail(str(error), error.exit_code, type(error).__name__, as_json)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BrokenPipeError:  # `vitrail models | head`: the reader left, which is not worth a word
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILURE
        except _Terminated:
            return _fail("terminated", TERMINATED, "Terminated", as_json)
        except Exception as error:
            return _fail_unexpectedly(error, as_json)
        if code == INTERRUPTED:
            return _fail("interrupted", INTERRUPTED, "Interrupted", as_json)
        return code if isinstance(code, int) else 0


def run() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(main())


def _fail(message: str, code: int, kind: str, as_json: bool) -> int:
    sys.stdout.flush()
    say(f"vitrail: {message}", stream=sys.stderr)
    if as_json:
        emit({"ok": False, "exit_code": code, "error": kind, "message": message})
    return code


def _fail_unexpectedly(error: Exception, as_json: bool) -> int:
    """Fail on what no verb foresaw: a wrong command line (typer's own errors), or a fault of ours or the system's."""
    show = getattr(error, "show", None)  # typer brings its own copy of click, so its classes have no public name
    if callable(show):
        show()
        if as_json:
            message = getattr(error, "format_message", lambda: str(error))()
            emit({"ok": False, "exit_code": USAGE, "error": "UsageError", "message": message})
        return int(getattr(error, "exit_code", USAGE))
    if os.environ.get("VITRAIL_DEBUG"):
        raise error
    kind = type(error).__name__
    text = str(error).strip() or "no further word"
    hint = "" if isinstance(error, OSError) else "\nThis looks like a fault of Vitrail itself."
    return _fail(f"{kind}: {text}{hint}\nSet VITRAIL_DEBUG=1 to see where it happened.", FAILURE, kind, as_json)


class _Terminated(BaseException):
    """SIGTERM came: unwind, so that files are closed and temporary ones removed, then leave with 143."""


@contextmanager
def _terminated_politely() -> Iterator[None]:
    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
