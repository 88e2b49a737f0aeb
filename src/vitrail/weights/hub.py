"""Weights from the hub: only files of known names are fetched, and nothing touches the network unless asked.

``HF_HUB_OFFLINE=1`` and ``VITRAIL_OFFLINE=1`` use what the cache holds. Pickled weights (``.bin``, ``.pth``) and code
(``.py``) are never fetched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrail.errors import WeightsError, require_extra

from .source import HUB_PREFIX, is_hub_id

FILES = (
    "config.json",
    "preprocessor_config.json",
    "classes.json",
    "README.md",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""All that is ever fetched. Shards count only at the top of the repository."""


def offline() -> bool:
    """Whether the user forbade network access."""
    return any(
        os.environ.get(n, "").upper() in ("1", "TRUE", "YES", "ON") for n in ("VITRAIL_OFFLINE", "HF_HUB_OFFLINE")
    )


def repository_of(source: str) -> str:
    """Return ``org/name`` of a hub id, without prefix and revision."""
    return source.removeprefix(HUB_PREFIX).partition("@")[0]


def resolve(source: str) -> Path:
    """Return the local folder of ``hf-hub:org/name[@revision]``, fetched if the cache lacks it.

    The folder is named after the commit.

    Raises:
        UsageError: huggingface_hub is not installed.
        WeightsError: no such repository or revision, no access, no network, or no safetensors in it; each with the fix.
    """
    require_extra("huggingface_hub", "hub", f"loading {source}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    local = offline()
    try:
        with _quiet_unless_on_a_terminal():
            path = snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=list(FILES),
                local_files_only=local,
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
    except (OSError, HFValidationError, ValueError) as error:
        raise WeightsError(_explain(error, repository, revision, local)) from error
    folder = Path(path)
    if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{repository} has no config.json with safetensors weights. mend: if it has a .bin or .pth file, fetch that"
            " yourself and run `vitrail convert`, which reads it safely."
        )
    return folder


@contextmanager
def _quiet_unless_on_a_terminal() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _explain(error: Exception, repository: str, revision: str, local: bool) -> str:
    from huggingface_hub import errors

    where = f"{repository}@{revision}" if revision else repository
    if local and isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{where} is not in the cache, and HF_HUB_OFFLINE or VITRAIL_OFFLINE forbids the network."
            " mend: unset it, or fetch the model once on a machine with network and copy the cache (HF_HOME)."
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{where} is gated. mend: ask for access at the hub page of {repository}, then `hf auth login` (or set"
            " HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}. mend: check the name of the branch, tag or commit."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no repository {repository} on the hub, or it is private. mend: check the spelling; for a private one,"
            " `hf auth login` (or set HF_TOKEN). A local folder must exist to be taken for one."
        )
    if isinstance(error, errors.HFValidationError):
        return f"{repository!r} is not a hub id. mend: name it as {HUB_PREFIX}org/name."
    first = str(error).strip().partition("\n")[0]
    return (
        f"cannot fetch {where} ({type(error).__name__}: {first}). mend: check the network; with VITRAIL_OFFLINE=1 only"
        " the cache is used."
    )


__all__ = ["FILES", "is_hub_id", "offline", "repository_of", "resolve"]
