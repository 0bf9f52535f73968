"""Rows of late: a bounded sample that adds up, in which rows weigh what they do in the published statistics."""

import itertools
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.fit.recent import MOST_BYTES, Recent, sample_rows


def numbered(first: int, last: int) -> Any:
    return np.arange(first, last, dtype=np.float32)[:, None]


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), size=st.integers(1, 60), seed=st.integers(0, 9))
def test_samples_add_up_in_any_order(sizes: list[int], size: int, seed: int) -> None:
    ends = np.cumsum([0, *sizes])
    parts = [
        Recent.of(numbered(first, last), None, size, seed, i)
        for i, (first, last) in enumerate(itertools.pairwise(ends))
    ]
    found, other = reduce(add, parts), reduce(add, parts[::-1])
    found.check()
    assert found.x.dtype == np.float64
    assert sorted(found.x[:, 0]) == sorted(other.x[:, 0])
    assert len(found.x) == min(size, sum(min(size, n) for n in sizes))
    if max(sizes) <= size:  # else a row may be in two of the parts of a block
        assert len(set(found.x[:, 0])) == len(found.x)


@pytest.mark.parametrize("size", [5, 20, 1000])
def test_rows_of_no_weight_are_never_in_it(size: int) -> None:
    weight = np.random.default_rng(0).choice([0.0, 1.0, 2.0], 100)
    x = np.where(weight[:, None] == 0, np.nan, numbered(0, 100))
    found = Recent.of(x, weight, size, 0, 0)
    assert np.isfinite(found.x).all()
    assert len(found.x) == min(size, np.count_nonzero(weight))


@pytest.mark.parametrize("n", [4000, 300])
def test_rows_are_as_many_as_they_weigh(n: int) -> None:
    """In one block, and in the sum with another."""
    weight = np.where(np.arange(n) % 2, 3.0, 1.0)
    chosen = [Recent.of(numbered(0, n), weight, 100, seed, 0) for seed in range(50)]
    share = np.mean([found.x[:, 0] % 2 for found in chosen])
    np.testing.assert_allclose(share, 0.75, atol=0.05)
    both = [
        found.weighing(0.75) + Recent.of(numbered(n, 2 * n), weight, 100, seed, 1).weighing(0.25)
        for seed, found in enumerate(chosen)
    ]
    # No more than 100 rows of either: what is drawn without replacement is drawn to the middle.
    assert 0.25 < np.mean([found.x[:, 0] >= n for found in both]) < 0.35


def test_it_is_spread_over_the_rows() -> None:
    found = Recent.of(numbered(0, 10_000), None, 100, 0, 0)
    np.testing.assert_array_equal(np.sort(found.x[:, 0] // 100), np.arange(100))


def test_its_size_has_a_bound() -> None:
    assert sample_rows(3, 2) == 150
    assert 8 * 2000 * sample_rows(100, 2000) <= MOST_BYTES
    assert sample_rows(10**5, 10**5) == 2 * 10**5
