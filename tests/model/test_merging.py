"""Components joined to clusters, against every choice by hand."""

from itertools import combinations

import numpy as np
from scipy.special import entr

from daskgmm.model.merging import Clusters, elbow, hierarchy
from tests.structures import draw_mixture, draw_rows


def test_each_step_takes_most_entropy_away() -> None:
    random = np.random.default_rng(0)
    resp, weight = random.dirichlet(np.full(6, 0.4), size=200), random.uniform(0.5, 2, 200)
    labels, entropies = hierarchy(resp, weight)

    def entropy(groups: list[list[int]]) -> float:
        shares = np.stack([resp[:, group].sum(axis=1) for group in groups], axis=1)
        return float(weight @ entr(np.minimum(shares, 1)).sum(axis=1) / weight.sum())

    for c in range(6, 0, -1):
        groups = [np.flatnonzero(labels[c - 1] == g).tolist() for g in range(c)]
        assert sorted(j for group in groups for j in group) == [*range(6)]
        np.testing.assert_allclose(entropies[c - 1], entropy(groups), rtol=0, atol=1e-12)
        tried = [entropy([g for g in groups if g not in (a, b)] + [a + b]) for a, b in combinations(groups, 2)]
        if tried:
            np.testing.assert_allclose(entropies[c - 2], min(tried), rtol=0, atol=1e-12)
    assert abs(entropies[0]) < 1e-12


def test_elbow_is_where_the_slope_changes() -> None:
    x = np.arange(1.0, 9)
    assert [elbow(np.maximum(0, x - at) + 0.01 * x) for at in (2, 3, 5, 7)] == [2, 3, 5, 7]
    assert [elbow(np.arange(float(k))) for k in (1, 2)] == [1, 2]


def test_clusters_answer_with_sums_of_responsibilities() -> None:
    mixture = draw_mixture("full", 4)
    x, labels = draw_rows(mixture), np.array([0, 1, 0, 1])
    resp = mixture.responsibilities(x)
    shares, finite = Clusters(mixture, labels).answer(x, "responsibilities")
    np.testing.assert_allclose(shares, np.stack([resp[:, ::2].sum(1), resp[:, 1::2].sum(1)], 1), rtol=1e-15)
    found, _ = Clusters(mixture, labels).answer(x, "labels")
    assert finite
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, shares.argmax(axis=1))
    assert (
        found != labels[mixture.labels(x)]
    ).any()  # the likeliest cluster need not have the likeliest component
