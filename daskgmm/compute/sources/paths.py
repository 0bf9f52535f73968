"""Paths and URLs of Zarr arrays."""

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import zarr
from zarr.errors import NodeNotFoundError

from daskgmm.compute.sources.base import Asked
from daskgmm.compute.sources.zarr import refuse_group, told
from daskgmm.errors import DataError

Location: TypeAlias = str | os.PathLike[str]


def open_array(
    location: Location, asked: Asked | None = None, storage_options: Mapping[str, Any] | None = None
) -> Any:
    """The Zarr array, of format 2 or 3, at a path or URL, to read; the options are for the URL's file system.

    `FileNotFoundError` where there is none; `DataError` where a group is, with its two-dimensional arrays, and
    where a file system or the metadata fail.
    """
    place = os.fspath(location)
    if "://" not in place:
        # Workers of a cluster may run in another directory.
        place = os.path.abspath(place)
    options = dict(storage_options) if storage_options else None
    try:
        node = zarr.open(place, mode="r", storage_options=options)
        if isinstance(node, zarr.Group):
            refuse_group(node)
    except DataError:
        raise
    except (FileNotFoundError, NodeNotFoundError) as error:
        raise FileNotFoundError(f"There is no Zarr array at {place}.") from error
    except Exception as error:  # whatever a file system or damaged metadata may raise
        raise DataError(f"{place} cannot be opened: {told(error)}") from error
    return node
