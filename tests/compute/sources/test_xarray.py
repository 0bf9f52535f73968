"""xarray: any DataArray and Dataset is rows of features; answers, and what goes with the rows, by dimensions."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources import xarray
from daskgmm.compute.sources.base import Asked
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, column, dask_array, joined, write

SIZES = {"band": 2, "y": 4, "x": 3, "time": 1}


def cube(*dims: str, chunks: dict[str, int] | None = None) -> xr.DataArray:
    """Numbers that tell where they are from, whatever the order of the dimensions."""
    whole = xr.DataArray(np.arange(float(math.prod(SIZES.values()))).reshape(*SIZES.values()), dims=[*SIZES])
    whole = whole.assign_coords(y=[3.0, 2.0, 1.0, 0.0], band=["red", "green"], wavelength=("band", [650.0, 550.0]))
    found = whole.isel({dim: 0 for dim in SIZES if dim not in dims}).transpose(*dims)
    return found if chunks is None else found.chunk(chunks)


def asked(feature_dim: str | None = None, **more: Any) -> Asked:
    return Asked("X", False, True, feature_dim=feature_dim, **more)


@given(
    dims=st.permutations([*SIZES]).flatmap(lambda d: st.sampled_from([d[:n] for n in (2, 3, 4)])),
    chunks=st.none() | st.fixed_dictionaries({dim: st.integers(1, 4) for dim in SIZES}),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_rows_answers_and_weights_agree_by_dimensions(dims: list[str], chunks: Any, data: st.DataObject) -> None:
    feature = data.draw(st.sampled_from(dims))
    X = cube(*dims, chunks=None if chunks is None else {dim: chunks[dim] for dim in dims})
    first = cube(*dims).isel({feature: 0}, drop=True)
    held = data.draw(st.permutations(first.dims))[: data.draw(st.integers(1, first.ndim))]
    weight = first.isel({dim: 0 for dim in first.dims if dim not in held}, drop=True).transpose(*held) + 1.0
    if first.ndim == 1:
        weight = weight.variable.data  # by position, where there is but one
    rows = as_rows(X, weight=weight, feature_dim=feature, block_size=40)
    found = joined(rows)
    assert (len(found), rows.n_features) == (first.size, X.sizes[feature])
    assert rows.x.local == (chunks is None)
    if rows.n_features > 1:  # each row is of one place
        step = float(cube(*dims).isel({dim: 0 for dim in first.dims}).diff(feature)[0])
        np.testing.assert_array_equal(found[:, 1] - found[:, 0], step)
    values: Any = found[:, 0] if chunks is None else rows.map(lambda block: block.x[:, 0], dtype="f8")
    answer = xarray.table(X, asked(feature)).answer(values, "answer", -1)
    assert answer.dims == first.dims
    xr.testing.assert_identical(answer.compute().drop_attrs(), first.rename("answer").drop_attrs())
    expected = (xr.zeros_like(first) + weight if first.ndim > 1 else first.copy(data=weight)).transpose(
        *first.dims
    )
    beside = xarray.table(X, asked(feature)).answer(
        column(rows, "weight") if chunks is None else rows.map(lambda block: np.asarray(block.weight), dtype="f8"),
        "w",
        -1,
    )
    np.testing.assert_array_equal(beside.values, expected.values)


def test_chunks_are_neither_cut_nor_joined() -> None:
    X = cube("time", "y", "band", "x", chunks={"y": 2, "x": 2, "band": 1})
    rows = as_rows(X, feature_dim="band")
    assert rows.x.chunks == (4, 2, 4, 2)
    answer = xarray.table(X, asked("band")).answer(rows.map(lambda b: b.x, dtype="f8", columns=2), "p", np.nan)
    assert (answer.dims, answer.chunks) == (("time", "y", "x", "component"), ((1,), (2, 2), (2, 1), (2,)))
    np.testing.assert_array_equal(answer.values, X.transpose(..., "band").values)


@pytest.mark.parametrize(
    ("X", "call"),
    [
        (cube("band", "y", "x"), "feature_dim='band'"),
        (cube("y", "x", "time"), "feature_dim='time'"),
        (xr.DataArray(np.ones((3, 400)), dims=("feature", "sample")), "feature_dim='feature'"),
        (xr.DataArray(np.ones((4, 3)), dims=("Channels", "sample")), "feature_dim='Channels'"),
        (xr.DataArray(np.ones((3, 400))), "feature_dim='dim_0'"),
    ],
)
def test_an_obvious_mismatch_shows_the_call(X: xr.DataArray, call: str) -> None:
    with pytest.raises(DataError, match="Say which of them has the features of X") as caught:
        as_rows(X)
    assert call in str(caught.value).splitlines()[-1]
    rows = as_rows(X, feature_dim=call.split("'")[1])
    assert rows.n_rows == X.size / rows.n_features


@pytest.mark.parametrize("dims", [("sample", "feature"), ("band", "variables"), ("obs", "var")])
def test_few_rows_will_do_where_the_features_are_plain(dims: tuple[str, str]) -> None:
    assert as_rows(xr.DataArray(np.ones((1, 3)), dims=dims)).n_features == 3
    assert as_rows(xr.DataArray(np.ones((1, 3))), features=3).n_features == 3
    assert as_rows(xr.DataArray(np.ones((1, 2))), features=("a", "b")).n_features == 2
    with pytest.raises(DataError, match="feature_dim"):
        as_rows(xr.DataArray(np.ones((1, 3))), features=2)


def test_a_vector_becomes_a_column() -> None:
    X = xr.DataArray(np.arange(5.0), dims="time")
    for feature_dim in (None, "time"):
        with pytest.raises(DataError, match=r"Expected 2D array, got 1D array instead|must be one of several"):
            as_rows(X, feature_dim=feature_dim)
    with pytest.raises(DataError, match="Expected 2D array, got 1D array instead") as caught:
        as_rows(X)
    recipe = str(caught.value).partition("column with ")[2]
    assert as_rows(eval(recipe, {"X": X})).n_features == 1
    with pytest.raises(DataError, match=r"dimensions \('y', 'x'\); feature_dim='band' must be one of several"):
        as_rows(cube("y", "x"), feature_dim="band")


def sea() -> xr.Dataset:
    """Two variables, of which one lacks a dimension of the other."""
    salt = cube("x", "y", "band").rename(band="depth").drop_vars(["wavelength", "depth"])
    return xr.Dataset({"floor": salt.isel(depth=0) * 2, "salt": salt})


@pytest.mark.parametrize("chunks", [None, {"x": 2}, {"x": 1, "y": 3, "depth": 1}])
def test_the_variables_of_a_dataset_are_features(chunks: Any) -> None:
    X = sea() if chunks is None else sea().chunk(chunks)
    rows = as_rows(X, weight=sea()["floor"] + 1)
    assert rows.feature_names is not None
    assert rows.feature_names.tolist() == ["floor", "salt"]
    table = xarray.table(X, asked())
    values: Any = joined(rows) if chunks is None else rows.map(lambda block: block.x, dtype="f8", columns=2)
    answer = table.answer(values, "both", np.nan)
    expected = sea().to_dataarray("component").transpose("x", "y", "depth", "component")
    np.testing.assert_array_equal(answer.values, expected.drop_vars("component").values)
    np.testing.assert_array_equal(answer["y"], X["y"])
    np.testing.assert_array_equal(column(rows, "weight"), joined(rows)[:, 0] + 1)


def test_variables_are_known_by_their_names() -> None:
    X = sea()
    turned = as_rows(X[["salt", "floor"]], features=("floor", "salt"))
    np.testing.assert_array_equal(joined(turned), joined(as_rows(X)))
    assert turned.feature_names is not None
    assert turned.feature_names.tolist() == ["floor", "salt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"crs": ((), 1)}, r"\['crs'\] have no numbers along a dimension: .*crs \(\) int64.*X\[\[\.\.\.\]\]"),
        ({"name": (("x",), ["a", "b", "c"])}, r"\['name'\] have no numbers"),
        ({"bounds": (("x", "edge"), np.ones((3, 2)))}, r"none has all dimensions.*bounds \('x', 'edge'\)"),
    ],
)
def test_variables_that_are_no_features_are_named(more: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_rows(sea().assign(more))
    with pytest.raises(
        DataError, match=r"'depth' is one of its dimensions. Select a variable, as in X\['floor'\]"
    ):
        as_rows(sea(), feature_dim="depth")
    with pytest.raises(
        DataError, match=r"sample_weight is an xarray Dataset, expected a DataArray: select a variable"
    ):
        as_rows(cube("y", "band"), weight=sea())


def test_what_goes_with_stacked_rows_is_never_taken_by_position() -> None:
    X = cube("y", "x", "band")
    for weight in (np.ones(12), np.ones((4, 3)), "weights.zarr"):
        with pytest.raises(
            DataError, match=r"from the dimensions \('y', 'x'\): sample_weight must be a DataArray"
        ):
            as_rows(X, weight=weight, feature_dim="band")
    beside = column(as_rows(X, weight=cube("x", "y"), feature_dim="band"), "weight")  # of one band, as it says
    np.testing.assert_array_equal(beside, X.isel(band=0).values.ravel())
    for other in (cube("x", "y")[:, ::-1], cube("x", "y")[:, 1:]):
        with pytest.raises(DataError, match="sample_weight and X differ in their coordinates along 'y'"):
            as_rows(X, weight=other, feature_dim="band")
    with pytest.raises(DataError, match="sample_weight and X differ in their coordinates along 'x'"):
        as_rows(X, weight=cube("x", "y")[1:], feature_dim="band")  # x has none, and another length
    assert column(as_rows(X, weight=2, feature_dim="band"), "weight").tolist() == [2.0] * 12
    with pytest.raises(DataError, match=r"sample_weight should|Sample weights must be 1D"):
        as_rows(X, weight=X, feature_dim="band")


@pytest.mark.parametrize("chunks", [None, 5])
def test_a_multiindex_is_unstacked_and_gaps_are_filled(chunks: int | None, tmp_path: Path) -> None:
    whole = cube("y", "x", "band").assign_coords(x=[10, 20, 30])
    X = whole.stack(pixel=("y", "x")).transpose("pixel", "band")
    land = np.arange(12) % 5 > 0
    kept = X[land] if chunks is None else X[land].chunk({"pixel": chunks})
    rows = as_rows(kept)
    values: Any = joined(rows)[:, 0] if chunks is None else rows.map(lambda block: block.x[:, 0], dtype="f8")
    answer = xarray.table(kept, asked()).answer(values, "answer", -1)
    assert answer.dims == ("y", "x")
    expected = whole.isel(band=0, drop=True)
    np.testing.assert_array_equal(
        answer.sortby("y", ascending=False).values, np.where(land.reshape(4, 3), expected.values, -1)
    )
    answer.to_zarr(tmp_path / "answer.zarr", consolidated=False)
    twice = xr.concat([X, X], "pixel")
    assert xarray.table(twice, asked()).answer(np.zeros(24), "answer", -1).dims == (
        "pixel",
    )  # no place of their own


def test_names_come_from_text_along_the_features() -> None:
    for X in (cube("y", "band"), cube("band", "y"), cube("x", "y", "band")):
        names = as_rows(X, feature_dim="band").feature_names
        assert names is not None
        assert names.dtype == object
        assert names.tolist() == ["red", "green"]
    assert as_rows(cube("y", "x")).feature_names is None
    assert as_rows(cube("x", "y"), feature_dim="y").feature_names is None  # numbers


def test_a_small_batch_is_read_by_the_names_of_its_features() -> None:
    X = xr.DataArray(VALUES[:2, :3], dims=("time", "gene"), coords={"gene": ["a", "b", "c"]})
    np.testing.assert_array_equal(joined(as_rows(X, few_rows=True)), X.values)
    for other, few in ((X, False), (X.drop_vars("gene"), True), (X.assign_coords(time=["x", "y"]), True)):
        with pytest.raises(DataError, match="Say which of them has the features of X"):
            as_rows(other, few_rows=few)


@pytest.mark.parametrize("chunks", [None, {"y": 2}])
def test_a_dimension_may_be_called_component(chunks: Any) -> None:
    X = cube("y", "x", "band").rename(x="component")
    X = X if chunks is None else X.chunk(chunks)
    rows = as_rows(X, feature_dim="band")
    values: Any = joined(rows) if chunks is None else rows.map(lambda block: block.x, dtype="f8", columns=2)
    answer = xarray.table(X, asked("band")).answer(values, "p", np.nan)
    assert answer.dims == ("y", "component", "component_")
    np.testing.assert_array_equal(answer.values, X.values)
    flat = X.isel(component=0, drop=True).assign_coords(component=("y", np.arange(X.sizes["y"])))
    assert xarray.table(flat, asked()).answer(flat.values, "p", np.nan).dims == ("y", "component_")


def test_a_file_opened_without_chunks_stays_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "x.zarr", VALUES, (4, 3), dimension_names=("time", "band"))
    # One array of a group, as xarray reads it.
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    (tmp_path / "x.zarr").rename(tmp_path / "group.zarr" / "x")
    lazy = xr.open_dataset(tmp_path / "group.zarr", engine="zarr", consolidated=False)
    for X in (lazy["x"], lazy.assign(y=lazy["x"])):
        rows = as_rows(X)
        assert not rows.x.local
        found = VALUES if isinstance(X, xr.DataArray) else np.stack([VALUES.ravel()] * 2, axis=1)
        np.testing.assert_array_equal(joined(rows), found)


def test_a_variable_will_do_and_other_things_of_xarrays_are_refused() -> None:
    rows = as_rows(xr.Variable(("a", "b"), dask_array(VALUES)), weight=xr.Variable("a", VALUES[:, 0] ** 2))
    np.testing.assert_array_equal(joined(rows), VALUES)
    np.testing.assert_array_equal(column(rows, "weight"), VALUES[:, 0] ** 2)
    with pytest.raises(DataError, match="X is an xarray DataTree, expected a DataArray or a Dataset"):
        as_rows(xr.DataTree(sea()))


def undecoded(chunks: Any = None) -> xr.DataArray:
    """A picture with a no-data value and a scale, such as rasters come in."""
    numbers = xr.DataArray(np.array([[[1, -9999], [3, 4]], [[5, 6], [7, -9999]]], "i2"), dims=("band", "y", "x"))
    numbers.attrs = {"_FillValue": -9999, "scale_factor": 0.5, "add_offset": 1.0, "units": "K"}
    return numbers if chunks is None else numbers.chunk(chunks)


@pytest.mark.parametrize("chunks", [None, {"y": 1}])
def test_what_xarray_has_not_decoded_is_decoded(chunks: Any) -> None:
    X, right = undecoded(chunks), np.array([[1.5, 3.5], [np.nan, 4], [2.5, 4.5], [3, np.nan]])
    dataset = X.to_dataset("band").rename({0: "a", 1: "b"})
    for values in dataset.data_vars.values():
        values.attrs = X.attrs
    kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
        (X, {"feature_dim": "band"}),
        (dataset, {}),
        (dataset[["b", "a"]], {"variables": ["a", "b"]}),
    )
    for held, how in kinds:
        rows = as_rows(held, **how)
        np.testing.assert_array_equal(joined(rows), right)
        assert "from int16: _FillValue=-9999, scale_factor=0.5, add_offset=1.0" in rows.x.decoded
        assert rows.layout()["X's dtype"] == f"<f8 {rows.x.decoded}"
        assert not np.isnan(joined(as_rows(held, decode_cf=False, **how))).any()
    weight = X.isel(band=0).where(X.isel(band=0) > 0, 0).astype("i2")
    weight.attrs = {"scale_factor": 2.0}
    beside = as_rows(X, feature_dim="band", weight=weight)
    np.testing.assert_array_equal(column(beside, "weight"), [2, 0, 6, 8])
    assert X.attrs["scale_factor"] == 0.5  # the user's own stays as it is


def test_floats_that_were_unpacked_by_hand_are_not_unpacked_again() -> None:
    X = (undecoded().where(undecoded() > 0) * 0.5 + 1).assign_attrs(undecoded().attrs)
    rows = as_rows(X.fillna(-9999.0), feature_dim="band")
    np.testing.assert_array_equal(joined(rows)[:2], [[1.5, 3.5], [np.nan, 4]])
    assert rows.x.decoded == "from float32: _FillValue=-9999.0"
    with pytest.raises(
        DataError, match=r"X \(xarray\) cannot be decoded by its attributes {'_FillValue': 'none', "
    ):
        as_rows(undecoded().assign_attrs(_FillValue="none"), feature_dim="band")


def test_variables_choose_those_of_a_dataset() -> None:
    rows = as_rows(sea().assign(name=("x", ["a", "b", "c"])), variables=["salt"])
    assert (rows.n_features, rows.n_rows) == (1, 24)
    with pytest.raises(DataError, match=r"X has no variables \['heat'\]: it has \['floor', 'salt'\]"):
        as_rows(sea(), variables=["salt", "heat"])
