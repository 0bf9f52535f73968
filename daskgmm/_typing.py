"""What annotations share: arrays, what an estimator reads, and the choices of settings."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Protocol, TypeAlias

from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class Shaped(Protocol):
    """An array or table of any library: NumPy, Dask, Zarr, xarray, pandas, polars, Arrow, HDF5, netCDF."""

    @property
    def shape(self) -> Any: ...


Data: TypeAlias = Shaped | str | PathLike[str] | Mapping[Any, Any] | Sequence[Any]
"""Rows, or what goes with them: arrays, tables, a Dataset, a store, lists; the path or URL of such."""

Batches: TypeAlias = Iterator[Any]
"""What an online fit goes through once."""

CovarianceType: TypeAlias = (
    Literal["full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"]
    | Literal["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVV", "EEV", "VEV", "VVV", "factors"]
)
InitParams: TypeAlias = Literal["auto", "kmeans", "k-means++", "random", "random_from_data", "subsample"]
