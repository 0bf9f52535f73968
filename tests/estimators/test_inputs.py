"""Every kind of input, through fit and the queries: the same model, answers in kind, and nothing read too soon."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
import zarr

from daskgmm import DataError, GaussianMixture
from daskgmm.fit.tasks import Query

dd = pytest.importorskip("dask.dataframe")

N, D, K = 90, 3, 2
NAMES = ["a", "b", "c"]
LABELS = np.arange(N) % K
X = np.random.default_rng(0).normal(size=(N, D)) + 5 * LABELS[:, None]
WEIGHT = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.0], N)


def store(x: Any, path: Path, **options: Any) -> Any:
    chunks = options.pop("chunks", (10, *x.shape[1:]))
    array = zarr.create_array(str(path), shape=x.shape, chunks=chunks, dtype=x.dtype, **options)
    array[...] = x
    return array


def unknown(x: Any) -> Any:
    """Forget how many rows each chunk has."""
    return da.Array(x.dask, x.name, ((np.nan,) * len(x.chunks[0]), *x.chunks[1:]), x.dtype)


def wrapped(x: Any, chunks: Any) -> Any:
    return da.from_array(x, chunks=chunks)


IN_MEMORY: dict[str, Callable[[Any, Path], Any]] = {
    "numpy": lambda x, path: x,
    "list": lambda x, path: x.tolist(),
    "pandas": lambda x, path: pd.DataFrame(x, columns=NAMES),
    "polars": lambda x, path: pl.DataFrame(x, schema=NAMES),
}
CHUNKED: dict[str, Callable[[Any, Path], Any]] = {
    "dask": lambda x, path: wrapped(x, (10, D)),
    "dask, uneven": lambda x, path: wrapped(x, ((1, 40, 0, 29, 20), (D,))),
    "dask, fewer rows than components": lambda x, path: wrapped(x, (1, D)),
    "dask, several column chunks": lambda x, path: wrapped(x, (10, 2)),
    "dask, unknown chunks": lambda x, path: unknown(wrapped(x, (10, D))),
    "dask, persisted": lambda x, path: wrapped(x, (10, D)).persist(scheduler="synchronous"),
    "zarr, format 2": lambda x, path: store(x, path, zarr_format=2),
    "zarr, format 3": lambda x, path: store(x, path),
    "zarr, sharded": lambda x, path: store(x, path, chunks=(5, D), shards=(30, D)),
    "zarr, column chunks": lambda x, path: store(x, path, chunks=(7, 2)),
    "path": lambda x, path: Path(store(x, path).store.root),
    "string": lambda x, path: str(store(x, path).store.root),
    "url": lambda x, path: f"file://{store(x, path).store.root}",
    "dask frame": lambda x, path: dd.from_pandas(pd.DataFrame(x, columns=NAMES), npartitions=4),
}
XARRAY: dict[str, Callable[[Any, Path], Any]] = {
    "xarray": lambda x, path: xr.DataArray(x, dims=("time", "band"), coords={"time": 10.0 * np.arange(N)}),
    "xarray, dask": lambda x, path: xr.DataArray(
        wrapped(x, (10, D)), dims=("time", "band"), coords={"time": 10.0 * np.arange(N), "band": NAMES}
    ),
}
KINDS = IN_MEMORY | CHUNKED | XARRAY
QUERIES = ("predict", "predict_proba", "score_samples")


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return KINDS[request.param](X, tmp_path / "x.zarr")


def started(**options: Any) -> GaussianMixture:
    settings: dict[str, Any] = {"labels_init": LABELS, "max_iter": 5, "tol": 0, "block_size": 13 * 8 * D} | options
    return GaussianMixture(K, **settings)


def plain(**options: Any) -> Any:
    return started(block_size="64 MiB", **options).fit(X)


pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning", "ignore:X does not have valid feature names"
)


def assert_same(a: GaussianMixture, b: GaussianMixture) -> None:
    """The same model up to the order of adding: 90 rows, a few iterations, values of about ten."""
    np.testing.assert_allclose(a.lower_bounds_, b.lower_bounds_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.weights_, b.weights_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.means_, b.means_, rtol=0, atol=1e-11)
    np.testing.assert_allclose(a.covariances_, b.covariances_, rtol=0, atol=1e-11)


def labels_for(data: Any) -> Any:
    """Starting labels cut as rows of unknown number are."""
    if isinstance(data, da.Array) and np.isnan(data.shape[0]):
        return wrapped(LABELS, 10)
    if hasattr(data, "npartitions") and not isinstance(data, da.Array):
        lengths = tuple(data.map_partitions(len).compute())
        return wrapped(LABELS, (lengths,))
    return LABELS


def test_fit(data: Any) -> None:
    model = started(labels_init=labels_for(data)).fit(data)
    assert_same(model, plain())
    assert model.n_features_in_ == D
    assert model.n_passes_ == 6
    assert np.isfinite(model.score(data))
    np.testing.assert_allclose(model.score(data), model.score(X), rtol=1e-13)
    for name in ("aic", "bic", "icl"):
        np.testing.assert_allclose(getattr(model, name)(data), getattr(model, name)(X), rtol=1e-12)


def test_fit_from_own_seeds(data: Any) -> None:
    found = GaussianMixture(K, random_state=0, block_size=13 * 8 * D).fit(data)
    expected = GaussianMixture(K, random_state=0).fit(X)
    np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-9)


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_numpy_answers_input_in_memory(kind: str, tmp_path: Path) -> None:
    data, model = IN_MEMORY[kind](X, tmp_path), plain()
    for query in QUERIES:
        found = getattr(model, query)(data)
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, getattr(model, query)(X))
    assert model.predict(data).dtype == np.int64


@pytest.mark.parametrize("kind", CHUNKED)
@pytest.mark.parametrize("query", QUERIES)
def test_lazy_dask_answers_chunked_input(kind: str, query: str, tmp_path: Path) -> None:
    data, model = CHUNKED[kind](X, tmp_path / "x.zarr"), plain()
    found = getattr(model, query)(data)
    assert type(found) is da.Array
    expected = getattr(model, query)(X)
    assert found.dtype == expected.dtype
    assert found.ndim == expected.ndim
    if isinstance(data, da.Array):
        np.testing.assert_equal(found.chunks[0], data.chunks[0])
    computed = found.compute()
    np.testing.assert_allclose(computed, expected, rtol=1e-12, atol=1e-14)
    assert computed.shape == expected.shape


@pytest.mark.parametrize("kind", XARRAY)
@pytest.mark.parametrize("query", QUERIES)
def test_a_data_array_answers_xarray(kind: str, query: str, tmp_path: Path) -> None:
    data, model = XARRAY[kind](X, tmp_path), plain()
    found = getattr(model, query)(data)
    assert isinstance(found, xr.DataArray)
    assert found.dims[0] == "time"
    np.testing.assert_array_equal(found["time"], data["time"])
    assert "band" not in found.coords
    assert (found.chunks is None) == (data.chunks is None)
    expected = getattr(model, query)(X)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.values, expected, rtol=1e-12, atol=1e-14)
    assert found.sel(time=50.0).shape == expected.shape[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_fit_predict(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind](X, tmp_path / "x.zarr")
    found = started(labels_init=labels_for(data)).fit_predict(data)
    assert isinstance(found, np.ndarray) == (kind in IN_MEMORY)
    np.testing.assert_array_equal(np.asarray(found), plain().predict(X))


@pytest.mark.parametrize("kind", ["dask", "dask frame", "pandas", "polars"])
def test_column_names(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind](X, tmp_path)
    model = started(labels_init=labels_for(data)).fit(data)
    if kind == "dask":
        assert not hasattr(model, "feature_names_in_")
    else:
        assert model.feature_names_in_.tolist() == NAMES
        with pytest.raises(ValueError, match="feature names should match"):
            model.predict(pd.DataFrame(X, columns=["c", "b", "a"]))


# Laziness


def test_queries_read_nothing_before_they_are_computed(reads: Any) -> None:
    data, model = reads(X, (10, D)), plain()
    answers = [getattr(model, query)(data.array) for query in QUERIES]
    assert data.total == 0
    answers[0].compute(scheduler="synchronous")
    assert data.counts == dict.fromkeys(range(9), 1)


def test_zarr_queries_read_nothing_before_they_are_computed(tmp_path: Path) -> None:
    path = store(X, tmp_path / "x.zarr").store.root
    model = plain()
    answer = model.predict(str(path))
    zarr.open_array(str(path), mode="r+")[...] = X[::-1]
    np.testing.assert_array_equal(answer.compute(), model.predict(X[::-1]))


def test_a_fit_reads_as_often_as_it_says(reads: Any) -> None:
    data = reads(X, (10, D))
    model = started(n_init=1, max_iter=4).fit(data.array)
    assert model.n_passes_ == 5
    assert data.counts == dict.fromkeys(range(9), 5)
    before = data.total
    model.score(data.array)
    assert data.total == before + 9


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data", "subsample"])
def test_starts_of_one_fit_share_their_passes(init_params: Any, reads: Any) -> None:
    data = reads(X, (10, D))
    model = GaussianMixture(K, n_init=5, init_params=init_params, max_iter=3, tol=0, random_state=0)
    model.fit(data.array)
    # One survey, whatever the seeds, and three passes for all five runs.
    assert model.n_passes_ == 4
    assert data.total == 4 * 9


def test_only_score_computes(reads: Any) -> None:
    data, model = reads(X, (10, D)), plain()
    for name in ("score", "aic", "bic", "icl"):
        before = data.total
        assert isinstance(getattr(model, name)(data.array), float)
        assert data.total == before + 9


def test_the_mixture_is_in_the_graph_once() -> None:
    graph = dict(plain().predict(wrapped(X, (5, D))).dask)
    assert sum(isinstance(value, Query) for value in graph.values()) == 1


def test_answers_go_to_zarr_block_by_block(tmp_path: Path) -> None:
    data = store(X, tmp_path / "x.zarr")
    model = plain()
    model.predict_proba(data).to_zarr(str(tmp_path / "out.zarr"))
    written: Any = zarr.open_array(str(tmp_path / "out.zarr"), mode="r")[...]
    np.testing.assert_allclose(written, model.predict_proba(X), atol=1e-14)


# Weights and starts of every kind

COMPANIONS: dict[str, Callable[[Any, Path], Any]] = {
    "numpy": lambda v, path: v,
    "list": lambda v, path: v.tolist(),
    "dask": lambda v, path: wrapped(v, (17, *v.shape[1:])),
    "zarr": lambda v, path: store(v, path),
    "path": lambda v, path: str(store(v, path).store.root),
}


@pytest.mark.parametrize("kind", ["numpy", "dask, uneven", "zarr, sharded", "xarray, dask"])
@pytest.mark.parametrize("companion", COMPANIONS)
def test_weights_and_starts_of_every_kind(kind: str, companion: str, tmp_path: Path) -> None:
    data = KINDS[kind](X, tmp_path / "x.zarr")
    weight = COMPANIONS[companion](WEIGHT, tmp_path / "w.zarr")
    expected = plain().fit(X, sample_weight=WEIGHT)
    labels = COMPANIONS[companion](LABELS, tmp_path / "l.zarr")
    assert_same(started(labels_init=labels).fit(data, sample_weight=weight), expected)
    resp = COMPANIONS[companion](np.eye(K)[LABELS], tmp_path / "r.zarr")
    model = started(labels_init=None, responsibilities_init=resp).fit(data, sample_weight=weight)
    assert_same(model, expected)
    np.testing.assert_allclose(
        model.score(data, sample_weight=weight), expected.score(X, sample_weight=WEIGHT), rtol=1e-12
    )


def test_a_number_weighs_all_rows_alike() -> None:
    assert_same(started().fit(X, sample_weight=3.0), plain())


def test_weights_of_rows_of_unknown_number_pair_by_block() -> None:
    data, weight = unknown(wrapped(X, (10, D))), wrapped(WEIGHT, 10)
    model = started(labels_init=wrapped(LABELS, 10)).fit(data, sample_weight=weight)
    assert_same(model, plain().fit(X, sample_weight=WEIGHT))
    with pytest.raises(DataError, match=r"sample_weight has 9 block\(s\) and X has 6"):
        started().fit(unknown(wrapped(X, (16, D))), sample_weight=weight)
    with pytest.raises(DataError, match=r"differ in length in block [01]"):
        started(labels_init=wrapped(LABELS, 10)).fit(data, sample_weight=wrapped(WEIGHT, ((9, 11, *[10] * 7),)))


# Masks


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr, format 3", "xarray, dask", "pandas"])
def test_rows_with_nan_may_be_omitted(kind: str, tmp_path: Path) -> None:
    x = X.copy()
    x[[0, 33, 34, 89], [0, 1, 2, 0]] = np.nan
    data = KINDS[kind](x, tmp_path / "x.zarr")
    keep = ~np.isnan(x).any(axis=1)
    model = started(nan_policy="omit").fit(data)
    expected = started(labels_init=LABELS[keep]).fit(X[keep])
    assert_same(model, expected)
    labels = np.asarray(model.predict(data))
    np.testing.assert_array_equal(labels == -1, ~keep)
    np.testing.assert_array_equal(labels[keep], expected.predict(X[keep]))
    proba = np.asarray(model.predict_proba(data))
    np.testing.assert_array_equal(np.isnan(proba).all(axis=1), ~keep)
    np.testing.assert_allclose(np.asarray(model.score_samples(data))[keep], expected.score_samples(X[keep]))
    np.testing.assert_allclose(model.score(data), expected.score(X[keep]), rtol=1e-12)
    np.testing.assert_allclose(model.bic(data), expected.bic(X[keep]), rtol=1e-12)
    x[7, 0] = np.inf
    with pytest.raises(DataError, match="contains infinity"):
        model.fit(KINDS[kind](x, tmp_path / "inf.zarr"))


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr, format 3"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_of_zero_weight_are_a_mask(kind: str, bad: float, tmp_path: Path) -> None:
    x = np.where(WEIGHT[:, None] == 0, bad, X)
    data = KINDS[kind](x, tmp_path / "x.zarr")
    kept = WEIGHT > 0
    expected = started(labels_init=LABELS[kept]).fit(X[kept], sample_weight=WEIGHT[kept])
    assert_same(started().fit(data, sample_weight=WEIGHT), expected)
    own = [
        GaussianMixture(K, random_state=0).fit(d, sample_weight=w)
        for d, w in [(data, WEIGHT), (X[kept], WEIGHT[kept])]
    ]
    np.testing.assert_allclose(own[0].means_, own[1].means_, rtol=1e-9)
    np.testing.assert_allclose(
        own[0].score(data, sample_weight=WEIGHT), own[1].score(X[kept], sample_weight=WEIGHT[kept])
    )


def test_other_dtypes_are_converted_tile_by_tile(tmp_path: Path) -> None:
    counts = np.round(20 * X).astype(np.int16)
    expected = started().fit(counts.astype(float))
    for dtype in ("i2", ">i4", "f2", ">f8", "i8"):
        for kind in ("numpy", "dask", "zarr, format 2"):
            data = KINDS[kind](
                counts.astype(dtype), tmp_path / f"{np.dtype(dtype).num}{dtype[0] == '>'}{kind}.zarr"
            )
            model = started().fit(data)
            np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-12)
            np.testing.assert_array_equal(np.asarray(model.predict(data)), expected.predict(counts))
