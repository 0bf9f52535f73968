"""Marginals, conditionals and regressions, against dense algebra."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.model.mixture import Mixture
from daskgmm.model.parts import Parts
from tests.strategies import kinds, seeds
from tests.structures import KINDS, draw_mixture, draw_rows, matrices

every_kind = pytest.mark.parametrize("kind", KINDS)


def dense(mixture: Mixture) -> Any:
    return matrices(mixture.covariance.values, mixture.covariance.structure.name, *mixture.means.shape)


@st.composite
def parted(draw: st.DrawFn) -> tuple[Mixture, Parts]:
    d = draw(st.integers(2, 6))
    order = draw(st.permutations(range(d)))
    mixture = draw_mixture(draw(kinds), draw(st.integers(1, 4)), d, draw(seeds))
    return mixture, Parts.of(mixture, np.array(order[: draw(st.integers(1, d - 1))]))


@given(case=parted())
def test_parts_are_those_of_the_matrices(case: tuple[Mixture, Parts]) -> None:
    mixture, parts = case
    (k, _), o, m = mixture.means.shape, parts.seen, parts.unseen
    name, full = mixture.covariance.structure.name, dense(mixture)
    own = matrices(parts.marginal.covariance.values, name, k, len(o))
    np.testing.assert_allclose(own, full[:, o[:, None], o], rtol=1e-14, atol=0)
    gain = full[:, m[:, None], o] @ np.linalg.inv(full[:, o[:, None], o])
    np.testing.assert_allclose(np.broadcast_to(parts.gain, gain.shape), gain, rtol=0, atol=1e-12)
    rest = full[:, m[:, None], m] - gain @ full[:, o[:, None], m]
    np.testing.assert_allclose(matrices(parts.rest.values, name, k, len(m)), rest, rtol=0, atol=1e-12)
    for part in (parts.marginal, Mixture(mixture.weights, parts.means, parts.rest)):
        part.check()
        part.covariance.check()


@given(case=parted(), seed=seeds)
def test_marginal_times_conditional_is_the_whole(case: tuple[Mixture, Parts], seed: int) -> None:
    mixture, parts = case
    x = draw_rows(mixture, 5, seed)
    for row in x:
        seen, unseen = row[parts.seen], row[parts.unseen]
        rest = parts.conditional(seen)
        both = parts.marginal.score_samples(seen[None]) + rest.score_samples(unseen[None])
        np.testing.assert_allclose(both, mixture.score_samples(row[None]), rtol=1e-10, atol=1e-10)


@given(case=parted(), seed=seeds)
def test_regression_is_that_of_the_conditional(case: tuple[Mixture, Parts], seed: int) -> None:
    mixture, parts = case
    x = draw_rows(mixture, 7, seed)[:, parts.seen]
    mean, std = (parts.answer(x, question)[0] for question in ("mean", "std"))
    for row, expected, spread in zip(x, mean, std, strict=True):
        rest = parts.conditional(row)
        np.testing.assert_allclose(rest.weights @ rest.means, expected, rtol=1e-10, atol=1e-10)
        variances = np.diagonal(dense(rest), axis1=1, axis2=2) + np.square(rest.means - expected)
        np.testing.assert_allclose(np.sqrt(rest.weights @ variances), spread, rtol=1e-10)


@every_kind
def test_conditional_far_away_has_weights_that_sum_to_one(kind: str) -> None:
    parts = Parts.of(draw_mixture(kind, d=3), np.array([1]))
    far = parts.conditional(np.array([1e200]))
    far.check()
    assert np.isfinite(far.means).all()


def test_nothing_is_lost_to_a_difference_of_covariances() -> None:
    # y = x + noise of variance 1e-12: Σ_yy − Σ_yx Σ_xy / Σ_xx keeps four digits of it.
    values = np.array([[[1.0, 1.0], [1.0, 1.0 + 1e-12]]])
    mixture = draw_mixture("full", 1, 2)
    mixture = Mixture(
        mixture.weights, mixture.means, mixture.covariance.of(mixture.covariance.structure, values, np.inf)
    )
    left = float(np.float64(1.0 + 1e-12) - 1.0)
    np.testing.assert_allclose(Parts.of(mixture, np.array([0])).rest.values, left, rtol=1e-15)
