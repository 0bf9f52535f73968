"""One ``.npz`` file for a value, whole or not at all: a JSON header and plain arrays, never pickles.

The header comes first and holds the digests of the arrays, and one of its own. A reader trusts no file: it judges
the header before it looks at an array, and holds no more than what the file itself has bytes for.
"""

import errno
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.lib import format as npy

from daskgmm._typing import Array
from daskgmm.compute.block import array_digest
from daskgmm.errors import DataError
from daskgmm.store.aside import aside
from daskgmm.store.places import Place, locate
from daskgmm.store.values import json_digest, pack, restored

Header: TypeAlias = dict[str, Any]

MODEL, CHECKPOINT = "daskgmm", "daskgmm checkpoint"  # formats, as headers name them
MODEL_VERSION = 2

# Of a header, and of the list of members: both become up to ten times as much in memory.
MOST_BYTES = 2**24
END_BYTES = 2**17  # the end of an archive, its longest comment included


class Damaged(Exception):
    """A file that `save` did not write, or that was changed since."""


def save(place: Place, header: Mapping[str, Any], value: Any) -> None:
    """Replace the file at once: locally written aside, synced and renamed; on a URL one PUT."""
    arrays: dict[str, Array] = {}
    whole = sealed({**header, "value": pack(value, arrays, "value")}, arrays)
    fs, path = locate(place)
    if not isinstance(fs, LocalFileSystem):
        buffer = io.BytesIO()
        _write(buffer, whole, arrays)
        try:
            fs.pipe_file(path, buffer.getvalue())
        except OSError:
            raise
        except Exception as error:  # each store has its own, for what the network does
            raise OSError(f"{type(error).__name__}: {error}") from error
        return
    with aside(path) as new, open(new, "wb") as file:
        _write(file, whole, arrays)
        file.flush()
        os.fsync(file.fileno())


def sealed(header: Header, arrays: Mapping[str, Array]) -> Header:
    """A header with the digests of the arrays that go with it, and its own."""
    told = {**header, "arrays": {name: array_digest(values) for name, values in arrays.items()}}
    return {**told, "digest": json_digest(told)}


def _write(file: Any, header: Header, arrays: Mapping[str, Array]) -> None:
    told = np.array(json.dumps(header))
    if told.nbytes > MOST_BYTES:
        raise OSError(
            errno.EFBIG, f"It has too many parts: they take {told.nbytes} bytes, of {MOST_BYTES} at most"
        )
    np.savez(file, allow_pickle=False, header=told, **arrays)


def header_of(place: Place) -> Header:
    """The header of a file, whatever else it holds; errors are those of `read`."""
    with _opened(place) as archive:
        return _header(archive)


def read(place: Place, judge: Callable[[Header], bool]) -> tuple[Header, dict[str, Array]]:
    """Header and arrays of a file.

    ``judge`` gets the header before an array is read. It raises a `DataError` for what it has against it, and says
    whether a file of this version has digests.

    Raises
    ------
    Damaged
        If `save` did not write it so.
    OSError
        If it is not there, or cannot be read: in the system's own words.
    """
    with _opened(place) as archive:
        header = _header(archive)
        signed = judge(header)
        names = [name.removesuffix(".npy") for name in archive.namelist() if name != "header.npy"]
        if signed:
            told = {name: value for name, value in header.items() if name != "digest"}
            if header["digest"] != json_digest(told) or sorted(names) != sorted(header["arrays"]):
                raise Damaged("The header was changed.")
        arrays = {name: _array(archive, name) for name in names}
        if signed and any(array_digest(array) != header["arrays"][name] for name, array in arrays.items()):
            raise Damaged("An array was changed.")
    return header, arrays


def value_of(header: Header, arrays: Mapping[str, Array], kind: Any = Any) -> Any:
    """The value that `save` was given, of a kind as annotations say it; `Damaged` where there is none."""
    try:
        return restored(header["value"], arrays, kind)
    except MemoryError:
        raise
    except Exception as error:  # whatever a value that cannot be may raise
        raise Damaged(str(error)) from error


@contextmanager
def _opened(place: Place) -> Iterator[zipfile.ZipFile]:
    """The archive, whose members are not compressed and have room in the file; nothing but files is waited for."""
    fs, path = locate(place)
    local = isinstance(fs, LocalFileSystem)
    if local and not stat.S_ISREG(mode := os.stat(path).st_mode):
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise Damaged("It is a device or a pipe.")
    try:
        file = (Path(path).open if local else partial(fs.open, path))("rb")
    except OSError:
        raise
    except Exception as error:  # each store has its own
        raise OSError(f"{type(error).__name__}: {error}") from error
    try:
        with file, zipfile.ZipFile(_Sips(file)) as archive:
            members = archive.infolist()
            if (
                len({member.filename for member in members}) < len(members)
                or any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members)
                or sum(m.file_size for m in members) > file.seek(0, os.SEEK_END)
            ):
                raise Damaged("Its members are not as they were written.")
            yield archive
    except (Damaged, DataError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged archive may raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a place before the beginning
            raise
        raise Damaged(str(error)) from error


class _Sips:
    """A file of which no more than `MOST_BYTES` are read at once, whatever an archive says of its size."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, n: int = -1) -> Any:
        if n > MOST_BYTES:
            raise Damaged(f"{n} bytes are no part of such a file.")
        return self.file.read(n if n >= 0 else END_BYTES)


def _header(archive: zipfile.ZipFile) -> Header:
    if archive.getinfo("header.npy").file_size > MOST_BYTES:
        raise Damaged("The header is too large.")
    header = json.loads(_array(archive, "header").item())
    if not isinstance(header, dict):
        raise Damaged("The header is no table.")
    return header


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    """A member, whose size has to be what it says of itself before room is made for it."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        if npy.read_magic(file) != (1, 0):
            raise Damaged("An array is in a format that is not written.")
        shape, _, dtype = npy.read_array_header_1_0(file)
        size = file.tell() + dtype.itemsize * math.prod(shape)
        if dtype.hasobject or not dtype.itemsize or size != member.file_size:
            raise Damaged("An array is not of the size that it says.")
    with archive.open(member) as file:
        array: Array = npy.read_array(file, allow_pickle=False)
    return array
