"""Where rows come from: one file for each kind of input.

To add a kind, write an `Opener` in a file of its own and enter it in `OPENERS`, or, for paths, in `ENDINGS`.
"""

import os
from typing import Any

from daskgmm.compute.sources import dask, memory, paths, xarray, zarr
from daskgmm.compute.sources.base import Asked, Opener, Source, library

# By the library that an input comes from; what comes from no other is for scikit-learn to make an array of.
OPENERS: dict[str | None, Opener] = {
    "zarr": zarr.opened,
    "xarray": xarray.opened,
    "dask": dask.opened,
    None: memory.opened,
}
# By how a path or URL ends; any other leads to a Zarr array.
ENDINGS: dict[str, Opener] = {}


def as_source(value: Any, asked: Asked) -> Source:
    """Open any supported array as a source, without reading chunked data."""
    while not isinstance(value, Source):
        if isinstance(value, (str, os.PathLike)):
            opener: Opener = ENDINGS.get(os.path.splitext(value)[1], paths.open_array)
        else:
            opener = OPENERS[library(value, OPENERS)]
        value = opener(value, asked)
    return value
