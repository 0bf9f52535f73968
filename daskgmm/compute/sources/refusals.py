"""What is no input at all: what it is, and what to give in its place."""

import io
from collections.abc import Iterator, Mapping, Set
from typing import Any

from daskgmm.compute.sources.base import Asked, library
from daskgmm.errors import DataError

KNOWN = (
    "a NumPy, Dask, Zarr or xarray array, a data frame (pandas, polars, Arrow, Dask), a dataset of h5py or "
    "netCDF4, or the path or URL of a Zarr, .npy, Parquet, HDF5 or netCDF array"
)
HOLDS = ("__array__", "__array_interface__", "__getitem__")  # of which NumPy makes arrays
REMEDIES: tuple[tuple[type[Any], str], ...] = (
    (type(None), "Look at what should have made an array."),
    (io.IOBase, "Give the path of the file."),
    (
        Iterator,
        "It can be gone through once, and a fit reads its rows in several passes: put them together in one array, "
        "or learn its batches one by one, with MiniBatchGaussianMixture.fit.",
    ),
    (Mapping, "Put its columns together, for instance in a pandas.DataFrame, or give the one array of it."),
    (Set, "It has no order: give a list."),
    (bytes, "A path is a str; values are numpy.frombuffer(...)."),
)


def refuse_others(value: Any, asked: Asked) -> None:
    """Raise `DataError` for what holds no rows, of which NumPy would make one object or letters."""
    if isinstance(value, list) and value and all(isinstance(part, str) and len(part) == 1 for part in value):
        raise DataError(
            f"{asked.name} is a list of letters, as scikit-learn's cross-validation makes of a path. To choose a "
            'model for it, fit GaussianMixtureSearch(criterion="held_out") to the path, or cross-validate with '
            "dask.array.from_zarr(path)."
        )
    remedy = next((text for kind, text in REMEDIES if isinstance(value, kind)), None)
    if remedy is None and (any(hasattr(value, name) for name in HOLDS) or _is_number(value)):
        return
    kind = type(value)
    named = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    told = "None" if value is None else f"of type {named}"
    raise DataError(f"{asked.name} is {told}, and has to be {KNOWN}. {remedy or ''}".rstrip())


def _is_number(value: Any) -> bool:
    """Whether scikit-learn has words of its own: a scalar, or sparse."""
    return isinstance(value, (complex, float, int, str)) or library(value, ("scipy",)) is not None
