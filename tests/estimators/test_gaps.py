"""Every query of rows that miss values, and of one that has none: the marginal mixture of each row answers it."""

from typing import Any

import numpy as np
import pytest
from scipy.special import entr

from daskgmm import GaussianMixture
from tests.structures import KINDS

D, EMPTY = 3, 7  # features, and a row without any value
FILLED = np.delete(np.arange(60), EMPTY)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*no value at all"),
    pytest.mark.filterwarnings("ignore:Best performing initialization"),
]


def rows() -> Any:
    """Rows of two components, of which a third of the values is missing, and one row misses all."""
    random = np.random.default_rng(2)
    x = 3 * random.integers(2, size=(60, 1)) + random.normal(size=(60, D)) @ np.array(
        [[1.0, 0.5, 0], [0, 1, 0.7], [0, 0, 1]]
    )
    x[(random.random(x.shape) < 0.4) & (np.arange(D) != random.integers(D, size=(60, 1)))] = np.nan
    x[EMPTY] = np.nan
    return x


def fitted(kind: Any, background: bool = False) -> GaussianMixture:
    how: dict[str, Any] = {"covariance_type": kind, "background": background, "random_state": 0}
    how |= {"n_factors": 1} if kind == "factors" else {}
    model = GaussianMixture(2, nan_policy="missing", max_iter=20, tol=0.0, **how)
    model.fit(rows())
    return model


def by_row(model: GaussianMixture, ask: Any) -> Any:
    """What the marginal mixture of each row that has values says of these."""
    x = rows()
    seen = [np.flatnonzero(~np.isnan(row)) for row in x]
    return np.stack([ask(model.marginal(seen[i]), x[i, seen[i]][None])[0] for i in FILLED])


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


both = pytest.mark.parametrize("background", [False, True])
every_kind = pytest.mark.parametrize("kind", [*KINDS, "factors"])


@both
@every_kind
def test_rows_are_answered_by_their_marginal_mixtures(kind: Any, background: bool) -> None:
    model, x = fitted(kind, background), rows()
    for name in ("predict", "predict_proba", "score_samples", "mahalanobis"):
        found = getattr(model, name)(x)
        close(found[FILLED], by_row(model, lambda part, row, name=name: getattr(part, name)(row)))
        assert found[EMPTY] == -1 if name == "predict" else np.isnan(found[EMPTY]).all()
    density = model.score_samples(x)[FILLED]
    threshold = model.threshold(x, 0.1)
    assert threshold == np.quantile(density, 0.1, method="inverted_cdf")
    assert np.array_equal(model.is_outlier(x, threshold)[FILLED], density < threshold)
    assert not model.is_outlier(x, np.inf)[EMPTY]


@both
@every_kind
def test_scores_are_those_of_rows_that_have_values(kind: Any, background: bool) -> None:
    model, x = fitted(kind, background), rows()
    density, resp = model.score_samples(x)[FILLED], model.predict_proba(x)[FILLED]
    resp = np.column_stack([resp, np.clip(1 - resp.sum(axis=1), 0, 1)])
    bic = model.mixture_.n_parameters * np.log(len(FILLED)) - 2 * density.sum()
    close(model.score(x), density.mean())
    close(model.bic(x), bic)
    close(model.aic(x), 2 * model.mixture_.n_parameters - 2 * density.sum())
    close(model.icl(x), bic + 2 * entr(resp).sum())
    close(model.expectation(x).score, density.mean())


@both
@every_kind
def test_what_is_missing_follows_from_what_is_there(kind: Any, background: bool) -> None:
    model, x = fitted(kind, background), rows()
    filled, gone = model.impute(x), np.isnan(x)
    for i in FILLED[gone[FILLED].any(axis=1)]:
        there = np.flatnonzero(~gone[i])
        rest = model.conditional(dict(zip(there.tolist(), x[i, there].tolist(), strict=True)))
        close(filled[i, gone[i]], rest.weights_ @ rest.means_)
    close(filled[~gone], x[~gone])
    close(filled[EMPTY], model.weights_ @ model.means_ / model.weights_.sum())
    drawn = model.impute(x, random_state=0)
    assert np.isfinite(drawn).all()
    # A regression of the last feature on what a row has of the others is what fills it in.
    part = x.copy()
    part[:, 2] = np.nan
    known = ~np.isnan(part).all(axis=1)
    mean, std = model.regress(x[:, :2], given=[0, 1], of=2, return_std=True)
    close(mean[known], model.impute(part)[known, 2])
    assert (std[known] > 0).all()
    assert np.isnan(mean[~known]).all()
    assert np.isnan(std[~known]).all()
    for i in np.flatnonzero(known & np.isnan(x[:, 1])):
        rest = model.regress(x[i : i + 1, :1], given=[0], of=2, return_std=True)
        close((mean[i], std[i]), np.ravel(rest))


@both
@every_kind
def test_clusters_of_components_are_sums_of_them(kind: Any, background: bool) -> None:
    model, x = fitted(kind, background), rows()
    resp = model.predict_proba(x)
    clusters = model.merged(x, 2)
    close(clusters.predict_proba(x)[:, clusters.labels], resp)
    close(model.merged(x, 1).predict_proba(x)[:, 0], resp.sum(axis=1))
    assert clusters.predict(x)[EMPTY] == -1
    labels = model.predict(x)
    assert np.array_equal(clusters.predict(x), np.where(labels < 0, -1, clusters.labels[labels]))
    assert clusters.predict(np.full((1, D), 1e3))[0] == -1 or not background


def test_what_may_not_be_missing_is_refused() -> None:
    model = fitted("full").set_params(nan_policy="raise")
    clusters = fitted("full").merged(rows(), 2)
    clusters.model.set_params(nan_policy="raise")
    for ask in (clusters.predict, model.mahalanobis, lambda x: model.regress(x[:, :2], given=[0, 1])):
        with pytest.raises(ValueError, match="NaN"):
            ask(rows())
