"""Where rows come from: one file for each kind of input.

To add a kind, write an `Opener` in a file of its own and enter it in `OPENERS`, or, for paths, in `ENDINGS`.
"""

import os
from typing import Any

from daskgmm.compute.sources import dask, frames, hdf5, memory, netcdf, npy, parquet, paths, xarray, zarr
from daskgmm.compute.sources.base import Asked, Opener, Source, library
from daskgmm.compute.sources.paths import ENDINGS, FOLDERS
from daskgmm.compute.sources.plain import FRAMES

# By the library that an input comes from; what comes from no other is for scikit-learn to make an array of.
OPENERS: dict[str | None, Opener] = {
    "zarr": zarr.opened,
    "fsspec": zarr.opened_store,
    "upath": paths.opened_upath,
    "xarray": xarray.opened,
    "dask": dask.opened,
    "h5py": hdf5.opened_object,
    "netCDF4": netcdf.opened_object,
    **dict.fromkeys(FRAMES, frames.opened),
    None: memory.opened,
}
# By how a path or URL ends; any other leads to a Zarr array.
ENDINGS |= {
    ".npy": npy.opened,
    ".zip": paths.zipped,
    **dict.fromkeys((".h5", ".hdf5", ".he5", ".h5ad"), hdf5.opened),
    **dict.fromkeys((".nc", ".nc4", ".cdf"), netcdf.opened),
    **dict.fromkeys(FOLDERS, parquet.opened),
}


def as_source(value: Any, asked: Asked) -> Source:
    """Open any supported array as a source, without reading chunked data."""
    while not isinstance(value, Source):
        if isinstance(value, (str, os.PathLike)):
            place, opener = paths.located(value, asked.storage_options)
            value = opener(place, asked)
        else:
            value = OPENERS[library(value, OPENERS)](value, asked)
    return value
