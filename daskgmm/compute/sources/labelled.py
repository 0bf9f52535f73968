"""Rows of a store in which xarray finds names of dimensions: what coordinates they have."""

import os
from collections.abc import Mapping
from math import prod
from typing import Any

import dask.array as da
import zarr

from daskgmm.compute.sources import paths
from daskgmm.compute.sources.xarray import unstacked
from daskgmm.errors import DataError, warn

NETCDF = (".nc", ".nc4", ".cdf")
"""Endings of files that are netCDF, and no other HDF5."""
# Coordinates are copied as they lie there: so nothing of them has to be understood.
RAW: dict[str, Any] = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False}


def labelled(
    values: da.Array,
    name: str,
    missing: float,
    location: str,
    variables: tuple[str, ...] | None,
    options: Mapping[str, Any],
) -> Any:
    """Answers for the rows at a path or URL as a DataArray of this name, such as `Table.answer` gives.

    None where dimensions have no names, or there is one, without coordinates. These are encoded, as in the store.
    """
    rows = _rows(location, variables, options)
    if rows is None or prod(rows.shape) != values.shape[0] or (rows.ndim == 1 and not rows.coords):
        return None
    inner = prod(rows.shape[1:])
    steps = tuple(size // inner for size in values.chunks[0])  # sources cut along the first axis alone
    return unstacked(values, rows, (steps, *((size,) for size in rows.shape[1:])), name, missing)


def _rows(location: str, variables: tuple[str, ...] | None, options: Mapping[str, Any]) -> Any:
    """A DataArray with the dimensions and coordinates of the rows, whose values mean nothing; None without any."""
    parent, _, name = location.rstrip("/").rpartition("/")
    for place, names in ((location, variables or ()), (parent.removesuffix("::"), (name,))):
        found = _dataset(place, names, options) if place and names else None
        if found is None or any(name not in found.data_vars for name in names):
            continue
        arrays = [found[name] for name in names]
        if len({array.dims for array in arrays}) > 1:
            told = ", ".join(f"{array.name} {array.dims}" for array in arrays)
            raise DataError(f"The variables of {location} differ in the order of their dimensions: {told}.")
        if variables and place == location:
            return arrays[0]
        if arrays[0].ndim == 2:  # its second dimension has the features
            (last,) = arrays[0].dims[1:]
            theirs = [name for name, coord in arrays[0].coords.items() if last in coord.dims]
            return arrays[0].drop_vars(theirs).isel({last: 0}, drop=True)
    return None


def _dataset(location: str, names: tuple[str, ...], options: Mapping[str, Any]) -> Any:
    """What xarray finds at a place; None where there is no group of arrays whose dimensions have names."""
    place, _ = paths.located(location, options)
    netcdf = place.is_local and os.path.splitext(place.path)[1].lower() in NETCDF
    group = None if netcdf else paths.group_at(location, options)
    if not netcdf and (group is None or not all(_has_names(group, name) for name in names)):
        return None
    try:
        import xarray

        if group is None:
            return xarray.open_dataset(place.path, group=place.inside or None, chunks={}, **RAW)
        consolidated = group.metadata.consolidated_metadata is not None
        return xarray.open_zarr(group.store, group=group.path, consolidated=consolidated, chunks={}, **RAW)
    except Exception as error:  # not installed, or whatever it has against a store
        warn(f"The answers are without the coordinates of {location}, which xarray cannot read: {error}")
        return None


def _has_names(group: zarr.Group, name: str) -> bool:
    """Whether an array is there, and its dimensions have names."""
    array = group.get(name)
    if not isinstance(array, zarr.Array):
        return False
    told: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    return bool(told) and None not in told
