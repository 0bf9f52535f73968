"""Parquet, files or folders of them: whole row groups are read at once, of the columns that are wanted.

Not through Dask's data frames, which do not know how many rows they have: what goes with the rows would have to
come in the same partitions, and ``block_size`` would mean nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
from dask.utils import natural_sort_key
from fsspec.implementations.local import LocalFileSystem

from daskgmm._typing import Array
from daskgmm.compute.sources.base import Asked, Facts, Source
from daskgmm.compute.sources.files import Handle, Layout, needed, source_of
from daskgmm.compute.sources.paths import FOLDERS, Place, refuse_missing
from daskgmm.errors import DataError


class RowGroup(NamedTuple):
    """Rows that are stored together."""

    path: str
    number: int  # in its file
    n_rows: int


def opened(place: Place, asked: Asked) -> Source:
    """The columns of a file or folder, or those that are asked for; nothing but footers is read."""
    wanted = (place.inside,) if place.inside else asked.variables
    flat = bool(place.inside) and not asked.ensure_2d
    table = Table(place, wanted, flat)
    source = source_of(table, asked)
    return source if flat else replace(source, names=tuple(source.layout.attributes["columns"]))


@dataclass(frozen=True)
class Table(Handle):
    """Columns of the files at a place."""

    place: Place
    wanted: Sequence[str] | None
    flat: bool  # whether it is one column, and has one axis

    def __str__(self) -> str:
        return str(self.place)

    def look(self) -> Layout:
        found: list[tuple[dict[str, np.dtype[Any]], list[RowGroup]]] = []
        largest = 0
        for path in self._files():
            with self._file(path) as file:
                sizes = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
                columns = self._columns(file)
                groups = [RowGroup(path, i, size.num_rows) for i, size in enumerate(sizes)]
                found.append((columns, groups))
                largest = max([largest, *(size.total_byte_size for size in sizes)])
        columns = found[0][0]
        for other, _ in found:
            if list(other) != list(columns):
                raise DataError(f"{self}: the files differ in columns: {list(columns)}, {list(other)}.")
        dtype = np.result_type(*(dtype for other, _ in found for dtype in other.values()))
        groups = [group for _, some in found for group in some]
        runs = tuple(group.n_rows for group in groups)
        shape = (sum(runs),) if self.flat else (sum(runs), len(columns))
        return Layout(shape, dtype, 1, largest, {"columns": list(columns), "groups": groups}, runs)

    def facts(self, layout: Layout) -> Facts:
        names, paths = set(layout.attributes["columns"]), self._files()
        codecs: set[str] = set()
        n_bytes = 0
        for path in paths:
            with self._file(path) as file:
                for group in map(file.metadata.row_group, range(file.num_row_groups)):
                    wanted = [c for c in map(group.column, range(group.num_columns)) if c.path_in_schema in names]
                    n_bytes += sum(column.total_compressed_size for column in wanted)
                    codecs |= {column.compression.lower() for column in wanted} - {"uncompressed"}
        kind = f"row groups of {len(paths)} Parquet file{'s' * (len(paths) > 1)}"
        return Facts(kind, tuple(sorted(codecs)), None, len(layout.runs), stored_bytes=n_bytes)

    def read(self, layout: Layout, rows: slice, out: Array) -> None:
        out, names = out.reshape(len(out), -1), layout.attributes["columns"]
        ends = list(accumulate(layout.runs))
        under = [
            (group, last)
            for group, last in zip(layout.attributes["groups"], ends, strict=True)
            if last > rows.start and last - group.n_rows < rows.stop
        ]
        first = under[0][1] - under[0][0].n_rows
        for path, some in groupby((group for group, _ in under), key=lambda group: group.path):
            groups = list(some)
            with self._file(path) as file:
                table = file.read_row_groups([g.number for g in groups], columns=names, use_threads=False)
            if len(table) != sum(group.n_rows for group in groups):
                raise DataError(f"{path} was changed in the meantime.")
            lo, hi = max(rows.start, first), min(rows.stop, first + len(table))
            for j, name in enumerate(names):
                column = table.column(name).slice(lo - first, hi - lo)
                out[lo - rows.start : hi - rows.start, j] = _numbers(column)
            first += len(table)

    def _files(self) -> list[str]:
        """The files at the place, in the order of their names and of the numbers in these."""
        fs, path = self.place.on_disk()
        if not fs.exists(path):
            refuse_missing(self.place)
        if fs.isfile(path):
            return [path]
        found = [name for name in fs.find(path) if not name.rpartition("/")[2].startswith(("_", "."))]
        parts = [name for name in found if name.lower().endswith(FOLDERS)]
        if not parts:
            raise DataError(f"{self} holds no {', '.join(FOLDERS)} file.")
        if any("=" in name.removeprefix(path).rpartition("/")[0] for name in parts):
            raise DataError(
                f"{self} is partitioned: names of folders are values of columns. Open it with "
                "dask.dataframe.read_parquet, and give the frame, without or with these columns as numbers."
            )
        return sorted(parts, key=natural_sort_key)

    @contextmanager
    def _file(self, path: str) -> Iterator[Any]:
        library = needed("pyarrow.parquet", "parquet", self.place)
        fs, _ = self.place.on_disk()
        with ExitStack() as held:
            source = path if isinstance(fs, LocalFileSystem) else held.enter_context(fs.open(path, "rb"))
            yield held.enter_context(library.ParquetFile(source))

    def _columns(self, file: Any) -> dict[str, np.dtype[Any]]:
        """The types of the columns that are read; those that hold an index of pandas are none."""
        schema = file.schema_arrow
        index = (schema.pandas_metadata or {}).get("index_columns", ())
        names = [name for name in schema.names if name not in index] if self.wanted is None else list(self.wanted)
        if missing := [name for name in names if schema.names.count(name) != 1]:
            raise DataError(f"{self} has no one column {missing[0]!r}. Its columns are: {_listed(schema)}.")
        nullable = _nullable(file.metadata)
        types = {name: _dtype(schema.field(name).type, name in nullable) for name in names}
        if wrong := [name for name, dtype in types.items() if dtype is None]:
            numbers = [name for name, dtype in types.items() if dtype is not None]
            raise DataError(
                f"Column {wrong[0]!r} of {self} is {schema.field(wrong[0]).type}, no number. To leave it out, "
                f"name the others: variables={numbers}."
            )
        return {name: dtype for name, dtype in types.items() if dtype is not None}


def _dtype(kind: Any, nullable: bool) -> np.dtype[Any] | None:
    """What NumPy holds the numbers of an Arrow type in, NaN for null; None where it has no numbers."""
    if str(kind).startswith("decimal"):
        return np.dtype(float)
    try:
        dtype = np.dtype(kind.to_pandas_dtype())
    except NotImplementedError:
        return None
    if dtype.kind not in "biuf":
        return None
    return np.dtype(float) if nullable and dtype.kind != "f" else dtype


def _nullable(metadata: Any) -> set[str]:
    """Columns of which a row group has nulls, or does not say that it has none."""
    found = set()
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    for group in (group for group in groups if group.num_rows):  # others say nothing
        for column in (group.column(i) for i in range(group.num_columns)):
            told = column.statistics
            if told is None or not told.has_null_count or told.null_count:
                found.add(column.path_in_schema)
    return found


def _numbers(column: Any) -> Array:
    """The values of a column, NaN for null."""
    kind = str(column.type)
    values: Array = (column.cast("float64") if kind == "bool" or kind.startswith("decimal") else column).to_numpy()
    return values


def _listed(schema: Any) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in zip(schema.names, schema.types, strict=True))
