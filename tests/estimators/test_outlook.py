"""`check` tells what a fit would read, need and cost; it reads one block, and nothing else but metadata."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, ClassVar

import dask
import dask.array as da
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

import daskgmm
from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources import files
from daskgmm.errors import DataError
from daskgmm.estimators.outlook import promised
from daskgmm.model.kernels import layouts
from daskgmm.model.structure import STRUCTURES
from tests.doors import DOORS, PATHS
from tests.structures import draw_mixture

X = np.random.default_rng(0).normal(size=(300, 3))
TINY: dict[str, Any] = {"block_size": 24 * 40}  # of 40 rows


@pytest.mark.parametrize("door", ["in memory", *PATHS, "h5py"])
def test_every_kind_of_input_is_told(door: str, tmp_path: Path) -> None:
    given = X if door == "in memory" else DOORS[door](X, tmp_path)
    found = daskgmm.check(given, 2, **TINY)
    plan = as_rows(given, **TINY)
    assert (found.n_rows, found.n_features, found.dtype, found.problems) == (300, 3, "float64", ())
    assert (found.n_blocks, found.block_bytes, found.bytes_per_pass) == (plan.n_blocks, plan.block_bytes, X.nbytes)
    assert found.facts == plan.x.facts()
    sample = found.sample
    assert sample is not None
    assert sample.first_row == plan.x.offsets[sample.block]
    assert (sample.n_rows, sample.n_nan_rows, sample.constant_columns) == (plan.x.chunks[sample.block], 0, ())
    assert min(sample.read_seconds, sample.compute_seconds or 0, found.seconds_per_pass or 0) > 0


def test_it_prints_one_screen(tmp_path: Path) -> None:
    names = [f"a rather long name of feature {i}" for i in range(200)]
    frame = pd.DataFrame(np.where(np.arange(200) % 3, np.nan, np.ones((300, 200))), columns=names)
    for found in (
        daskgmm.check(frame, 400, sample_weight=np.ones(300)),
        daskgmm.check(DOORS["hdf5"](X, tmp_path), sample_weight=np.ones(300)),
    ):
        lines = str(found).splitlines()
        assert len(lines) <= 30
        assert max(map(len, lines)) < 80 or "/" in max(lines, key=len)
        assert all(line[15:17] == "  " for line in lines), lines


class Counted(WrapperStore[LocalStore]):
    """A store that knows what was read of it."""

    read: ClassVar[set[str]] = set()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self.read.add(key)
        return await super().get(key, prototype, byte_range)


def test_one_block_of_a_store_is_read(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(10, 3))
    store = Counted(LocalStore(tmp_path / "x.zarr"))
    Counted.read.clear()
    found = daskgmm.check(store, 2, **TINY)
    assert (found.n_blocks, found.facts.n_looked_up) == (8, 30)
    assert {key for key in store.read if key.startswith("c/")} == {f"c/{i}/0" for i in range(16, 20)}


@pytest.mark.parametrize("door", ["npy", "hdf5", "classic netcdf", "parquet"])
def test_one_block_of_a_file_is_read(door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reader = [], files.Filed.reader

    def counted(self: files.Filed, index: int, part: Any) -> Any:
        read.append(index)
        return reader(self, index, part)

    monkeypatch.setattr(files.Filed, "reader", counted)
    assert daskgmm.check(DOORS[door](X, tmp_path), 2, **TINY).n_blocks > 4
    assert len(read) == 1


def test_one_block_of_a_dask_array_is_computed() -> None:
    made = []

    def make(block: Any, block_info: Any = None) -> Any:
        if block_info:  # not its guess at the type
            made.append(block_info[0]["chunk-location"])
        return block + 1

    lazy = da.from_array(X, chunks=(40, 3)).map_blocks(make, dtype=float)
    made.clear()
    assert daskgmm.check(lazy, 2).n_blocks == 8
    assert made == [(4, 0)]


def test_what_a_block_holds(tmp_path: Path) -> None:
    x = X.copy()
    x[100:103, 1], x[150, 2], x[:, 0] = np.nan, np.nan, 7
    frame = pd.DataFrame(x, columns=["day", "t", "s"])
    found = daskgmm.check(frame, 2, nan_policy="omit")
    sample = found.sample
    assert sample is not None
    assert (sample.n_nan_rows, sample.nan_columns, sample.constant_columns) == (4, ("t", "s"), ("day",))
    assert found.problems == ()
    raised = daskgmm.check(frame, 2)
    assert raised.sample is not None
    assert raised.sample.compute_seconds is not None  # of the other rows
    with pytest.raises(DataError) as caught:
        daskgmm.GaussianMixture(2).fit(frame)
    assert raised.problems == (str(caught.value),)
    # Rows of weight zero are never looked at.
    weight = ~np.isnan(x).any(axis=1)
    assert daskgmm.check(frame, 2, sample_weight=weight).problems == ()
    assert daskgmm.check(np.where(x == 7, np.inf, x)).sample.compute_seconds is None  # type: ignore[union-attr]


def test_what_a_fit_would_refuse(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(10, 3))
    (tmp_path / "x.zarr/c/2/0").unlink()
    (problem,) = daskgmm.check(tmp_path / "x.zarr", **TINY).problems
    assert problem.startswith("X lacks 1 of 30 chunks")
    assert daskgmm.check(tmp_path / "x.zarr", missing_chunks="fill", **TINY).problems == ()
    (tmp_path / "x.zarr/c/17/0").write_bytes(b"no chunk")
    unread = daskgmm.check(tmp_path / "x.zarr", missing_chunks="fill", **TINY)
    assert (unread.sample, unread.seconds_per_pass) == (None, None)
    assert "c/17/0" in unread.problems[0]
    assert "n_components = 301" in daskgmm.check(X, 301).problems[0]
    weight = np.ones(300)
    weight[170] = -1
    assert "Negative values" in daskgmm.check(X, sample_weight=weight).problems[0]


@pytest.mark.parametrize(("settings", "error"), [({"block": 3}, TypeError), ({"nan_policy": "no"}, ValueError)])
def test_settings_are_those_of_the_estimator(settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        daskgmm.check(X, **settings)


def test_what_is_decoded_is_told(tmp_path: Path) -> None:
    packed = xr.DataArray(X, dims=("row", "feature"), name="x").to_dataset()
    how = {"dtype": "i2", "scale_factor": 0.001, "_FillValue": -32768, "chunks": (100, 3)}
    packed.to_zarr(tmp_path / "x.zarr", encoding={"x": how}, consolidated=False)
    found = daskgmm.check(tmp_path / "x.zarr/x", 2)
    assert found.dtype == "float64"
    assert (found.facts.n_chunks, found.facts.n_missing) == (3, 0)  # of what is decoded
    assert "decoded          from int16: _FillValue=-32768, scale_factor=0.001\n" in str(found)
    raw = daskgmm.check(tmp_path / "x.zarr/x", 2, decode_cf=False)
    assert (raw.dtype, raw.decoded) == ("int16", "")


@pytest.mark.parametrize("how", [np.asanyarray, lambda x: da.from_array(x, chunks=(100, 3), asarray=False)])
def test_what_is_masked_is_told_and_counted(how: Callable[[Any], Any]) -> None:
    masked = np.ma.MaskedArray(X, np.zeros(X.shape, bool))
    masked[150:153, 2] = np.ma.masked
    found = daskgmm.check(how(masked), nan_policy="omit")
    assert "masked           what is masked" in str(found)
    assert found.sample is not None
    assert (found.sample.n_nan_rows, found.sample.nan_columns) == (3, ("2",))


def test_rows_of_unknown_number() -> None:
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abc")), npartitions=3)
    found = daskgmm.check(frame, 2)
    assert (found.n_rows, found.bytes_per_pass, found.feature_names) == (None, None, ("a", "b", "c"))
    assert found.seconds_per_pass
    assert "an unknown number of 3 features" in str(found)
    assert found.to_dict()["loss_of_all"] is None


def test_more_rows_buy_what_the_fewer_lose() -> None:
    found = daskgmm.check(X, 2, covariance_type="diag")
    assert found.n_parameters == 13
    for m in (65, 1000, 10**6):
        assert found.loss(m) == pytest.approx(1.15 * 13 / (2 * m))
    assert found.loss(64) == pytest.approx(1.4 * 13 / 128)
    assert found.to_dict()["loss_of_all"] == found.loss(300)


def test_it_is_a_value() -> None:
    found = daskgmm.check(X, 2, sample_weight=np.ones(300))
    with pytest.raises(FrozenInstanceError):
        found.n_rows = 3  # type: ignore[misc]
    assert json.loads(json.dumps(found.to_dict()))["facts"]["kind"] == "array in memory"


def test_memory_has_room_for_what_finds_starts_and_fills_rows_in() -> None:
    x = da.zeros((100_000, 128), chunks=(100, 128))
    rows, gaps = as_rows(x), as_rows(x, nan_policy="missing")
    # Of blocks that are small, the thread that finds a start has more in its copies of the sample.
    one, nine = (promised(rows, STRUCTURES["full"], 1, threads) for threads in (1, 9))
    assert nine - one >= 8 * (2 * (60_000 * 8 * 128) + 50e6)
    for kind in ("full", "tied"):
        more = promised(gaps, STRUCTURES[kind], 64, 1) - promised(rows, STRUCTURES[kind], 64, 1)
        with layouts.scratch_for(draw_mixture(kind, 64, 128).model_for(X, None, layout="gapped")) as (tile, runs):
            assert more >= sum(part.nbytes for part in (*tile, *runs))
    diagonal = STRUCTURES["diag"]
    assert promised(gaps, diagonal, 64, 1) == promised(rows, diagonal, 64, 1)


@pytest.mark.timeout(60)
def test_memory_is_that_of_a_worker(tmp_path: Path) -> None:
    place = DOORS["npy"](X, tmp_path)
    with dask.config.set({"num_workers": 1, "daskgmm.memory-limit": 0}):
        alone = daskgmm.check(place, 2)
    how: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster):
        there = daskgmm.check(place, 2)
    assert (there.n_threads, alone.n_threads) == (2, 1)
    assert there.memory_bytes == alone.memory_bytes
