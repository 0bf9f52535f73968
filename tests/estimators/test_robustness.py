"""Cases at the edge that a fit must survive, and state that it must not leave behind."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from sklearn.base import clone
from threadpoolctl import threadpool_info, threadpool_limits

from daskgmm import CollapseError, DataError, GaussianMixture
from daskgmm.fit.starts import STARTS
from tests.structures import KINDS


def blobs(n: int = 400, d: int = 2, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) + 8 * random.integers(2, size=(n, 1))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_more_components_than_distinct_rows(kind: Any) -> None:
    x = np.repeat([[0.0, 0.0], [1.0, 1.0]], 50, axis=0)
    model = GaussianMixture(4, covariance_type=kind, reg_covar=0.1, random_state=0).fit(x)
    assert np.all(np.isfinite(model.score_samples(x)))
    np.testing.assert_allclose(model.weights_.sum(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rows_fit_with_regularisation(kind: Any) -> None:
    model = GaussianMixture(1, covariance_type=kind).fit(np.ones((10, 2)))
    np.testing.assert_allclose(model.means_, 1.0, rtol=1e-15)


def test_collinear_features_of_large_variance_fit_with_regularisation() -> None:
    column = np.arange(65536.0)[:, None]
    model = GaussianMixture(1).fit(np.hstack([column, column]))
    np.testing.assert_allclose(model.covariances_[0], np.var(column), rtol=1e-9)
    with pytest.raises(CollapseError):
        GaussianMixture(1, reg_covar=0).fit(np.hstack([column, column]))


def test_a_start_that_collapses_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, calls = STARTS["kmeans"], []

    def every_other(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) % 2:
            raise CollapseError("a start that collapses", 0)
        return sound(*arguments)

    monkeypatch.setitem(STARTS, "kmeans", every_other)
    model = GaussianMixture(2, random_state=0, n_init=4).fit(blobs())
    assert np.isfinite(model.lower_bound_)
    assert len(calls) == 4
    with pytest.raises(CollapseError):
        GaussianMixture(2, random_state=0, n_init=1).fit(blobs())


def test_blas_threads_are_as_before_after_fits_in_many_threads() -> None:
    x = blobs(300)
    with threadpool_limits(2, user_api="blas"):
        before = [pool["num_threads"] for pool in threadpool_info()]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: GaussianMixture(2, random_state=seed).fit(x), range(24)))
        assert [pool["num_threads"] for pool in threadpool_info()] == before


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_bits_do_not_depend_on_blas_threads() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 128))
    w = np.random.default_rng(1).uniform(size=2000)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            model = GaussianMixture(2, max_iter=2, random_state=0).fit(x, sample_weight=w)
            found.append((model.precisions_cholesky_, model.score(x, sample_weight=w)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_bits_do_not_depend_on_how_blocks_lie_in_memory() -> None:
    x = blobs(5000, 3)
    plain = da.from_array(x, chunks=(1700, 3))
    strided = plain.map_blocks(lambda b: np.repeat(b, 2, axis=1)[:, ::2], chunks=plain.chunks, dtype=float)
    models = [GaussianMixture(2, random_state=0).fit(rows) for rows in (plain, strided)]
    np.testing.assert_array_equal(models[0].covariances_, models[1].covariances_)
    assert models[0].lower_bounds_ == models[1].lower_bounds_


def test_fitted_arrays_cannot_be_edited_behind_the_model() -> None:
    model = GaussianMixture(2, random_state=0).fit(blobs())
    for array in (model.weights_, model.means_, model.covariances_, model.precisions_cholesky_):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_a_pickled_model_is_no_larger_after_a_query() -> None:
    x = blobs(d=16)
    model = GaussianMixture(4, random_state=0, reg_covar=1e-2).fit(x)
    before = len(pickle.dumps(model))
    model.predict(x)
    assert len(pickle.dumps(model)) == before


def test_conversion_keeps_the_fitted_structure_whatever_was_set_since() -> None:
    x = blobs()
    model = GaussianMixture(2, random_state=0).fit(x).set_params(covariance_type="diag", n_components=5)
    np.testing.assert_array_equal(model.to_sklearn().predict(x), model.predict(x))


@pytest.mark.parametrize("scale", [1e-44, 1e-60, 1e38])
def test_float32_rows_take_weights_of_any_scale(scale: float) -> None:
    x = blobs(2000).astype(np.float32)
    one = GaussianMixture(2, random_state=0).fit(x, sample_weight=np.ones(2000))
    other = GaussianMixture(2, random_state=0).fit(x, sample_weight=np.full(2000, scale))
    np.testing.assert_allclose(one.means_, other.means_, rtol=1e-4)


SOUND = [1e-280, 1e280]
UNSOUND = [5e-324, 1e-315, 1e-310, 1e-300, 1e290, 1e303, 1e304, 1e305, 1e307, 1.7e308]


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # before it is refused
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("block_size", ["64 MiB", 4096])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", [False, True])
def test_weights_of_any_scale_count_or_are_refused(kind: str, begun: bool, block_size: Any) -> None:
    x = blobs(3000) / 4  # components overlap
    settings: dict[str, Any] = {"covariance_type": kind, "block_size": block_size, "max_iter": 5, "tol": 0}
    one = GaussianMixture(2, random_state=0, **settings).fit(x)
    if begun:
        start: dict[str, Any] = {
            "weights_init": [0.4, 0.6],
            "means_init": one.means_ + 0.1,
            "precisions_init": one.precisions_,
        }
        one = GaussianMixture(2, **settings, **start).fit(x)
    for scale in SOUND + UNSOUND:
        weight = np.full(len(x), scale)
        if scale in SOUND:
            np.testing.assert_allclose(clone(one).fit(x, sample_weight=weight).means_, one.means_, rtol=1e-9)
            np.testing.assert_allclose(one.score(x, sample_weight=weight), one.score(x), rtol=1e-9)
            continue
        for call in (clone(one).fit, one.score):
            with pytest.raises(DataError, match=r"sample_weight .*Scale"):
                call(x, sample_weight=weight)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_of_hardly_any_weight_are_none() -> None:
    x = blobs(400)
    weight = np.where(np.arange(400) < 200, 1.0, 5e-324)
    both, first = (
        GaussianMixture(2, random_state=0, max_iter=200, tol=1e-10).fit(x[:n], sample_weight=weight[:n])
        for n in (400, 200)
    )
    assert np.isfinite(both.lower_bound_)
    np.testing.assert_allclose(np.sort(both.means_[:, 0]), np.sort(first.means_[:, 0]), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-24, 1e15])
def test_float32_rows_of_any_scale(scale: float) -> None:
    x = blobs(2000)
    model = GaussianMixture(2, random_state=0, reg_covar=0).fit((scale * x).astype(np.float32))
    same = GaussianMixture(2, random_state=0, reg_covar=0).fit(x)
    np.testing.assert_allclose(model.means_ / scale, same.means_, rtol=1e-4, atol=1e-4)


def test_a_wide_answer_keeps_blocks_small() -> None:
    model = GaussianMixture(50, random_state=0, reg_covar=1.0, max_iter=1, tol=1e9).fit(blobs(2000))
    model.set_params(block_size=80_000)
    store = zarr.create_array({}, shape=(20_000, 2), chunks=(100, 2), dtype="f4", fill_value=1)
    store[:] = np.random.default_rng(0).normal(size=(20_000, 2))
    chunks = model.predict_proba(store).chunks[0]
    assert max(chunks) * 50 * 8 <= 80_000
