"""Rows that miss values in the kernels: neither their order nor the memory for a tile changes sums."""

from typing import Any

import numpy as np
import pytest

from daskgmm.model.kernels import layouts
from daskgmm.model.kernels.patterns import sorted_rows
from daskgmm.model.missing import Incomplete
from daskgmm.model.statistics import Statistics
from tests.structures import draw_mixture, draw_rows

NAMES = ("weight", "shift", "scatter", "log_likelihood", "unseen")


def gaps(d: int, n: int = 400, last: int = 20) -> Any:
    """Rows of which half the values of the last features are missing, and one row without a value."""
    random, x = np.random.default_rng(d), np.zeros((n, d))
    x[:, -last:] = np.where(random.random((n, min(last, d))) < 0.5, np.nan, 0.0)
    x[n // 2] = np.nan
    return x


def bits(found: Statistics) -> list[bytes]:
    return [np.asarray(getattr(found, name)).tobytes() for name in NAMES]


@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("d", [1, 8, 63, 64, 65, 84, 128, 140])
def test_rows_are_sorted_by_what_they_miss(d: int, dtype: str) -> None:
    # Of 84 and 140 features, rows differ in the last word alone: in patterns enough for slots that meet.
    x = gaps(d).astype(dtype)
    weight = np.random.default_rng(0).choice([0.0, 0.5, 1.0], len(x))
    counts = (weight > 0) & ~np.isnan(x).all(axis=1)
    _, first, own = np.unique(np.isnan(x[counts]), axis=0, return_index=True, return_inverse=True)
    expected = np.full(len(x), -1)
    expected[counts] = np.argsort(np.argsort(first))[own.ravel()]
    order = sorted_rows(x, weight)
    np.testing.assert_array_equal(order.pattern, expected)
    assert order.total == counts.sum()
    rows = np.flatnonzero(counts)
    np.testing.assert_array_equal(order.rows[: order.total], rows[np.argsort(expected[rows], kind="stable")])


@pytest.mark.parametrize("value", [np.inf, 1e300, np.nan])
def test_what_weighs_nothing_or_has_nothing_is_never_looked_at(value: float) -> None:
    mixture = draw_mixture("full", 3, 5)
    x = draw_rows(mixture, 500)
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    weight = np.where(np.isnan(x).all(axis=1), 0.0, 1.0)
    expected = Incomplete(mixture).expectation(x, weight)
    among = np.random.default_rng(1).choice(500, 90)
    more = np.insert(x, among, np.array([1.0, value, np.nan, 2.0, value]), axis=0)
    found = Incomplete(mixture).expectation(more, np.insert(weight, among, 0.0))
    assert bits(found) == bits(expected)
    empty = Incomplete(mixture).expectation(np.insert(x, among, np.nan, axis=0), np.insert(weight, among, 1.0))
    assert bits(empty) == bits(expected)


@pytest.mark.parametrize("kind", ["full", "tied"])
@pytest.mark.parametrize(("k", "d"), [(1, 1), (9, 5), (2, 70)])
def test_neither_what_lies_in_memory_nor_how_little_there_is_changes_sums(kind: str, k: int, d: int) -> None:
    mixture = draw_mixture(kind, k, d)
    x = draw_rows(mixture, 600)
    x[np.random.default_rng(0).random(x.shape) < 0.5] = np.nan
    weight = np.where(np.isnan(x).all(axis=1), 0.0, 1.0)
    layouts._IDLE.clear()
    expected = Incomplete(mixture).expectation(x, weight)
    ((key, (tile, runs)),) = layouts._IDLE
    for part in (*tile, *runs):
        part.fill(np.nan if part.dtype.kind == "f" else -7)
    runs.edges[0] = 0
    assert bits(Incomplete(mixture).expectation(x, weight)) == bits(expected)
    # What one row that has nothing would leave open is the most that a run takes: it always fits, so that a tile
    # has a run. There is room for few runs of others. Where there were none, the tiles would have no end.
    least = -(-len(mixture.covariance.values) // 8) * (d * (d + 1) // 2)
    assert len(runs.kept) >= least
    layouts._IDLE.append((key, (tile, runs._replace(kept=np.empty((least - 1, 8))))))
    with pytest.raises(ValueError, match="no room"):
        Incomplete(mixture).expectation(x, weight)
    layouts._IDLE.clear()
    layouts._IDLE.append((key, (tile, runs._replace(kept=np.full((least, 8), np.nan)))))
    found = Incomplete(mixture).expectation(x, weight)
    for name in NAMES:
        value = getattr(expected, name)
        np.testing.assert_allclose(
            getattr(found, name), value, rtol=1e-11, atol=1e-11 * np.abs(value).max(), err_msg=name
        )
