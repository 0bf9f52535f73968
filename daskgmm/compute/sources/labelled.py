"""Rows of a store in which xarray finds names of dimensions: what coordinates they have."""

from collections.abc import Mapping
from math import prod
from typing import Any

import dask.array as da
import zarr

from daskgmm.compute.sources import netcdf, paths
from daskgmm.compute.sources.base import Source
from daskgmm.compute.sources.groups import SideBySide
from daskgmm.compute.sources.xarray import unstacked
from daskgmm.errors import warn

# Coordinates are copied as they lie there: so nothing of them has to be understood.
RAW: dict[str, Any] = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False}


def labelled(
    values: da.Array,
    name: str,
    missing: float,
    location: str,
    x: Source,
    options: Mapping[str, Any],
) -> Any:
    """Answers for the rows x at a path or URL as a DataArray of this name, such as `Table.answer` gives.

    None where dimensions have no names, or there is one, without coordinates. These are encoded, as in the store.
    """
    rows = _rows(location, x, options)
    if rows is None or prod(rows.shape) != values.shape[0] or (rows.ndim == 1 and not rows.coords):
        return None
    inner = prod(rows.shape[1:])
    steps = tuple(size // inner for size in values.chunks[0])  # sources cut along the first axis alone
    return unstacked(values, rows, (steps, *((size,) for size in rows.shape[1:])), name, missing)


def _rows(location: str, x: Source, options: Mapping[str, Any]) -> Any:
    """A DataArray with the dimensions and coordinates of the rows, whose values mean nothing; None without any."""
    several = isinstance(x, SideBySide)
    if not all(part.dims for part in (x.parts if isinstance(x, SideBySide) else (x,))):
        return None
    place, opener = paths.located(location, options)
    first = paths.within(str(place), x.names[0] if several and x.names else None)  # all have the same dimensions
    group, _, name = first.rstrip("/").rpartition("/")
    above = paths.node_at(group, options)
    if not isinstance(above, zarr.Group) and not (opener is netcdf.opened and place.is_local):
        return None
    found = _dataset(group, above, options)
    if found is None or name not in found.data_vars:
        return None
    array = found[name]
    if several:
        return array
    last = array.dims[-1]  # which has the features
    theirs = [name for name, coord in array.coords.items() if last in coord.dims]
    return array.drop_vars(theirs).isel({last: 0}, drop=True)


def _dataset(location: str, group: Any, options: Mapping[str, Any]) -> Any:
    """What xarray finds in a Zarr group, or in a file, where that is None; None where it cannot."""
    try:
        import xarray

        if group is None:  # without chunks: coordinates are read at once, and not beside the rows
            place, _ = paths.located(location, options)
            return xarray.open_dataset(place.path, group=place.inside or None, **RAW)
        consolidated = group.metadata.consolidated_metadata is not None
        return xarray.open_zarr(group.store, group=group.path, consolidated=consolidated, chunks={}, **RAW)
    except Exception as error:  # not installed, or whatever it has against a store
        warn(f"The answers are without the coordinates of {location}, which xarray cannot read: {error}")
        return None
