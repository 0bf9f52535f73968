"""What can be wrong with the shape and type of an input, in the words scikit-learn has for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskgmm.errors import DataError

_RESHAPE = (
    "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
    "or array.reshape(1, -1) if it contains a single sample."
)


def check_layout(array: Any, ensure_2d: bool) -> None:
    """Refuse a chunked array in the words scikit-learn has for the same array in memory."""
    shape = array.shape
    _check_dtype(np.dtype(array.dtype), array)
    if not shape or (ensure_2d and len(shape) == 1):
        rank = "1D" if shape else "scalar"
        raise DataError(f"Expected 2D array, got {rank} array instead:\narray={array}.\n{_RESHAPE}")
    if not ensure_2d:
        return
    if len(shape) > 2:
        raise DataError(f"Found array with dim {len(shape)}, while dim <= 2 is required.")
    for size, axis in ((shape[0], "sample"), (shape[1], "feature")):
        if size == 0:
            raise DataError(f"Found array with 0 {axis}(s) (shape={shape}) while a minimum of 1 is required.")


def _check_dtype(dtype: np.dtype[Any], array: Any) -> None:
    if dtype.kind == "c":
        raise DataError(f"Complex data not supported\n{array}\n")
    if dtype.kind in "USV":
        raise DataError(
            "dtype='numeric' is not compatible with arrays of bytes/strings."
            "Convert your data to numeric values explicitly instead."
        )
    if dtype.kind not in "biuf":
        raise DataError(
            f"dtype='numeric' is not compatible with arrays of dtype {dtype}. "
            "Convert your data to numeric values explicitly instead."
        )
