"""Where rows come from: one file for each kind of input, which says what it accepts and how that is opened.

To add a kind of input, write a module with ``accepts`` and ``opened`` (see `Opener`) and enter it in `OPENERS`.
"""

from __future__ import annotations

from typing import Any

from daskgmm.compute.sources import dask, memory, paths, xarray, zarr
from daskgmm.compute.sources.base import Asked, Opener, Source

OPENERS: tuple[Opener, ...] = (paths, zarr, xarray, dask, memory)  # the first that accepts an input opens it


def as_source(value: Any, asked: Asked) -> Source:
    """Open any supported array as a source, without reading chunked data."""
    while not isinstance(value, Source):
        opener = next(opener for opener in OPENERS if opener.accepts(value))
        value = opener.opened(value, asked)
    return value
