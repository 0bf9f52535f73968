"""Stores whose attributes say what their numbers stand for are read as xarray reads them."""

import base64
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, WEIGHT, joined, write

PACKED: dict[str, Any] = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 20.0, "_FillValue": -32768}
FORMATS = pytest.mark.parametrize("version", [2, 3])


def sea(n: int = 2000) -> Array:
    """Rows of two features, every fifth without values."""
    rows = np.random.default_rng(0).normal((15, 30), (4, 2), size=(n, 2))
    rows[::5] = np.nan
    return rows


def packed(path: Path, values: Array, version: int = 3, **encoding: Any) -> str:
    """Values as xarray writes them; the path of their array."""
    dims = ("obs", "var")[: values.ndim]
    told = {"x": encoding or PACKED}
    xr.Dataset({"x": (dims, values)}).to_zarr(path, encoding=told, zarr_format=version, consolidated=False)
    return str(path / "x")


def stored(attributes: dict[str, Any], values: Array, version: Any = 3, fill: Any = None) -> Any:
    """Numbers with attributes of their own, in a group as xarray has it."""
    group: Any = zarr.open_group(MemoryStore(), zarr_format=version)
    array = group.create_array(
        "x",
        shape=values.shape,
        chunks=(4, *values.shape[1:]),
        dtype=values.dtype,
        fill_value=fill,
        attributes=attributes,
        dimension_names=None if version == 2 else ("obs", "var")[: values.ndim],
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return group["x"]  # as it is read: of the machine's byte order, in format 3


@FORMATS
def test_a_packed_store_is_fitted_as_xarray_reads_it(version: int, tmp_path: Path) -> None:
    place = packed(tmp_path / "sst.zarr", sea(), version)
    model = GaussianMixture(nan_policy="omit", block_size=4000).fit(place)
    read = xr.open_zarr(tmp_path / "sst.zarr", consolidated=False)["x"]
    np.testing.assert_allclose(model.means_[0], read.mean("obs"), rtol=1e-12)
    np.testing.assert_allclose(model.means_[0], np.nanmean(sea(), axis=0), rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(model.predict(place)) == -1, np.arange(2000) % 5 == 0)
    assert model.decoded_ == "from int16: _FillValue=-32768, scale_factor=0.01, add_offset=20.0"
    assert model.score(place) == model.score(read.values)
    raw = GaussianMixture(decode_cf=False).fit(place)
    numbers = np.asarray(zarr.open_array(place)[...])
    np.testing.assert_allclose(raw.means_[0], numbers.mean(axis=0), rtol=1e-12)
    assert raw.decoded_ is None
    told = r"contains NaN: block 0, row\(s\) 0, 5.* Its values are decoded from int16: .* nan_policy=.omit."
    with pytest.raises(DataError, match=told):
        GaussianMixture().fit(place)


def attribute(value: Any, dtype: np.dtype[Any]) -> Any:
    """A fill value as xarray writes it among the attributes of format 3."""
    return base64.b64encode(struct.pack("<d", value)).decode() if dtype.kind == "f" else int(value)


NUMBERS = st.floats(-1e3, 1e3).map(lambda x: round(x, 3)) | st.integers(-50, 50).filter(bool)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.dtype[Any], dict[str, Any], list[int], int]:
    """A type, attributes, some numbers, and a format."""
    dtype = np.dtype(draw(st.sampled_from(["<i1", "<i2", ">i4", "<i8", "<u1", ">u2", "<f4", ">f8"])))
    low, high = (0, 120) if dtype.kind == "u" else (-120, 120)
    some, version = st.integers(low, high), draw(st.sampled_from([2, 3]))
    found: dict[str, Any] = draw(
        st.fixed_dictionaries({}, optional={"scale_factor": NUMBERS, "add_offset": NUMBERS})
    )
    fills = draw(st.fixed_dictionaries({}, optional={"_FillValue": some, "missing_value": some}))
    if dtype.kind in "iu" and draw(st.booleans()):
        found["_Unsigned"] = draw(st.sampled_from(["true", "false"]))
    numbers = draw(st.lists(some | st.sampled_from(sorted(fills.values()) or [1]), min_size=1, max_size=20))
    return dtype, {**found, **fills}, numbers, version


@given(cases())
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")
def test_whatever_xarray_decodes_is_decoded_alike(case: Any) -> None:
    dtype, attributes, numbers, version = case
    values = np.array(numbers).astype(dtype)[:, None]
    held, fill = {name: value for name, value in attributes.items() if name != "_FillValue"}, None
    if version == 2:
        held["_ARRAY_DIMENSIONS"] = ["obs", "var"]
        fill = attributes.get("_FillValue")
    elif "_FillValue" in attributes:
        held["_FillValue"] = attribute(attributes["_FillValue"], dtype)
    array = stored(held, values, version, fill)
    found = joined(as_rows(array, block_size=32))
    # xarray takes an integer's type for that of the values, and cannot have NaN among them.
    for name in ("scale_factor", "add_offset"):
        if isinstance(attributes.get(name), int):
            array.attrs[name] = float(attributes[name])
    expected = xr.open_zarr(array.store, consolidated=False, decode_times=False, chunks=None)["x"].values
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


PLAIN: dict[str, tuple[dict[str, Any], Array, int, Any]] = {
    "no attributes": ({}, VALUES, 3, 0.0),
    "units": ({"units": "hours since 1970-01-01", "calendar": "standard", "valid_min": 3}, VALUES, 3, 0.0),
    "NaN is missing anyway": ({"_FillValue": "AAAAAAAA+H8=", "missing_value": float("nan")}, VALUES, 3, 0.0),
    "NaN in format 2": ({"_ARRAY_DIMENSIONS": ["a", "b"]}, VALUES, 2, np.nan),
    "a fill value that is not xarray's": ({}, np.arange(12).reshape(6, 2), 2, 0),
    "the sign that it has": ({"_Unsigned": "false"}, np.arange(12).reshape(6, 2), 3, 0),
    "no integer": ({"_Unsigned": "true"}, VALUES, 3, 0.0),
    "truth": ({"_ARRAY_DIMENSIONS": ["a", "b"]}, np.eye(3) > 0, 2, False),
}


@pytest.mark.parametrize("case", PLAIN)
def test_numbers_that_stand_for_themselves_need_no_xarray(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attributes, values, version, fill = PLAIN[case]
    monkeypatch.setitem(sys.modules, "xarray", None)
    array = stored(attributes, values, version, fill)
    rows = as_rows(array)
    assert (rows.x.dtype, rows.x.decoded, type(rows.x).__name__) == (values.dtype, "", "Stored")
    np.testing.assert_array_equal(joined(rows), values)


def test_without_xarray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = packed(tmp_path / "sst.zarr", sea(20))
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(DataError, match=r"int16 numbers of X at .*scale_factor=0.01.*'daskgmm\[xarray\]'.*--raw"):
        as_rows(place)
    assert as_rows(place, decode_cf=False).x.dtype == np.int16


def test_a_worker_without_xarray_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = as_rows(packed(tmp_path / "sst.zarr", sea(20)))
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(DataError, match=r"sst.zarr/x cannot be decoded on .*where xarray is not installed"):
        rows.read(0)


@pytest.mark.parametrize(
    "attributes",
    [{"scale_factor": "wide"}, {"add_offset": [1.0, 2.0]}, {"_FillValue": "none"}, {"missing_value": {"a": 1}}],
)
def test_attributes_that_make_no_sense_are_told(attributes: dict[str, Any]) -> None:
    array = stored(attributes, np.arange(12).reshape(6, 2))
    with pytest.raises(
        DataError, match=f"X at memory.* cannot be decoded by its attributes .*{next(iter(attributes))}"
    ):
        as_rows(array)
    assert not as_rows(array, decode_cf=False).x.decoded


def test_a_fill_value_of_more_digits_than_the_numbers_is_theirs() -> None:
    values = np.array([[1e20], [2.5]], np.float32)
    np.testing.assert_array_equal(joined(as_rows(stored({"missing_value": 1e20}, values))), [[np.nan], [2.5]])


def test_blocks_and_memory_are_planned_for_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(80, dtype=np.int8).reshape(40, 2)
    array = stored({"scale_factor": 0.5}, values)
    rows = as_rows(array, block_size=128)
    assert (rows.row_bytes, rows.x.chunks) == (16, (8,) * 5)
    assert rows.total_bytes == 640
    np.testing.assert_array_equal(joined(rows), values * 0.5)
    monkeypatch.setattr("daskgmm.compute.sources.cf.TILE", 48)  # three rows
    np.testing.assert_array_equal(joined(rows), values * 0.5)
    monkeypatch.setattr("daskgmm.compute.sources.failures.MEMORY_LIMIT", 127)
    with pytest.raises(DataError, match=r"cannot be decoded in 127 B of memory: block 0 takes 128 B"):
        rows.read(0)


@pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")
def test_weights_and_labels_are_decoded(tmp_path: Path) -> None:
    n = len(VALUES)
    weight = packed(tmp_path / "w", WEIGHT, dtype="u2", scale_factor=0.5)
    labels = np.arange(n) % 2
    labels[:3] = 99  # none
    held = stored({"_FillValue": 99}, labels)
    rows = as_rows(VALUES, weight=weight, labels=held, block_size=80)
    blocks = [rows.read(index) for index in range(rows.n_blocks)]
    np.testing.assert_array_equal(np.concatenate([b.weight for b in blocks]), WEIGHT)
    np.testing.assert_array_equal(
        np.concatenate([b.columns["labels"] for b in blocks]), np.where(labels == 99, np.nan, labels)
    )
    started = GaussianMixture(2, labels_init=held, max_iter=0).fit(VALUES, sample_weight=(labels != 99) * 1.0)
    np.testing.assert_allclose(
        sorted(started.means_[:, 0]), sorted(VALUES[3:][labels[3:] == i, 0].mean() for i in (0, 1))
    )
    with pytest.raises(DataError, match=r"labels_init must be integers: block 0, row\(s\) 1, 3"):
        as_rows(VALUES, labels=stored({"scale_factor": 0.5}, np.arange(n))).read(0)


@FORMATS
def test_a_checkpoint_knows_how_its_rows_were_decoded(version: int, tmp_path: Path) -> None:
    def fit(**more: Any) -> GaussianMixture:
        model = GaussianMixture(
            2, random_state=0, nan_policy="omit", checkpoint=tmp_path / "c", max_iter=3, **more
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(place)
        return model

    place = packed(tmp_path / "sst.zarr", sea(400), version)
    first = fit()
    np.testing.assert_array_equal(fit().means_, first.means_)
    with pytest.raises(DataError, match="decode_cf: True there, False now"):
        fit(decode_cf=False)
    zarr.open_array(place, mode="r+").attrs["scale_factor"] = 0.02
    with pytest.raises(DataError, match=r"X's dtype: '<f8 from int16: .*scale_factor=0.01"):
        fit()


def test_a_model_says_what_was_decoded_and_only_then(tmp_path: Path) -> None:
    place = packed(tmp_path / "sst.zarr", sea(100))
    for rows in (place, sea(100)):
        model = GaussianMixture(nan_policy="omit").fit(rows)
        model.save(tmp_path / "m.npz")
        assert GaussianMixture.load(tmp_path / "m.npz").decoded_ == model.decoded_
    assert model.decoded_ is None
    assert b'"decoded"' not in (tmp_path / "m.npz").read_bytes().replace(b"\x00", b"")  # as before there was any


def test_a_plain_store_is_read_as_ever(tmp_path: Path) -> None:
    array = write(tmp_path / "x.zarr", VALUES, (4, 3))
    np.testing.assert_array_equal(joined(as_rows(array)), VALUES)


FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "netCDF-4": ("sst.nc", {"engine": "netcdf4"}),
    "netCDF classic": ("sst.nc", {"engine": "netcdf4", "format": "NETCDF3_CLASSIC"}),
    "HDF5": ("sst.h5", {"engine": "h5netcdf"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_and_groups_are_decoded_alike(kind: str, tmp_path: Path) -> None:
    name, how = FILES[kind]
    for library in ("netCDF4", "h5netcdf", "h5py"):
        pytest.importorskip(library)
    values = sea(40)
    scale = {"dtype": "i2", "scale_factor": np.float32(0.5), "_FillValue": np.int16(-1)}
    told: Any = {"x": PACKED, "east": scale, "north": {"dtype": "f4", "_FillValue": np.float32(1e20)}}
    columns = {"east": ("obs", np.round(values[:, 0])), "north": ("obs", values[:, 1])}
    whole = xr.Dataset({"x": (("obs", "var"), values), **columns})
    whole.to_netcdf(tmp_path / name, encoding=told, **how)
    whole.to_zarr(tmp_path / "sst.zarr", encoding=told, consolidated=False)
    for place in (tmp_path / name, tmp_path / "sst.zarr"):
        inside = f"{place}{'/' if place.suffix == '.zarr' else '::/'}x"
        rows = as_rows(inside, block_size=160)
        how = {"consolidated": False} if place.suffix == ".zarr" else {}
        with xr.open_dataset(place, **how) as read:
            np.testing.assert_array_equal(joined(rows), read["x"].values)
            both = as_rows(place, variables=["east", "north"])
            expected = np.stack([read["east"].values, read["north"].values], axis=1)
            np.testing.assert_array_equal(joined(both), expected)
        assert "scale_factor=0.01" in rows.x.decoded
        assert both.x.decoded.startswith(
            "east from int16: _FillValue=-1, scale_factor=0.5; north from float32: _Fill"
        )
        assert joined(as_rows(inside, decode_cf=False)).dtype == np.int16
