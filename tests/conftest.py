"""What every test shares: no network, and small real images made on the spot."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Tests are small: one thread each is faster than two, and several pytest processes do not fight for the cores. This
# stands before torch is first imported, and the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests run as on a user's machine that never said yes to anything.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
for _name in [name for name in os.environ if name.startswith("VITRAIL_")]:
    del os.environ[_name]

LOOPBACK = {"localhost", "127.0.0.1", "::1", ""}


class NetworkTouched(AssertionError):
    """A test tried to leave this machine."""


def _host_of(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""  # a str or bytes is a unix socket


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every name look-up and connection that leaves the loopback address, in every test."""
    patch = pytest.MonkeyPatch()
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def checked(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, address: Any) -> Any:
            if _host_of(address) not in LOOPBACK:
                raise NetworkTouched(f"a test tried to connect to {address}")
            return method(self, address)

        return call

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else (host or "")
        if name not in LOOPBACK:
            raise NetworkTouched(f"a test tried to look up {name!r}")
        return getaddrinfo(host, *args, **kwargs)

    patch.setattr(socket.socket, "connect", checked(connect))
    patch.setattr(socket.socket, "connect_ex", checked(connect_ex))
    patch.setattr(socket, "getaddrinfo", look_up)
    yield
    patch.undo()


def stripes(rng: np.random.Generator, label: int, size: int = 24) -> np.ndarray:
    """Return one (size, size, 3) uint8 picture whose class a small model learns in seconds.

    Class 0 has horizontal stripes, class 1 vertical, class 2 both; colour, phase and noise vary.
    """
    y, x = np.mgrid[:size, :size]
    phase = rng.integers(0, 6)
    waves = [np.sin((y + phase) * 1.1), np.sin((x + phase) * 1.1), np.sin((x + phase) * 1.1) * np.sin(y * 1.1)]
    grey = 127 + 80 * waves[label % 3]
    tint = rng.uniform(0.6, 1.0, size=3)
    noisy = grey[..., None] * tint + rng.normal(0, 8, (size, size, 3))
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def photo_folder() -> Callable[..., Path]:
    """Return ``make(root, classes=("across", "down"), each=8, splits=None)``: a class-per-folder data set."""

    def make(
        root: Path, classes: tuple[str, ...] = ("across", "down"), each: int = 8, splits: dict[str, int] | None = None
    ) -> Path:
        rng = np.random.default_rng(0)
        for split, count in (splits or {"": each}).items():
            for label, name in enumerate(classes):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    Image.fromarray(stripes(rng, label)).save(folder / f"{i:03d}.png")
        return root

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, photo_folder: Callable[..., Path]) -> Path:
    """Return a read-only data set of two classes with train, val and test folders."""
    root = tmp_path_factory.mktemp("data") / "photos"
    return photo_folder(root, splits={"train": 12, "val": 4, "test": 4})
