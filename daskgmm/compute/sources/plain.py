"""What a chunk of any kind holds, as a plain NumPy array: what is masked, null or NA is NaN there."""

from typing import Any

import numpy as np
from sklearn.utils import check_array

from daskgmm._typing import Array
from daskgmm.compute.sources.base import library
from daskgmm.errors import DataError

# The methods of a column that tell what is missing, and leave it out.
FRAMES = {
    "pandas": ("isna", "dropna"),
    "polars": ("is_null", "drop_nulls"),
    "pyarrow": ("is_null", "drop_null"),
}


def plain(chunk: Any) -> Array:
    """The numbers of a chunk; integers become float64 where some are missing."""
    if type(chunk) is np.ndarray:
        return chunk
    if library(chunk, FRAMES) is not None:
        chunk = numbers(chunk)
    if not np.ma.is_masked(chunk):
        return np.asarray(chunk)
    floats: Any = chunk if chunk.dtype.kind == "f" else chunk.astype(np.float64)
    return np.asarray(floats.filled(np.nan))


def joined(_: int, part: Any) -> Array:
    """A chunk that the graph hands over; its columns in one."""
    return np.hstack([plain(chunk) for chunk in part]) if isinstance(part, list) else plain(part)


def numbers(value: Any, name: str = "X") -> Array:
    """A data frame as scikit-learn makes it an array; of a single column, missing integers are masked.

    `DataError` names the columns that hold anything but numbers.
    """
    if not hasattr(value, "__array__"):
        verb = next((verb for verb in ("collect", "read_all", "to_table") if hasattr(value, verb)), None)
        remedy = f": call .{verb}() on it" if verb else ", which is no table"
        raise DataError(f"{name} is a {type(value).__name__} of {library(value, FRAMES)}{remedy}.")
    try:
        return _table(value) if hasattr(value, "columns") else _column(value)
    except (TypeError, ValueError) as error:
        raise DataError(_blamed(value, name)) from error


def _table(frame: Any) -> Array:
    sparse = any(type(dtype).__name__ == "SparseDtype" for dtype in getattr(frame, "dtypes", ()))
    return _checked(frame if library(frame, FRAMES) == "pandas" and not sparse else np.asarray(frame))


def _column(column: Any) -> Array:
    if isinstance(getattr(column, "dtype", None), np.dtype):
        return _checked(np.asarray(column))
    missing, there = (getattr(column, method)() for method in FRAMES[library(column, FRAMES) or ""])
    held, missing = _checked(np.asarray(there)), np.asarray(missing)
    if not missing.any():
        return held
    whole = np.zeros(len(missing), held.dtype)
    whole[~missing] = held
    return np.ma.MaskedArray(whole, missing)


def _checked(value: Any) -> Array:
    """Numbers as scikit-learn takes them: text and objects that stand for numbers, too."""
    found: Array = check_array(
        value, ensure_all_finite=False, ensure_2d=False, allow_nd=True, ensure_min_samples=0
    )
    if found.dtype.kind == "O":
        found = found.astype(np.float64)
    if found.dtype.kind not in "biufc":
        raise TypeError(f"dtype='numeric' is not compatible with arrays of dtype {found.dtype}.")
    return found


def _blamed(frame: Any, name: str) -> str:
    """Say which columns hold no numbers."""
    if not hasattr(frame, "columns"):
        return f"{name} has to hold numbers; it is of type {getattr(frame, 'dtype', None) or frame.type}."
    select = getattr(type(frame), "select", None) or type(frame).__getitem__
    bad = []
    for column in getattr(frame, "column_names", frame.columns):
        try:
            _table(select(frame, [column]))
        except (TypeError, ValueError):
            bad.append(repr(column))
    return f"{name} has columns that hold no numbers: {', '.join(bad)}. Leave them out, or convert them."
