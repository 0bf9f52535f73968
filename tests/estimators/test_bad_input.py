"""Bad input: scikit-learn's words where it has any, the block and rows, and an estimator left as it was."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from daskgmm import CollapseError, DataError, GaussianMixture
from tests import structures

N, D = 60, 3
X = np.random.default_rng(0).normal(size=(N, D)) + 3 * (np.arange(N)[:, None] % 2)
BLOCK = 10 * D * 8  # ten rows, for every kind below


def to_zarr(x: Any, path: Path) -> str:
    array = zarr.create_array(str(path), shape=x.shape, chunks=(10, *x.shape[1:]), dtype=x.dtype)
    array[...] = x
    return str(path)


def unknown(x: Any) -> Any:
    """A Dask array that does not know how many rows its chunks have."""
    chunked = da.from_array(x, chunks=(10, *x.shape[1:]))
    return da.Array(chunked.dask, chunked.name, ((np.nan,) * len(chunked.chunks[0]), *chunked.chunks[1:]), x.dtype)


KINDS: dict[str, Callable[[Any, Path], Any]] = {
    "numpy": lambda x, path: x,
    "dask": lambda x, path: da.from_array(x, chunks=(10, *x.shape[1:])),
    "zarr": to_zarr,
    "xarray": lambda x, path: xr.DataArray(da.from_array(x, chunks=(10, *x.shape[1:]))),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Any]:
    numbers = iter(range(100))
    return lambda x: KINDS[request.param](x, tmp_path / f"{next(numbers)}.zarr")


FITTED = [name for name in dir(GaussianMixture) if name.endswith("_") and not name.startswith("_")]


def state(model: GaussianMixture) -> tuple[Any, ...]:
    """All that a user can see, and the names of all else."""
    fitted = {name: getattr(model, name) for name in FITTED if hasattr(model, name)}
    return sorted(vars(model)), pickle.dumps(model.get_params()), pickle.dumps(fitted)


@pytest.fixture(params=["fresh", "fitted"])
def model(request: pytest.FixtureRequest) -> Any:
    model = GaussianMixture(2, random_state=0, block_size=BLOCK)
    return model.fit(X) if request.param == "fitted" else model


def refused(model: GaussianMixture, message: str, *args: Any, error: Any = DataError, **kwargs: Any) -> Any:
    """Fit, and look that nothing has changed."""
    before = state(model)
    with pytest.raises(error, match=message) as caught:
        model.fit(*args, **kwargs)
    assert state(model) == before
    return caught.value


def spoilt(rows: list[int], value: float) -> Any:
    x = X.copy()
    x[rows, 1] = value
    return x


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "Input X contains NaN"), (np.inf, "Input X contains infinity"), (-np.inf, "infinity")],
)
def test_values_that_are_not_finite(model: GaussianMixture, kind: Any, value: float, words: str) -> None:
    error = refused(model, words, kind(spoilt([33, 37], value)))
    assert "block 3, row(s) 33, 37" in str(error)


def test_rows_of_unknown_number_are_counted_in_their_block(model: GaussianMixture) -> None:
    error = refused(model, "Input X contains NaN", unknown(spoilt([33, 37], np.nan)))
    assert "block 3, row(s) 3, 7 counted from the block's first" in str(error)


def test_long_lists_of_bad_rows_are_cut(model: GaussianMixture, kind: Any) -> None:
    error = refused(model, "contains NaN", kind(spoilt(list(range(20, 30)), np.nan)))
    assert "row(s) 20, 21, 22, 23, 24 and 5 more" in str(error)


@pytest.mark.parametrize("value", [1e300, -1e200])
def test_values_too_large_to_square(model: GaussianMixture, value: float) -> None:
    error = refused(model, "value too large for dtype", spoilt([33], value))
    assert "block 3" in str(error)


def test_nan_found_by_a_warm_start(kind: Any) -> None:
    # No survey looks at the rows first.
    model = GaussianMixture(2, random_state=0, block_size=BLOCK, warm_start=True).fit(X)
    error = refused(model, "Input X contains NaN", kind(spoilt([33], np.nan)))
    assert "block 3, row(s) 33" in str(error)


@pytest.mark.parametrize("warm_start", [False, True])
def test_all_weights_zero(kind: Any, warm_start: bool) -> None:
    model = GaussianMixture(2, random_state=0, block_size=BLOCK, warm_start=warm_start).fit(X)
    words = "Sample weights must contain at least one non-zero number"
    refused(model, words, kind(X), sample_weight=np.zeros(N))


@pytest.mark.parametrize("warm_start", [False, True])
def test_fewer_rows_than_components(kind: Any, warm_start: bool) -> None:
    model = GaussianMixture(4, random_state=0, block_size=BLOCK, warm_start=warm_start).fit(X)
    words = "Expected n_samples >= n_components but got n_components = 4, n_samples = 3"
    refused(model, words, kind(X[:3]))
    weight = np.zeros(N)
    weight[[3, 20, 50]] = 1.0
    refused(model, words, kind(X), sample_weight=weight)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1.0, "Negative values in data passed to sample_weight"),
        (np.nan, "Input sample_weight contains NaN"),
        (np.inf, "Input sample_weight contains infinity"),
    ],
)
def test_bad_weights(model: GaussianMixture, kind: Any, value: float, words: str) -> None:
    weight = np.ones(N)
    weight[[41, 44]] = value
    for w in (weight, kind(weight)):
        error = refused(model, words, kind(X), sample_weight=w)
        assert "block 4, row(s) 41, 44" in str(error)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (np.ones(N - 1), r"sample_weight.shape == \(59,\), expected \(60,\)!"),
        (np.ones((N, 1)), "Sample weights must be 1D array or scalar"),
        (np.ones((N, 2)), "Sample weights must be 1D array or scalar"),
    ],
)
def test_misshapen_weights(model: GaussianMixture, kind: Any, weight: Any, words: str) -> None:
    refused(model, words, kind(X), sample_weight=weight, error=ValueError)
    refused(model, words, X, sample_weight=kind(weight), error=ValueError)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (X[:, 0], "Expected 2D array, got 1D array instead"),
        (X + 1j, "Complex data not supported"),
        (X[:, :0], r"Found array with 0 feature\(s\) \(shape=\(60, 0\)\) while a minimum of 1 is required"),
        (X[:0], r"Found array with 0 sample\(s\) \(shape=\(0, 3\)\) while a minimum of 1 is required"),
        (X.astype("U8"), "dtype='numeric' is not compatible with arrays of bytes/strings|could not convert"),
    ],
    ids=["1-D", "complex", "no features", "no rows", "strings"],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_arrays_that_are_no_rows(model: GaussianMixture, values: Any, words: str, chunked: bool) -> None:
    chunks = tuple(max(1, min(10, size)) for size in values.shape)
    x = da.from_array(values, chunks=chunks) if chunked else values
    refused(model, words, x, error=ValueError)


def test_three_dimensions(model: GaussianMixture, kind: Any) -> None:
    x = kind(X.reshape(N, D, 1))
    words = r"Expected 2D array, (rows first, )?got (3D|dim)|Found array with dim 3, while dim <= 2 is required"
    refused(model, words, x, error=ValueError)


def test_objects(model: GaussianMixture) -> None:
    refused(
        model,
        "could not convert|not compatible",
        np.array([["a", {}], [1, 2]], dtype=object),
        error=(ValueError, TypeError),
    )
    chunked = da.from_array(X.astype(object), chunks=(10, D))
    refused(model, "dtype='numeric' is not compatible with arrays of dtype object", chunked, error=ValueError)


@pytest.mark.parametrize("covariance_type", structures.KINDS)
@pytest.mark.parametrize("chunked", [False, True])
def test_collapse_names_the_component(covariance_type: Any, chunked: bool) -> None:
    # Label 1 is one point; tied: all rows are.
    x = X.copy()
    x[1::2] = 7.0
    if covariance_type == "tied":
        x[:] = 7.0
    model = GaussianMixture(
        2,
        covariance_type=covariance_type,
        reg_covar=0,
        labels_init=np.arange(N) % 2,
        random_state=0,
    )
    words = "some components have ill-defined empirical covariance"
    data = da.from_array(x, chunks=(10, D)) if chunked else x
    error = refused(model, words, data, error=CollapseError)
    component = 0 if covariance_type == "tied" else 1
    assert f"component {component}" in str(error)
    assert error.component == component
    model.set_params(reg_covar=1e-6).fit(data)


@pytest.mark.parametrize("covariance_type", structures.KINDS)
@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data", "subsample"])
def test_collapse_from_every_seed(covariance_type: str, init_params: str) -> None:
    x = np.repeat([[0.1, 0.2], [5.1, 0.2]], 30, axis=0)
    settings: dict[str, Any] = {"covariance_type": covariance_type, "init_params": init_params, "random_state": 0}
    model = GaussianMixture(2, reg_covar=0, **settings)
    if init_params == "random":
        model.set_params(max_iter=1000, tol=0)  # spread at first, collapses on the way
    error = refused(model, "ill-defined empirical covariance", x[:, :1] if init_params == "random" else x)
    assert error.component in (0, 1)


def test_one_collapsed_run_does_not_end_the_others() -> None:
    # 3 components on two clusters and a repeated point: some starts collapse, the best sound one is taken.
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(size=(60, 2)), random.normal(size=(60, 2)) + 8, np.full((4, 2), 4.0)])
    model = GaussianMixture(3, reg_covar=0, n_init=8, random_state=0, init_params="random_from_data", max_iter=500)
    model.fit(x)
    assert np.all(np.linalg.eigvalsh(model.covariances_) > 1e-6)
    assert np.all(np.isfinite(model.score_samples(x)))


def test_unknown_path(model: GaussianMixture, tmp_path: Path) -> None:
    for place in (tmp_path / "none.zarr", str(tmp_path / "none.zarr"), f"file://{tmp_path}/none.zarr"):
        refused(model, "no Zarr array at .*none.zarr", place, error=FileNotFoundError)
    assert not (tmp_path / "none.zarr").exists()


def test_a_store_that_lacks_a_chunk(model: GaussianMixture, tmp_path: Path) -> None:
    path = Path(to_zarr(X, tmp_path / "x.zarr"))
    (path / "c" / "3" / "0").unlink()
    error = refused(model, "'c/3/0' of .*x.zarr is not in the store", str(path))
    assert 'missing_chunks="fill"' in str(error)
    filled = X.copy()
    filled[30:40] = 0.0
    model.set_params(missing_chunks="fill").fit(str(path))
    expected = GaussianMixture(2, random_state=0, block_size=BLOCK).fit(filled)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-12)
    with pytest.raises(DataError, match="not in the store"):
        np.asarray(expected.predict(str(path)))


QUERIES = ["predict", "predict_proba", "score_samples", "score", "aic", "bic", "icl"]


@pytest.mark.parametrize("query", QUERIES)
class TestQueries:
    @pytest.fixture
    def fitted(self) -> Any:
        return GaussianMixture(2, random_state=0, block_size=BLOCK).fit(X)

    def test_feature_count(self, fitted: GaussianMixture, kind: Any, query: str) -> None:
        before = state(fitted)
        words = "X has 2 features, but GaussianMixture is expecting 3 features as input"
        with pytest.raises(ValueError, match=words):
            getattr(fitted, query)(kind(X[:, :2]))  # at once, before anything is computed
        assert state(fitted) == before

    @pytest.mark.parametrize(("value", "words"), [(np.nan, "contains NaN"), (np.inf, "contains infinity")])
    def test_not_finite(self, fitted: GaussianMixture, kind: Any, query: str, value: float, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            np.asarray(getattr(fitted, query)(kind(spoilt([33, 37], value))))
        assert "block 3, row(s) 33, 37" in str(caught.value)

    def test_one_dimension(self, fitted: GaussianMixture, kind: Any, query: str) -> None:
        with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
            getattr(fitted, query)(kind(X[0]))

    def test_unknown_path(self, fitted: GaussianMixture, query: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.zarr"))):
            getattr(fitted, query)(tmp_path / "none.zarr")


def test_score_weights_are_checked(kind: Any) -> None:
    model = GaussianMixture(2, random_state=0, block_size=BLOCK).fit(X)
    for weight, words in [
        (np.zeros(N), "at least one non-zero number"),
        (-np.ones(N), "Negative values in data passed to sample_weight: block "),
        (np.ones(N - 1), "expected"),
    ]:
        with pytest.raises(ValueError, match=words):
            model.score(kind(X), sample_weight=weight)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels_init": np.arange(N) % 3}, "labels_init must lie in 0 ... 1; block "),
        ({"labels_init": np.arange(N) % 2 - 1}, "labels_init must lie in 0 ... 1; block "),
        ({"labels_init": np.arange(N) % 2 / 2}, "labels_init must be integers"),
        ({"labels_init": np.zeros(N - 1, int)}, r"labels_init.shape == \(59,\), expected \(60,\)"),
        ({"responsibilities_init": np.ones((N, 2))}, ">= 0 and sum to 1"),
        ({"responsibilities_init": np.tile([1.5, -0.5], (N, 1))}, ">= 0 and sum to 1"),
        ({"responsibilities_init": np.full((N, 2), np.nan)}, "responsibilities_init has missing values"),
        ({"responsibilities_init": np.full((N, 3), 1 / 3)}, "should have 2 columns"),
        ({"responsibilities_init": np.full((N - 1, 2), 0.5)}, r"expected \(60, 2\)"),
        ({"labels_init": np.zeros(N, int), "responsibilities_init": np.full((N, 2), 0.5)}, "not both"),
    ],
)
def test_bad_starts(settings: dict[str, Any], words: str, kind: Any) -> None:
    refused(GaussianMixture(2, block_size=BLOCK, **settings), words, kind(X), error=ValueError)


@pytest.mark.parametrize("name", ["labels_init", "responsibilities_init"])
def test_the_two_kinds_of_start_are_not_mistaken_for_each_other(name: str) -> None:
    wrong: Any = {name: np.full((N, 2), 0.5) if name == "labels_init" else np.arange(N) % 2}
    refused(GaussianMixture(2, **wrong), name, X, error=ValueError)


def test_a_warm_start_of_another_shape() -> None:
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(X)
    refused(model, "warm_start needs the shape of the last fit", X[:, :2])
    refused(model.set_params(n_components=3), "warm_start needs the shape of the last fit", X)
    refused(model.set_params(n_components=2, covariance_type="diag"), "warm_start needs", X)
