"""Every kind of path, through every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from tests.doors import PATHS, hdf5, npy, parquet

Run = Callable[..., Result]


def opened(place: Path) -> Any:
    return zarr.open_array(str(place), mode="r")[:]


@pytest.mark.parametrize("kind", [kind for kind in PATHS if kind != "zarr"])
def test_every_kind_of_path(
    run: Run, values: Array, model: str, fitted: GaussianMixture, tmp_path: Path, kind: str
) -> None:
    weight = np.random.default_rng(2).uniform(size=len(values))
    for name in ("x", "w"):
        (tmp_path / name).mkdir()
    x, w = PATHS[kind](values, tmp_path / "x"), PATHS[kind](weight, tmp_path / "w")
    words = ("-k", 3, "--seed", 0, "--max-iter", 3, "--tol", 0, "--weights", w, "--out", tmp_path / "m.npz")
    result = run("fit", x, *words)
    assert result.exit_code == 3, result.stderr
    settings: dict[str, Any] = {"random_state": 0, "max_iter": 3, "tol": 0}
    with pytest.warns(match="did not converge"):
        plain = GaussianMixture(3, **settings).fit(values, sample_weight=weight)
    np.testing.assert_allclose(GaussianMixture.load(tmp_path / "m.npz").means_, plain.means_, rtol=0, atol=1e-12)
    assert run("predict", x, model, "--out", tmp_path / "labels").exit_code == 0
    np.testing.assert_array_equal(opened(tmp_path / "labels"), fitted.predict(values))
    result = run("score", x, model, "--weights", w, "--json", "--out", tmp_path / "scores")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["log_likelihood"] == pytest.approx(fitted.score(values, sample_weight=weight))
    np.testing.assert_allclose(opened(tmp_path / "scores"), fitted.score_samples(values), rtol=1e-12)


def test_variables_are_columns(
    run: Run, values: Array, model: str, fitted: GaussianMixture, tmp_path: Path
) -> None:
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    for i, name in enumerate("tsu"):
        group.create_array(name, data=values[:, i].reshape(13, 10, 5), chunks=(2, 5, 5))
    words = ("--array", "deep", "--variables", "t, s,u")
    (tmp_path / "all.zarr").mkdir()
    root = zarr.create_group(str(tmp_path / "all.zarr"), overwrite=True)
    shutil.move(tmp_path / "g.zarr", tmp_path / "all.zarr/deep")
    assert root["deep"]
    result = run("predict", tmp_path / "all.zarr", model, *words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    np.testing.assert_array_equal(opened(tmp_path / "out"), fitted.predict(values))
    settings = ("-k", 2, "--seed", 0, "--out", tmp_path / "m.npz")
    assert run("fit", tmp_path / "all.zarr", *words, *settings).exit_code == 0
    assert list(GaussianMixture.load(tmp_path / "m.npz").feature_names_in_) == ["t", "s", "u"]
    for bad in ("t,,s", "t,t", ""):
        assert run("fit", tmp_path / "all.zarr", "--variables", bad, *settings, "--overwrite").exit_code == 2
    refused = run("fit", tmp_path / "all.zarr", *settings, "--overwrite")
    assert (refused.exit_code, "(--variables deep/s,deep/t,deep/u)" in refused.stderr) == (4, True)


def test_info_tells_the_variables_of_a_checkpoint_as_they_are_given(
    run: Run, values: Array, tmp_path: Path
) -> None:
    place, kept = str(tmp_path / "x.parquet"), tmp_path / "c"
    pq.write_table(pa.table({"s": values[:, 0], "t": values[:, 1]}), place)
    run("fit", place, "-k", 1, "--variables", "t,s", "--out", tmp_path / "m", "--checkpoint", kept)
    assert json.loads(run("info", kept, "--json").stdout)["options"]["--variables"] == "t,s"
    assert "--variables t,s" in run("info", kept).stdout


def test_the_name_of_an_array_in_a_file(run: Run, values: Array, model: str, tmp_path: Path) -> None:
    file = hdf5(values, tmp_path).partition("::")[0]
    found = [
        run("score", place, model, *words, "--json")
        for place, words in (
            (file, ("--array", "deep/x")),
            (f"{file}::deep", ("--array", "x")),
            (f"{file}::/deep/x", ()),
        )
    ]
    assert [result.exit_code for result in found] == [0, 0, 0], found[0].stderr
    assert len({json.loads(result.stdout)["log_likelihood"] for result in found}) == 1


def test_an_output_never_overlaps_with_a_file(run: Run, values: Array, model: str, tmp_path: Path) -> None:
    x = hdf5(values, tmp_path)
    for out in (x.partition("::")[0], f"{x.partition('::')[0]}/labels"):
        result = run("predict", x, model, "--out", out, "--overwrite")
        assert (result.exit_code, "overlaps with the input" in result.stderr) == (2, True)
    for command in ("predict", "score"):
        result = run(command, npy(values, tmp_path), model, "--out", tmp_path / "x.npy", "--overwrite")
        assert (result.exit_code, "overlaps with the input" in result.stderr) == (2, True)


def test_update_learns_from_files_that_come(run: Run, values: Array, tmp_path: Path) -> None:
    place, out = parquet(values, tmp_path), tmp_path / "m.npz"
    result = run("fit", place, "-k", 3, "--online", "--seed", 0, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert run("update", out, place, "--out", out, "--overwrite").stderr.endswith(
        "There is nothing new to learn.\n"
    )
    more = pa.table({f"c{j}": values[:50, j] for j in range(values.shape[1])})
    pq.write_table(more, Path(place) / "part.11.parquet")
    result = run("update", out, place, "--out", out, "--overwrite", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["first_row"], told["n_rows"], told["next_row"]) == (650, 50, 700)


def test_log_densities_of_omitted_rows(run: Run, values: Array, model: str, tmp_path: Path) -> None:
    holes = values.copy()
    holes[::2, 1] = np.nan
    words = ("score", npy(holes, tmp_path), model, "--nan-policy", "omit", "--out", tmp_path / "s")
    assert run(*words).exit_code == 0
    assert np.isnan(opened(tmp_path / "s")).tolist() == [True, False] * 325
    assert run(*words).exit_code == 2  # it is there
    assert run(*words, "--overwrite").exit_code == 0


@pytest.mark.parametrize(("name", "told"), [("a.csv", "dask.dataframe.read_csv"), ("a.h5", "cannot be read")])
def test_other_files_are_bad_data(run: Run, model: str, tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_text("1,2")
    for words in (("fit", tmp_path / name, "-k", 2), ("predict", tmp_path / name, model)):
        result = run(*words, "--out", tmp_path / "out.npz")
        assert (result.exit_code, told in result.stderr) == (4, True)
