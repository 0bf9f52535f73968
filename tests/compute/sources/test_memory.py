"""Arrays in memory: blocks are views of them, of lengths that threads can share."""

import math
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources.memory import InMemory
from tests.compute.arrays import VALUES, read_all


@given(n=st.integers(1, 1_000_000), d=st.integers(1, 40), block_size=st.integers(1, 2**22))
@settings(max_examples=100)
def test_blocks_cover_all_rows_and_are_alike(n: int, d: int, block_size: int) -> None:
    small, fit = 2**20 // (4 * d), block_size // (4 * d)
    # A broadcast array stands for a large one without its memory.
    values = np.broadcast_to(np.float32(0), (n, d))
    source = InMemory(shape=values.shape, dtype=values.dtype, chunks=(n,), array=values)
    chunks = as_rows(source, block_size=block_size).x.chunks
    expected = max(1, min(max(math.ceil(n / 64), small), fit))
    blocks = math.ceil(n / expected)
    assert sum(chunks) == n
    assert len(chunks) <= blocks
    assert max(chunks) <= expected
    assert set(chunks[:-1]) <= {math.ceil(n / blocks)}
    assert 1 <= chunks[-1] <= math.ceil(n / blocks)


def test_blocks_are_views() -> None:
    assert all(np.shares_memory(block.x, VALUES) for block in read_all(as_rows(VALUES, block_size=100)))


def test_a_pickled_task_carries_its_own_rows_only() -> None:
    values = np.zeros((100_000, 2))
    rows = as_rows(values, weight=np.ones(len(values)), block_size=values.nbytes // 8)
    assert len(pickle.dumps(rows.task(0))) < values.nbytes // 4


def test_a_list_of_masked_rows_keeps_their_masks() -> None:
    rows = [np.ma.array([1.0, 1e9], mask=[False, True]), np.array([2.0, 3.0])]
    for held in (rows, tuple(rows)):
        np.testing.assert_array_equal(as_rows(held).read(0).x, [[1, np.nan], [2, 3]])


def test_what_numpy_makes_an_array_of_is_one() -> None:
    class Foreign:
        __array_interface__ = VALUES.__array_interface__

    np.testing.assert_array_equal(as_rows(Foreign()).read(0).x, VALUES)
