"""Parquet in the Hugging Face layout: a column of encoded images, a column of labels, class names in the metadata.

Source: the `datasets` library's Image and ClassLabel features: image is struct{bytes, path} (or plain binary), label
an int whose names stand in the schema's ``huggingface`` metadata, or text. Files are ``train.parquet``,
``train-00000-of-00005.parquet``, the same below ``data/``, or ``train/0000.parquet``.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import DataError, require_extra

from .decode import BrokenImage, open_regular, read_image
from .imageset import printable
from .labels import Labels
from .layout import SPLITS, Layout, Part, class_map, listed, split_of_file, split_word
from .memory import available_bytes
from .multilabel import Labelled, read_lists

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category")


@dataclass(frozen=True)
class TableStore:
    """The image column of one split, as arrow chunks of encoded bytes: in memory, or mapped from a temporary file."""

    title: str
    folder: str
    chunks: list[pa.Array]
    paths: list[pa.Array | None]
    holder: Any = field(default=None, repr=False)  # keeps the temporary folder of a mapped file alive

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", np.cumsum([0, *map(len, self.chunks)]).tolist())

    def _find(self, row: int) -> tuple[int, int]:
        starts: list[int] = self._starts  # type: ignore[attr-defined]
        chunk = bisect_right(starts, row) - 1
        return chunk, row - starts[chunk]

    def __len__(self) -> int:
        return self._starts[-1]  # type: ignore[attr-defined,no-any-return]

    def name(self, row: int) -> str:
        chunk, at = self._find(row)
        paths = self.paths[chunk]
        path = None if paths is None else paths[at].as_py()
        return f"{self.title}#{row}" + (f" ({printable(path)})" if path else "")

    def path(self, row: int) -> None:
        return None

    def blob(self, row: int) -> bytes:
        chunk, at = self._find(row)
        data: bytes | None = self.chunks[chunk][at].as_py()
        if data is not None:
            return data
        paths = self.paths[chunk]
        path = None if paths is None else paths[at].as_py()
        if not path:
            raise BrokenImage("missing", "the row holds neither bytes nor a path")
        with open_regular(os.path.join(self.folder, path)) as file:
            return file.read()

    def read(self, row: int) -> Tensor:
        return read_image(self.blob(row))


def find_shards(source: str) -> dict[str, list[str]]:
    """Return the parquet files of each split ({} if there is none): a file is all train, a folder goes by names."""
    if os.path.isfile(source):
        return {"train": [source]}
    shards: dict[str, list[str]] = {}
    for folder in (source, os.path.join(source, "data")):
        for path in _parquet_in(folder):
            shards.setdefault(split_of_file(Path(path).stem) or "", []).append(path)
        if shards:
            break
    else:
        for name in sorted(os.listdir(source)):
            split = split_word(name)
            files = _parquet_in(os.path.join(source, name)) if split else []
            if split and files:
                shards[split] = files
    if set(shards) == {""}:
        return {"train": shards[""]}
    if "" in shards:
        raise DataError(
            f"expected parquet files named after train, val or test in {printable(source)}, "
            f"got also {listed([os.path.basename(p) for p in shards['']])}. mend: rename or move them"
        )
    return {split: shards[split] for split in SPLITS if split in shards}


def _parquet_in(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    names = (n for n in os.listdir(folder) if n.lower().endswith(".parquet") and not n.startswith("."))
    return [os.path.join(folder, name) for name in sorted(names, key=os.fsencode)]


def read_parquet(source: str, labels: str = "auto") -> Layout:
    """Read a parquet file or folder. Raises :class:`DataError` naming the columns or the labels that are wrong.

    ``labels``: a column of lists means several labels an image (``auto``); ``multi`` or ``single`` insist.
    """
    require_extra("pyarrow", "data", "reading parquet")
    shards = find_shards(source)
    if "train" not in shards:
        raise DataError(f"expected a train split in {printable(source)}, got only {listed(sorted(shards))}")
    names: list[str] | None = None
    stores: dict[str, TableStore] = {}
    columns: dict[str, list[Any]] = {}
    for split, paths in shards.items():
        stores[split], columns[split], found = _read_split(source, split, paths)
        if names is not None and found is not None and names != found:
            raise DataError(
                f"expected the same class names in every split of {printable(source)}, got others in {split}"
            )
        names = names or found
    several = any(isinstance(value, list) for values in columns.values() for value in values)
    if labels == "multi" or (several and labels == "auto"):
        known = read_lists(printable(source), names, columns)
    else:
        known = Labelled(*_labels(source, names, columns), [])
    parts = {split: Part(stores[split], known.labels[split]) for split in shards}
    return Layout("parquet", source, parts, known.classes, notes=known.notes)


def _read_split(source: str, split: str, paths: list[str]) -> tuple[TableStore, list[Any], list[str] | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [_open(path) for path in paths]
    schema = files[0].schema_arrow
    image_at = _column(paths[0], schema.names, IMAGE_COLUMNS, "images")
    label_at = _column(paths[0], schema.names, LABEL_COLUMNS, "labels")
    size = sum(
        file.metadata.row_group(g).column(c).total_uncompressed_size
        for file in files
        for g in range(file.metadata.num_row_groups)
        for c in range(file.metadata.num_columns)
        if file.metadata.schema.column(c).path.split(".")[0] == image_at
    )
    labels = [value for path in paths for value in pq.read_table(path, columns=[label_at])[label_at].to_pylist()]
    holder = None
    if size < available_bytes() // 2:
        image = [chunk for path in paths for chunk in pq.read_table(path, columns=[image_at])[image_at].chunks]
    else:
        holder, image = _spill(files, image_at)
    blobs: list[pa.Array] = []
    names: list[pa.Array | None] = []
    for chunk in image:
        if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("bytes") >= 0:
            # field() would forget that a row may be null as a whole; flatten() does not.
            fields = dict(zip((f.name for f in chunk.type), chunk.flatten(), strict=True))
            blobs.append(fields["bytes"])
            names.append(fields.get("path"))
        elif pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
            blobs.append(chunk)
            names.append(None)
        else:
            raise DataError(
                f"expected encoded images (binary, or struct{{bytes, path}}) in column {image_at!r} of "
                f"{printable(paths[0])}, got {chunk.type}"
            )
    title = os.path.relpath(paths[0], source) if len(paths) == 1 and os.path.isdir(source) else split
    store = TableStore(printable(title if title != split else split), os.path.dirname(paths[0]), blobs, names, holder)
    return store, labels, _class_names(schema, label_at)


def _open(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"expected a parquet file, got {printable(path)}: {str(error).splitlines()[0]}. mend: fetch it again"
        ) from None


def _spill(files: list[Any], column: str) -> tuple[tempfile.TemporaryDirectory[str], list[pa.Array]]:
    """Copy the column, row group by row group, to a temporary arrow file and map it: random access without the RAM."""
    import pyarrow as pa

    holder = tempfile.TemporaryDirectory(prefix="vitrail-")
    path = os.path.join(holder.name, "images.arrow")
    writer = None
    for file in files:
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            writer = writer or pa.ipc.new_file(path, batch.schema)
            writer.write_batch(batch)
    if writer is None:
        return holder, []
    writer.close()
    return holder, pa.ipc.open_file(pa.memory_map(path)).read_all()[column].chunks


def _column(path: str, names: list[str], known: tuple[str, ...], what: str) -> str:
    for name in known:
        for found in names:
            if found.casefold() == name:
                return found
    raise DataError(
        f"expected a column of {what} in {printable(path)} (one of: {', '.join(known)}), "
        f"got the columns {listed(names, 12)}. mend: rename the column"
    )


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names of a ClassLabel (or of a list of them) in the ``huggingface`` metadata, or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        while not (isinstance(feature, dict) and "names" in feature):  # a list of classes wraps the class
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    if isinstance(names, dict):  # older files: {"0": "cat"}
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names]


def _labels(source: str, names: list[str] | None, columns: dict[str, list[Any]]) -> tuple[ClassMap, dict[str, Labels]]:
    shown = printable(source)
    for split, values in columns.items():
        wrong = next((i for i, v in enumerate(values) if not isinstance(v, (int, str)) or isinstance(v, bool)), None)
        if wrong is not None:
            raise DataError(
                f"expected one whole number or text as label, got {values[wrong]!r} in row {wrong} of {split} ({shown})"
            )
        if names is not None:
            wrong = next((i for i, v in enumerate(values) if not isinstance(v, int) or not 0 <= v < len(names)), None)
            if wrong is not None:
                raise DataError(
                    f"expected labels 0..{len(names) - 1} (the class names of {shown}), got {values[wrong]!r} in row "
                    f"{wrong} of {split}. mend: a label of -1 means 'unlabelled': leave that split out"
                )
    if names is not None:
        return ClassMap.of(names), {s: np.asarray(v, dtype=np.int64) for s, v in columns.items()}
    classes = class_map(str(v) for values in columns.values() for v in values)
    index = {source_id: i for i, source_id in enumerate(classes.ids)}
    return classes, {s: np.asarray([index[str(v)] for v in values], dtype=np.int64) for s, values in columns.items()}


def is_parquet(source: str) -> bool:
    """True if the path is a parquet file or a folder that holds some."""
    if os.path.isfile(source):
        return re.search(r"\.parquet$", source, re.IGNORECASE) is not None
    return bool(find_shards(source))
