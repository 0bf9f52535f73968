"""Small frozen values in one ``.npz`` file, whole or not at all: a JSON header and plain arrays, never pickles."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from daskgmm._typing import Array
from daskgmm.errors import CheckpointError, CollapseError
from daskgmm.fit.run import Run
from daskgmm.fit.stepwise import Spread, Stepwise
from daskgmm.fit.survey import RowSample, Survey
from daskgmm.model.covariance import STRUCTURES
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics

# What a file may hold, by name: nothing else is ever built from one.
TYPES: dict[str, type[Any]] = {
    c.__name__: c for c in (Run, Mixture, Statistics, Survey, RowSample, Stepwise, Spread)
}
TYPES |= {c.__name__: c for c in STRUCTURES.values()}


def locate(place: str | os.PathLike[str]) -> tuple[Any, str]:
    """File system and path of a local path or an fsspec URL; `CheckpointError` where there is no such system."""
    name = os.fspath(place)
    if "://" not in name:
        return LocalFileSystem(), os.path.abspath(name)
    try:
        fs, path = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:  # not installed, or not known
        raise CheckpointError(f"{name} cannot be reached: {error}") from error
    return fs, path


def write(place: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Replace the file at once: locally written aside, synced and renamed; on a URL one PUT."""
    fs, path = locate(place)
    text = np.array(json.dumps(header))
    if not isinstance(fs, LocalFileSystem):
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, header=text, **arrays)
        try:
            fs.pipe_file(path, buffer.getvalue())
        except OSError:
            raise
        except Exception as error:  # each store has its own, for what the network does
            raise OSError(f"{type(error).__name__}: {error}") from error
        return
    aside = Path(f"{path}.partial")
    try:
        with aside.open("wb") as file:
            np.savez(file, allow_pickle=False, header=text, **arrays)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(aside.parent)


def read(place: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Header and arrays of a file; `ValueError` or `KeyError`, among others, where it is damaged."""
    return parse(fetch(place))


def fetch(place: str | os.PathLike[str]) -> bytes:
    """The bytes of a file."""
    fs, path = locate(place)
    content: bytes = fs.cat_file(path)
    return content


def parse(content: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """What `read` finds in the bytes of a file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("header"))), arrays


def pack(value: Any, arrays: dict[str, Array]) -> Any:
    """``value`` as JSON; its arrays go into ``arrays``. `unpack` is the inverse, bit for bit."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, tuple):
        return {"tuple": [pack(entry, arrays) for entry in value]}
    if isinstance(value, dict):
        return {"dict": {name: pack(entry, arrays) for name, entry in value.items()}}
    if isinstance(value, type) and value in TYPES.values():
        return {"class": value.__name__}
    if isinstance(value, CollapseError):
        return {"collapse": [str(value), value.component]}
    if is_dataclass(value) and type(value) in TYPES.values():
        parts = {f.name: pack(getattr(value, f.name), arrays) for f in fields(value) if f.init}
        return {"value": type(value).__name__, "parts": parts}
    raise TypeError(f"{type(value).__name__} cannot be written.")


def unpack(packed: Any, arrays: Mapping[str, Array]) -> Any:
    """The value that `pack` took apart."""
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return arrays[packed["array"]]
    if "tuple" in packed:
        return tuple(unpack(entry, arrays) for entry in packed["tuple"])
    if "dict" in packed:
        return {name: unpack(entry, arrays) for name, entry in packed["dict"].items()}
    if "class" in packed:
        return TYPES[packed["class"]]
    if "collapse" in packed:
        return CollapseError(*packed["collapse"])
    parts = {name: unpack(entry, arrays) for name, entry in packed["parts"].items()}
    return TYPES[packed["value"]](**parts)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last, where the system lets a folder be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
