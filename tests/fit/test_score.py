"""Scores and answers of one block."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from dask.local import get_sync
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Block, as_rows
from daskgmm.errors import DataError
from daskgmm.fit.score import Query, Scorer, seen
from daskgmm.model.covariance import Full
from daskgmm.model.mixture import ANSWERS, Mixture

EPS = np.finfo(np.float64).eps
X = np.random.default_rng(0).normal(size=(100, 2))
WEIGHT = np.random.default_rng(1).choice([0.0, 0.5, 3.0], 100)
MIXTURE = Mixture(
    np.array([0.3, 0.7]), np.array([[0.0, 1.0], [1.0, -1.0]]), Full.of(np.stack([np.eye(2), 2 * np.eye(2)]))
)


def score(x: Any, weight: Any = None, **options: Any) -> Any:
    return Engine(get_sync).reduce(as_rows(x, weight, **options), Scorer(MIXTURE, entropy=True))


@given(rows=st.integers(1, 100), weighted=st.booleans())
def test_scores_of_blocks_add_up(rows: int, weighted: bool) -> None:
    weight = WEIGHT if weighted else np.ones(100)
    found = score(X, weight if weighted else None, block_size=16 * rows)
    resp = MIXTURE.responsibilities(X)
    # 100 terms of a few units each.
    np.testing.assert_allclose(found.log_likelihood, weight @ MIXTURE.score_samples(X), rtol=200 * EPS)
    np.testing.assert_allclose(found.entropy, weight @ -(resp * np.log(resp)).sum(axis=1), rtol=200 * EPS)
    assert found.total_weight == weight.sum()


def test_entropy_only_where_asked() -> None:
    assert Scorer(MIXTURE)(Block(X, None, None, 0, 0)).entropy == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_of_zero_weight_are_not_scored(bad: float) -> None:
    x = np.where(WEIGHT[:, None] == 0, bad, X)
    assert score(x, WEIGHT) == score(X, WEIGHT)
    with pytest.raises(DataError, match="block 0"):
        score(x)


def test_seen_copies_only_where_it_must() -> None:
    assert seen(Block(X, None, None, 0, 0))[0] is X
    ones = np.ones(100)
    assert seen(Block(X, ones, None, 0, 0)) == (X, ones)
    x, weight = seen(Block(X, WEIGHT, None, 0, 0))
    np.testing.assert_array_equal(x, X[WEIGHT > 0])
    np.testing.assert_array_equal(weight, WEIGHT[WEIGHT > 0])


@pytest.mark.parametrize(
    ("answer", "missing"), [("labels", -1), ("responsibilities", np.nan), ("score_samples", np.nan)]
)
def test_omitted_rows_answer_missing(answer: str, missing: float) -> None:
    x = X.copy()
    x[[3, 50], 1] = np.nan
    (block,) = (as_rows(x, nan_policy="omit").read(i) for i in range(1))
    found = Query(MIXTURE, answer, missing)(block)
    kept = np.delete(np.arange(100), [3, 50])
    np.testing.assert_array_equal(found[kept], getattr(MIXTURE, answer)(X[kept]))
    assert np.all(np.isnan(found[[3, 50]])) if np.isnan(missing) else np.all(found[[3, 50]] == missing)
    assert found.dtype == getattr(MIXTURE, answer)(X).dtype
    with pytest.raises(DataError, match=r"contains NaN: block 0, row\(s\) 3, 50"):
        Query(MIXTURE, answer, missing)(as_rows(x).read(0))


def test_queries_travel_between_processes() -> None:
    query = pickle.loads(pickle.dumps(Query(MIXTURE, "labels", -1)))
    block = Block(X, None, None, 0, 0)
    np.testing.assert_array_equal(query(block), MIXTURE.labels(X))
    assert set(ANSWERS) == {"labels", "responsibilities", "score_samples"}
