"""Variational inference: which run is best; mergers raise the lower bound, and leave what is apart as it is."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import entr

from daskgmm.fit.mergers import merged
from daskgmm.fit.run import best
from daskgmm.fit.variational import Inference
from daskgmm.model.moments import moments
from daskgmm.model.posterior import Posterior, Variational
from daskgmm.model.structure import STRUCTURES
from tests.structures import KINDS

RANDOM = np.random.default_rng(0)
PLACE = RANDOM.integers(3, size=900)
X = RANDOM.normal(size=(900, 2)) + 8 * PLACE[:, None]
WEIGHT = RANDOM.choice([0.5, 1.0, 40.0], size=len(X))
EACH = pytest.mark.parametrize("kind", KINDS)
BOTH = pytest.mark.parametrize("process", [True, False])


def belief(kind: str, process: bool) -> Variational:
    structure = STRUCTURES[kind]
    prior = Variational(
        structure=structure, process=process, concentration=0.2, mean_precision=1.0, degrees_of_freedom=2.0
    )
    return prior.from_rows(moments(structure, X, WEIGHT))


def of(labels: Any, k: int, update: Variational) -> Posterior:
    return update(None, moments(update.structure, X, WEIGHT, labels, k))


def bound(held: Posterior, update: Variational, k: int) -> float:
    """That of the rows' responsibilities, and of what is believed given these."""
    resp = held.responsibilities(X)
    after = update(None, moments(update.structure, X, WEIGHT, resp, k))
    return float((WEIGHT[:, None] * entr(resp)).sum() + after.log_normaliser)


def test_a_component_without_rows_is_no_fault_of_a_run() -> None:
    # Of batch EM, a run with a component of fewer than d + 1 rows comes last.
    update = belief("full", True)
    few, many = of(np.where(np.arange(len(X)) == 0, 2, PLACE % 2), 3, update), of(PLACE, 3, update)
    runs = [Inference(held, update, 0.0, 9, (bound,), n_rows=len(X)) for held, bound in ((few, 5.0), (many, 4.0))]
    assert 0 < few.weights.min() * len(X) < 3 < many.weights.min() * len(X)
    assert best(runs) is runs[0]


@BOTH
@EACH
def test_what_shares_a_cluster_becomes_one(kind: Any, process: bool) -> None:
    update = belief(kind, process)
    held = of(PLACE * 2 + RANDOM.integers(2, size=len(X)), 6, update)  # each cluster in two, at random
    after = merged(held, update, X, WEIGHT)
    assert after is not None
    assert (after.weights > 0.05).sum() == 3
    assert bound(after, update, 6) > bound(held, update, 6) + 5


@BOTH
@EACH
def test_clusters_stay_apart(kind: Any, process: bool) -> None:
    update = belief(kind, process)
    assert merged(of(PLACE, 3, update), update, X, WEIGHT) is None


def test_rows_of_one_cluster_are_one_component() -> None:
    update = belief("full", True)
    labels = np.where(PLACE == 0, RANDOM.integers(5, size=len(X)), 5)
    after = merged(of(labels, 6, update), update, X, WEIGHT)
    assert after is not None
    assert (after.weights > 0.05).sum() == 2


@BOTH
def test_clusters_that_overlap_stay_two_as_long_as_rows_say_so(process: bool) -> None:
    # Entropy of the responsibilities is much of what two are worth: without it, one would be worth more.
    random = np.random.default_rng(1)
    x = random.normal(size=(600, 2)) + 2.6 * random.integers(2, size=(600, 1)) * [1, 0]
    structure, weight = STRUCTURES["full"], np.ones(len(x))
    update = replace(belief("full", process), mean=None, covariance=None).from_rows(moments(structure, x))
    held = update(None, moments(structure, x, None, (x[:, 0] > 1.3).astype(int), 2))
    for _ in range(200):
        held = update(None, held.expectation(x))
    resp = held.responsibilities(x)
    assert entr(resp).sum() > 30
    one = update(None, moments(structure, x, None, np.zeros(len(x), int), 2))
    assert held.log_normaliser + entr(resp).sum() > one.log_normaliser + 1
    assert held.log_normaliser < one.log_normaliser
    assert merged(held, update, x, weight) is None
