"""Components merged and split: what a pair keeps, and what it costs at most."""

import numpy as np
import pytest

from daskgmm.model.changes import Pairs, merge, split
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES
from tests.structures import KINDS, draw_mixture, matrices

EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
def test_a_merged_pair_keeps_weight_mean_and_covariance(kind: str) -> None:
    mixture = draw_mixture(kind, k=4, d=3)
    merged = merge(mixture, 1, 3)
    assert merged.n_components == 3
    pair = [1, 3]
    w = mixture.weights[pair]
    np.testing.assert_allclose(merged.weights, [mixture.weights[0], w.sum(), mixture.weights[2]], rtol=1e-13)
    np.testing.assert_allclose(merged.means[1], w @ mixture.means[pair] / w.sum(), rtol=1e-12)
    np.testing.assert_array_equal(merged.means[[0, 2]], mixture.means[[0, 2]])
    full = matrices(mixture.covariance.values, kind, 4, 3)
    apart = mixture.means[pair] - merged.means[1]
    within = np.einsum("k,kij->ij", w, full[pair]) + np.einsum("k,ki,kj->ij", w, apart, apart)
    if kind == "tied":  # all rows count for it
        wanted = full[0] + np.einsum("k,ki,kj->ij", w, apart, apart)
    else:
        wanted = matrices(KINDS[kind].pick(within[None] / w.sum()), kind, 1, 3)[0]
    np.testing.assert_allclose(matrices(merged.covariance.values, kind, 3, 3)[1], wanted, rtol=1e-11)
    if kind != "tied":
        np.testing.assert_allclose(matrices(merged.covariance.values, kind, 3, 3)[0], full[0], rtol=1e-14)


@EACH
def test_runnalls_bounds_what_a_merger_costs(kind: str) -> None:
    """On rows of the mixture itself, far more of them than the bound is apart from the loss."""
    mixture = draw_mixture(kind, k=3, d=2)
    x, _ = mixture.sample(200_000, np.random.RandomState(0))
    before = mixture.score_samples(x).mean()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        loss = before - merge(mixture, i, j).score_samples(x).mean()
        assert loss <= Pairs.of(mixture, mixture.weights, np.array([i]), np.array([j])).loss[0] + 2e-3


@EACH
def test_a_component_split_in_two_and_merged_again_is_as_it_was(kind: str) -> None:
    mixture = draw_mixture(kind, k=2, d=3)
    structure, delta = STRUCTURES[kind], np.array([0.01, 0.0, 0.0])
    own = mixture.covariance.take(np.array([1, 1]))
    halves = Mixture(np.array([0.4, 0.6]), mixture.means[1] + np.outer([0.6, -0.4], delta), own)
    wider = split(mixture, 1, halves)
    assert wider.n_components == 3
    np.testing.assert_allclose(wider.weights[[1, 2]], mixture.weights[1] * halves.weights, rtol=1e-13)
    np.testing.assert_array_equal(wider.means[[1, 2]], halves.means)
    assert wider.covariance.structure is structure
    again = merge(wider, 1, 2)
    np.testing.assert_allclose(again.weights, mixture.weights, rtol=1e-13)
    np.testing.assert_allclose(again.means, mixture.means, rtol=1e-12)
    np.testing.assert_allclose(again.covariance.values, mixture.covariance.values, rtol=1e-3, atol=1e-3)
