"""Scores: sums over rows that add up, and the criteria that follow from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm import GaussianMixture
from daskgmm.fit.score import Score
from tests.strategies import kinds, seeds
from tests.structures import EPS, draw_mixture, draw_rows, n_parameters


def model(kind: str, seed: int) -> GaussianMixture:
    mixture = draw_mixture(kind, 2, 2, seed)
    covariances = mixture.covariance.structure.shown(mixture.covariance.values, 2, 2)
    return GaussianMixture.from_parameters(mixture.weights, mixture.means, covariances, kind)


@given(kinds, seeds, st.integers(1, 100), st.booleans())
def test_scores_of_blocks_add_up(kind: str, seed: int, rows: int, weighted: bool) -> None:
    fitted = model(kind, seed).set_params(block_size=16 * rows)
    x = draw_rows(fitted.mixture_, 100, seed)
    weight = np.random.default_rng(seed).choice([0.5, 1.0, 3.0], 100) if weighted else np.ones(100)
    found = fitted.evaluate(x, weight if weighted else None, entropy=True)
    resp = fitted.predict_proba(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(resp > 0, resp * np.log(resp), 0.0).sum(axis=1)
    # 100 terms of a few units each.
    np.testing.assert_allclose(found.log_likelihood, weight @ fitted.score_samples(x), rtol=200 * EPS)
    np.testing.assert_allclose(found.entropy, weight @ entropy, rtol=200 * EPS, atol=1e-14)
    assert found.total_weight == weight.sum()
    assert found.n_parameters == n_parameters(kind, 2, 2)


def test_a_sum_is_the_score_of_both() -> None:
    a, b = Score(-10.0, 0.5, 4.0, 7), Score(-30.0, 1.5, 12.0, 7)
    assert a + b == Score(-40.0, 2.0, 16.0, 7)
    assert (a + b).mean == -2.5


def test_criteria_by_their_definitions() -> None:
    score = Score(-1000.0, 20.0, 500.0, 11)
    assert score.aic == 2000 + 22
    assert score.bic == pytest.approx(2000 + 11 * np.log(500), rel=1e-15)
    assert score.icl == score.bic + 40


def test_entropy_only_where_asked() -> None:
    fitted = model("full", 0)
    x = draw_rows(fitted.mixture_, 50)
    assert np.isnan([fitted.evaluate(x).entropy, fitted.evaluate(x).icl]).all()
    assert fitted.evaluate(x, entropy=True).entropy > 0
