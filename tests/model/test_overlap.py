"""Overlap of components: the Bhattacharyya distance, by numbers and by an integral."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from daskgmm.model.mixture import Mixture
from daskgmm.model.overlap import distances
from daskgmm.model.structure import STRUCTURES
from tests.structures import KINDS, matrices


def mixture(kind: str, k: int = 4, d: int = 3) -> Mixture:
    random = np.random.default_rng(0)
    structure = STRUCTURES[kind]
    held = structure.held(k, d)
    if structure.form.axes == 2:
        a = random.normal(size=(held[0], d, d))
        values: Any = a @ np.swapaxes(a, 1, 2) + np.eye(d)
    else:
        values = random.uniform(0.5, 3, size=held)
    return Mixture(np.full(k, 1 / k), 2 * random.normal(size=(k, d)), structure.form.of(structure, values))


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_with_dense_matrices(kind: str) -> None:
    m = mixture(kind)
    k, d = m.means.shape
    dense = matrices(m.covariance.values, kind, k, d)
    found = distances(m)
    for i in range(k):
        for j in range(k):
            between, delta = (dense[i] + dense[j]) / 2, m.means[i] - m.means[j]
            logs = [np.linalg.slogdet(matrix)[1] for matrix in (between, dense[i], dense[j])]
            expected = delta @ np.linalg.solve(between, delta) / 8 + (logs[0] - (logs[1] + logs[2]) / 2) / 2
            assert found[i, j] == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_it_is_the_overlap_of_densities() -> None:
    m = mixture("full", k=2, d=2)
    line = np.linspace(-25, 25, 501)  # the sum over a grid of what is smooth and vanishes is its integral
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    each = (Mixture(np.ones(1), m.means[[j]], m.covariance.take(np.array([j]))) for j in range(2))
    logs = sum(one.score_samples(grid) for one in each)
    overlap = np.exp(logs / 2).sum() * (line[1] - line[0]) ** 2
    assert np.exp(-distances(m)[0, 1]) == pytest.approx(overlap, rel=1e-9)


def test_copies_have_no_distance_and_what_is_far_a_finite_one() -> None:
    covariance = mixture("full", k=1, d=2).covariance.take(np.zeros(3, int))
    means = np.array([[0.0, 0], [0, 0], [1e9, 0]])
    found = distances(Mixture(np.full(3, 1 / 3), means, covariance))
    assert found[0, 1] == 0
    assert np.isfinite(found).all()
    assert found[0, 2] > 1e15
