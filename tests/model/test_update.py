"""M-steps: by maximum likelihood, under a prior, and those that no batch of rows can break."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from daskgmm.errors import CollapseError
from daskgmm.fit.run import EM
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import STRUCTURES
from daskgmm.model.update import Regularised, Steady, Update, maximise
from tests.structures import EPS, KINDS, draw_mixture, draw_rows, matrices

every_kind = pytest.mark.parametrize("kind", KINDS)
own_covariances = pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].shared])


def labelled(kind: str, x: Any, labels: Any) -> Statistics:
    return moments(STRUCTURES[kind], x, None, labels, 3)


@every_kind
def test_an_empty_component_stays_where_it_is(kind: str) -> None:
    mixture = draw_mixture(kind, d=5)
    x, update = draw_rows(mixture), Regularised(1e-6)
    emptied = Mixture(np.array([0.4, 0.0, 0.6]), mixture.means, mixture.covariance)
    s = emptied.expectation(x)
    assert s.weight[1] == 0
    updated = update(emptied, s)
    assert updated.weights[1] == 0
    np.testing.assert_array_equal(updated.means[1], mixture.means[1])
    if kind != "tied":
        np.testing.assert_array_equal(updated.covariance.values[1], mixture.covariance.values[1])
    moved = update(emptied, s.about(mixture.means + 1))
    np.testing.assert_array_equal(moved.means[1], mixture.means[1])  # wherever its sums are taken about
    assert np.all(np.isfinite(updated.covariance.values))
    assert np.all(updated.labels(x) != 1)
    np.testing.assert_array_equal(updated.responsibilities(x)[:, 1], 0)
    assert np.all(np.isfinite(updated.score_samples(x)))


@own_covariances
@pytest.mark.parametrize("place", [0.0, 1.0, -1e8, 0.1])
def test_a_component_on_one_point_collapses(kind: str, place: float) -> None:
    mixture = draw_mixture(kind)
    x = draw_rows(mixture)
    x[:50] = place
    s = labelled(kind, x, np.where(np.arange(len(x)) < 50, 1, 2 * (np.arange(len(x)) % 2)))
    with pytest.raises(CollapseError) as caught:
        Regularised()(mixture, s)
    assert caught.value.component == 1
    kept = matrices(Regularised(1e-6)(mixture, s).covariance.values, kind, 3, 2)
    np.testing.assert_allclose(kept[1], 1e-6 * np.eye(2), rtol=1e-9)


@own_covariances
def test_a_spread_that_float64_cannot_hold_collapses(kind: str) -> None:
    # Neighbouring numbers at 1e8: their variance is rounding of the data, whatever its digits say.
    mixture = draw_mixture(kind, d=5)
    x = draw_rows(mixture)
    x[:50] = np.where(np.arange(50)[:, None] % 2, 1e8, np.nextafter(1e8, 2e8))
    s = labelled(kind, x, np.where(np.arange(len(x)) < 50, 1, 2 * (np.arange(len(x)) % 2)))
    with pytest.raises(CollapseError) as caught:
        Regularised()(mixture, s)
    assert caught.value.component == 1


def test_tied_collapses_only_if_all_do() -> None:
    mixture = draw_mixture("tied")
    x, labels = draw_rows(mixture), np.arange(200) % 3
    on_points = mixture.means[labels]
    with pytest.raises(CollapseError):
        Regularised()(mixture, labelled("tied", on_points, labels))
    on_points[::3] = x[::3]
    Regularised()(mixture, labelled("tied", on_points, labels))


@every_kind
@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("n_rows", [1, 25, 1e9])
def test_steady_fills_small_components_up_and_leaves_the_others(kind: str, n_rows: float, anchored: bool) -> None:
    mixture = draw_mixture(kind, d=4)
    s = replace(mixture.expectation(draw_rows(mixture)), n_rows=n_rows)
    k, d = mixture.means.shape
    plain, found = Regularised()(mixture, s), Steady(0.0, mixture.covariance if anchored else None)(mixture, s)
    np.testing.assert_array_equal(found.weights, plain.weights)
    np.testing.assert_allclose(found.means, plain.means, rtol=4 * EPS, atol=4 * EPS)
    own, rows = matrices(plain.covariance.values, kind, k, d), plain.weights * n_rows
    within = np.einsum("k,kij->ij", plain.weights, own)
    prior = matrices(mixture.covariance.values, kind, k, d) if anchored else within
    # Of 2·(d + 1) rows each has what it has; where all share a covariance, all rows are its own.
    blend = np.minimum(1, (np.full(k, n_rows) if kind == "tied" else rows) / (2 * (d + 1)))[:, None, None]
    assert (blend < 1).any() == (n_rows < 10 or (n_rows == 25 and kind != "tied"))
    wanted = blend * own + (1 - blend) * prior
    np.testing.assert_allclose(matrices(found.covariance.values, kind, k, d), wanted, rtol=1e-12, atol=1e-12)


@every_kind
def test_steady_breaks_on_no_rows_and_on_no_spread(kind: str) -> None:
    mixture = draw_mixture(kind, d=4)
    x, labels = draw_rows(mixture), np.arange(200) % 3
    on_points = mixture.means[labels]
    for s in (mixture.expectation(x[:1]), labelled(kind, on_points, labels)):
        with pytest.raises(CollapseError):
            Regularised()(mixture, s)
    with pytest.warns(UserWarning, match="keeps the covariance that it had"):
        singular = Steady()(mixture, labelled(kind, on_points, labels))
    np.testing.assert_array_equal(singular.covariance.values, mixture.covariance.values)
    np.testing.assert_allclose(singular.means, mixture.means, rtol=4 * EPS)
    anchored = Steady(anchor=mixture.covariance)(mixture, mixture.expectation(x[:1]))
    assert np.isfinite(anchored.covariance.factor).all()


@own_covariances
def test_a_collapse_leaves_the_covariances_of_others_alone(kind: str) -> None:
    mixture = draw_mixture(kind)
    x = draw_rows(mixture)
    x[:50] = 1e14  # where rows are known to .01
    s = labelled(kind, x, np.where(np.arange(len(x)) < 50, 1, 2 * (np.arange(len(x)) % 2)))
    s = replace(s, n_rows=1e9)
    with pytest.warns(
        UserWarning, match="covariance of component 1 .* feature 0 does not vary .* keeps the covariance"
    ):
        found = Steady()(mixture, s)
    others = Regularised()(mixture, replace(s, weight=np.where(np.arange(3) == 1, 0, s.weight)))
    np.testing.assert_array_equal(found.means, s.means)
    np.testing.assert_array_equal(found.covariance.values[1], mixture.covariance.values[1])
    np.testing.assert_allclose(found.covariance.values[[0, 2]], others.covariance.values[[0, 2]], rtol=1e-6)


@own_covariances
@pytest.mark.parametrize("distance", [1e5, 3e8, 7e12])
def test_a_mean_that_moves_far_onto_one_point_is_seen_from_there(kind: str, distance: float) -> None:
    mixture = draw_mixture(kind)
    x = draw_rows(mixture)
    x[:50] = [0.1, distance]
    s = labelled(kind, x, np.where(np.arange(len(x)) < 50, 1, 2 * (np.arange(len(x)) % 2)))
    for share in (0.3, 0.4, 0.7):  # of which rounding makes more or less than nothing
        moved = Regularised(1e-6)(mixture, s.about(share * s.means))
        assert np.isfinite(moved.covariance.factor).all()
        np.testing.assert_allclose(moved.means, s.means, rtol=1e-12)
    after = matrices(Regularised(1e-6)(moved, s.about(moved.means)).covariance.values, kind, 3, 2)
    np.testing.assert_allclose(after[1], 1e-6 * np.eye(2), rtol=1e-9)


@dataclass(frozen=True)
class Prior(Update):
    """MAP: inverse Wishart about ``scale`` times the unit matrix for covariances, Dirichlet for weights.

    Each component has ``rows`` further rows that spread as the prior says about its mean; the log-density
    of the parameters is ``rows·Σ_k (log w_k − (log|Σ_k| + tr Σ_k⁻¹·scale) / 2)``.
    """

    rows: float
    scale: float

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        s = statistics.about(statistics.means)
        kind, (k, d) = s.structure.name, mixture.means.shape
        scatter = s.scatter + KINDS[kind].pick(np.tile(self.rows * self.scale * np.eye(d), (k, 1, 1)))
        s = replace(s, weight=s.weight + self.rows, shift=np.zeros((k, d)), scatter=scatter)
        return maximise(s, mixture.means, mixture.covariance.values, 0.0)

    def penalty(self, mixture: Mixture) -> float:
        dense = matrices(mixture.covariance.values, mixture.covariance.structure.name, *mixture.means.shape)
        log_det, trace = np.linalg.slogdet(dense)[1], self.scale * np.trace(np.linalg.inv(dense), axis1=1, axis2=2)
        return float(self.rows * (np.log(mixture.weights) - 0.5 * (log_det + trace)).sum())


def climb(mixture: Mixture, update: Update, x: Any, weight: Any) -> tuple[EM, list[float]]:
    """The run after its iterations, and the mean log-likelihoods on its way."""
    run, plain = EM(mixture, update, tol=0.0, max_iter=40), []
    while not run.done:
        found = run.mixture.expectation(x, weight)
        plain.append(found.log_likelihood / found.total_weight)
        run = run.advance(found)
    return run, plain


@every_kind
def test_em_under_a_prior_never_lowers_what_is_watched(kind: str) -> None:
    """The mean log-likelihood alone may fall; together with the update's penalty, it does not."""
    start, prior = draw_mixture(kind, d=3), Prior(rows=60.0, scale=4.0)
    x = draw_rows(start, 80)
    weight = np.random.default_rng(0).choice([0.5, 1.0, 2.0], size=len(x))
    # From where the likelihood is highest, towards the prior.
    best, plain = climb(start, Regularised(1e-6), x, weight)
    np.testing.assert_array_equal(best.trace, plain)  # without a prior, the mean log-likelihood is watched
    run, plain = climb(best.mixture, prior, x, weight)
    assert run.failure is None
    steps = np.diff(run.trace)
    assert np.all(steps >= -1e-10 * np.maximum(1, np.abs(run.trace[:-1])))
    assert run.trace[-1] > run.trace[0] + 1e-3
    assert np.diff(plain).min() < -1e-3  # what is watched is another thing
    expected = plain[0] + prior.penalty(best.mixture) / weight.sum()
    np.testing.assert_allclose(run.trace[0], expected, rtol=1e-13)
