"""One array, written for every kind of path and object that leads to rows block by block."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from upath import UPath

from daskgmm._typing import Array

Door = Callable[[Array, Path], Any]
ROWS = 7  # in a stored chunk


def _chunks(values: Array) -> tuple[int, ...]:
    return (min(ROWS, len(values)), *values.shape[1:])


def npy(values: Array, folder: Path) -> str:
    np.save(folder / "x.npy", values)
    return str(folder / "x.npy")


def by_columns(values: Array, folder: Path) -> str:
    return npy(np.asfortranarray(values), folder)


def store(values: Array, folder: Path) -> str:
    zarr.create_array(str(folder / "x.zarr"), data=values, chunks=_chunks(values))
    return str(folder / "x.zarr")


def zipped(values: Array, folder: Path) -> str:
    with zarr.storage.ZipStore(folder / "x.zip", mode="w") as kept:
        zarr.create_array(kept, data=values, chunks=_chunks(values))
    return str(folder / "x.zip")


def zipped_group(values: Array, folder: Path) -> str:
    with zarr.storage.ZipStore(folder / "group.zip", mode="w") as kept:
        zarr.create_group(kept).create_array("deep/x", data=values, chunks=_chunks(values))
    return f"{folder / 'group.zip'}::/deep/x"


def hdf5(values: Array, folder: Path) -> str:
    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset("deep/x", data=values, chunks=_chunks(values), compression="gzip")
        file["link"] = h5py.SoftLink("/deep")
    return f"{folder / 'x.h5'}::/link/x"


def whole_hdf5(values: Array, folder: Path) -> str:
    with h5py.File(folder / "strange.name", "w") as file:
        file["x"] = values
    return f"{folder / 'strange.name'}::x"


def being_written(values: Array, folder: Path) -> Any:
    return h5py.File(folder / "new.h5", "w").create_dataset("x", data=values)


def netcdf(values: Array, folder: Path, kind: Any = "NETCDF4") -> str:
    with netCDF4.Dataset(folder / "x.nc", "w", format=kind) as file:
        axes = [f"axis{i}" for i in range(values.ndim)]
        for axis, size in zip(axes, values.shape, strict=True):
            file.createDimension(axis, size)
        endian: Any = "big" if values.dtype.str[0] == ">" else "native"  # netCDF4 1.7.2 has to be told
        file.createVariable("x", values.dtype, axes, endian=endian)[...] = values
    return f"{folder / 'x.nc'}::x"


def classic(values: Array, folder: Path) -> str:
    # The format has no integers of 64 bits.
    return netcdf(values.astype("i4") if values.dtype.kind == "i" else values, folder, "NETCDF3_64BIT_OFFSET")


def parquet(values: Array, folder: Path) -> str:
    """A folder of files, the order of whose names is not that of their letters."""
    (folder / "x.parquet").mkdir()
    columns = values.reshape(len(values), -1)
    bounds = np.linspace(0, len(values), 12).astype(int)
    for i, (first, last) in enumerate(pairwise(bounds)):
        table = pa.table({f"c{j}": columns[first:last, j] for j in range(columns.shape[1])})
        pq.write_table(table, folder / f"x.parquet/part.{i}.parquet", row_group_size=3)
    return f"{folder / 'x.parquet'}{'::c0' if values.ndim == 1 else ''}"


PATHS: dict[str, Door] = {
    "zarr": store,
    "npy": npy,
    "npy by columns": by_columns,
    "zip": zipped,
    "group in a zip": zipped_group,
    "hdf5": hdf5,
    "hdf5 of another name": whole_hdf5,
    "netcdf": netcdf,
    "classic netcdf": classic,
    "parquet": parquet,
}
URLS: dict[str, Door] = {
    "npy at a url": lambda values, folder: f"file://{npy(values, folder)}",
    "group in a zip at a url": lambda values, folder: f"file://{zipped_group(values, folder)}",
    "hdf5 at a url": lambda values, folder: f"file://{hdf5(values, folder)}",
    "parquet at a url": lambda values, folder: f"file://{parquet(values, folder)}",
}
OBJECTS: dict[str, Door] = {
    "store": lambda values, folder: zarr.storage.LocalStore(store(values, folder)),
    "mapper": lambda values, folder: fsspec.get_mapper(store(values, folder)),
    "upath": lambda values, folder: UPath(f"file://{store(values, folder)}"),
    "upath of a file": lambda values, folder: UPath(npy(values, folder)),
    "h5py": lambda values, folder: h5py.File(hdf5(values, folder).partition("::")[0])["deep/x"],
    "h5py, being written": being_written,
    "netCDF4": lambda values, folder: netCDF4.Dataset(netcdf(values, folder).partition("::")[0])["x"],
}
DOORS = PATHS | URLS | OBJECTS
"""Each writes values (n, d) or (n,) below a folder, and gives what a fit takes."""
