"""Parquet in the Hugging Face layout: a column of encoded images, a column of labels, class names in the metadata.

Source: the `datasets` library's Image and ClassLabel features: image is struct{bytes, path} (or plain binary), label
an int whose names stand in the schema's ``huggingface`` metadata, or text. Files are ``train.parquet``,
``train-00000-of-00005.parquet``, the same below ``data/``, or ``train/0000.parquet``.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes import ClassMap
from vitrail.errors import DataError, require_extra

from .decode import read_image
from .imageset import printable
from .labels import Labels
from .layout import Layout, Part, class_map, listed
from .memory import available_bytes
from .multilabel import Labelled, read_lists
from .patterns import find_files, is_pattern
from .rowgroups import Group, GroupCache, GroupStore, cell_bytes, group_of, titled

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet",)
IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "category")


@dataclass(frozen=True)
class TableStore:
    """The image column of one split, as arrow chunks of encoded bytes: in memory, or mapped from a temporary file.

    ``group_starts`` are the rows at which row groups begin, then the end.
    """

    title: str
    folder: str
    chunks: list[pa.Array]
    paths: list[pa.Array | None]
    group_starts: list[int]
    holder: Any = field(default=None, repr=False)  # keeps the temporary folder of a mapped file alive

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", np.cumsum([0, *map(len, self.chunks)]).tolist())

    def _find(self, row: int) -> tuple[int, int]:
        starts: list[int] = self._starts  # type: ignore[attr-defined]
        chunk = bisect_right(starts, row) - 1
        return chunk, row - starts[chunk]

    def __len__(self) -> int:
        return self._starts[-1]  # type: ignore[attr-defined,no-any-return]

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each row's group, int64 (n,)."""
        return group_of(self.group_starts, rows)

    def _path(self, chunk: int, at: int) -> str | None:
        paths = self.paths[chunk]
        return None if paths is None else paths[at].as_py()

    def name(self, row: int) -> str:
        return titled(self.title, row, self._path(*self._find(row)))

    def path(self, row: int) -> None:
        return None

    def blob(self, row: int) -> bytes:
        chunk, at = self._find(row)
        return cell_bytes(self.chunks[chunk][at].as_py(), self._path(chunk, at), self.folder)

    def read(self, row: int) -> Tensor:
        return read_image(self.blob(row))


def read_parquet(source: str, sequential: bool = False, labels: str = "auto") -> Layout:
    """Read parquet: a file, a folder or a pattern.

    What memory does not hold is read by row group if reading will be nearly ``sequential``, else it is unpacked to a
    temporary file. Raises :class:`DataError` naming the columns or the labels that are wrong.
    ``labels``: a column of lists means several labels an image (``auto``); ``multi`` or ``single`` insist.
    """
    require_extra("pyarrow", "data", "reading parquet")
    shards = find_files(source, ENDINGS)
    if "train" not in shards:
        raise DataError(f"expected a train split in {printable(source)}, got only {listed(sorted(shards))}")
    names: list[str] | None = None
    stores: dict[str, TableStore | GroupStore] = {}
    columns: dict[str, list[Any]] = {}
    for split, paths in shards.items():
        stores[split], columns[split], found = _read_split(source, split, paths, sequential)
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


def _read_split(
    source: str, split: str, paths: list[str], sequential: bool
) -> tuple[TableStore | GroupStore, list[Any], list[str] | None]:
    import pyarrow.parquet as pq

    with _open(paths[0]) as first:
        schema = first.schema_arrow
    image_at = column_of(paths[0], schema.names, IMAGE_COLUMNS, "images")
    label_at = column_of(paths[0], schema.names, LABEL_COLUMNS, "labels")
    groups = [group for path in paths for group in _groups(path, image_at)]
    labels = [value for path in paths for value in pq.read_table(path, columns=[label_at])[label_at].to_pylist()]
    title = printable(os.path.relpath(paths[0], source)) if len(paths) == 1 and os.path.isdir(source) else split
    starts = np.cumsum([0, *(group.rows for group in groups)]).tolist()
    folder = os.path.dirname(paths[0])
    store: TableStore | GroupStore
    if sum(group.size for group in groups) < available_bytes() // 2:
        column = [chunk for path in paths for chunk in pq.read_table(path, columns=[image_at])[image_at].chunks]
        store = TableStore(title, folder, *encoded_images(column, image_at, paths[0]), starts)
    elif sequential:
        cache = GroupCache(groups, lambda group: _load(group, image_at))
        store = GroupStore(title, folder, starts, _paths(schema, paths, image_at), cache)
    else:
        holder, column = _spill(groups, image_at, paths)
        store = TableStore(title, folder, *encoded_images(column, image_at, paths[0]), starts, holder)
    return store, labels, _class_names(schema, label_at)


def _groups(path: str, column: str) -> list[Group]:
    """The row groups of one file, from its footer."""
    found = []
    with _open(path) as file:
        about = file.metadata
        ours = [c for c in range(about.num_columns) if about.schema.column(c).path.split(".")[0] == column]
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            size = sum(group.column(c).total_uncompressed_size for c in ours)
            found.append(Group(path, number, group.num_rows, size))
    return found


def _load(group: Group, column: str) -> pa.Array:
    """The encoded images of one row group."""
    import pyarrow as pa

    with _open(group.path) as file:
        table = file.read_row_group(group.number, columns=[column])
    blobs, _ = encoded_images(table[column].chunks, column, group.path)
    return blobs[0] if len(blobs) == 1 else pa.concat_arrays(blobs)


def _paths(schema: pa.Schema, paths: list[str], column: str) -> pa.ChunkedArray | None:
    """What all rows call their images, in their order; None where the column has no such field."""
    import pyarrow as pa

    kind = schema.field(column).type
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    found: list[pa.Array] = []
    for path in paths:
        with _open(path) as file:
            cells = file.read(columns=[f"{column}.path"])[column]  # of the struct this one field: the bytes stay put
        found += [chunk.flatten()[0].cast(pa.string()) for chunk in cells.chunks]
    return pa.chunked_array(found, pa.string())


def encoded_images(chunks: list[Any], column: str, path: str) -> tuple[list[pa.Array], list[pa.Array | None]]:
    """Part a column of images into encoded bytes and, where there are any, paths."""
    import pyarrow as pa

    blobs: list[pa.Array] = []
    names: list[pa.Array | None] = []
    for chunk in chunks:
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
                f"expected encoded images (binary, or struct{{bytes, path}}) in column {column!r} of "
                f"{printable(path)}, got {chunk.type}"
            )
    return blobs, names


def _open(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"expected a parquet file, got {printable(path)}: {str(error).splitlines()[0]}. mend: fetch it again"
        ) from None


def _spill(
    groups: list[Group], column: str, paths: list[str]
) -> tuple[tempfile.TemporaryDirectory[str], list[pa.Array]]:
    """Copy the column, a little at a time, to a temporary arrow file and map it: random access without the RAM."""
    import pyarrow as pa

    size, free = sum(group.size for group in groups), shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:
        raise DataError(
            f"expected {size / 2**30:.1f} GiB of free space in {tempfile.gettempdir()} to unpack images that memory "
            f"does not hold, got {free / 2**30:.1f} GiB. mend: TMPDIR=<a larger disk>; or --set data.window=16, which "
            "reads row groups as they come"
        )
    holder = tempfile.TemporaryDirectory(prefix="vitrail-")
    path = os.path.join(holder.name, "images.arrow")
    writer = None
    for source in paths:
        with _open(source) as file:
            for batch in file.iter_batches(batch_size=128, columns=[column]):
                writer = writer or pa.ipc.new_file(path, batch.schema)
                writer.write_batch(batch)
    if writer is None:
        return holder, []
    writer.close()
    return holder, pa.ipc.open_file(pa.memory_map(path)).read_all()[column].chunks


def column_of(path: str, names: list[str], known: tuple[str, ...], what: str) -> str:
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
    """True if the path is a parquet file, a pattern of such, or a folder that holds some."""
    if is_pattern(source) or os.path.isfile(source):
        return source.lower().endswith(ENDINGS)
    return bool(find_files(source, ENDINGS))
