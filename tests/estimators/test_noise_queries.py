"""Distances of rows with errors, and their missing values filled in, against dense algebra row by row."""

from typing import Any

import dask.array as da
import numpy as np
import pytest

from daskgmm import DataError, GaussianMixture
from tests.structures import KINDS, draw_mixture, matrices

EMPTY, DRAWS = 9, 1000  # a row without any value
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no value at all"),
    pytest.mark.filterwarnings("ignore:Best performing initialization"),
]


def gaps(full: bool) -> tuple[Any, Any]:
    """Rows in three features of very different units, some of which miss values, and one misses all; and noise."""
    random = np.random.default_rng(4)
    scale = np.array([1.0, 1e-6, 1e4])
    x = draw_mixture("full", 2, 3, 1).sample(60, np.random.RandomState(0))[0]
    x[(random.random(x.shape) < 0.4) & (np.arange(3) != random.integers(3, size=(60, 1)))] = np.nan
    x[EMPTY] = np.nan
    a = random.normal(scale=0.6, size=(60, 3, 3)) * scale[:, None]
    return x * scale, a @ np.swapaxes(a, 1, 2) if full else np.square(a).sum(axis=2)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_distances_and_missing_values_of_rows_with_errors(kind: Any, full: bool, background: bool) -> None:
    x, noise = gaps(full)
    how: dict[str, Any] = {"covariance_type": kind, "background": background, "nan_policy": "missing"}
    model = GaussianMixture(2, max_iter=5, tol=0.0, random_state=0, **how).fit(x, noise=noise)
    weights = model.weights_ / model.weights_.sum()
    members = GaussianMixture.from_parameters(weights, model.means_, model.covariances_, kind)
    resp = members.set_params(nan_policy="missing").predict_proba(x, noise=noise)
    resp[EMPTY] = weights
    found, filled = model.mahalanobis(x, noise=noise), model.impute(x, noise=noise)
    drawn = model.impute(np.tile(x, (DRAWS, 1)), 0, noise=np.tile(noise, (DRAWS, *(1,) * (noise.ndim - 1))))
    drawn = drawn.reshape(DRAWS, *x.shape)
    dense = matrices(model.covariances_, kind, 2, 3)
    for i, row in enumerate(x):
        o, m = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
        own = (noise[i] if full else np.diag(noise[i]))[np.ix_(o, o)]
        means, variances = np.zeros((2, len(m))), np.zeros((2, len(m)))
        for j, (mean, c) in enumerate(zip(model.means_, dense, strict=True)):
            t, apart = c[np.ix_(o, o)] + own, row[o] - mean[o]
            if i != EMPTY:
                assert found[i, j] == pytest.approx(np.sqrt(apart @ np.linalg.solve(t, apart)), rel=1e-8)
            gain = np.linalg.solve(t, c[np.ix_(o, m)]).T
            means[j] = mean[m] + gain @ apart
            variances[j] = np.diagonal(c[np.ix_(m, m)] - gain @ c[np.ix_(o, m)])
        expected = resp[i] @ means
        deviation = np.sqrt(resp[i] @ (variances + np.square(means - expected)))
        np.testing.assert_allclose(filled[i, m], expected, rtol=1e-8, atol=1e-9 * deviation.max(initial=0))
        assert (np.abs(drawn[:, i, m].mean(axis=0) - expected) < 5 * deviation / np.sqrt(DRAWS)).all()
        if not 1e-16 < resp[i].min() < 0.1:  # else too few draws come from one of the components
            np.testing.assert_allclose(drawn[:, i, m].std(axis=0), deviation, rtol=0.25)
        assert np.array_equal(drawn[0, i, o], row[o])
    assert np.isnan(found[EMPTY]).all()


@pytest.mark.parametrize("full", [False, True])
def test_without_errors_these_are_those_of_plain_rows(full: bool) -> None:
    x, noise = gaps(full)
    x, none = np.delete(x, EMPTY, axis=0), 0 * noise[1:]
    model = GaussianMixture(2, nan_policy="missing", random_state=0).fit(x)
    for ask in (model.mahalanobis, model.impute):
        np.testing.assert_allclose(ask(x, noise=none), ask(x), rtol=1e-7)
    lazy = model.impute(da.from_array(x, chunks=(20, 3)), noise=none)
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), model.impute(x), rtol=1e-7)
    x[3, 0] = np.inf
    for ask in (model.mahalanobis, model.impute):
        with pytest.raises(DataError, match=r"infinity: block 0, row\(s\) 3"):
            ask(x, noise=none)
