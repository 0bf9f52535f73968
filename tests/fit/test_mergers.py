"""Mergers raise the lower bound, and leave what is apart as it is."""

from typing import Any

import numpy as np
import pytest
from scipy.special import entr

from daskgmm._typing import Array
from daskgmm.fit.mergers import merged
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


def of(labels: Array, k: int, update: Variational) -> Posterior:
    return update(None, moments(update.structure, X, WEIGHT, labels, k))


def bound(held: Posterior, update: Variational, k: int) -> float:
    """That of the rows' responsibilities, and of what is believed given these."""
    resp = held.responsibilities(X)
    after = update(None, moments(update.structure, X, WEIGHT, resp, k))
    return float((WEIGHT[:, None] * entr(resp)).sum() + after.log_normaliser)


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
