"""Fits to rows that miss values: exact EM, whatever the input; what is told and refused."""

import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

from daskgmm import DataError, GaussianMixture, MiniBatchGaussianMixture, load
from daskgmm.cli import main
from tests.model import dense_missing
from tests.structures import KINDS, draw_covariances, draw_mixture, parameters

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")
EITHER = (GaussianMixture, MiniBatchGaussianMixture)


def rows(n: int = 600, share: float = 0.3, seed: int = 0) -> Any:
    """Rows of three clusters in four features, with a share of values missing at random."""
    random = np.random.default_rng(seed)
    means = np.array([[0.0, 0, 0, 0], [6, 6, 0, 0], [0, 6, 6, -6]])
    x = means[random.integers(3, size=n)] + random.normal(size=(n, 4))
    return np.where(
        (random.random(x.shape) < share) & (np.arange(4) != random.integers(4, size=(n, 1))), np.nan, x
    )


def missing(kind: Any = GaussianMixture, **settings: Any) -> Any:
    return kind(**{"n_components": 3, "nan_policy": "missing", "random_state": 0, **settings})


def from_start(kind: str, k: int, d: int, x: Any, **settings: Any) -> tuple[Any, Any]:
    """An estimator that is given its start, and the start."""
    weights, means = np.full(k, 1 / k), np.nan_to_num(x[:k]) + np.random.default_rng(d).normal(size=(k, d))
    values = 2 * np.asarray(draw_covariances(kind, k, d, 3), np.float64)
    own = GaussianMixture.from_parameters(weights, means, values, kind)
    how = {"weights_init": weights, "means_init": means, "precisions_init": own.precisions_, "tol": 0.0}
    how |= {"n_components": k, "covariance_type": kind, "reg_covar": 0.0, "max_iter": 20}
    return missing(**{**how, **settings}), (weights, means, values)


@pytest.mark.parametrize("seed", range(20))
def test_twenty_iterations_are_those_of_the_definitions(seed: int) -> None:
    kind, k, d = [*KINDS][seed % 4], 1 + seed % 3, 2 + seed % 2
    share = np.linspace(0.05, 0.6, 20)[seed]
    random = np.random.default_rng(seed)
    x = draw_mixture(kind, k, d, seed).sample(40, np.random.RandomState(seed))[0]
    x = np.where(random.random(x.shape) < share, np.nan, x)
    x[[0, 1]] = random.normal(size=(2, d))
    weight = random.choice([1.0, 2.0], size=len(x))
    model, start = from_start(kind, k, d, x, block_size=13 * 8 * d)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have no value at all")
        model.fit(x, sample_weight=weight)
    weights, means, values, trace = dense_missing.em(x, weight, start, kind, 20)
    np.testing.assert_allclose(model.lower_bounds_, np.array(trace, float), rtol=1e-9, atol=1e-9)
    for found, expected in ((model.weights_, weights), (model.means_, means), (model.covariances_, values)):
        np.testing.assert_allclose(found, np.array(expected, float), rtol=1e-9, atol=1e-9)
    assert np.diff(model.lower_bounds_).min() >= -1e-10


def test_one_gaussian_is_that_of_the_closed_form() -> None:
    # One feature misses values, another none: Anderson (1957) has the maximum.
    random = np.random.default_rng(1)
    first = random.normal(size=200)
    x = np.column_stack([first, 2 * first + random.normal(size=200)])
    x[first > 0.3, 1] = np.nan
    there = ~np.isnan(x[:, 1])
    slope, intercept = np.polyfit(x[there, 0], x[there, 1], 1)
    left = np.mean((x[there, 1] - slope * x[there, 0] - intercept) ** 2)
    mean, variance = first.mean(), first.var()
    model = missing(n_components=1, reg_covar=0.0, tol=0.0, max_iter=400).fit(x)
    np.testing.assert_allclose(model.means_, [[mean, intercept + slope * mean]], rtol=1e-9)
    cross = slope * variance
    np.testing.assert_allclose(
        model.covariances_[0], [[variance, cross], [cross, left + slope * cross]], rtol=1e-9
    )


@pytest.mark.parametrize("kind", EITHER)
def test_rows_that_miss_nothing_give_the_same_bits(kind: Any) -> None:
    x = rows(share=0.0)
    a, b = kind(3, random_state=0).fit(x), missing(kind).fit(x)
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        assert np.asarray(getattr(a, name)).tobytes() == np.asarray(getattr(b, name)).tobytes()


@pytest.mark.parametrize("kind", EITHER)
@pytest.mark.parametrize("covariance_type", [*KINDS])
def test_clusters_are_found_from_our_own_starts(kind: Any, covariance_type: str) -> None:
    x, full = rows(), rows(share=0.0, seed=5)
    model = missing(kind, covariance_type=covariance_type).fit(x)
    whole = kind(3, covariance_type=covariance_type, random_state=0).fit(full)
    order = [np.argmin(np.linalg.norm(model.means_ - mean, axis=1)) for mean in whole.means_]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(model.means_[order], whole.means_, atol=0.5)
    assert model.bic(x) == model.evaluate(x).bic
    assert np.isfinite(model.icl(x))


def test_missing_at_random_given_another_feature_is_no_bias() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(20_000, 2)) + 8 * random.integers(2, size=(20_000, 1))
    x = np.column_stack([first, first @ [1.0, 1.0] + random.normal(size=20_000)])
    truth = x[:, 2].mean()
    x[first[:, 0] - 8 * (first[:, 0] > 4) > 0, 2] = np.nan  # what is missing depends on what is there
    model = missing(n_components=2, tol=1e-8, max_iter=500).fit(x)
    error = 3 * np.sqrt(3 / len(x))  # three standard errors, of a variance of 3 in each cluster
    assert abs(model.weights_ @ model.means_[:, 2] - truth) < error
    omitted = GaussianMixture(2, nan_policy="omit", random_state=0).fit(x)
    assert abs(omitted.weights_ @ omitted.means_[:, 2] - truth) > 10 * error


def test_every_input_says_what_it_misses(tmp_path: Path) -> None:
    x = rows(300)
    expected = missing(block_size=100 * 32).fit(x)
    store = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(100, 4), dtype="f8")
    store[:] = x
    masked = np.ma.masked_array(np.nan_to_num(x, nan=-999.0), np.isnan(x))
    frame = pd.DataFrame(x, columns=[*"ugri"])
    table = xr.DataArray(x, dims=("row", "feature"))
    for given in (da.from_array(x, chunks=(100, 4)), store, str(tmp_path / "x.zarr"), masked, frame, table):
        model = missing(block_size=100 * 32).fit(given)
        np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-12, atol=1e-12)
        answer = np.asarray(model.predict(given))
        np.testing.assert_array_equal(answer, expected.predict(x))
        full = np.asarray(model.impute(given))
        np.testing.assert_allclose(full, expected.impute(x), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(full[~np.isnan(x)], x[~np.isnan(x)])
    lazy = expected.impute(da.from_array(x, chunks=(100, 4)), random_state=1)
    assert isinstance(lazy, da.Array)
    np.testing.assert_array_equal(lazy.compute(), lazy.compute())
    assert (lazy.compute() != expected.impute(x)).any()
    assert expected.impute(table).dims == ("row", "feature")


def test_a_row_without_any_value_counts_as_nothing_and_is_told() -> None:
    x = rows(300)
    more = np.insert(x, [10, 200], np.nan, axis=0)
    with pytest.warns(UserWarning, match=r"2 row\(s\) of X have no value at all"):
        model = missing().fit(more)
    whole = missing().fit(x)
    np.testing.assert_allclose(model.means_, whole.means_, rtol=1e-10, atol=1e-10)
    assert model.predict(more)[[10, 201]].tolist() == [-1, -1]
    assert np.isnan(model.score_samples(more)[[10, 201]]).all()
    assert model.score(more) == pytest.approx(whole.score(x), rel=1e-10)
    np.testing.assert_allclose(model.impute(more)[10], model.weights_ @ model.means_)


def test_starts_that_are_given_take_what_rows_have() -> None:
    x = rows()
    labels = missing().fit(x).predict(x).astype(float)
    model = missing(labels_init=labels, max_iter=0, covariance_type="diag").fit(x)
    for j in range(3):
        np.testing.assert_allclose(model.means_[j], np.nanmean(x[labels == j], axis=0), rtol=1e-12)
        np.testing.assert_allclose(model.covariances_[j], np.nanvar(x[labels == j], axis=0) + 1e-6, rtol=1e-10)
    labels[3] = np.nan
    assert missing(labels_init=labels).fit(x).converged_


@pytest.mark.parametrize("kind", EITHER)
def test_what_cannot_be_is_refused(kind: Any) -> None:
    x = rows()
    x[5, 2] = np.inf
    with pytest.raises(DataError, match=r"infinity: block 0, row\(s\) 5\.$"):
        missing(kind).fit(x)
    model = missing(kind).fit(rows())
    for query in (model.predict, model.score, model.impute, model.merged):
        with pytest.raises(DataError, match="infinity"):
            query(x)
    x[:, 2] = np.nan
    with pytest.raises(DataError, match=r"No row has a value of feature\(s\) 2"):
        missing(kind).fit(x)
    with pytest.raises(DataError, match='nan_policy="missing" uses'):
        missing(kind, nan_policy="raise").fit(rows())


@pytest.mark.parametrize("kind", EITHER)
def test_a_fit_goes_on_where_it_stood(kind: Any, tmp_path: Path) -> None:
    x, place = rows(), tmp_path / "fit.npz"
    how: dict[str, Any] = {"tol": 0.0}
    missing(kind, max_iter=2, checkpoint=place, **how).fit(x)
    on, whole = missing(kind, max_iter=4, checkpoint=place, **how).fit(x), missing(kind, max_iter=4, **how).fit(x)
    np.testing.assert_array_equal(on.means_, whole.means_)
    with pytest.raises(DataError, match="omit_nan"):
        missing(kind, max_iter=5, checkpoint=place, nan_policy="omit", **how).fit(x)
    whole.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(load(tmp_path / "model.npz").predict(x), whole.predict(x))


def test_streams_learn_from_what_rows_have() -> None:
    x = rows(3000)
    model = missing(MiniBatchGaussianMixture, init_size=300)
    for first in range(0, len(x), 100):
        model.partial_fit(x[first : first + 100])
    assert model.score(x) > missing().fit(x).score(x) - 0.05
    assert model.n_samples_seen_ == 3000


def test_the_command_line_takes_rows_that_miss_values(tmp_path: Path) -> None:
    x = rows()
    np.save(tmp_path / "x.npy", x)
    words = ["fit", str(tmp_path / "x.npy"), "-k", "3", "--nan-policy", "missing", "--seed", "0"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "model.npz")])
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(load(tmp_path / "model.npz").means_, missing().fit(x).means_)
    assert parameters(load(tmp_path / "model.npz").mixture_)
