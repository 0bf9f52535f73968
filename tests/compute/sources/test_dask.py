"""Dask arrays and frames: their own chunks are the blocks, and only NumPy arrays of known width will do."""

import numpy as np
import pandas as pd
import pytest

from daskgmm.compute.rows import as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, D, dask_array, joined, uneven

dd = pytest.importorskip("dask.dataframe")


def test_chunks_are_kept_whatever_the_block_size() -> None:
    assert as_rows(uneven(VALUES), block_size=1).x.chunks == (3, 0, 5, 12)


def test_chunks_of_objects_sparse_ones_and_unknown_widths_are_refused() -> None:
    words = np.array([["a", 1.0], ["b", 2.0]], dtype=object)
    with pytest.raises(DataError, match="not compatible with arrays of dtype object"):
        as_rows(dask_array(words, chunks=1))
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.eye(3))
    chunks = dask_array(np.eye(4), chunks=2).map_blocks(type(sparse), dtype="f8", meta=sparse[:0, :0])
    with pytest.raises(DataError, match="The chunks of X are csr_array objects"):
        as_rows(chunks)
    masked = dask_array(VALUES, chunks=5)[:, dask_array(np.ones(D, dtype=bool))]
    with pytest.raises(DataError, match="X has an unknown number of columns"):
        as_rows(masked)


def test_sparse_blocks_become_rows_block_by_block() -> None:
    """However they are declared; the remedy in the message is the one that works."""
    sparse = pytest.importorskip("scipy.sparse").csr_array
    dense = dask_array(np.eye(4), chunks=(2, 4))
    for meta in (sparse(np.eye(4))[:0, :], np.empty((0, 0))):
        X = dense.map_blocks(sparse, dtype="f8", meta=meta)
        with pytest.raises(DataError, match=r"csr_array.*expected .*NumPy array") as caught:
            as_rows(X).read(1)
        remedy = str(caught.value).partition("Sparse blocks: ")[2]
        densified = eval(remedy, {"X": X, "numpy": np})
        np.testing.assert_array_equal(joined(as_rows(densified)), np.eye(4))


def test_a_frame_of_text_is_refused() -> None:
    frame = dd.from_pandas(pd.DataFrame({"a": ["x", "y"]}), npartitions=1)
    with pytest.raises(DataError, match="X has columns that hold no numbers: 'a'"):
        as_rows(frame)


def test_an_array_that_breaks_its_word_is_refused() -> None:
    X = dask_array(VALUES, chunks=(5, 3))
    wide = X.map_blocks(lambda x: np.c_[x, x], dtype="f8", meta=np.empty((0, 0)))
    with pytest.raises(DataError, match=r"Block 2 has shape \(5, 6\), expected \(5, 3\)"):
        as_rows(wide).read(2)
    short = X.map_blocks(lambda x: x[:-1], dtype="f8", meta=np.empty((0, 0)))
    with pytest.raises(DataError, match=r"Block 1 has shape \(4, 3\), expected \(5, 3\)"):
        as_rows(short).read(1)
