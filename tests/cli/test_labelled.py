"""Answers for rows whose dimensions have names are what Python gives for them, in a store that xarray reads."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture
from tests.store.bucket import KEPT

xr = pytest.importorskip("xarray")

Run = Callable[..., Result]

NAMES = ["t", "s"]
ANSWERS = {
    "labels": ("predict", (), {}),
    "int8": ("predict", ("--dtype", "smallest"), {"dtype": "smallest"}),
    "responsibilities": ("predict", ("--proba",), {}),
    "float32": ("predict", ("--proba", "--dtype", "float32"), {"dtype": "float32"}),
    "score_samples": ("score", (), {}),
}


def ocean() -> Any:
    """Two variables with land, along three dimensions with coordinates of all kinds, along two of them, too."""
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 7, 4, 5)) + np.array([[[-3.0], [-3], [3], [3]]])
    values[:, :, 1, 2:4] = np.nan
    time = np.arange("2020-01-01", "2020-01-08", dtype="M8[D]").astype("M8[ns]")
    places = {
        "time": ("time", time, {"long_name": "day"}),
        "lat": np.arange(4.0),
        "lon": np.arange(5) / 2,
        "area": (("lat", "lon"), random.random((4, 5))),
        "basin": ("lat", [*"abcd"]),
        "run": 3,
    }
    return xr.Dataset({name: (("time", "lat", "lon"), x) for name, x in zip(NAMES, values, strict=True)}, places)


def stored(folder: Any, kind: str) -> tuple[str, Any]:
    """A store of this kind, and what xarray reads from it."""
    place, chunked = str(folder / f"ocean.{kind}"), ocean().chunk(time=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of text in Zarr's format 3
        if kind in ("nc", "cdf"):
            pytest.importorskip("netCDF4")
            ocean().to_netcdf(place, engine="netcdf4", format="NETCDF4" if kind == "nc" else "NETCDF3_CLASSIC")
            return place, xr.open_dataset(place, chunks={"time": 2})
        if kind == "zip":
            folder, X = stored(folder, "zarr3")
            return shutil.make_archive(place.removesuffix(".zip"), "zip", folder), X
        if kind == "packed":  # values that stand for others, and no consolidated metadata
            packed = {"dtype": "i2", "scale_factor": 1e-3, "_FillValue": -9999}
            chunked.to_zarr(place, consolidated=False, encoding=dict.fromkeys(NAMES, packed))
            return place, xr.open_zarr(place, consolidated=False)
        chunked.to_zarr(place, zarr_format=int(kind[-1]))
    return place, xr.open_zarr(place)


@pytest.fixture
def model(tmp_path: Path) -> tuple[GaussianMixture, str]:
    mixture = GaussianMixture(2, random_state=0, nan_policy="omit", max_iter=5, tol=1.0).fit(ocean()[NAMES])
    mixture.save(tmp_path / "model.npz")
    return mixture, str(tmp_path / "model.npz")


def opened(place: object) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return xr.open_zarr(str(place))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        *((kind, answer) for kind in ("zarr3", "nc") for answer in ANSWERS),
        *((kind, "labels") for kind in ("zarr2", "packed", "zip", "cdf")),
    ],
)
def test_a_store_of_answers_is_what_python_gives(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], kind: str, answer: str
) -> None:
    mixture, saved = model
    place, X = stored(tmp_path, kind)
    command, words, how = ANSWERS[answer]
    out = tmp_path / "out.zarr"
    result = run(command, place, saved, "--variables", "t,s", "--out", out, "--json", "--block-size", 640, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    method = "predict_proba" if "--proba" in words else "predict" if command == "predict" else "score_samples"
    expected = getattr(mixture, method)(X[NAMES], **how).compute()
    found = opened(out)
    assert found.attrs == {"complete": True, "writer": "daskgmm predict"}
    assert list(found.data_vars) == [expected.name]
    assert found[expected.name].chunks[0] == (2, 2, 2, 1)  # no larger than blocks
    xr.testing.assert_identical(found[expected.name].compute(), expected)
    assert found["time"].attrs == {"long_name": "day"}
    if command == "predict":
        told = json.loads(result.stdout)
        assert told["dims"] == list(expected.dims)
        assert (told["n_rows"], told["dtype"], told["chunks"][:3]) == (140, str(expected.dtype), [2, 4, 5])
    array = zarr.open_array(f"{out}/{expected.name}", mode="r")
    assert array.nchunks_initialized == array.nchunks


def test_rows_of_one_array_have_its_coordinates(run: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 2))
    coords = {"cell": np.arange(9) * 10, "gene": [1, 2], "labels": ("cell", x[:, 0])}
    cells = xr.DataArray(x, dims=("cell", "gene"), coords=coords)
    cells.to_dataset(name="x").chunk(cell=4).to_zarr(tmp_path / "cells.zarr", consolidated=False)
    saved, out = tmp_path / "m.npz", tmp_path / "out.zarr"
    mixture = GaussianMixture(2, random_state=0, max_iter=5, tol=1.0).fit(x)
    mixture.save(saved)
    cells.to_dataset(name="x").to_netcdf(tmp_path / "cells.nc")
    shutil.make_archive(str(tmp_path / "cells"), "zip", tmp_path / "cells.zarr")
    for words in (
        (f"{tmp_path}/cells.zip::/x", saved),
        (tmp_path / "cells.zarr", saved, "--array", "x"),
        (tmp_path / "cells.zarr/x", saved),
        (tmp_path / "cells.nc", saved, "--array", "x"),
        (f"{tmp_path}/cells.nc::/x", saved),
    ):
        result = run("predict", *words, "--out", out, "--overwrite")
        assert result.exit_code == 0, result.stderr
        expected = mixture.predict(cells)
        assert expected.name == "labels_"  # beside a coordinate of that name
        xr.testing.assert_identical(opened(out)["labels_"].compute(), expected)
    GaussianMixture(1, max_iter=1, tol=1.0).fit(x).save(saved)
    assert run("predict", *words, "--out", out, "--overwrite").exit_code == 0
    labels: Any = zarr.open_array(out / "labels_", mode="r")
    assert not labels[:].any()
    assert labels.nchunks_initialized == labels.nchunks  # none is told by its fill value


def test_rows_without_names_have_plain_answers(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = xr.DataArray(np.zeros((5, 2)), dims=("cell", "gene"), name="x")
    bare.to_zarr(tmp_path / "bare.zarr", consolidated=False)
    assert run("predict", tmp_path / "bare.zarr/x", model[1], "--out", tmp_path / "bare").exit_code == 0
    assert zarr.open_array(tmp_path / "bare", mode="r").shape == (5,)
    group = zarr.create_group(str(tmp_path / "plain.zarr"))
    for name in NAMES:
        group.create_array(name, data=ocean()[name].values)
    out, words = tmp_path / "out.zarr", (model[1], "--variables", "t,s", "--overwrite", "--json")
    result = run("predict", tmp_path / "plain.zarr", *words, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "dims" not in json.loads(result.stdout)
    plain = zarr.open_array(str(out), mode="r")[:]

    place, _ = stored(tmp_path, "zarr3")
    monkeypatch.setitem(sys.modules, "xarray", None)  # not installed
    result = run("predict", place, *words, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert f"The answers are without the coordinates of {place}" in result.stderr
    np.testing.assert_array_equal(zarr.open_array(str(out), mode="r")[:], plain)


def test_variables_that_are_turned_are_refused(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str]
) -> None:
    square = np.zeros((3, 3))
    turned = xr.Dataset({"t": (("x", "y"), square), "s": (("y", "x"), square)})
    turned.to_zarr(tmp_path / "square.zarr", consolidated=False)
    out = tmp_path / "out.zarr"
    result = run("predict", tmp_path / "square.zarr", model[1], "--variables", "t,s", "--out", out)
    assert result.exit_code == 4
    assert "differ in the order of their dimensions: t ('x', 'y'), s ('y', 'x')" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("where", ["path", "url"])
def test_what_was_written_is_replaced_and_nothing_else(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], where: str
) -> None:
    place, _ = stored(tmp_path, "zarr3")
    out = str(tmp_path / "out.zarr") if where == "path" else f"{KEPT}://daskgmm-labelled/out.zarr"
    np.save(tmp_path / "rows.npy", np.zeros((5, 2)))
    words = (place, model[1], "--variables", "t,s", "--out", out)
    assert run("predict", *words).exit_code == 0
    refused = run("predict", *words)
    assert (refused.exit_code, "--overwrite replaces it" in refused.stderr) == (2, True)
    assert run("predict", *words, "--proba", "--overwrite").exit_code == 0  # in the place of another variable
    assert list(opened(out).data_vars) == ["responsibilities"]
    assert run("predict", tmp_path / "rows.npy", model[1], "--out", out, "--overwrite").exit_code == 0
    assert zarr.open_array(out, mode="r").shape == (5,)
    assert run("predict", *words, "--overwrite").exit_code == 0
    assert opened(out)["labels"].shape == (7, 4, 5)

    fs, path = fsspec.core.url_to_fs(out)
    fs.pipe_file(f"{path}/lat/notes.txt", b"mine")
    result = run("predict", *words, "--overwrite")
    assert (result.exit_code, "notes.txt is in the way" in result.stderr) == (2, True)
    fs.rm(path, recursive=True)


@pytest.mark.parametrize("where", ["path", "url"])
def test_a_failure_leaves_no_store(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], where: str
) -> None:
    place, _ = stored(tmp_path, "zarr3")
    zarr.open_array(f"{place}/t", mode="r+")[5:] = np.inf
    out = str(tmp_path / "out.zarr") if where == "path" else f"{KEPT}://daskgmm-labelled/out.zarr"
    before = {path.name for path in tmp_path.iterdir()}
    result = run("predict", place, model[1], "--variables", "t,s", "--out", out, "--block-size", 640)
    assert (result.exit_code, result.stdout) == (4, "")
    assert {path.name for path in tmp_path.iterdir()} == before
    fs, path = fsspec.core.url_to_fs(out)
    assert not fs.exists(path)


# Types of answers


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("--dtype", "int8"),
            "dtype must be 'smallest' or a signed integer type that holds -1 to 199, such as int16",
        ),
        (("--dtype", "float32"), "dtype must be 'smallest' or a signed integer type"),
        (("--proba", "--dtype", "int64"), "dtype must be float64 or float32 for probabilities, got 'int64'"),
        (("--proba", "--dtype", "smallest"), "dtype must be float64 or float32 for probabilities, got 'smallest'"),
        (("--dtype", "uint8"), "'uint8' is not one of"),
    ],
)
def test_types_that_cannot_hold_the_answers_are_wrong_usage(
    run: Run, tmp_path: Path, data: str, words: tuple[str, ...], told: str
) -> None:
    k, place = 200, tmp_path / "many.npz"
    GaussianMixture.from_parameters(np.full(k, 1 / k), np.zeros((k, 3)), np.ones(k), "spherical").save(place)
    result = run("predict", data, place, "--out", tmp_path / "out.zarr", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out.zarr").exists()


def test_probabilities_of_another_type() -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    mixture = GaussianMixture(2, random_state=0, max_iter=3, tol=1.0).fit(x)
    found = mixture.predict_proba(x, dtype="float32")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, mixture.predict_proba(x).astype(np.float32))
    for dtype in ("float16", "int64", "smallest"):
        with pytest.raises(ValueError, match="dtype must be float64 or float32 for probabilities"):
            mixture.predict_proba(x, dtype=dtype)
