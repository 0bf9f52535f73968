"""Zarr arrays: block plans follow the stored layout; chunks that are not in the store are noticed."""

import os
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources.base import MOST_BLOCKS
from daskgmm.compute.window import finer
from daskgmm.errors import DataError
from tests.compute.arrays import (
    RESP,
    VALUES,
    WEIGHT,
    D,
    N,
    column,
    dask_array,
    joined,
    read_all,
    uneven,
    unknown,
    write,
)

# Block plans


@given(
    n=st.integers(1, 400),
    unit=st.integers(1, 40),
    per_shard=st.integers(0, 8),
    block_size=st.integers(1, 3000),
)
@settings(max_examples=100)
def test_blocks_follow_chunks_and_shards(n: int, unit: int, per_shard: int, block_size: int) -> None:
    shard = unit * per_shard
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=(n, 5),
        chunks=(unit, 5),
        shards=(shard, 5) if shard else None,
        dtype="f4",
    )
    chunks = as_rows(array, block_size=block_size).x.chunks
    fit = block_size // 20
    bounds = np.cumsum((0, *chunks))
    assert bounds[-1] == n
    assert min(chunks) >= 1
    # A block is more than block_size only where a single chunk is.
    assert max(chunks) <= max(fit, unit)
    assert not (bounds[:-1] % unit).any()
    if shard and shard <= fit:
        assert not (bounds[:-1] % shard).any()
    elif shard:
        assert not [s for s in range(shard, n, shard) if s not in bounds]
    # Blocks are no smaller than they need be: two neighbours would not fit in one.
    whole = shard if shard and shard <= fit else unit
    if not shard or shard <= fit:
        assert all(size + whole > fit or size == n for size in chunks[:-1])
    assert chunks == as_rows(array, block_size=block_size).x.chunks


@pytest.mark.parametrize(
    ("shards", "block_rows", "expected"),
    [
        ((6, 3), 13, (12, 8)),  # whole shards are joined
        ((6, 3), 6, (6, 6, 6, 2)),
        ((10, 3), 5, (4, 4, 2, 4, 4, 2)),  # no block straddles two shards
        ((10, 3), 1, (2,) * 10),  # a chunk is never split
        (None, 7, (6, 6, 6, 2)),
        (None, 1000, (20,)),
    ],
)
def test_block_plan_by_example(
    shards: tuple[int, int] | None, block_rows: int, expected: tuple[int, ...], tmp_path: Path
) -> None:
    array = write(tmp_path / "x.zarr", VALUES, (2, 3), shards=shards)
    rows = as_rows(array, weight=WEIGHT, block_size=block_rows * D * 8)
    assert rows.x.chunks == expected
    np.testing.assert_array_equal(joined(rows), VALUES)
    assert not rows.x.local


@pytest.mark.parametrize("shards", [None, (4 * 10**6, 2), (10**15, 2)])
@pytest.mark.parametrize("fill", ["raise", "fill"])
def test_a_huge_array_is_planned_in_numbers(fill: str, shards: Any, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", shape=(10**12, 2), chunks=(250, 2), shards=shards, dtype="f8")
    tracemalloc.start()
    try:
        if fill == "raise":
            with pytest.raises(DataError, match=r"Chunk .* is not in the store"):
                as_rows(tmp_path / "x.zarr")
        else:
            rows = as_rows(tmp_path / "x.zarr", missing_chunks=fill)
            assert 10**5 < rows.n_blocks < 10**6
            assert sum(rows.x.chunks) == 10**12
            assert len(str(rows.layout())) < 10**7
            with pytest.raises(DataError, match=r"cut into \d,\d\d\d,\d\d\d,\d\d\d blocks, .* larger block_size"):
                as_rows(tmp_path / "x.zarr", missing_chunks=fill, block_size=4000)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("n", [10**8, 10**10, 10**12])
def test_a_huge_array_of_nothing_ends_at_once(n: int, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", shape=(n, 2), chunks=(250, 2), dtype="f8")
    model = GaussianMixture(2, max_iter=1, init_params="random_from_data").fit(VALUES[:, :2])
    online = MiniBatchGaussianMixture(2)
    asked: list[Any] = [model.score, model.fit, online.fit]
    predict: Any = model.predict
    for ask in (*asked, lambda x: predict(x).compute(scheduler="threads")):
        with pytest.raises(DataError, match=r"Chunk 'c/\d+/0' of .*x.zarr is not in the store"):
            ask(str(tmp_path / "x.zarr"))


def test_finer_blocks_than_can_be_planned_are_not_asked_for(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "x.zarr", shape=(10**12, 2), chunks=(250, 2), dtype="f8")
    rows = as_rows(tmp_path / "x.zarr", missing_chunks="fill")
    assert rows.n_blocks < finer(rows, 2**28).n_blocks <= MOST_BLOCKS


# What the store says


def consolidated(place: Path, n: int) -> Any:
    """An array of 40 rows, opened through a group whose consolidated metadata tell of ``n``."""
    group = zarr.open_group(place, mode="w")
    array = group.create_array("x", shape=(n, D), chunks=(10, D), dtype="f8", config={"write_empty_chunks": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are no part of format 3 yet
        zarr.consolidate_metadata(place)
    array.resize((40, D))
    array[...] = np.r_[VALUES, -VALUES]
    stale: Any = zarr.open_group(place, mode="r", use_consolidated=True)["x"]
    assert stale.shape == (n, D)
    return stale


def test_consolidated_metadata_may_be_out_of_date(tmp_path: Path) -> None:
    rows = as_rows(consolidated(tmp_path / "g.zarr", 20))
    np.testing.assert_array_equal(joined(rows), VALUES)
    rows.check_unchanged()
    zarr.open_array(tmp_path / "g.zarr" / "x", mode="r+").resize((30, D))
    with pytest.raises(DataError, match=r"X at .*g.zarr/x was changed .*\(\(40, 3\).*now \(\(30, 3\)"):
        rows.check_unchanged()


def test_consolidated_metadata_of_another_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"X was opened as .*\(60, 3\).*use_consolidated=False"):
        as_rows(consolidated(tmp_path / "g.zarr", 60))
    stale = consolidated(tmp_path / "h.zarr", 20)
    write(tmp_path / "h.zarr" / "x", np.r_[VALUES, VALUES], (5, D), overwrite=True)
    with pytest.raises(DataError, match=r"X was opened as .*use_consolidated=False"):
        as_rows(stale)


def test_stored_chunks_pair_with_blocks_of_unknown_sizes(tmp_path: Path) -> None:
    weight = write(tmp_path / "w.zarr", WEIGHT, (10,))
    rows = as_rows(unknown(dask_array(VALUES, chunks=(10, D))), weight=weight)
    np.testing.assert_array_equal(column(rows, "weight"), WEIGHT)
    with pytest.raises(DataError, match=r"sample_weight has 2 block\(s\) and X has 4"):
        as_rows(unknown(dask_array(VALUES, chunks=(5, D))), weight=weight)


# Chunks that are not in the store


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {}, {"shards": (6, 3)}], ids=str)
@pytest.mark.parametrize("fill_value", [0, np.nan, 7.5])
def test_missing_chunks(options: dict[str, Any], fill_value: float, tmp_path: Path) -> None:
    array = write(tmp_path / "x.zarr", VALUES, (2, 3), fill_value=fill_value, **options)
    key = {"zarr_format": "4.0", "shards": "c/1/0"}.get(next(iter(options), ""), "c/4/0")
    os.unlink(tmp_path / "x.zarr" / key)
    lost = slice(6, 12) if "shards" in options else slice(8, 10)
    expected = VALUES.copy()
    expected[lost] = fill_value
    rows = as_rows(array, block_size=6 * D * 8)
    np.testing.assert_array_equal(rows.read(0).x, VALUES[:6])
    with pytest.raises(DataError, match=rf"Chunk .*'{key}' of .* is not in the store") as caught:
        rows.read(1)
    assert 'missing_chunks="fill"' in str(caught.value)
    filled = as_rows(array, missing_chunks="fill", block_size=6 * D * 8)
    np.testing.assert_array_equal(joined(filled), expected)


@pytest.mark.parametrize("key", ["c/0/1", "c/4/0", "c/4/1"])
def test_missing_chunks_of_any_column_and_at_the_edge(key: str, tmp_path: Path) -> None:
    array = write(tmp_path / "x.zarr", VALUES[:18], (4, 2))
    assert len(as_rows(array).read(0).x) == 18
    os.unlink(tmp_path / "x.zarr" / key)
    with pytest.raises(DataError, match=f"Chunk '{key}'"):
        as_rows(array).read(0)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stored_chunks_that_look_missing_are_read(zarr_format: Any, tmp_path: Path) -> None:
    zeros = np.zeros((N, D))
    zeros[7, 1] = 1.0
    array = write(tmp_path / "x.zarr", zeros, (4, 2), zarr_format=zarr_format)
    np.testing.assert_array_equal(joined(as_rows(array)), zeros)
    # A format 2 array may have no fill value: it reads as zero.
    bare = write(tmp_path / "y.zarr", zeros, (4, 3), zarr_format=2, fill_value=None)
    os.unlink(tmp_path / "y.zarr" / "2.0")
    with pytest.raises(DataError, match=r"Chunk '2\.0'"):
        as_rows(bare).read(0)


def test_missing_chunks_of_what_goes_with_the_rows(tmp_path: Path) -> None:
    given = {
        "weight": write(tmp_path / "w.zarr", WEIGHT, (7,)),
        "responsibilities": write(tmp_path / "s.zarr", RESP, (7, 4)),
    }
    rows = as_rows(uneven(VALUES), **given)
    assert len(rows.read(3).x) == 12
    os.unlink(tmp_path / "w.zarr" / "c/2")
    assert len(rows.read(2).x) == 5
    # Rows 8 to 19 begin inside chunk 1 and end with chunk 2.
    with pytest.raises(DataError, match=r"Chunk 'c/2' of .*w\.zarr"):
        rows.read(3)
    os.unlink(tmp_path / "s.zarr" / "c/0/0")
    with pytest.raises(DataError, match=r"Chunk 'c/0/0' of .*s\.zarr"):
        rows.read(0)
    filled = as_rows(uneven(VALUES), missing_chunks="fill", **given)
    np.testing.assert_array_equal(column(filled, "weight"), np.r_[WEIGHT[:14], np.zeros(6)])
    np.testing.assert_array_equal(column(filled, "responsibilities"), np.r_[np.zeros((7, 4)), RESP[7:]])


def test_existence_is_looked_up_only_where_a_chunk_reads_as_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def exists(self: Any) -> bool:
        asked.append(self.path.split("/c/")[-1])
        return True

    values = VALUES.copy()
    values[0] = 0.0  # the first row alone proves nothing
    values[4:8] = 0.0
    array = write(tmp_path / "x.zarr", values, (4, 3))
    monkeypatch.setattr("zarr.storage.StorePath.exists", exists)
    read_all(as_rows(array))
    assert [key[-3:] for key in asked] == ["1/0"]
    read_all(as_rows(array, missing_chunks="fill"))
    assert [key[-9:] for key in asked[1:]] == ["zarr.json"]  # whether the store is there at all


def test_a_chunk_that_is_missing_from_its_shard(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3))
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(200, 3), chunks=(10, 3), shards=(50, 3), dtype="f8", fill_value=0.0
    )
    array[:30], array[50:] = rows[:30], rows[50:]  # two chunks of the first shard are never written
    with pytest.raises(DataError, match=r"Chunk \(3, 0\) in shard 'c/0/0' of .* is not in the store"):
        as_rows(array).read(0)
    np.testing.assert_array_equal(as_rows(array, missing_chunks="fill").read(0).x[30:50], 0.0)
    array[30:50] = rows[30:50]
    np.testing.assert_array_equal(as_rows(array).read(0).x, rows)


# Groups


def test_a_group_lists_its_arrays(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "g.zarr", mode="w")
    group.create_array("rows", shape=(9, 2), dtype="f4")
    group.create_array("label", shape=(9,), dtype="i4")
    group.create_group("deep").create_array("more", shape=(5, 3), dtype="f8")
    for X in (tmp_path / "g.zarr", group):
        with pytest.raises(DataError) as caught:
            as_rows(X)
        message = str(caught.value)
        assert "g.zarr is a Zarr group, not an array" in message
        assert "\n  deep/more (5, 3) float64\n  label (9,) int32\n  rows (9, 2) float32\n" in message
        assert "append its name: " in message
    assert as_rows(f"{tmp_path}/g.zarr/deep/more").n_features == 3
    with pytest.raises(DataError, match="It holds no array"):
        as_rows(zarr.open_group(tmp_path / "empty.zarr", mode="w"))
