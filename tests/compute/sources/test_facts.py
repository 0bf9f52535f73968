"""What an input says of itself before it is read: its kind, its chunks, which of them are missing, checksums."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, WrapperStore

from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources import census
from daskgmm.compute.sources.base import Facts
from tests.doors import DOORS

X = np.random.default_rng(0).normal(size=(40, 3))
CHUNKED = {"chunk_shape": (7, 3), "n_chunks": 6, "n_looked_up": 6, "n_missing": 0}
ZARR = {"kind": "Zarr array (format 3)", "codecs": ("zstd",), **CHUNKED, "checksums": False}
ZIPPED = {**ZARR, "kind": "Zarr array (format 3) in a zip file", "stored_bytes": None}
NPY = {"kind": "NumPy file", "chunk_shape": None, "n_chunks": None, "stored_bytes": X.nbytes, "checksums": False}
HDF5 = {"kind": "HDF5 dataset", "codecs": ("gzip",), **CHUNKED, "checksums": True, "one_reader": True}
WHOLE = {
    "kind": "HDF5 dataset",
    "codecs": (),
    "chunk_shape": None,
    "n_chunks": 1,
    "n_missing": 0,
    "checksums": False,
}
NETCDF = {"n_chunks": None, "n_looked_up": 0, "checksums": False, "one_reader": True}
PARQUET = {"kind": "row groups of 11 Parquet files", "codecs": ("snappy",), "n_chunks": 18, "checksums": None}
SAYS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("zarr", "store", "mapper", "upath"), ZARR),
    **dict.fromkeys(("npy", "npy by columns", "npy at a url", "upath of a file"), NPY),
    **dict.fromkeys(("zip", "group in a zip"), ZIPPED),
    "group in a zip at a url": ZARR,
    **dict.fromkeys(("hdf5", "hdf5 at a url", "h5py"), HDF5),
    **dict.fromkeys(("hdf5 of another name", "h5py, being written", "netcdf"), WHOLE),
    "classic netcdf": {**NETCDF, "kind": "netCDF variable (NETCDF3_64BIT_OFFSET)"},
    "netCDF4": {**NETCDF, "kind": "netCDF variable (NETCDF4)"},
    **dict.fromkeys(("parquet", "parquet at a url"), PARQUET),
}


def facts(value: Any, **how: Any) -> Facts:
    return as_rows(value, **how).x.facts()


@pytest.mark.parametrize("door", DOORS)
def test_every_kind_says_what_it_is(door: str, tmp_path: Path) -> None:
    found = facts(DOORS[door](X, tmp_path))._asdict()
    assert {name: found[name] for name in SAYS[door]} == SAYS[door]


def test_arrays_that_are_here_say_what_they_are() -> None:
    assert facts(X) == Facts("array in memory")
    assert facts(da.from_array(X, chunks=(10, 2))) == Facts("Dask array", chunk_shape=(10, 2), n_chunks=8)
    masked = np.ma.MaskedArray(X)
    assert facts(da.from_array(masked, chunks=(10, 3), asarray=False)).masked == "what is masked in its blocks"


def test_columns_of_a_group_are_counted_together(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "g.zarr")
    for name, checked in (("t", True), ("s", False)):
        codec = zarr.codecs.ZstdCodec(checksum=checked)
        group.create_array(name, data=X[:, 0], chunks=(10,), compressors=codec)
    (tmp_path / "g.zarr/s/c/2").unlink()
    found = facts(tmp_path / "g.zarr", variables=["t", "s"])
    assert found.kind == "2 columns, each a Zarr array (format 3)"
    assert (found.n_chunks, found.n_looked_up, found.n_missing, found.checksums) == (8, 8, 1, False)
    assert found.stored_bytes == sum(path.stat().st_size for path in tmp_path.glob("g.zarr/*/c/*"))
    assert facts(tmp_path / "g.zarr", variables=["t"]).checksums


CODECS: dict[str, tuple[dict[str, Any], bool]] = {
    "none": ({"compressors": None}, False),
    "blosc": ({"compressors": zarr.codecs.BloscCodec()}, False),
    "gzip": ({"compressors": zarr.codecs.GzipCodec()}, True),
    "crc32c": ({"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]}, True),
    "crc32c in shards": ({"compressors": zarr.codecs.Crc32cCodec(), "shards": (20, 3)}, True),
    "shards": ({"shards": (20, 3)}, False),  # of which the index alone has one
    "format 2": ({"zarr_format": 2, "compressors": numcodecs.Zstd()}, False),
    "format 2, zstd's own": ({"zarr_format": 2, "compressors": numcodecs.Zstd(checksum=True)}, True),
    "format 2, filter": ({"zarr_format": 2, "filters": [numcodecs.Adler32()], "compressors": None}, True),
}


@pytest.mark.parametrize("case", CODECS)
def test_checksums(case: str, tmp_path: Path) -> None:
    how, checked = CODECS[case]
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(10, 3), **how)
    assert facts(tmp_path / "x.zarr").checksums is checked


def test_checksums_of_hdf5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(10, 3), fletcher32=True)
    found = facts(f"{tmp_path}/x.h5::x")
    assert (found.codecs, found.checksums) == (("fletcher32",), True)


class Guarded(WrapperStore[LocalStore]):
    """A store that may be read, but neither listed nor, if told so, asked what it has."""

    closed = False

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        raise PermissionError("to list is forbidden")
        yield ""

    async def getsize(self, key: str) -> int:
        return await self._store.getsize(key)

    async def exists(self, key: str) -> bool:
        if self.closed and not key.endswith("zarr.json"):
            raise PermissionError("to ask is forbidden")
        return await super().exists(key)


STORES: dict[str, Callable[[Path], Any]] = {
    "listed": lambda path: path,
    "looked up": lambda path: Guarded(LocalStore(path)),
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("lost", [(), (0,), (3, 4, 11)])
def test_missing_chunks_are_counted(store: str, lost: tuple[int, ...], tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", shape=(40, 3), chunks=(7, 2), dtype="f8")
    array[...] = X
    objects = sorted(path for path in (tmp_path / "x.zarr/c").rglob("*") if path.is_file())
    size = sum(path.stat().st_size for i, path in enumerate(objects) if i not in lost)
    for i in lost:
        objects[i].unlink()
    found = facts(STORES[store](tmp_path / "x.zarr"))
    assert (found.n_chunks, found.n_looked_up, found.n_missing) == (12, 12, len(lost))
    assert found.stored_bytes == pytest.approx(size, rel=1e-9)


@pytest.mark.parametrize("n", [0, 1, 33, 50])
def test_missing_chunks_in_shards_are_counted(n: int, tmp_path: Path) -> None:
    """Rows that were never written, of the last shard too, which reaches beyond the array."""
    array = zarr.create_array(tmp_path / "x.zarr", shape=(50, 2), chunks=(4, 1), shards=(16, 2), dtype="f8")
    array[:n] = np.ones((n, 2))
    found = facts(tmp_path / "x.zarr")
    assert (found.n_chunks, found.n_looked_up, found.n_missing) == (26, 26, 26 - 2 * -(-n // 4))


def test_chunks_that_a_smaller_array_left_in_a_shard_count_for_nothing(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", data=np.ones((48, 2)), chunks=(4, 1), shards=(16, 2))
    array.resize((34, 2))
    found = facts(tmp_path / "x.zarr")
    assert (found.n_chunks, found.n_looked_up, found.n_missing) == (18, 18, 0)


def test_a_shard_without_an_index_holds_nothing(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(5, 3), shards=(20, 3))
    (tmp_path / "x.zarr/c/1/0").write_bytes(b"short")
    assert facts(tmp_path / "x.zarr").n_missing == 4


def test_of_many_chunks_some_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(1, 3))
    for row in range(0, 40, 2):
        (tmp_path / f"x.zarr/c/{row}/0").unlink()
    monkeypatch.setattr(census, "LISTED", 39)
    monkeypatch.setattr(census, "SAMPLED", 16)
    found = facts(tmp_path / "x.zarr")
    assert (found.n_chunks, found.n_looked_up) == (40, 16)
    assert 0 < found.n_missing < 16
    one = (tmp_path / "x.zarr/c/1/0").stat().st_size
    assert found.stored_bytes == pytest.approx((16 - found.n_missing) / 16 * 40 * one, rel=0.2)


def test_a_store_that_does_not_say_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(10, 3))
    monkeypatch.setattr(Guarded, "closed", True)
    found = facts(Guarded(LocalStore(tmp_path / "x.zarr")))
    assert (found.n_chunks, found.n_looked_up, found.stored_bytes) == (4, 0, None)
