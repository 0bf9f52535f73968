"""Priors: the mode against Fraley & Raftery's formulas, and as the maximum of what is watched."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.model.structure import STRUCTURES
from daskgmm.model.update import Steady
from tests.strategies import kinds, seeds
from tests.structures import KINDS, draw_mixture, draw_rows, sums

every_kind = pytest.mark.parametrize("kind", KINDS)


def expected(kind: str, x: Any, share: Any, kappa: float) -> tuple[Any, Any]:
    """Means and covariances in scikit-learn's shape: table 1 of Fraley & Raftery (2007), for their defaults."""
    d, k = x.shape[1], share.shape[1]
    weight = share.sum(axis=0)
    own = share.T @ x / weight[:, None]
    scatter = np.asarray(sums(x, share, own)[2], np.float64)
    mean, spread = np.average(x, axis=0, weights=share.sum(1)), np.cov(x.T, aweights=share.sum(1), ddof=0)
    spread = spread.reshape(d, d) * share.sum() / (share.sum() - 1) / k ** (2 / d)
    nu, delta = d + 2, own - mean
    pull = (kappa * weight / (kappa + weight))[:, None, None] * delta[:, :, None] * delta[:, None, :]
    means = (weight[:, None] * own + kappa * mean) / (weight + kappa)[:, None]
    whole = scatter + pull
    if kind == "full":
        return means, (spread + whole) / (nu + weight + d + 2)[:, None, None]
    if kind == "tied":
        return means, (spread + whole.sum(axis=0)) / (nu + share.sum() + d + k + 1)
    if kind == "diag":
        return means, (np.diag(spread) + np.diagonal(whole, axis1=1, axis2=2)) / (nu + weight + 3)[:, None]
    trace = np.trace(spread) / d + np.trace(whole, axis1=1, axis2=2)
    return means, trace / (nu + (weight + 1) * d + 2)


def problem(kind: str, k: int, d: int, seed: int) -> tuple[Any, Any, Mixture]:
    mixture = draw_mixture(kind, k, d, seed)
    x = draw_rows(mixture, 40, seed)
    return x, np.random.default_rng(seed).dirichlet(np.ones(k), size=40), mixture


@given(kind=kinds, k=st.integers(1, 4), d=st.integers(1, 4), seed=seeds)
def test_the_mode_is_that_of_the_published_formulas(kind: str, k: int, d: int, seed: int) -> None:
    x, resp, mixture = problem(kind, k, d, seed)
    structure = STRUCTURES[kind]
    update = NormalInverseWishart().on(structure, k, moments(structure, x), 0.0)
    found = update(mixture, moments(structure, x, None, resp, k))
    means, values = expected(kind, x, resp, 0.01)
    np.testing.assert_allclose(found.means, means, rtol=1e-10, atol=1e-10)
    shown = structure.shown(found.covariance.values, k, d)
    np.testing.assert_allclose(shown, values, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.weights, resp.mean(axis=0), rtol=1e-12)


@given(
    kind=kinds,
    k=st.integers(1, 4),
    d=st.integers(1, 4),
    seed=seeds,
    precision=st.sampled_from([0.0, 0.5, 20.0]),
    concentration=st.sampled_from([1.0, 4.0]),
)
def test_the_mode_maximises_what_is_watched(
    kind: str, k: int, d: int, seed: int, precision: float, concentration: float
) -> None:
    x, resp, mixture = problem(kind, k, d, seed)
    structure, random = STRUCTURES[kind], np.random.default_rng(seed)
    prior = NormalInverseWishart(random.normal(size=(k, d)), precision, d + 3, None, concentration)
    update = prior.on(structure, k, moments(structure, x), 0.0)
    best = update(mixture, moments(structure, x, None, resp, k))

    def objective(m: Mixture) -> float:
        each = [Mixture(np.ones(1), m.means[[j]], m.covariance.take(np.array([j]))) for j in range(k)]
        joint = np.stack([one.score_samples(x) for one in each], axis=1) + np.log(m.weights)
        return float((resp * joint).sum() + update.penalty(m))

    top = objective(best)
    for step in (1e-3, -1e-3):
        weights = best.weights * np.exp(step * random.normal(size=k))
        factor = np.exp(step * random.normal(size=len(best.covariance.values)))
        values = best.covariance.values * factor.reshape(-1, *(1,) * (best.covariance.values.ndim - 1))
        for other in (
            replace(best, weights=weights / weights.sum()),
            replace(best, means=best.means + step * random.normal(size=(k, d))),
            replace(best, covariance=structure.form.of(structure, values)),
        ):
            assert objective(other) <= top + 1e-9 * abs(top)


@every_kind
def test_adaptation_moves_as_far_as_the_rows_count(kind: str) -> None:
    x, resp, background = problem(kind, 3, 2, 5)
    structure, relevance = STRUCTURES[kind], 16.0
    update = NormalInverseWishart.from_mixture(background, relevance).on(structure, 3, moments(structure, x), 0.0)
    assert update.speaks_for_each
    for name in ("weights", "means"):
        np.testing.assert_allclose(getattr(update.mode, name), getattr(background, name), rtol=1e-12)
    np.testing.assert_allclose(update.mode.covariance.values, background.covariance.values, rtol=1e-12)
    found = update(background, moments(structure, x, None, resp, 3))
    n = resp.sum(axis=0)
    share = (n / (n + relevance))[:, None]
    means = share * (resp.T @ x / n[:, None]) + (1 - share) * background.means  # Reynolds et al., eq. 12
    np.testing.assert_allclose(found.means, means, rtol=1e-12)
    if kind == "diag":  # eq. 13
        second = share * (resp.T @ x**2 / n[:, None])
        second += (1 - share) * (background.covariance.values + background.means**2)
        np.testing.assert_allclose(found.covariance.values, second - means**2, rtol=1e-10)
    weights = n + relevance * 3 * background.weights
    np.testing.assert_allclose(found.weights, weights / weights.sum(), rtol=1e-12)


@every_kind
def test_streams_scale_the_prior_to_their_rows(kind: str) -> None:
    x, resp, mixture = problem(kind, 3, 2, 1)
    structure = STRUCTURES[kind]
    update = NormalInverseWishart(mean_precision=5).on(structure, 3, moments(structure, x), 0.0)
    s = moments(structure, x, None, resp, 3)
    whole = update(mixture, s)
    steady = Steady(0.0, mixture.covariance, update)(mixture, replace(s.scaled(1 / len(x)), n_rows=len(x)))
    for a, b in ((whole.means, steady.means), (whole.covariance.values, steady.covariance.values)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@given(kind=kinds, k=st.integers(1, 4), d=st.integers(1, 4), seed=seeds)
def test_pooled_statistics_are_those_of_one_component(kind: str, k: int, d: int, seed: int) -> None:
    x, resp, _ = problem(kind, k, d, seed)
    structure = STRUCTURES[kind]
    one, pooled = moments(structure, x), moments(structure, x, None, resp, k).pooled()
    np.testing.assert_allclose(pooled.reference, one.means, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pooled.about(one.reference).scatter, one.scatter, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(pooled.weight, one.weight, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mean": np.zeros(3)}, "mean of the prior has shape"),
        ({"scale": np.eye(3)}, "scale of the prior has shape"),
        ({"mean_precision": -1}, "below 0"),
        ({"weight_concentration": 0.5}, "below 1"),
        ({"degrees_of_freedom": np.nan}, "finite"),
        ({"degrees_of_freedom": -9}, "too few"),
    ],
)
def test_what_is_no_prior_is_refused(settings: dict[str, Any], told: str) -> None:
    structure = STRUCTURES["full"]
    with pytest.raises(ValueError, match=told):
        NormalInverseWishart(**settings).on(structure, 2, moments(structure, np.eye(2)), 0.0)
    with pytest.raises(ValueError, match="relevance"):
        NormalInverseWishart.from_mixture(draw_mixture("full"), 0)
