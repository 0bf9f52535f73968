"""Distances, thresholds and outliers: by the definitions, for any input, in kind."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import chi2

from daskgmm import GaussianMixture
from daskgmm.errors import DataError
from daskgmm.estimators import base
from daskgmm.estimators.answers import SKETCH_ROWS
from tests.apart import K, rows_of
from tests.structures import KINDS, matrices

X = rows_of(0, 3000)
WEIGHT = np.random.default_rng(1).uniform(0.1, 4, size=len(X))


def fitted(kind: Any = "full", **settings: Any) -> GaussianMixture:
    model = GaussianMixture(K, covariance_type=kind, random_state=0, **settings)
    model.fit(X)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_distances_by_the_definition(kind: str) -> None:
    model = fitted(kind)
    dense = matrices(model.covariances_, kind, *model.means_.shape)
    for x in (X, X.astype("f4"), np.rint(X).astype(int)):
        found = model.mahalanobis(x)
        delta = x[:, None, :] - model.means_
        expected = np.sqrt(np.einsum("nki,kij,nkj->nk", delta, np.linalg.inv(dense), delta))
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_as_many_rows_lie_within_as_is_said() -> None:
    drawn, label = fitted().sample(100_000)
    own = fitted().mahalanobis(drawn)[np.arange(len(drawn)), label]
    assert np.mean(own < np.sqrt(chi2.ppf(0.95, 2))) == pytest.approx(0.95, abs=0.003)


def test_answers_are_in_kind() -> None:
    model = fitted()
    chunked, threshold = da.from_array(X, chunks=(700, 2)), model.threshold(X)
    for ask in (model.mahalanobis, lambda x: model.is_outlier(x, threshold)):
        expected, lazy = ask(X), ask(chunked)
        assert isinstance(lazy, da.Array)
        assert lazy.chunks[0] == chunked.chunks[0]
        assert (lazy.dtype, lazy.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(lazy.compute(), expected)
    labelled = xr.DataArray(X, coords={"time": np.arange(len(X))}, dims=("time", "feature"))
    found = model.is_outlier(labelled, threshold)
    assert (found.name, found.dtype, found.dims) == ("is_outlier", bool, ("time",))
    assert model.mahalanobis(labelled).dims == ("time", "component")


def test_what_is_no_number_is_refused_or_left_out() -> None:
    holes = X.copy()
    holes[[5, 900]] = np.nan
    for ask in (fitted().mahalanobis, fitted().threshold, fitted().sample_rows):
        with pytest.raises(DataError, match=r"row\(s\) 5, 900"):
            ask(holes)
    lenient = fitted(nan_policy="omit")
    kept = np.delete(X, [5, 900], axis=0)
    assert np.isnan(lenient.mahalanobis(holes)[[5, 900]]).all()
    assert lenient.threshold(holes) == fitted().threshold(kept)
    assert not lenient.is_outlier(holes, np.inf)[[5, 900]].any()
    assert len(lenient.sample_rows(holes)[0]) == len(kept)
    with pytest.raises(DataError, match="no row of positive weight"):
        fitted().threshold(X, sample_weight=np.zeros(len(X)))


@pytest.mark.parametrize("quantile", [0.0, 0.001, 0.01, 0.5, 1.0])
def test_a_threshold_of_few_rows_is_exact(quantile: float) -> None:
    model = fitted()
    density = model.score_samples(X)
    found = model.threshold(X, quantile)
    assert found == np.quantile(density, quantile, method="inverted_cdf")
    assert model.threshold(da.from_array(X, chunks=(700, 2)), quantile) == found
    assert model.is_outlier(X, found).mean() <= quantile
    heavy = model.threshold(X, quantile, sample_weight=WEIGHT)
    order = np.argsort(density)
    below = np.cumsum(WEIGHT[order])[np.searchsorted(density[order], heavy)]
    assert below >= quantile * WEIGHT.sum() * (1 - 1e-12)
    assert WEIGHT[density < heavy].sum() <= quantile * WEIGHT.sum()


def test_a_threshold_of_many_rows_is_as_near_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, few = fitted(), 2000
    monkeypatch.setattr(base, "SKETCH_ROWS", few)
    x = rows_of(7, 40_000)
    weight = np.random.default_rng(2).uniform(0, 2, size=len(x))
    density = model.score_samples(x)
    for quantile in (0.01, 0.2):
        found = model.threshold(x, quantile, sample_weight=weight)
        share = weight[density < found].sum() / weight.sum()
        error = np.sqrt(quantile * (1 - quantile) / few)
        assert 0 < abs(share - quantile) < 3 * error
        # The sample goes by the numbers of the rows, not by blocks.
        again = model.threshold(da.from_array(x, chunks=(777, 2)), quantile, sample_weight=weight)
        assert again == pytest.approx(found, rel=1e-12)
    assert SKETCH_ROWS == 131_072  # as documented


def test_rows_are_drawn_by_weight() -> None:
    model = fitted()
    rows, weights = model.sample_rows(X, 500, sample_weight=WEIGHT)
    assert rows.shape == (500, 2)
    assert weights.mean() == pytest.approx(1)
    places = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in rows]
    assert places == sorted(set(places))
    assert WEIGHT[places].mean() > WEIGHT.mean() * 1.2
    mean = np.average(rows, weights=weights, axis=0)
    np.testing.assert_allclose(mean, np.average(X, weights=WEIGHT, axis=0), atol=0.5)
    whole, ones = GaussianMixture().sample_rows(pd.DataFrame(X), 5000)
    np.testing.assert_array_equal(whole, X)
    assert (ones == 1).all()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="quantile"):
        fitted().threshold(X, 1.5)
    with pytest.raises(ValueError, match="n_rows"):
        fitted().sample_rows(X, 0)
