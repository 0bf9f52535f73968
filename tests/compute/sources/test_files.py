"""Arrays in files: whatever is in them is read as it is meant, or refused in words that say what it is."""

import errno
import pickle
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm._typing import Array
from daskgmm.compute.memory import Spare
from daskgmm.compute.rows import as_rows
from daskgmm.compute.sources import as_source
from daskgmm.compute.sources.base import Asked
from daskgmm.errors import DataError
from tests.compute.arrays import VALUES, D, N, joined, read_all
from tests.doors import DOORS, PATHS, hdf5, netcdf, npy, parquet, store

ROW = 8 * D


@pytest.mark.parametrize("door", DOORS)
def test_rows_are_read_block_by_block(door: str, tmp_path: Path) -> None:
    rows = as_rows(DOORS[door](VALUES, tmp_path), block_size=7 * ROW)
    assert rows.n_blocks >= 3
    assert max(len(block.x) for block in read_all(rows)) <= 7
    np.testing.assert_array_equal(joined(rows), VALUES)
    assert rows.waits
    rows.check_unchanged()
    if "written" not in door and "mapper" not in door:
        np.testing.assert_array_equal(joined(pickle.loads(pickle.dumps(rows))), VALUES)


DTYPES = ["f8", ">f8", "f4", "f2", "i8", "u2", ">i4", "?"]


@given(
    door=st.sampled_from(["npy", "npy by columns", "hdf5", "netcdf", "parquet"]),
    dtype=st.sampled_from(DTYPES),
    shape=st.one_of(st.tuples(st.integers(1, 30)), st.tuples(st.integers(1, 30), st.integers(1, 4))),
    cuts=st.lists(st.integers(1, 8), min_size=1, max_size=6),
)
@settings(max_examples=40, deadline=None)
def test_any_type_shape_and_cut(
    door: str, dtype: str, shape: tuple[int, ...], cuts: list[int], tmp_path_factory: Any
) -> None:
    if door == "netcdf" and dtype in ("f2", "?"):
        dtype = "f4"  # netCDF has neither
    if door == "parquet":
        dtype = dtype.strip(">")  # nor has Arrow other orders
    values = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    place = DOORS[door](values, tmp_path_factory.mktemp("any"))
    source = as_source(place, Asked("X", True, ensure_2d=len(shape) == 2))
    bounds = np.unique(np.minimum(np.cumsum([0, *cuts, 30]), len(values)))
    source = source.cut(tuple(np.diff(bounds).tolist()))
    found = np.concatenate([source.reader(i, None) for i in range(len(source.chunks))])
    np.testing.assert_array_equal(found, values)
    assert source.dtype == values.dtype


def test_a_file_that_shrank_or_was_replaced_is_noticed(tmp_path: Path) -> None:
    place = Path(npy(VALUES, tmp_path))
    rows = as_rows(place, block_size=5 * ROW)
    np.save(place, VALUES[:10])
    with pytest.raises(DataError, match="was changed in the meantime"):
        rows.check_unchanged()
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(DataError, match="is cut off: it has 239 of 240 bytes"):
        rows.read(0)


def test_hdf5_chunks_that_were_never_written(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", shape=(N, D), dtype="f8", chunks=(5, D), fillvalue=7.0)[5:10] = VALUES[5:10]
        file.create_dataset("none", shape=(N, D), dtype="f8")
    for name, told in (("x", "1 of 4 chunks"), ("none", "0 of 1 chunks")):
        with pytest.raises(DataError, match=rf"x.h5::/{name} has {told}: .* missing_chunks=\"fill\""):
            as_rows(f"{tmp_path}/x.h5::{name}")
    found = joined(as_rows(f"{tmp_path}/x.h5::x", missing_chunks="fill"))
    np.testing.assert_array_equal(found[5:10], VALUES[5:10])
    assert (np.delete(found, np.s_[5:10], 0) == 7).all()


@pytest.mark.parametrize("name", ["chunked", "contiguous"])
def test_netcdf_that_was_never_written_is_refused_by_any_door(name: str, tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as file:
        for axis, size in (("row", N), ("feature", D)):
            file.createDimension(axis, size)
        file.createVariable("chunked", "f8", ("row", "feature"), chunksizes=(5, D))[5:10] = VALUES[5:10]
        file.createVariable("contiguous", "f8", ("row", "feature"))
    with netCDF4.Dataset(tmp_path / "x.nc") as file:
        for place in (file[name], f"{tmp_path}/x.nc::{name}"):
            with pytest.raises(
                DataError, match=rf"x.nc::/{name} has [01] of [41] chunks: .* missing_chunks=\"fill\""
            ):
                as_rows(place)
            found = joined(as_rows(place, missing_chunks="fill"))
            assert (np.delete(found, np.s_[5:10], 0) == netCDF4.default_fillvals["f8"]).all()


@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_64BIT_OFFSET"])
def test_netcdf_is_read_as_xarray_reads_it(kind: Any, tmp_path: Path) -> None:
    """Neither netCDF's default fill values nor ranges of valid ones say what is missing, as they do to netCDF4."""
    values = np.array([[1, -32767], [7, 9], [3, 4]], "i2")
    place = netcdf(values, tmp_path, kind)
    with netCDF4.Dataset(tmp_path / "x.nc", "a") as file:
        file["x"].valid_min = np.int16(4)
        assert file["x"][...].mask.sum() == 3
    with xr.open_dataset(tmp_path / "x.nc") as found:
        np.testing.assert_array_equal(found["x"], values)
    with netCDF4.Dataset(tmp_path / "x.nc") as file:
        for one in (file["x"], place):
            np.testing.assert_array_equal(joined(as_rows(one)), values)


def test_threads_read_hdf5_and_netcdf_in_turn(tmp_path: Path) -> None:
    """Neither library is safe in two threads at once; both may be one library."""
    places = [hdf5(VALUES, tmp_path), netCDF4.Dataset(netcdf(VALUES, tmp_path).partition("::")[0])["x"]]
    rows = [as_rows(place, block_size=ROW) for place in places]
    failed: list[BaseException] = []

    def read(one: Any) -> None:
        try:
            for _ in range(5):
                np.testing.assert_array_equal(joined(one), VALUES)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(one,)) for one in rows * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed


def test_reading_netcdf_leaves_what_the_user_set(tmp_path: Path) -> None:
    with netCDF4.Dataset(netcdf(VALUES, tmp_path).partition("::")[0]) as file:
        for mask, scale in ((True, False), (False, True)):
            file["x"].set_auto_mask(mask)
            file["x"].set_auto_scale(scale)
            as_rows(file["x"]).read(0)
            assert (file["x"].mask, file["x"].scale) == (mask, scale)


@pytest.mark.parametrize("name", ["x", None])
@pytest.mark.parametrize("library", [h5py.File, netCDF4.Dataset])
def test_objects_of_closed_files(library: Callable[[str], Any], name: str | None, tmp_path: Path) -> None:
    file = library(netcdf(VALUES, tmp_path).partition("::")[0])
    held = file if name is None else file[name]
    file.close()
    with pytest.raises(DataError, match=r"X is of an? .* file that is closed: open it anew"):
        as_rows(held)


def test_a_netcdf_variable_of_a_group_below(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as file:
        for name, size in (("row", N), ("feature", D)):
            file.createDimension(name, size)
        file.createVariable("a/b/x", "f8", ("row", "feature"))[...] = VALUES
        np.testing.assert_array_equal(joined(as_rows(file["a/b/x"])), VALUES)


def test_a_file_that_no_memory_is_there_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Spare, *of: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    rows = as_rows(npy(VALUES, tmp_path))
    monkeypatch.setattr(Spare, "array", none)
    with pytest.raises(DataError, match=r"x\.npy cannot be read \(block 0, rows 0 to .*Cannot allocate memory"):
        rows.read(0)


# Parquet


def table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return str(path)


def test_null_is_nan_and_an_index_of_pandas_no_feature(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"i": pd.array([1, None, 3], "Int64"), "b": pd.array([True, None, False], "boolean")})
    frame.set_index(pd.Index([7, 8, 9], name="id")).to_parquet(tmp_path / "x.parquet")
    rows = as_rows(tmp_path / "x.parquet")
    np.testing.assert_array_equal(joined(rows), [[1, 1], [np.nan, np.nan], [3, 0]])
    assert rows.feature_names is not None
    assert list(rows.feature_names) == ["i", "b"]


def test_row_groups_are_read_whole(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", a=np.arange(10.0), b=np.arange(10))
    assert as_rows(place, block_size=1).x.chunks == (4, 4, 2)
    assert as_rows(place, block_size=8 * 16).x.chunks == (8, 2)


def test_columns_are_chosen(tmp_path: Path) -> None:
    place = table(tmp_path / "x.parquet", name=["x"] * 5, a=np.arange(5.0), b=np.arange(5))
    with pytest.raises(DataError, match=r"Column 'name' of .* is string, no number.*variables=\['a', 'b'\]"):
        as_rows(place)
    np.testing.assert_array_equal(joined(as_rows(place, variables=["b", "a"])), np.arange(5.0)[:, None] * [1, 1])
    with pytest.raises(DataError, match=r"has no one column 'c'. Its columns are: name string, a double, b int64"):
        as_rows(place, variables=["c"])


def test_a_file_without_rows_leaves_integers_what_they_are(tmp_path: Path) -> None:
    """It says nothing of nulls."""
    (tmp_path / "x.parquet").mkdir()
    for name, n in (("a", 0), ("b", 5)):
        table(tmp_path / f"x.parquet/{name}.parquet", a=np.arange(n))
    assert as_rows(tmp_path / "x.parquet").x.dtype == np.int64


def test_a_folder_of_files_may_be_called_anything(tmp_path: Path) -> None:
    folder = tmp_path / "survey [2]"
    folder.mkdir()
    table(folder / "a.parquet", a=np.arange(5.0))
    table(folder / "b.parquet", a=np.arange(5.0, 8.0))
    assert as_rows(folder).n_rows == 8


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    folder = tmp_path / "x.parquet"
    folder.mkdir()
    table(folder / "a.parquet", a=np.arange(5.0))
    table(folder / "b.parquet", b=np.arange(5.0))
    with pytest.raises(DataError, match="the files differ in columns"):
        as_rows(folder)
    split = tmp_path / "y.parquet"
    (split / "year=1999").mkdir(parents=True)
    table(split / "year=1999/a.parquet", a=np.arange(5.0))
    with pytest.raises(DataError, match="is partitioned: names of folders are values of columns"):
        as_rows(split)


# What is no input


def linked(folder: Path, name: str, link: Any) -> str:
    hdf5(VALUES, folder)
    with h5py.File(folder / "links.h5", "w") as file:
        file[name] = link
    return f"{folder}/links.h5::{name}"


def stored_elsewhere(folder: Path) -> str:
    (folder / "raw.bin").write_bytes(VALUES.tobytes())
    with h5py.File(folder / "e.h5", "w") as file:
        file.create_dataset(
            "x", shape=VALUES.shape, dtype="f8", external=[(str(folder / "raw.bin"), 0, VALUES.nbytes)]
        )
    return f"{folder}/e.h5::x"


def virtual(folder: Path) -> str:
    hdf5(VALUES, folder)
    layout = h5py.VirtualLayout(VALUES.shape, "f8")
    layout[:] = h5py.VirtualSource(folder / "x.h5", "deep/x", VALUES.shape)
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("x", layout)
    return f"{folder}/v.h5::x"


def sparse(folder: Path, kind: str) -> Any:
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [40, 30]}
    if kind == "zarr":
        zarr.create_group(str(folder / "a.zarr")).create_group("X", attributes=attributes)
        return folder / "a.zarr/X"
    with h5py.File(folder / "a.h5ad", "w") as file:
        file.create_group("X").attrs.update(attributes)
    return f"{folder}/a.h5ad::/X"


def text(folder: Path, name: str, content: str = "1,2\n") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def archive(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=VALUES)
    return folder / "a.npz"


def objects(folder: Path) -> str:
    np.save(folder / "o.npy", np.array([[1, "a"]], dtype=object), allow_pickle=True)
    return str(folder / "o.npy")


def cube(folder: Path) -> Any:
    return zarr.create_group(str(folder / "c.zarr")).create_array("t", data=np.zeros((2, 3, 4, 5)))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "csv": (lambda f: text(f, "a.csv"), r"a.csv is a file, and neither .* Read it with dask.dataframe.read_csv"),
    "csv at a url": (lambda f: f"file://{text(f, 'a.csv')}", r"a.csv is a file, and neither .*read_csv"),
    "no ending": (lambda f: text(f, "README"), r"README is a file, and neither a Zarr store nor"),
    "npz": (archive, r'numpy.load\(...\)\["name"\]'),
    "no zip": (lambda f: text(f, "a.zip"), "cannot be opened as a zipped Zarr store: BadZipFile"),
    "no npy": (lambda f: text(f, "a.npy"), "a.npy cannot be read"),
    "no hdf5": (lambda f: text(f, "a.h5"), "a.h5 cannot be read"),
    "no netcdf": (lambda f: text(f, "a.nc"), "a.nc cannot be read"),
    "no classic netcdf": (lambda f: text(f, "a.nc", "CDF\1"), "a.nc cannot be read"),
    "no parquet": (lambda f: text(f, "a.parquet"), "a.parquet cannot be read"),
    "objects": (objects, "o.npy holds pickled objects, which are not read"),
    "a folder": (lambda f: text(f, "a.bin") and f, "There is no Zarr array at .*. It is a folder of: a.bin"),
    "no file": (lambda f: f / "a.npy", "There is no file .*a.npy"),
    "no name": (
        lambda f: hdf5(VALUES, f).partition("::")[0],
        r"x.h5 is an HDF5 file or group, not an array. Its arrays are:\n  deep/x \(20, 3\) float64\n"
        r"For one of them, append its name: .*x.h5::/deep/x",
    ),
    "another name": (lambda f: hdf5(VALUES, f) + "y", r"has no 'link/xy'. Its arrays are:\n  deep/x"),
    "a link to another file": (lambda f: linked(f, "x", h5py.ExternalLink("x.h5", "/deep/x")), "link out of the"),
    "a circle of links": (lambda f: linked(f, "x", h5py.SoftLink("/x")), "in a circle"),
    "values in another file": (stored_elsewhere, "has its values in other files .*raw.bin"),
    "parts of another file": (virtual, "has its values in other files .*x.h5"),
    "sparse": (lambda f: sparse(f, "zarr"), r"X is a sparse matrix \(csr_matrix, shape \(40, 30\)\)"),
    "sparse, hdf5": (lambda f: sparse(f, "h5"), r"::/X is a sparse matrix \(csr_matrix, shape \(40, 30\)\)"),
    "four axes": (cube, r"dim 4, while dim <= 2 is required: its shape is \(2, 3, 4, 5\).*variables="),
    "a group of no rows": (
        lambda f: cube(f) and f / "c.zarr",
        r"t \(2, 3, 4, 5\) float64\nFor some of one shape as the features, name them: variables=\['t'\]",
    ),
    "an empty store": (lambda f: zarr.storage.MemoryStore(), "There is no Zarr array in the store X"),
    "an empty mapper": (lambda f: fsspec.get_mapper(str(f)), "There is no Zarr array in the store X"),
    "a generator": (lambda f: (row for row in VALUES), "X is of type generator, .*MiniBatchGaussianMixture"),
    "None": (lambda f: None, "X is None, and has to be a NumPy"),
    "a dict": (lambda f: {"a": [1.0]}, "X is of type dict, .*pandas.DataFrame"),
    "a set": (lambda f: {1.0}, "X is of type set, .*give a list"),
    "bytes": (lambda f: b"x.zarr", "X is of type bytes, .*A path is a str"),
    "a function": (lambda f: test_row_groups_are_read_whole, "X is of type function"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_input_says_what_it_is(case: str, tmp_path: Path) -> None:
    make, told = REFUSED[case]
    with pytest.raises((DataError, FileNotFoundError), match=f"(?s){told}"):
        as_rows(make(tmp_path))


def test_variables_that_do_not_go_together(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    for name, shape in (("a", (6,)), ("b", (6,)), ("wide", (6, 2)), ("empty", (0,))):
        group.create_array(name, data=np.zeros(shape))
    for variables, told in (
        (["a", "wide"], r"differ in shape: a \(6,\), wide \(6, 2\)"),
        (["a", "c"], r"has no array 'c'. Its arrays are:\n  a \(6,\) float64"),
        (["empty"], r"hold no rows: their shape is \(0,\)"),
        ([], r"name them: variables=\['a', 'b'\] \(--variables a,b\)"),
    ):
        with pytest.raises(DataError, match=told):
            as_rows(group, variables=variables)


def turned(folder: Path, kind: str, dims: str) -> Any:
    """Two arrays of one shape in a group, the first along x and y, the second along these."""
    square = np.arange(9.0).reshape(3, 3)
    data = xr.Dataset({"t": (("x", "y"), square), "s": (tuple(dims), square)}, {"x": [1, 2, 3]})
    if kind in ("packed", "zarr2", "zarr3"):
        packed = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
        how: Any = {"encoding": dict.fromkeys("ts", packed)} if kind == "packed" else {}
        data.to_zarr(folder / "x.zarr", zarr_format=2 if kind == "zarr2" else 3, consolidated=False, **how)
    elif kind == "labels":
        with h5py.File(folder / "x.h5", "w") as file:
            for name, labels in (("t", "xy"), ("s", dims)):
                file[name] = square
                for number, label in enumerate(labels):
                    file[name].dims[number].label = label
    else:
        form: Any = "NETCDF3_CLASSIC" if kind == "classic" else "NETCDF4"
        data.to_netcdf(folder / "x.nc", format=form, engine="netcdf4")
    (place,) = folder.iterdir()
    return {"h5py": h5py.File, "netCDF4": netCDF4.Dataset}.get(kind, str)(place)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "packed", "netcdf", "classic", "h5py", "netCDF4", "labels"])
def test_variables_go_together_by_the_names_of_their_dimensions(kind: str, tmp_path: Path) -> None:
    for dims, told in (
        ("yx", r"The variables of X differ in the order of their dimensions: t \('x', 'y'\), s \('y', 'x'\)\."),
        ("xz", r"The variables of X differ in their dimensions: t \('x', 'y'\), s \('x', 'z'\)\."),
    ):
        (tmp_path / dims).mkdir()
        with pytest.raises(DataError, match=told):
            as_rows(turned(tmp_path / dims, kind, dims), variables=["t", "s"])
    (tmp_path / "same").mkdir()
    rows = as_rows(turned(tmp_path / "same", kind, "xy"), variables=["t", "s"])
    np.testing.assert_array_equal(joined(rows), np.arange(9.0)[:, None] * [1, 1])


@pytest.mark.parametrize("names", [("x", None), None])
def test_dimensions_without_names_go_with_any(names: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr")
    group.create_array("t", data=np.ones((2, 2)), dimension_names=("x", "y"))
    group.create_array("s", data=np.ones((2, 2)), dimension_names=names)
    np.testing.assert_array_equal(joined(as_rows(group, variables=["t", "s"])), np.ones((4, 2)))


@pytest.mark.parametrize("told", [5, "xy", ["x"], [["x"], "y"], {"x": 1, "y": 2}])
def test_damaged_names_of_dimensions_are_none(told: Any, tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr", zarr_format=2)
    for name, dims in (("t", ["x", "y"]), ("s", told)):
        group.create_array(name, data=np.ones((2, 2)), attributes={"_ARRAY_DIMENSIONS": dims})
    np.testing.assert_array_equal(joined(as_rows(group, variables=["t", "s"])), np.ones((4, 2)))


def in_order(folder: Path, kind: str, names: list[str]) -> Any:
    if kind == "hdf5":
        with h5py.File(folder / "x.h5", "w", track_order=True) as file:
            inside = file.create_group("deep", track_order=True)
            for name in names:
                inside[name] = VALUES[:, 0]
        return folder / "x.h5"
    form: Any = "NETCDF3_CLASSIC" if kind == "classic" else "NETCDF4"
    with netCDF4.Dataset(folder / "x.nc", "w", format=form) as file:
        file.createDimension("row", N)
        for name in names:
            file.createVariable(name, "f8", ("row",))[...] = VALUES[:, 0]
    return netCDF4.Dataset(folder / "x.nc") if kind == "netCDF4" else folder / "x.nc"


@pytest.mark.parametrize("kind", ["hdf5", "netcdf", "netCDF4", "classic"])
def test_variables_are_listed_in_the_order_of_the_file(kind: str, tmp_path: Path) -> None:
    names = ["wind", "sst", "chl"]
    place, inside = in_order(tmp_path, kind, names), "deep/" * (kind == "hdf5")
    with pytest.raises(DataError) as caught:
        as_rows(place)
    assert f"variables={[inside + name for name in names]}" in str(caught.value)
    assert re.findall(r"(\w+) \(20,\)", str(caught.value)) == names


def test_names_are_printed_without_control_characters(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a\x1b[31m\u202eb"] = VALUES
    with pytest.raises(DataError) as caught:
        as_rows(tmp_path / "x.h5")
    assert r"a\x1b[31m\u202eb (20, 3)" in str(caught.value)


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"h5py": hdf5, "pyarrow.parquet": parquet}
    written = {library: write(VALUES, tmp_path) for library, write in places.items()}
    for (library, place), extra in zip(written.items(), ("hdf5", "parquet"), strict=True):
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(DataError, match=rf'{library} is needed: pip install "daskgmm\[{extra}\]"'):
            as_rows(place)


def test_the_home_folder_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for write in (npy, store, hdf5):
        place = write(VALUES, tmp_path).replace(str(tmp_path), "~")
        assert place.startswith("~/")
        np.testing.assert_array_equal(joined(as_rows(place)), VALUES)


def test_relative_paths_hold_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in PATHS:
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        rows = as_rows(PATHS[name](VALUES, Path(name)))
        monkeypatch.chdir(tmp_path / "elsewhere")
        np.testing.assert_array_equal(joined(rows), VALUES)


def test_a_zarr_store_may_have_any_name(tmp_path: Path) -> None:
    for name in ("x.npy", "x.h5", "x.nc", "x.zip"):
        zarr.create_array(str(tmp_path / name), data=VALUES)
        np.testing.assert_array_equal(joined(as_rows(tmp_path / name)), VALUES)


def test_weights_and_starts_come_through_files(tmp_path: Path) -> None:
    def one(place: Any) -> Array:
        source = as_source(place, Asked("w", False, ensure_2d=False))
        return np.asarray(source.reader(0, None))

    for name, write in PATHS.items():
        (tmp_path / name).mkdir()
        np.testing.assert_array_equal(one(write(VALUES[:, 0].copy(), tmp_path / name)), VALUES[:, 0])
