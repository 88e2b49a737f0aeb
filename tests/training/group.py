"""Runs an action in several forked processes that form one world, as torchrun would, without its start-up time."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitrail.errors import VitrailError


@dataclass
class Ended:
    """How each process ended: exit codes (minus a signal), what they returned, and the errors they died of."""

    codes: list[int]
    values: list[Any]
    errors: list[str]


def run_group(
    action: Callable[[], Any],
    count: int = 2,
    *,
    kill_after: float | None = None,
    victims: Sequence[int] | None = None,
    nodes: int = 1,
    restarts: int = 0,
) -> Ended:
    """Run ``action`` in ``count`` processes on ``nodes`` imagined machines; ``victims`` (or all) are killed then."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        children = [_fork(action, rank, count, nodes, port, restarts, Path(folder)) for rank in range(count)]
        if kill_after is not None:
            time.sleep(kill_after)
            for rank in range(count) if victims is None else victims:
                os.kill(children[rank], signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        found = [_read(Path(folder) / str(rank)) for rank in range(count)]
    return Ended(codes, [f.get("value") for f in found], [f.get("error", "") for f in found])


def _fork(action: Callable[[], Any], rank: int, count: int, nodes: int, port: int, restarts: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    local = count // nodes
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank % local), "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        found, code = {"value": action()}, 0
    except VitrailError as error:
        found, code = {"error": f"{type(error).__name__}: {error}"}, error.exit_code
    except BaseException:
        found, code = {"error": traceback.format_exc()}, 9
    (folder / str(rank)).write_text(json.dumps(found))
    sys.stderr.flush()
    os._exit(code)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
