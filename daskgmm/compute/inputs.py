"""Recognise what the user passed, and open it as a source of rows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import dask.array as da
import numpy as np
import zarr
from sklearn.utils import check_array
from zarr.errors import NodeNotFoundError

from daskgmm._typing import Array
from daskgmm.compute.sources import Delayed, InMemory, Source, stored
from daskgmm.errors import DataError

Location: TypeAlias = str | os.PathLike[str]

_RESHAPE = (
    "Reshape your data either using array.reshape(-1, 1) if your data has a single feature "
    "or array.reshape(1, -1) if it contains a single sample."
)


def as_source(value: Any, *, name: str, fill_missing: bool, ensure_2d: bool) -> Source:
    """Open any supported array as a source, without reading chunked data."""
    if isinstance(value, (str, os.PathLike)):
        value = open_array(value)
    elif isinstance(value, zarr.Group):
        _refuse_group(value)
    elif _library(value) == "xarray":
        value = _inside_xarray(value, name, ensure_2d)
    elif hasattr(value, "to_dask_array"):  # Dask data frames and series
        value = value.to_dask_array()

    if not isinstance(value, (zarr.Array, da.Array)):
        value = check_array(
            value,
            ensure_all_finite=False,
            ensure_2d=ensure_2d,
            allow_nd=not ensure_2d,
            ensure_min_samples=int(ensure_2d),
            ensure_min_features=int(ensure_2d),
            input_name=name,
        )
    _check_layout(value, ensure_2d)
    if isinstance(value, zarr.Array):
        return stored(value, fill_missing)
    if isinstance(value, da.Array):
        _check_delayed(value, name)
        return Delayed(value)
    return InMemory(value, (len(value),))


def open_array(location: Location, *, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Open a Zarr array for reading.

    Parameters
    ----------
    location : str or path
        Path or fsspec URL of one array, formats 2 and 3.
    storage_options : mapping, optional
        Options for the file system behind a URL.

    Returns
    -------
    zarr.Array

    Raises
    ------
    FileNotFoundError
        Where no Zarr array is there.
    DataError
        Where a group is there; the message lists its two-dimensional arrays.
    """
    place = os.fspath(location)
    if "://" not in place:
        # Workers of a cluster may run in another directory.
        place = os.path.abspath(place)
    options = dict(storage_options) if storage_options else None
    try:
        node = zarr.open(place, mode="r", storage_options=options)
    except (FileNotFoundError, NodeNotFoundError) as error:
        raise FileNotFoundError(f"There is no Zarr array at {place}.") from error
    if isinstance(node, zarr.Group):
        _refuse_group(node)
    return node


def feature_names(X: Any) -> Array | None:
    """Column names of a data frame.

    Parameters
    ----------
    X : any input
        The rows as the user passed them.

    Returns
    -------
    ndarray of str objects, or None
        The names where X is a pandas, polars or Dask data frame and every name is a string.

    Raises
    ------
    TypeError
        Where only some of the names are strings, as in scikit-learn.
    """
    if _library(X) not in {"pandas", "polars", "dask"} or not hasattr(X, "columns"):
        return None
    names = np.asarray(X.columns, dtype=object)
    kinds = sorted({type(entry).__qualname__ for entry in names})
    if len(kinds) > 1 and "str" in kinds:
        raise TypeError(
            "Feature names are only supported if all input features have string names, but your "
            f"input has {kinds} as feature name / column name types. If you want feature names "
            "to be stored and validated, you must convert them all to strings, by using "
            "X.columns = X.columns.astype(str) for example."
        )
    return names if kinds == ["str"] else None


def _library(value: Any) -> str | None:
    """Name the optional library a value comes from, subclasses included, without importing it."""
    roots = (kind.__module__.partition(".")[0] for kind in type(value).__mro__)
    return next((root for root in roots if root in {"pandas", "polars", "xarray", "dask"}), None)


def _refuse_group(group: zarr.Group) -> NoReturn:
    """Say which arrays the group holds and how to name one."""
    arrays = [
        f"{path} {member.shape} {member.dtype}"
        for path, member in sorted(group.members(max_depth=None))
        if isinstance(member, zarr.Array) and member.ndim == 2
    ]
    listing = "its two-dimensional arrays are:\n  " + "\n  ".join(arrays)
    raise DataError(
        f"{group.store_path} is a Zarr group, not an array; "
        + (listing if arrays else "it holds no two-dimensional array.")
        + "\nAppend the name of an array to the path."
    )


def _inside_xarray(value: Any, name: str, ensure_2d: bool) -> Any:
    """Return the NumPy or Dask array inside a DataArray."""
    # Asked of the type: on the value, ``data`` would load a file that was opened lazily.
    if not hasattr(type(value), "data"):
        raise DataError(
            f"{name} is an xarray {type(value).__name__}, expected a DataArray. Select one "
            "variable by its name, or call .to_dataarray()."
        )
    if ensure_2d and value.ndim != 2:
        raise DataError(_stack_recipe(value, name))
    if value.chunks is None and not getattr(value, "_in_memory", True):
        # Opened without chunks: ``.data`` would load the whole file.
        value = value.chunk("auto")
    return value.data


def _stack_recipe(value: Any, name: str) -> str:
    """Say how to make a DataArray two-dimensional, in its own dimension names."""
    rank = "scalar" if value.ndim == 0 else f"{value.ndim}D"
    lead = f"Expected 2D array, got {rank} array instead: dimensions {value.dims}.\n"
    if value.ndim < 2:
        return lead + f'A single feature becomes a column with {name}.expand_dims("feature", -1)'
    # Bands or variables are usually fewer than pixels or times.
    feature = min(value.dims, key=lambda dim: value.sizes[dim])
    others = ", ".join(f'"{dim}"' for dim in value.dims if dim != feature)
    sample = "sample" if "sample" not in value.dims else "stacked_sample"
    return lead + (
        f'Stack all dimensions but the features into rows, for instance with "{feature}" as '
        f'the features:\n    {name}.stack({sample}=[{others}]).transpose("{sample}", "{feature}")'
    )


def _check_layout(array: Any, ensure_2d: bool) -> None:
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


def _check_delayed(array: da.Array, name: str) -> None:
    """Refuse Dask arrays whose blocks cannot be joined or used as NumPy arrays."""
    if not isinstance(array._meta, np.ndarray):
        raise DataError(
            f"The chunks of {name} are {type(array._meta).__name__} objects, expected NumPy "
            "arrays. Convert them with map_blocks."
        )
    if any(math.isnan(size) for size in array.shape[1:]):
        raise DataError(
            f"{name} has an unknown number of columns: shape={array.shape}. "
            "Call compute_chunk_sizes() on it first."
        )
