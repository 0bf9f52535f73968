"""NumPy's own files, ``.npy``: rows are read from where they lie."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.sources.base import Asked, Facts
from daskgmm.compute.sources.files import Filed, Handle, Layout, source_of
from daskgmm.compute.sources.paths import Place, refuse_no_file
from daskgmm.errors import DataError

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def opened(place: Place, asked: Asked) -> Filed:
    """The array in a file, of which nothing but the header is read."""
    return source_of(Npy(place), asked)


@dataclass(frozen=True)
class Npy(Handle):
    """A file, opened for each block."""

    place: Place

    def __str__(self) -> str:
        return str(self.place)

    def look(self) -> Layout:
        with self._file() as file:
            shape, _, dtype = self._header(file)
        return Layout(shape, dtype)

    def facts(self, layout: Layout) -> Facts:
        n_bytes = math.prod(layout.shape) * layout.dtype.itemsize
        return Facts("NumPy file", stored_bytes=n_bytes, checksums=False)

    def read(self, layout: Layout, rows: slice, out: Array) -> None:
        with self._file() as file:
            shape, by_columns, _ = self._header(file)
            first, width = file.tell(), out[:1].size
            if not by_columns or width == 1:
                file.seek(first + rows.start * out[:1].nbytes)
                self._fill(file, out)
                return
            # Columns one after the other, the first axis running fastest.
            part = np.empty(len(out), out.dtype)
            columns = out.reshape(len(out), *shape[1:]).transpose(0, *range(out.ndim - 1, 0, -1))
            for column, where in enumerate(np.ndindex(columns.shape[1:])):
                file.seek(first + (column * shape[0] + rows.start) * out.itemsize)
                self._fill(file, part)
                columns[(slice(None), *where)] = part

    def _file(self) -> Any:
        refuse_no_file(self.place)
        fs, path = self.place.on_disk()
        return fs.open(path, "rb")

    def _header(self, file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise DataError(f"{self.place} has version {version} of the format, which no plain array needs.")
        shape, by_columns, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise DataError(f"{self.place} holds pickled objects, which are not read.")
        self._check_size(file, math.prod(shape) * dtype.itemsize)
        return shape, by_columns, dtype

    def _check_size(self, file: Any, n_bytes: int) -> None:
        first = file.tell()
        there = file.seek(0, 2) - first
        file.seek(first)
        if there < n_bytes:
            raise DataError(f"{self.place} is cut off: it has {there} of {n_bytes} bytes.")

    def _fill(self, file: Any, out: Array) -> None:
        if file.readinto(out.view(np.uint8).data.cast("B")) != out.nbytes:
            raise DataError(f"{self.place} is cut off.")
