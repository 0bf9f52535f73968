"""What is masked, null or NA is missing, in memory and in the blocks of Dask arrays and frames."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import column, dask_array, joined, read_all

da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
pa = pytest.importorskip("pyarrow")

N = 9
INTEGERS = np.arange(2 * N).reshape(N, 2)
MASK = np.zeros((N, 2), bool)
MASK[[1, 4, 8], [0, 1, 1]] = True
GAPS = np.where(MASK, np.nan, INTEGERS)  # what any of them stands for
WEIGHT = np.where(MASK[:, 1], np.nan, 1.0 + np.arange(N))


def masked(values: Array, mask: Array, dtype: str = "f8") -> Any:
    """With other numbers, which nobody must see, where the mask is."""
    return np.ma.array(np.where(mask, 77, values).astype(dtype), mask=mask)


def hidden(values: Any, chunks: Any) -> Any:
    """Masked blocks of a Dask array that says it has plain ones."""
    array = dask_array(values.data, chunks).map_blocks(
        lambda block: np.ma.masked_equal(block, 77), dtype=values.dtype
    )
    array._meta = np.empty((0,) * values.ndim, values.dtype)
    return array


def frame(dtype: str) -> Any:
    whole: Any = pd.DataFrame(INTEGERS, columns=["a", "b"])
    whole = whole.astype(dtype)
    return whole.mask(pd.DataFrame(MASK, columns=["a", "b"]))


def table() -> Any:
    return pa.table({name: pa.array(INTEGERS[:, i], mask=MASK[:, i]) for i, name in enumerate("ab")})


HOLDERS: dict[str, Callable[[], Any]] = {
    "masked floats": lambda: masked(INTEGERS, MASK),
    "masked float32": lambda: masked(INTEGERS, MASK, "f4"),
    "masked integers": lambda: masked(INTEGERS, MASK, "i2"),
    "masked big-endian": lambda: masked(INTEGERS, MASK, ">i4"),
    "dask, masked array": lambda: da.ma.masked_array(dask_array(INTEGERS, (4, 1)), dask_array(MASK, (4, 1))),
    "dask, masked blocks": lambda: dask_array(masked(INTEGERS, MASK, "u1"), (4, 2)),
    "dask, hidden masks": lambda: hidden(masked(INTEGERS, MASK, "i8"), (4, 2)),
    "dask, hidden masks, column chunks": lambda: hidden(masked(INTEGERS, MASK, "i8"), (4, 1)),
    "dask, hidden frames": lambda: da.Array(
        {("frames", i, 0): frame("Int64")[4 * i : 4 * i + 4] for i in range(3)}, "frames", ((4, 4, 1), (2,)), "i8"
    ),
    **{f"pandas {dtype}": partial(frame, dtype) for dtype in ("Int64", "UInt8", "Float32", "int8[pyarrow]")},
    "pandas object": lambda: frame("Int64").astype(object).where(~MASK, None),
    "polars": lambda: pl.from_arrow(table()),
    "polars decimal": lambda: pl.DataFrame(pl.from_arrow(table())).cast(pl.Decimal(9, 2)),
    "arrow": table,
    "arrow batch": lambda: table().combine_chunks().to_batches()[0],
}


def in_dask(kind: str) -> Any:
    return dd.from_pandas(HOLDERS[kind](), npartitions=3)


IN_DASK = [kind for kind in HOLDERS if kind.startswith("pandas") and "object" not in kind]
KINDS = HOLDERS | {f"dask frame, {kind}": partial(in_dask, kind) for kind in IN_DASK}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_are_missing(kind: str) -> None:
    rows = as_rows(KINDS[kind]())
    np.testing.assert_array_equal(joined(rows), GAPS)
    omitted = read_all(as_rows(KINDS[kind](), nan_policy="omit"))
    weights = [np.ones(len(block.x)) if block.weight is None else block.weight for block in omitted]
    np.testing.assert_array_equal(np.concatenate(weights), ~MASK.any(axis=1))


@given(mask=st.lists(st.booleans(), min_size=2 * N, max_size=2 * N), chunk=st.integers(1, N), data=st.data())
@settings(max_examples=30, deadline=None)
def test_masks_of_any_blocks(mask: list[bool], chunk: int, data: st.DataObject) -> None:
    values = masked(INTEGERS, np.reshape(mask, (N, 2)), data.draw(st.sampled_from(["i1", "f4", "f8"])))
    chunked = data.draw(st.sampled_from([hidden, dask_array]))(values, (chunk, data.draw(st.integers(1, 2))))
    for holder in (values, chunked, chunked.rechunk((2, 2))):
        np.testing.assert_array_equal(joined(as_rows(holder)), values.astype("f8").filled(np.nan))


def test_integers_stay_where_none_is_missing() -> None:
    chunks = [block.x.dtype for block in read_all(as_rows(hidden(masked(INTEGERS, MASK, "i2"), (3, 2))))]
    assert chunks == ["f8", "f8", "f8"]
    some = MASK & (np.arange(N) > 5)[:, None]
    assert [block.x.dtype for block in read_all(as_rows(hidden(masked(INTEGERS, some, "i2"), (3, 2))))] == [
        "i2",
        "i2",
        "f8",
    ]
    whole = np.ma.array(INTEGERS)
    assert np.shares_memory(as_rows(whole).read(0).x, whole.data)


def test_blocks_have_room_for_what_integers_become() -> None:
    values = np.ma.masked_equal(np.arange(4096 * 4).reshape(-1, 4).astype("i1"), 5)
    rows = as_rows(values, block_size=2**15)
    assert max(block.x.nbytes for block in read_all(rows)) <= 2**15


COLUMNS: dict[str, Callable[[Array, Array], Any]] = {
    "masked": masked,
    "masked integers": lambda v, m: masked(v, m, "i4"),
    "dask, hidden masks": lambda v, m: hidden(masked(v, m, "i4"), 4),
    "pandas Int64": lambda v, m: pd.Series(v, dtype="Int64").mask(m),
    "pandas int64[pyarrow]": lambda v, m: pd.Series(v).astype("int64[pyarrow]").mask(m),
    "polars": lambda v, m: pl.Series(pa.array(v.astype(int), mask=m)),
    "arrow": lambda v, m: pa.chunked_array([pa.array(v.astype(int), mask=m)]),
    "arrow array": lambda v, m: pa.array(v.astype(int), mask=m),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_missing_weights_and_labels(kind: str) -> None:
    held, none = (COLUMNS[kind](1 + np.arange(N), mask) for mask in (MASK[:, 1], np.zeros(N, bool)))
    x = np.ones((N, 2))
    with pytest.raises(DataError, match=r"sample_weight contains NaN: block ., row\(s\) 4"):
        read_all(as_rows(x, weight=held))
    np.testing.assert_array_equal(
        column(as_rows(x, weight=held, nan_policy="omit"), "weight"), np.nan_to_num(WEIGHT)
    )
    np.testing.assert_array_equal(column(as_rows(x, weight=none), "weight"), 1.0 + np.arange(N))
    if kind != "masked":  # of floats
        np.testing.assert_array_equal(column(as_rows(x, labels=held), "labels"), WEIGHT)
        found = column(as_rows(x, labels=none), "labels")
        assert found.dtype.kind in "iu"
        np.testing.assert_array_equal(found, 1 + np.arange(N))


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "Float64", "int64[pyarrow]", "bool[pyarrow]"])
def test_weights_and_labels_of_dask_frames(dtype: str) -> None:
    whole = pd.DataFrame({"a": np.arange(N) + 0.5, "w": np.arange(N) % 2}).astype({"w": dtype})
    whole.loc[4, "w"] = pd.NA
    lazy = dd.from_pandas(whole, npartitions=2)
    rows = as_rows(lazy[["a"]], weight=lazy["w"], nan_policy="omit")
    np.testing.assert_array_equal(column(rows, "weight"), np.where(np.arange(N) == 4, 0, np.arange(N) % 2))
    with pytest.raises(DataError, match="sample_weight contains NaN: block 0"):
        read_all(as_rows(lazy[["a"]], weight=lazy["w"]))
    if dtype != "Float64":
        expected = np.where(np.arange(N) == 4, np.nan, np.arange(N) % 2)
        np.testing.assert_array_equal(column(as_rows(lazy[["a"]], labels=lazy["w"]), "labels"), expected)


def test_a_masked_number_weighs_nothing() -> None:
    with pytest.raises(DataError, match="sample_weight contains NaN"):
        as_rows(INTEGERS, weight=np.ma.masked).read(0)


@pytest.mark.parametrize(
    "value",
    [
        pd.DataFrame({"a": [1.0, 2], "when": pd.date_range("2020", periods=2), "who": ["x", "y"]}),
        pl.DataFrame({"a": [1.0, 2], "when": pd.date_range("2020", periods=2), "who": ["x", "y"]}),
        pa.table({"a": [1.0, 2], "when": pd.date_range("2020", periods=2), "who": ["x", "y"]}),
        dd.from_pandas(
            pd.DataFrame({"a": [1.0, 2], "when": pd.date_range("2020", periods=2), "who": ["x", "y"]}),
            npartitions=1,
        ),
    ],
    ids=["pandas", "polars", "arrow", "dask"],
)
def test_columns_without_numbers_are_named(value: Any) -> None:
    with pytest.raises(DataError, match=r"rows has columns that hold no numbers: 'when', 'who'. Leave them out"):
        as_rows(value, name="rows")


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (pl.DataFrame(INTEGERS).lazy(), "X is a LazyFrame of polars: call .collect()"),
        (table().to_reader(), "X is a RecordBatchReader of pyarrow: call .read_all()"),
    ],
    ids=["polars", "arrow"],
)
def test_what_holds_no_rows_yet(value: Any, remedy: str) -> None:
    with pytest.raises(DataError, match=remedy):
        as_rows(value)
