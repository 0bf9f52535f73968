"""Whatever leads to the rows, the model and its answers are those of the rows in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources.base import MOST_BLOCKS
from tests.doors import DOORS

N, D, K = 90, 3, 2
LABELS = np.arange(N) % K
X = np.random.default_rng(0).normal(size=(N, D)) + 5 * LABELS[:, None]
WEIGHT = np.random.default_rng(1).choice([0.5, 1.0, 2.0], N)
BLOCK = 20 * 8 * D

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:X does not have valid feature names"
)


def model(**options: Any) -> GaussianMixture:
    return GaussianMixture(K, **{"labels_init": LABELS, "max_iter": 4, "tol": 0, "block_size": BLOCK, **options})


@pytest.fixture(scope="module")
def plain() -> GaussianMixture:
    found: GaussianMixture = model().fit(X, sample_weight=WEIGHT)
    return found


def assert_same(found: GaussianMixture, plain: GaussianMixture) -> None:
    np.testing.assert_allclose(found.lower_bounds_, plain.lower_bounds_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.means_, plain.means_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.covariances_, plain.covariances_, rtol=0, atol=1e-12)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_leads_to_the_same_model(door: str, plain: GaussianMixture, tmp_path: Path) -> None:
    for name in ("rows", "weights", "labels"):
        (tmp_path / name).mkdir()
    x = DOORS[door](X, tmp_path / "rows")
    weight = DOORS[door](WEIGHT, tmp_path / "weights")
    labels = DOORS[door](LABELS, tmp_path / "labels")
    found = model(labels_init=labels).fit(x, sample_weight=weight)
    assert_same(found, plain)
    answers: Any = found.predict(x)
    assert len(answers.chunks[0]) > 1
    np.testing.assert_array_equal(answers.compute(scheduler="sync"), plain.predict(X))
    np.testing.assert_allclose(
        found.score(x, sample_weight=weight), plain.score(X, sample_weight=WEIGHT), rtol=1e-13
    )


def zarr_group(columns: dict[str, Array], folder: Path) -> str:
    """Arrays in a group, each in chunks of its own."""
    root = zarr.create_group(str(folder / "g.zarr"))
    for i, (name, values) in enumerate(columns.items()):
        chunks = (2 + i, *(max(1, size // 2) for size in values.shape[1:]))
        root.create_array(name, data=values, chunks=chunks)
    return str(folder / "g.zarr")


def hdf5_group(columns: dict[str, Array], folder: Path) -> str:
    with h5py.File(folder / "g.h5", "w") as file:
        for name, values in columns.items():
            file[name] = values
    return str(folder / "g.h5")


def netcdf_group(columns: dict[str, Array], folder: Path) -> Any:
    file = netCDF4.Dataset(folder / "g.nc", "w", format="NETCDF3_64BIT_OFFSET")
    for name, values in columns.items():
        axes = [f"axis{i} of {size}" for i, size in enumerate(values.shape)]
        for axis, size in zip(axes, values.shape, strict=True):
            if axis not in file.dimensions:
                file.createDimension(axis, size)
        file.createVariable(name, values.dtype, axes)[...] = values
    file.close()
    return str(folder / "g.nc")


GROUPS: dict[str, Callable[[dict[str, Array], Path], Any]] = {
    "zarr": zarr_group,
    "zarr.Group": lambda columns, folder: zarr.open_group(zarr_group(columns, folder), mode="r"),
    "hdf5": hdf5_group,
    "h5py.File": lambda columns, folder: h5py.File(hdf5_group(columns, folder)),
    "netcdf": netcdf_group,
    "netCDF4.Dataset": lambda columns, folder: netCDF4.Dataset(netcdf_group(columns, folder)),
}


@pytest.mark.parametrize("shape", [(N,), (9, 2, 5)])
@pytest.mark.parametrize("kind", GROUPS)
def test_variables_of_a_group_are_the_features(
    kind: str, shape: tuple[int, ...], plain: GaussianMixture, tmp_path: Path
) -> None:
    columns = {name: np.ascontiguousarray(X[:, i]).reshape(shape) for i, name in enumerate("abc")}
    x = GROUPS[kind](columns | {"other": np.zeros(3)}, tmp_path)
    found = model(variables=["a", "b", "c"]).fit(x, sample_weight=WEIGHT)
    assert_same(found, plain)
    assert list(found.feature_names_in_) == ["a", "b", "c"]
    answers: Any = found.predict(x)
    assert len(answers.chunks[0]) > 1
    np.testing.assert_array_equal(answers.compute(scheduler="sync"), plain.predict(X))


def test_contiguous_variables_of_many_rows_are_cut_into_few_blocks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "long.h5", "w") as file:
        for name in "ab":
            file[name] = np.zeros(MOST_BLOCKS + 1, np.int8)
    rows = as_rows(tmp_path / "long.h5", variables=["a", "b"])
    assert (rows.n_rows, rows.n_features) == (MOST_BLOCKS + 1, 2)
    assert rows.n_blocks <= 16


def test_a_checkpoint_knows_variables_of_any_kind(tmp_path: Path) -> None:
    x = GROUPS["hdf5"]({name: X[:, i] for i, name in enumerate("abc")}, tmp_path)
    first = model(variables=np.array(["a", "b", "c"]), checkpoint=tmp_path / "c").fit(x)
    again = model(variables=("a", "b", "c"), checkpoint=tmp_path / "c").fit(x)
    np.testing.assert_array_equal(again.means_, first.means_)


def test_columns_in_another_order_are_never_taken_by_position(tmp_path: Path) -> None:
    table = pa.table({name: X[:, i] for i, name in enumerate("abc")})
    pq.write_table(table, tmp_path / "abc.parquet")
    pq.write_table(table.select(["c", "a", "b"]), tmp_path / "cab.parquet")
    found = model().fit(tmp_path / "abc.parquet")
    for query in (found.score, found.predict):
        with pytest.raises(DataError, match="The feature names should match those that were passed during fit"):
            query(tmp_path / "cab.parquet")
    by_name = model(variables=["a", "b", "c"]).fit(tmp_path / "cab.parquet")
    assert_same(by_name, found)
    assert by_name.score(tmp_path / "cab.parquet") == pytest.approx(found.score(X), rel=1e-13)


def test_one_variable_is_one_feature(tmp_path: Path) -> None:
    x = zarr_group({"a": X[:, 0].copy()}, tmp_path)
    found = model(variables="a").fit(x)
    np.testing.assert_allclose(found.means_, model().fit(X[:, :1]).means_, rtol=0, atol=1e-12)


def test_the_online_fit_too(tmp_path: Path) -> None:
    columns = {name: np.ascontiguousarray(X[:, i]) for i, name in enumerate("abc")}
    settings: dict[str, Any] = {"random_state": 0, "block_size": BLOCK, "init_size": 50}
    found = MiniBatchGaussianMixture(K, variables=list("abc"), **settings).fit(hdf5_group(columns, tmp_path))
    assert np.sort(found.means_[:, 0]) == pytest.approx(np.sort(model().fit(X).means_[:, 0]), abs=0.5)


def test_storage_options_reach_every_url(tmp_path: Path, plain: GaussianMixture) -> None:
    """A file system that opens nothing without its option."""

    class Locked(MemoryFileSystem):  # type: ignore[misc]
        protocol = "locked"
        cachable = False

        def __init__(self, key: str = "", **more: Any) -> None:
            if key != "open":
                raise PermissionError("no key")
            super().__init__(**more)

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("locked://").strip("/")

    fsspec.register_implementation("locked", Locked, clobber=True)
    fs = Locked(key="open")
    for name, values in (("x", X), ("w", WEIGHT)):
        np.save(tmp_path / "a.npy", values)
        fs.pipe_file(f"/{name}.npy", (tmp_path / "a.npy").read_bytes())
    options = {"key": "open"}
    found = model(storage_options=options).fit("locked://x.npy", sample_weight="locked://w.npy")
    assert_same(found, plain)
    with pytest.raises(DataError, match="no key"):
        model().fit("locked://x.npy")
    np.testing.assert_array_equal(np.asarray(found.predict("locked://x.npy")), plain.predict(X))


def test_places_and_options_are_not_saved(tmp_path: Path, plain: GaussianMixture) -> None:
    plain = GaussianMixture.from_parameters(plain.weights_, plain.means_, plain.covariances_)
    plain.set_params(storage_options={"secret": "s3cret"}, variables=["a"]).save(tmp_path / "m.npz")
    assert b"s3cret" not in (tmp_path / "m.npz").read_bytes()
    assert GaussianMixture.load(tmp_path / "m.npz").storage_options is None
