"""Rows that carry labels are not taken by position; features are called by their names, whatever brings them."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources.labels import feature_names
from daskgmm.errors import DataError
from tests.compute.arrays import column, read_all

dd = pytest.importorskip("dask.dataframe")
pa = pytest.importorskip("pyarrow")

NAMES = list("uvwxyz")
VALUES = np.arange(12.0).reshape(6, 2)
WEIGHT = pd.Series(np.arange(6.0) + 1, index=NAMES)
FRAME = pd.DataFrame(VALUES, columns=["a", "b"], index=NAMES)
ARRAY = xr.DataArray(VALUES, dims=("time", "band"), coords={"time": NAMES, "band": ["a", "b"]})

XS: dict[str, Callable[[], Any]] = {
    "pandas": lambda: FRAME,
    "xarray": lambda: ARRAY,
    "xarray, dask": lambda: ARRAY.chunk(time=4),
    "dask frame": lambda: dd.from_pandas(FRAME, npartitions=2),
    "dask frame, whole": lambda: dd.from_pandas(FRAME, npartitions=1),
}
WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "pandas": lambda w: w,
    "xarray": lambda w: xr.DataArray(w.to_numpy(), dims="day", coords={"day": w.index}),
    "xarray, dask": lambda w: xr.DataArray(w.to_numpy(), dims="day", coords={"day": w.index}).chunk(day=2),
    "dask frame": lambda w: dd.from_pandas(w, npartitions=2, sort=False),
}
# Labels of a frame in parts are known when it is read; those of one beside them must come in the same parts.
REFUSED = {("dask frame", "pandas"), ("dask frame", "xarray"), ("dask frame", "xarray, dask")}
UNPAIRED = {("dask frame, whole", "dask frame")}
PAIRS = [(x, w) for x in XS for w in WEIGHTS if (x, w) not in REFUSED | UNPAIRED]


@pytest.mark.parametrize(("kind", "holder"), PAIRS)
def test_labels_agree_or_are_told(kind: str, holder: str) -> None:
    held = WEIGHTS[holder]
    np.testing.assert_array_equal(column(as_rows(XS[kind](), weight=held(WEIGHT)), "weight"), WEIGHT)
    turned = WEIGHT.iloc[[0, 2, 1, 3, 4, 5]]
    with pytest.raises(DataError, match="are in another order than those of X: row 1 is 'w' there, and 'v' in X"):
        read_all(as_rows(XS[kind](), weight=held(turned)))
    other = pd.Series(WEIGHT.to_numpy(), index=[*NAMES[:-1], "q"])
    with pytest.raises(DataError, match=r"are other than those of X: row . is 'q' there, and 'z' in X"):
        read_all(as_rows(XS[kind](), weight=held(other)))


@pytest.mark.parametrize(("kind", "holder"), [pair for pair in PAIRS if not pair[0].startswith("dask")])
def test_the_remedies_work(kind: str, holder: str) -> None:
    X, weight = XS[kind](), WEIGHTS[holder](WEIGHT[::-1])
    with pytest.raises(DataError) as caught:
        as_rows(X, weight=weight)
    in_order, by_position = re.findall(r"ive (\S+)\.(?: |$)", str(caught.value))
    known = {"X": X, "sample_weight": weight}
    np.testing.assert_array_equal(column(as_rows(X, weight=eval(in_order, known)), "weight"), WEIGHT)
    np.testing.assert_array_equal(column(as_rows(X, weight=eval(by_position, known)), "weight"), WEIGHT[::-1])


@pytest.mark.parametrize(("kind", "holder"), sorted(REFUSED))
def test_labels_that_cannot_be_compared(kind: str, holder: str) -> None:
    with pytest.raises(DataError, match=r"sample_weight has 6 row labels.* Take both from one frame"):
        as_rows(XS[kind](), weight=WEIGHTS[holder](WEIGHT))


@pytest.mark.parametrize("name", ["labels", "responsibilities"])
def test_starts_have_labels_too(name: str) -> None:
    values: Any = WEIGHT.astype(int)[::-1] if name == "labels" else FRAME[::-1]
    with pytest.raises(DataError, match=f"The row labels of {name}_init are in another order"):
        as_rows(FRAME, **{name: values})


@given(order=st.permutations(range(6)))
def test_default_labels_are_labels(order: list[int]) -> None:
    """A frame that was sorted, beside the column as it was before, is the usual way to be wrong."""
    weight = pd.Series(WEIGHT.to_numpy())
    frame = pd.DataFrame(VALUES).iloc[order]
    if order == sorted(order):
        as_rows(frame, weight=weight)
    else:
        with pytest.raises(DataError, match="in another order"):
            as_rows(frame, weight=weight)
    np.testing.assert_array_equal(
        column(as_rows(frame, weight=weight.loc[frame.index]), "weight"), weight.iloc[order]
    )


@pytest.mark.parametrize(
    "weight",
    [
        WEIGHT.to_numpy()[::-1],
        WEIGHT.tolist()[::-1],
        pl.Series(WEIGHT.to_numpy()[::-1]),
        xr.DataArray(WEIGHT[::-1].values),
    ],
    ids=["numpy", "list", "polars", "xarray without coordinates"],
)
@pytest.mark.parametrize("kind", ["pandas", "xarray", "xarray, dask"])
def test_what_has_no_labels_is_taken_by_position(kind: str, weight: Any) -> None:
    np.testing.assert_array_equal(column(as_rows(XS[kind](), weight=weight), "weight"), WEIGHT[::-1])
    np.testing.assert_array_equal(column(as_rows(VALUES, weight=WEIGHT[::-1]), "weight"), WEIGHT[::-1])


@pytest.mark.parametrize(
    "X",
    [
        *(kind() for kind in XS.values()),
        pl.DataFrame(VALUES, schema=["a", "b"]),
        pa.table({"a": [1.0], "b": [2.0]}),
        pa.record_batch({"a": [1.0], "b": [2.0]}),
    ],
    ids=[*XS, "polars", "arrow", "arrow batch"],
)
def test_names_of_features(X: Any) -> None:
    found = as_rows(X).feature_names
    assert found is not None
    assert found.tolist() == ["a", "b"]
    assert all(type(name) is str for name in found)


def test_coordinates_that_are_no_names() -> None:
    assert as_rows(ARRAY.assign_coords(band=[1, 2])).feature_names is None
    assert as_rows(ARRAY.drop_vars("band")).feature_names is None
    assert feature_names(VALUES) is None


STAMPS = pd.date_range("2020", periods=4)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (
            pd.Index([1, "x", 2, "y"], dtype=object),
            pd.Index([1, "y", 2, "x"], dtype=object),
            "in another order than",
        ),
        (pd.CategoricalIndex(list("abcd")), pd.CategoricalIndex(list("axcd")), "other than"),
        (pd.CategoricalIndex(list("abcd")), pd.Index(list("adcb")), "in another order than"),
        (
            pd.Index(["a", "b", pd.NA, "d"], dtype="string"),
            pd.Index(["a", pd.NA, "b", "d"], dtype="string"),
            "in ano",
        ),
        (pd.Index([np.nan, 1, 2, 3]), pd.Index([np.nan, 2, 1, 3]), "in another order than"),
        (STAMPS.tz_localize("UTC"), STAMPS, "other than"),
        (pd.MultiIndex.from_product([[0, 1], [0, 1]]), pd.RangeIndex(4), "other than"),
    ],
)
def test_labels_of_any_types_are_compared(ours: Any, theirs: Any, told: str) -> None:
    x = pd.DataFrame(np.arange(8.0).reshape(4, 2), index=ours)
    as_rows(x, weight=pd.Series(1.0, index=ours.copy()))
    row = 0 if told == "other than" and ours[0] != theirs[0] else 1
    with pytest.raises(DataError, match=f"row labels of sample_weight are {told}.*: row {row} is "):
        as_rows(x, weight=pd.Series(1.0, index=theirs))


def test_labels_that_come_twice_bring_nothing_in_order() -> None:
    x = pd.DataFrame(np.arange(8.0).reshape(4, 2), index=[0, 0, 1, 1])
    with pytest.raises(DataError, match=r"in X\. Give those rows\. To take"):
        as_rows(x, weight=pd.Series(1.0, index=[0, 1, 0, 1]))
