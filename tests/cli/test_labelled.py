"""Answers for rows whose dimensions have names are what Python gives for them, in a store that xarray reads."""

from __future__ import annotations

import json
import re
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

from daskgmm import GaussianMixture, load
from daskgmm.errors import DataError
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
    arrays = json.loads(found.attrs.pop("arrays"))
    assert arrays == {name: list(array.shape) for name, array in found.variables.items()}
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
        (f"{tmp_path}/cells.nc::x", saved),
        (f"{tmp_path}/cells.zip::x", saved),
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
    bare = xr.DataArray(np.ones((5, 2)), dims=("cell", "gene"), name="x")
    bare.to_zarr(tmp_path / "bare.zarr", consolidated=False)
    assert run("predict", tmp_path / "bare.zarr/x", model[1], "--out", tmp_path / "bare").exit_code == 0
    assert zarr.open_array(tmp_path / "bare", mode="r").shape == (5,)
    zarr.create_array(tmp_path / "alone.zarr", data=np.ones((5, 2)), dimension_names=("cell", "gene"))
    result = run("predict", tmp_path / "alone.zarr", model[1], "--out", tmp_path / "alone")
    assert (result.exit_code, result.stderr.count("xarray")) == (0, 0)
    assert zarr.open_array(tmp_path / "alone", mode="r").shape == (5,)
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


@pytest.mark.parametrize("kind", ["zarr3", "zip", "nc", "cdf"])
def test_a_model_finds_the_variables_of_its_fit(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], kind: str
) -> None:
    mixture, saved = model
    place, _ = stored(tmp_path, kind)
    out = tmp_path / "out.zarr"
    for query, method in (("predict", mixture.predict), ("score", mixture.score_samples)):
        result = run(query, place, saved, "--out", out, "--overwrite")
        assert (result.exit_code, result.stderr) == (0, "")
        expected = method(ocean()[NAMES])
        xr.testing.assert_allclose(opened(out)[expected.name].compute(), expected)
    assert load(saved).score(place) == pytest.approx(mixture.score(ocean()[NAMES]))
    xr.Dataset({"t": ("x", [1.0, 2]), "heat": ("x", [1.0, 2])}).to_zarr(tmp_path / "other", consolidated=False)
    result = run("predict", tmp_path / "other", saved, "--out", tmp_path / "none")
    assert (result.exit_code, "is a Zarr group, not an array. Its arrays are:" in result.stderr) == (4, True)


def test_an_online_model_learns_on_from_the_variables_of_its_fit(run: Run, tmp_path: Path) -> None:
    place, saved, x = tmp_path / "x.zarr", tmp_path / "m.npz", np.random.default_rng(0).normal(size=(2, 300))
    for n in (200, 300):
        xr.Dataset({name: ("cell", values[:n]) for name, values in zip("ts", x, strict=True)}).to_zarr(
            place, mode="w", consolidated=False
        )
        if n == 200:
            words = ("fit", place, "-k", 1, "--online", "--variables", "t,s", "--out", saved)
            assert run(*words).exit_code == 0
    result = run("update", saved, place, "--out", saved, "--overwrite", "--json")
    assert (result.exit_code, json.loads(result.stdout)["n_rows"]) == (0, 100), result.stderr


@pytest.mark.parametrize("kind", ["zarr", "nc"])
def test_variables_of_groups_below_have_their_coordinates(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], kind: str
) -> None:
    place, saved, out = (tmp_path / name for name in (f"deep.{kind}", "nameless.npz", "out.zarr"))
    found = model[0].mixture_.weights, model[0].means_, model[0].covariances_
    mixture = GaussianMixture.from_parameters(*found, "full").set_params(nan_policy="omit")
    mixture.save(saved)
    for group, names in (("in/ner", ["t", "s"]), ("other", ["s"])):
        if kind == "zarr":
            ocean()[names].drop_vars("basin").to_zarr(place, group=group, mode="a", consolidated=False)
        else:
            ocean()[names].drop_vars("basin").to_netcdf(place, group=group, mode="a", engine="netcdf4")
    for variables in ("in/ner/t,in/ner/s", "in/ner/t,other/s"):
        result = run("predict", place, saved, "--variables", variables, "--out", out, "--overwrite")
        assert result.exit_code == 0, result.stderr
        with pytest.warns(match="fitted without feature names"):
            expected = mixture.predict(ocean()[NAMES].drop_vars("basin"))
        xr.testing.assert_identical(opened(out)["labels"].compute(), expected)


@pytest.mark.parametrize("kind", ["zarr", "nc"])
def test_variables_that_are_turned_are_refused(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], kind: str
) -> None:
    square, place, out = np.arange(9.0).reshape(3, 3), tmp_path / f"square.{kind}", tmp_path / "out"
    turned = xr.Dataset({"t": (("x", "y"), square), "s": (("y", "x"), square)})
    turned.to_zarr(place, consolidated=False) if kind == "zarr" else turned.to_netcdf(place, engine="netcdf4")
    told = "differ in the order of their dimensions: t ('x', 'y'), s ('y', 'x')"
    for words in (
        ("predict", place, model[1], "--out", out),
        ("score", place, model[1]),
        ("fit", place, "-k", 2, "--out", out),
        ("select", place, "-k", "1:2", "--out", out),
        ("check", place),
    ):
        result = run(*words, "--variables", "t,s")
        assert (result.exit_code, result.stdout) == (4, ""), words
        assert told in result.stderr
        assert not out.exists()
    mixture = GaussianMixture(2, variables=["t", "s"])
    for query in (mixture.fit, model[0].set_params(variables=["t", "s"]).score):
        with pytest.raises(DataError, match=re.escape(told)):
            query(place)


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


CHANGES: dict[str, Callable[[Any], Any]] = {
    "other arrays": lambda ds: ds.rename(labels="masks"),
    "more arrays": lambda ds: ds.assign(depth=ds["area"] * 2),
    "fewer arrays": lambda ds: ds.drop_vars("labels"),
    "other sizes": lambda ds: ds.isel(time=slice(3)),
    "more to say": lambda ds: ds.assign_attrs(history="seen by eye"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("complete", [True, False])
def test_a_store_with_copied_attributes_stays(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], change: str, complete: bool
) -> None:
    place, _ = stored(tmp_path, "zarr3")
    out, mine = tmp_path / "out.zarr", tmp_path / "mine.zarr"
    words = ("predict", place, model[1], "--variables", "t,s", "--overwrite", "--out")
    assert run(*words, out).exit_code == 0
    copied = opened(out).load().assign_attrs(complete=complete)
    assert set(copied.attrs) == {"complete", "writer", "arrays"}
    CHANGES[change](copied).drop_encoding().to_zarr(mine, consolidated=False)
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    result = run(*words, mine)
    if change == "fewer arrays" and not complete:  # which is what removing one by one leaves
        assert result.exit_code == 0
        return
    assert (result.exit_code, "is in the way: it is a Zarr group" in result.stderr) == (2, True)
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before


def test_an_array_that_was_added_stays(run: Run, tmp_path: Path, model: tuple[GaussianMixture, str]) -> None:
    place, _ = stored(tmp_path, "zarr3")
    out = tmp_path / "out.zarr"
    words = ("predict", place, model[1], "--variables", "t,s", "--overwrite", "--out", out)
    assert run(*words).exit_code == 0
    zarr.open_group(out, use_consolidated=False).create_array("depth", data=np.ones(3))
    result = run(*words)
    told = "is in the way: it is a Zarr group with other arrays or attributes than were written, and stays"
    assert (result.exit_code, told in result.stderr) == (2, True)
    np.testing.assert_array_equal(zarr.open_array(f"{out}/depth", mode="r")[:], np.ones(3))


@pytest.mark.parametrize(("words", "missing"), [((), -1), (("--proba",), np.nan)])
def test_answers_that_were_lost_are_missing(
    run: Run, tmp_path: Path, model: tuple[GaussianMixture, str], words: tuple[str, ...], missing: float
) -> None:
    place, _ = stored(tmp_path, "zarr3")
    out = tmp_path / "out.zarr"
    assert run("predict", place, model[1], "--variables", "t,s", "--out", out, *words).exit_code == 0
    (name,) = opened(out).data_vars
    shutil.rmtree(out / name / "c")
    assert opened(out)[name].dtype == (float if words else int)
    np.testing.assert_array_equal(opened(out)[name].values.ravel()[:5], [missing] * 5)


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
    for dtype in ("float16", "int64", "smallest", None):
        with pytest.raises(ValueError, match="dtype must be float64 or float32 for probabilities"):
            mixture.predict_proba(x, dtype=dtype)
