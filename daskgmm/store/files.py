"""One ``.npz`` file for a value, whole or not at all: a JSON header and plain arrays, never pickles."""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from daskgmm._typing import Array
from daskgmm.store.aside import aside
from daskgmm.store.places import locate
from daskgmm.store.values import pack, unpack


def save(place: str | os.PathLike[str], header: Mapping[str, Any], value: Any) -> None:
    """Replace the file at once: locally written aside, synced and renamed; on a URL one PUT."""
    arrays: dict[str, Array] = {}
    told = {**header, "value": pack(value, arrays, "value")}
    fs, path = locate(place)
    if not isinstance(fs, LocalFileSystem):
        buffer = io.BytesIO()
        _write(buffer, told, arrays)
        try:
            fs.pipe_file(path, buffer.getvalue())
        except OSError:
            raise
        except Exception as error:  # each store has its own, for what the network does
            raise OSError(f"{type(error).__name__}: {error}") from error
        return
    with aside(path) as new, open(new, "wb") as file:
        _write(file, told, arrays)
        file.flush()
        os.fsync(file.fileno())


def _write(file: Any, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)


def fetch(place: str | os.PathLike[str]) -> bytes:
    """The bytes of a file."""
    fs, path = locate(place)
    content: bytes = fs.cat_file(path)
    return content


def parse(content: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays in the bytes of a file; any exception where it is damaged."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("header"))), arrays


def value_of(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> Any:
    """The value that `save` was given."""
    return unpack(header["value"], arrays)
