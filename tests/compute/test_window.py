"""Windows: blocks dealt out at random, so that mini-batches of rows in any order look alike; every row once."""

from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask.local import get_sync
from hypothesis import example, given
from hypothesis import strategies as st

from daskgmm.compute.block import Block
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Threads
from daskgmm.compute.window import GROUP, Selection, Window, finer, windows
from daskgmm.fit.survey import RowSample, Threshold

ENGINE = Threads(get=get_sync)
ALL = Selection()


def blocks_of(block: Block) -> list[Block]:
    return [block]


def dealt(
    x: Any, seed: int = 0, budget: int = 10**9, weight: Any = None, chosen: Selection = ALL, size: int = 10
) -> list[Any]:
    """Rows of every mini-batch of a pass, ``size`` at a time; weights, if there are any, as a column more."""
    rows, found = as_rows(x, weight=weight), []
    for number, blocks in enumerate(windows(rows, chosen, budget, seed)):
        held = Window.load(ENGINE, rows, blocks, chosen, seed + 1 + number)
        for first in range(0, held.n_rows, size):
            parts = ENGINE.reduce(held.batch(first, min(first + size, held.n_rows)), blocks_of)
            columns = [[p.x] if p.weight is None else [p.x, p.weight[:, None]] for p in parts]
            found.append(np.concatenate([np.concatenate(pair, axis=1) for pair in columns]))
    return found


def numbered(n: int, chunk: int) -> Any:
    """A row that holds its number, and so on."""
    return da.from_array(np.arange(float(n))[:, None], chunks=(chunk, 1))


@given(
    n=st.integers(1, 300),
    chunk=st.integers(1, 120),
    budget=st.sampled_from([1, 200, 10**9]),
    seed=st.integers(0, 9),
    weighted=st.booleans(),
)
def test_a_pass_visits_every_row_once(n: int, chunk: int, budget: int, seed: int, weighted: bool) -> None:
    weight = 1.0 + np.arange(n) if weighted else None
    visited = np.concatenate(dealt(numbered(n, chunk), seed, budget, weight))
    assert sorted(visited[:, 0].tolist()) == list(range(n))
    if weighted:  # each with its own weight
        np.testing.assert_array_equal(visited[:, 1], 1 + visited[:, 0])


@pytest.mark.parametrize("known", [True, False])
def test_only_chosen_rows_of_positive_weight_are_visited(known: bool) -> None:
    x, weight = numbered(100, 30), np.ones(100)
    weight[::7] = 0
    if not known:
        x, weight = x[x[:, 0] >= 0], da.from_array(weight, chunks=30)
    # Rows are left out by the numbers that a sample of the same rows knows them by.
    rows, threshold = as_rows(x, weight=weight), Threshold(10)
    sample = ENGINE.reduce(rows, lambda block: RowSample.of(block, 3, threshold))
    out = sample.chosen
    found = np.concatenate(dealt(x, weight=weight, chosen=Selection(out=tuple(sample.position[out].tolist()))))
    left = set(sample.rows[out, 0].tolist())
    assert len(left) == 10
    assert sorted(found[:, 0].tolist()) == [i for i in range(100) if i % 7 and i not in left]


@given(n=st.integers(1, 100), chunk=st.integers(1, 30), first=st.integers(0, 110), count=st.integers(0, 110))
@example(n=100, chunk=10, first=25, count=36)  # begins and ends within a block
def test_a_range_of_rows_is_visited_and_no_other_block_read(n: int, chunk: int, first: int, count: int) -> None:
    x, wanted = numbered(n, chunk), range(n)[first : first + count]
    chosen = Selection(first, first + count)
    blocks = [block for window in windows(as_rows(x), chosen, 10**9, 0) for block in window]
    if count:
        assert sorted(blocks) == sorted({row // chunk for row in wanted})
    found = dealt(x, chosen=chosen)
    assert sorted(np.concatenate([np.empty((0, 1)), *found])[:, 0].tolist()) == list(wanted)


@pytest.mark.parametrize("rows", [32, 100, 1000])
def test_a_window_deals_evenly_from_neighbouring_rows(rows: int) -> None:
    order = np.concatenate(dealt(numbered(rows, rows)))[:, 0].astype(int)
    dealt_of = np.zeros(rows // GROUP, int)
    for row in order:
        if row < GROUP * len(dealt_of):
            dealt_of[row // GROUP] += 1
        assert np.ptp(dealt_of) <= 1
    # Which row of a group comes first is drawn.
    assert (np.diff(order) < 0).any()


def test_the_smallest_mini_batch_is_drawn_from_all_rows() -> None:
    n, size = 100 * GROUP, 50  # half of the groups
    for part in dealt(numbered(n, n), size=size)[:20]:
        spread = np.histogram(part, bins=2, range=(0, n))[0] / size
        np.testing.assert_allclose(spread, 0.5, atol=4 * np.sqrt(0.25 / size))  # four deviations of a random draw


def test_the_seed_is_all_that_the_order_depends_on() -> None:
    one, again, other = (np.concatenate(dealt(numbered(200, 20), seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_mini_batches_of_sorted_rows_look_alike() -> None:
    parts = dealt(da.from_array(np.repeat(np.arange(4.0), 2500)[:, None], chunks=(1000, 1)), size=500)
    shares = np.array([[np.mean(part == j) for j in range(4)] for part in parts])
    np.testing.assert_allclose(shares, 0.25, atol=0.08)  # four standard deviations of a random draw
    assert np.std(shares) > 0  # random, not strided


@pytest.mark.parametrize("period", [2, 3, 8, 32, 64])
def test_mini_batches_of_periodic_rows_look_alike(period: int) -> None:
    x = (np.arange(9600) % period == 0).astype(float)[:, None]
    shares = [part.mean() for part in dealt(da.from_array(x, chunks=(1000, 1)), size=960)]
    np.testing.assert_allclose(shares, 1 / period, atol=4 * np.sqrt(1 / period / 960))


def test_windows_are_even_over_the_data() -> None:
    rows = as_rows(da.from_array(np.zeros((128, 1)), chunks=(1, 1)))
    plan = windows(rows, ALL, 8 * 16, 3)
    assert [len(part) for part in plan] == [16] * 8
    for part in plan:
        np.testing.assert_array_equal(np.array(part) // 8, np.arange(16))  # one of every eight neighbours
    assert plan != windows(rows, ALL, 8 * 16, 4)


@given(n=st.integers(1, 200), block=st.integers(1, 50), budget=st.integers(1, 4000))
def test_a_window_keeps_to_its_bytes(n: int, block: int, budget: int) -> None:
    rows = as_rows(np.zeros((n, 2)), block_size=16 * block)
    plan = windows(rows, ALL, budget, 0)
    assert sorted(number for part in plan for number in part) == list(range(rows.n_blocks))
    mean = n / rows.n_blocks * rows.row_bytes
    for part in plan:
        assert len(part) == 1 or len(part) * mean <= budget
    small = finer(rows, budget)
    assert small is rows or small.n_blocks > rows.n_blocks
    if rows.total_bytes <= budget:
        assert small is rows
        assert len(plan) == 1
