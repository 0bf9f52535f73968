"""Covariances of few factors: no others are likelier, no step makes them less so, and the noise has a floor."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FactorAnalysis

from daskgmm import GaussianMixture
from daskgmm.errors import CollapseError
from daskgmm.model import loadings
from daskgmm.model.loadings import LEAST, Loadings, analysed, composed
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.parts import Parts
from daskgmm.model.structure import FULL, structure_of
from tests.strategies import seeds
from tests.structures import EPS, draw_covariances

K, D, Q = 2, 7, 2


def drawn(d: int, q: int, seed: int, n: int = 500) -> Any:
    """The covariance of rows that have q factors."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, q)) @ random.normal(size=(q, d)) + random.normal(size=(n, d)) * random.uniform(
        0.5, 2, d
    )
    return np.cov(x.T, bias=True)


def mean_log_likelihood(parts: tuple[Any, Any], scatter: Any) -> float:
    """Of rows of this covariance, up to a constant."""
    (covariance,) = composed(*(part[None] for part in parts))
    return -0.5 * float(np.linalg.slogdet(covariance)[1] + np.trace(np.linalg.solve(covariance, scatter)))


@given(d=st.integers(3, 9), q=st.integers(1, 2), seed=seeds)
@settings(max_examples=15)
def test_no_others_are_likelier(d: int, q: int, seed: int) -> None:
    scatter, random = drawn(d, q, seed), np.random.default_rng(seed)
    best = analysed(scatter, q, 0.0, None, 0)
    top = mean_log_likelihood(best, scatter)
    for size in (1e-3, 0.1, 1.0):
        change = size * random.normal(size=(d, q)), np.exp(size * random.normal(size=d))
        noise = np.maximum(best[1] * change[1], LEAST * np.diag(scatter))
        assert mean_log_likelihood((best[0] + change[0], noise), scatter) <= top + 1e-6


@given(d=st.integers(2, 6), q=st.integers(1, 3), seed=seeds)
@settings(max_examples=15)
def test_no_step_makes_them_less_likely(d: int, q: int, seed: int) -> None:
    scatter, random = draw_covariances("full", 1, d, seed)[0], np.random.default_rng(seed)
    noise, last = random.uniform(0.01, 1, d) * np.diag(scatter), -np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loadings, "STEPS", 1)
        for _ in range(10):
            parts = analysed(scatter, min(q, d - 1), 0.0, noise, 0)
            found, noise = mean_log_likelihood(parts, scatter), parts[1]
            assert found >= last - 1e-9 * (1 + abs(last))
            last = found
    assert np.all(noise >= LEAST * np.diag(scatter))


def test_factors_are_found_again() -> None:
    random = np.random.default_rng(0)
    own, noise = random.normal(size=(10, 2)), random.uniform(0.5, 2, 10)
    (exact,) = composed(own[None], noise[None])
    found = analysed(exact, 2, 0.0, None, 0)
    np.testing.assert_allclose(found[1], noise, rtol=1e-4)
    np.testing.assert_allclose(found[0] @ found[0].T, own @ own.T, rtol=0, atol=1e-4)
    again = analysed(exact, 2, 0.0, found[1], 0)
    np.testing.assert_allclose(again[1], noise, rtol=1e-4)


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_noise_has_a_floor(least: float) -> None:
    """A millionth of a variance, unless a ridge is more."""
    scatter = np.array(
        [[1.0, 0.6, 0.6], [0.6, 1, 0.3], [0.6, 0.3, 1]]
    )  # one factor would explain .6·.6/.3 of the first
    _, noise = analysed(scatter, 1, least, None, 0)
    floor = np.maximum(least, 1e-6 * np.diag(scatter))
    assert np.all(noise >= floor)
    assert np.any(noise == floor)


def test_a_feature_that_does_not_vary_is_named() -> None:
    scatter = drawn(5, 1, 0)
    scatter[2] = scatter[:, 2] = 0.0
    with pytest.raises(CollapseError, match=r"component 3 .* feature 2 does not vary"):
        analysed(scatter, 1, 0.0, None, 3)
    with pytest.raises(CollapseError, match="component 3"):
        analysed(np.full((5, 5), np.nan), 1, 0.0, None, 3)


def covariance() -> Loadings:
    values = np.stack([drawn(D, Q, seed) for seed in range(K)])
    found = structure_of("factors", Q).covariance(values, np.ones(K))
    assert isinstance(found, Loadings)
    return found


def test_what_it_says_of_itself() -> None:
    found = covariance()
    found.check()
    assert found.structure is structure_of("factors 2")
    assert (found.loadings.shape, found.noise.shape) == ((K, D, Q), (K, D))
    for values, u in zip(found.values, found.factor, strict=True):
        np.testing.assert_allclose(u.T @ values @ u, np.eye(D), rtol=0, atol=1e-12)
    taken = found.take(np.array([1, 1, 0]))
    taken.check()
    np.testing.assert_array_equal(taken.noise, found.noise[[1, 1, 0]])
    wrong: Any
    for wrong in ({"noise": 2 * found.noise}, {"loadings": found.loadings[:, :, :1]}, {"noise": found.noise[:1]}):
        with pytest.raises(ValueError, match="in common"):
            replace(found, **wrong).check()
    for share, sound in ((0.75, True), (1.5, False)):  # of what making the values may round
        off = found.values * (1 + share * 64 * (1 + Q) * EPS * np.eye(D))
        assert replace(found, values=off).is_of_its_structure == sound
    parts = Parts.of(Mixture(np.array([0.5, 0.5]), np.zeros((K, D)), found), np.array([3, 0]))
    assert parts.marginal.covariance.structure is parts.rest.structure is FULL
    assert found.between(0).structure is FULL


@pytest.mark.parametrize(("k", "d", "q"), [(1, 4, 1), (3, 10, 2), (2, 6, 5)])
def test_rotations_of_factors_are_no_parameters(k: int, d: int, q: int) -> None:
    expected = k * (d * q - q * (q - 1) // 2 + d)
    assert structure_of("factors", q).n_parameters(k, d) == expected
    assert structure_of("factors", 1).n_parameters(1, 3) == FULL.n_parameters(1, 3)


def test_an_m_step_goes_on_where_the_last_one_ended() -> None:
    structure, scatter = structure_of("factors", 1), draw_covariances("full", 1, 5, 0)
    s = moments(structure, np.random.default_rng(0).multivariate_normal(np.zeros(5), scatter[0], size=300))
    found, trace = structure.fit(s, s.scatter, 0.0), []
    for _ in range(4):
        found = structure.fit(s, found, 0.0)
        trace.append(mean_log_likelihood((found.loadings[0], found.noise[0]), s.scatter[0] / 300))  # type: ignore[attr-defined]
    assert np.all(np.diff(trace) >= -1e-12)


def test_one_component_is_scikit_learns_factor_analysis() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 2)) @ random.normal(size=(2, 8)) + random.normal(size=(400, 8)) * random.uniform(
        0.5, 1.5, 8
    )
    theirs = FactorAnalysis(2, tol=1e-10, max_iter=2000, svd_method="lapack").fit(x)
    own = GaussianMixture(1, covariance_type="factors", n_factors=2, reg_covar=0.0, tol=1e-12, max_iter=200).fit(x)
    np.testing.assert_allclose(own.score(x), theirs.score(x), rtol=0, atol=1e-9)
    np.testing.assert_allclose(own.covariances_[0], theirs.get_covariance(), rtol=0, atol=1e-3)
    np.testing.assert_allclose(own.noise_variances_[0], theirs.noise_variance_, rtol=1e-3)


def test_fewer_rows_than_features_are_enough() -> None:
    random = np.random.default_rng(0)
    d, own = 30, random.normal(size=(2, 2, 30))
    x = np.concatenate(
        [random.normal(size=(40, 2)) @ own[j] + 4 * j + random.normal(size=(40, d)) for j in range(2)]
    )
    new = np.concatenate(
        [random.normal(size=(500, 2)) @ own[j] + 4 * j + random.normal(size=(500, d)) for j in range(2)]
    )
    few = GaussianMixture(2, covariance_type="factors", n_factors=2, reg_covar=0.0, random_state=0).fit(x)
    others = [
        GaussianMixture(2, covariance_type=kind, random_state=0).fit(x).score(new) for kind in ("full", "diag")
    ]
    assert few.score(new) > max(others) + 1
    assert (few.loadings_.shape, few.noise_variances_.shape) == ((2, d, 2), (2, d))
    with pytest.raises(AttributeError, match="no factors"):
        _ = GaussianMixture(1).fit(x).loadings_


@pytest.mark.parametrize(
    ("n_factors", "told"), [(None, "needs n_factors"), (4, "below the number of features, 4, got 4")]
)
def test_how_many_factors_has_to_be_told(n_factors: int | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GaussianMixture(2, covariance_type="factors", n_factors=n_factors).fit(np.zeros((20, 4)))
