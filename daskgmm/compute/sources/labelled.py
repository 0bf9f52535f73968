"""Rows of a store in which xarray finds names of dimensions: what coordinates they have."""

from collections.abc import Mapping
from math import prod
from typing import Any

import dask.array as da
import zarr

from daskgmm.compute.sources import netcdf, paths
from daskgmm.compute.sources.xarray import unstacked
from daskgmm.errors import DataError, warn

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
    place, opener = paths.located(location, options)
    file, node = opener is netcdf.opened and place.is_local, paths.node_at(location, options)
    several = variables is not None and (file or isinstance(node, zarr.Group))
    if several:
        names = variables or ()
    elif file or _has_names(node):
        parent, _, name = location.rstrip("/").rpartition("/")
        location, names = parent, (name,)
        node = paths.node_at(location, options)
    else:
        return None
    if not file and not (isinstance(node, zarr.Group) and all(_has_names(node.get(name)) for name in names)):
        return None
    found = _dataset(location, node, options)
    if found is None or any(name not in found.data_vars for name in names):
        return None
    arrays = [found[name] for name in names]
    if len({array.dims for array in arrays}) > 1:
        told = ", ".join(f"{array.name} {array.dims}" for array in arrays)
        raise DataError(f"The variables of {location} differ in the order of their dimensions: {told}.")
    if several:
        return arrays[0]
    (array,) = arrays
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


def _has_names(array: Any) -> bool:
    """Whether it is an array whose dimensions have names."""
    if not isinstance(array, zarr.Array):
        return False
    told: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    return bool(told) and None not in told
