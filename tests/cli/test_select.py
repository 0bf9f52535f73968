"""`daskgmm select` does what the search does, and leaves a whole model and a whole table, or none."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from daskgmm import GaussianMixture, GaussianMixtureSearch, watching
from daskgmm._typing import Array
from daskgmm.cli import main
from tests.listeners import stop

Run = Callable[..., Result]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "best.npz"


TYPES = ("--covariance-type", "full", "--covariance-type", "diag")


def search(x: Any, **settings: Any) -> GaussianMixtureSearch:
    chosen: dict[str, Any] = {"n_components": range(1, 4), "covariance_types": ["full", "diag"], "random_state": 3}
    found = GaussianMixtureSearch(**(chosen | settings))
    found.fit(x)
    return found


def same(model: GaussianMixture, other: GaussianMixture) -> bool:
    return all(
        np.array_equal(getattr(model, name), getattr(other, name))
        for name in ("weights_", "means_", "covariances_")
    )


def test_the_model_and_the_table_are_those_of_the_search(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    result = run("select", data, "-k", "1:3", *TYPES, "--seed", 3, "--out", out, "--table", tmp_path / "t.csv")
    assert result.exit_code == 0, result.stderr
    expected = search(data)
    assert same(GaussianMixture.load(out), expected.best_estimator_)
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == [*expected.results_]
    assert [int(row["n_components"]) for row in rows] == [1, 2, 3, 1, 2, 3]
    assert [row["covariance_type"] for row in rows] == ["full"] * 3 + ["diag"] * 3
    for name in ("bic", "icl", "log_likelihood", "smallest_weight"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], expected.results_[name], name)
    lines = result.stdout.splitlines()
    (starred,) = (line for line in lines if line.startswith("* "))
    assert starred.split()[1:3] == [
        str(expected.best_params_["n_components"]),
        expected.best_params_["covariance_type"],
    ]


def test_json_is_one_object(run: Run, data: str, out: Path) -> None:
    result = run("select", data, "-k", "2,1", "--criterion", "held_out", "--seed", 3, "--out", out, "--json")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    expected = search(data, n_components=[2, 1], covariance_types="full", criterion="held_out")
    best, table = expected.best_index_, found.pop("table")
    assert found.pop("seconds") > 0
    assert found.pop("accounting")["total"]["passes"] == found["n_passes"]
    assert found["n_components"] == expected.best_params_["n_components"]
    assert (found["criterion"], found["n_passes"], found["converged"]) == ("held_out", expected.n_passes_, True)
    assert found["held_out"] == expected.results_["held_out"][best]
    assert [row["n_components"] for row in table] == [2, 1]
    for name, values in expected.results_.items():
        assert [row[name] for row in table] == values.tolist()


def test_what_was_not_computed_is_null(run: Run, data: str, out: Path) -> None:
    result = run("select", data, "-k", "1", "--out", out, "--json")
    found = json.loads(result.stdout)
    assert found["held_out"] is None
    assert found["table"][0]["held_out"] is None


def test_every_setting_of_the_search_is_an_option() -> None:
    apart = {"feature_dim", "storage_options", "acceleration"}
    names = {p.name for p in main.commands["select"].params}
    assert set(GaussianMixtureSearch().get_params()) - apart <= names
    assert {"weights", "array", "storage", "scheduler", "local", "table"} <= names


def test_settings_reach_the_search(
    run: Run, data: str, out: Path, write: Callable[..., str], values: Array
) -> None:
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(values))
    settings: dict[str, Any] = {
        "tol": 1e-5,
        "max_iter": 60,
        "n_init": 2,
        "init_params": "random",
        "criterion": "aic",
        "refine": 3,
    }
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    told = ("--weights", write("w.zarr", weights), "--seed", 3, "--out", out)
    result = run("select", data, "-k", "1:3", *words, *TYPES, *told)
    assert result.exit_code == 0, result.stderr
    expected = GaussianMixtureSearch(range(1, 4), covariance_types=["full", "diag"], random_state=3, **settings)
    expected.fit(values, sample_weight=weights)
    model = GaussianMixture.load(out)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-9, atol=1e-12)
    assert model.get_params()["init_params"] == "random"


@pytest.mark.parametrize("sizes", ["", "0:3", "3:1", "1,1", "1:x", "a", "2,,3", "-1"])
def test_bad_sizes(run: Run, data: str, out: Path, sizes: str) -> None:
    result = run("select", data, f"-k{sizes}" if sizes else "-k=", "--out", out)
    assert result.exit_code == 2
    assert "names no numbers of components, as 1:10 and 2,4,8 do" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "Missing option '-k'"),
        (("-k", "1", "--criterion", "gap"), 2, "'gap' is not one of"),
        (("-k", "1", "--held-out", "1.0"), 2, "held"),
        (("-k", "1000:1001"), 4, "n_components = 1001, n_samples = 650"),
        (("-k", "1", "--table", "nowhere/t.csv"), 2, "nowhere"),
        (("-k", "1", "--table", "s3://bucket/t.csv"), 2, "written to a local file"),
    ],
)
def test_bad_words(run: Run, data: str, out: Path, words: tuple[str, ...], code: int, message: str) -> None:
    result = run("select", data, *words, "--out", out)
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert not out.exists()


def test_outputs_that_are_there_stay(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for place in (out, table):
        place.write_text("mine")
        result = run("select", data, "-k", "1", "--out", out, "--table", table)
        assert result.exit_code == 2
        assert f"{place} exists; --overwrite replaces it." in result.stderr
        assert place.read_text() == "mine"
        assert run("select", data, "-k", "1", "--out", out, "--table", table, "--overwrite").exit_code == 0
        assert place.read_bytes()[:4] != b"mine"
        out.unlink()
    for clash in (out, data):
        assert run("select", data, "-k", "1", "--out", out, "--table", clash).exit_code == 2


def test_the_table_fits_a_terminal(run: Run, data: str, out: Path) -> None:
    result = run("select", data, "-k", "1:3", "--covariance-type", "spherical", "--seed", 3, "--out", out)
    lines = result.stdout.splitlines()[-4:]
    assert lines[0].split() == ["k", "type", "bic", "aic", "icl", "log", "likelihood", "end,", "iterations"]
    assert max(map(len, lines)) <= 80


def test_criteria_make_room_for_what_decides(run: Run, data: str, out: Path) -> None:
    words = ("--covariance-type", "tied_spherical", "--criterion", "held_out", "--max-iter", 1, "--tol", 0)
    lines = run("select", data, "-k", "2:3", *words, "--seed", 3, "--out", out).stdout.splitlines()[-3:]
    assert " held out " in lines[0]
    assert " aic " not in lines[0]
    assert max(map(len, lines)) <= 80


def test_one_candidate_is_told(run: Run, data: str, out: Path) -> None:
    told = "-k 3 is one candidate, compared with none: -k 1:3 compares 1, 2, ... 3."
    assert told in run("select", data, "-k", 3, "--seed", 3, "--out", out).stderr
    assert told not in run("select", data, "-k", 3, *TYPES, "--seed", 3, "--out", out, "--overwrite").stderr


def test_a_best_candidate_at_the_end_of_the_range_is_told(run: Run, data: str, out: Path) -> None:
    more = "compares more"
    for sizes, told in (("1:2", True), ("1:5", False), ("2", False)):
        result = run("select", data, "-k", sizes, "--seed", 3, "--out", out, "--overwrite")
        assert (more in result.stderr) == told, result.stderr


def test_the_log_likelihood_is_that_of_the_criteria(run: Run, data: str, out: Path) -> None:
    found = json.loads(run("select", data, "-k", "1:3", "--seed", 3, "--out", out, "--json").stdout)
    told = json.loads(run("info", out, "--json").stdout)
    assert [told[name] for name in ("log_likelihood", "bic")] == [
        found[name] for name in ("log_likelihood", "bic")
    ]
    expected = told["n_parameters"] * np.log(650) - 2 * 650 * told["log_likelihood"]
    assert told["bic"] == pytest.approx(expected, rel=1e-13)


def test_not_converged(run: Run, data: str, out: Path) -> None:
    result = run("select", data, "-k", "3", "--max-iter", 1, "--tol", 0, "--out", out)
    assert result.exit_code == 3
    assert "a larger --max-iter and --overwrite" in result.stderr
    assert not GaussianMixture.load(out).converged_


def test_candidates_are_logged_as_they_end(run: Run, data: str, out: Path) -> None:
    result = run("select", data, "-k", "1:2", "--seed", 3, "--out", out, "--verbose")
    lines = [line for line in result.stderr.splitlines() if "component" in line]
    *lines, last = lines
    assert [line.split(",")[0] for line in lines] == ["1 component", "2 components"]
    assert last.endswith("-k 2:4 compares more.")
    assert all(" bic " in line and "converged after" in line for line in lines)
    assert max(map(len, lines)) <= 80
    told = [line for line in result.stderr.splitlines() if line.startswith("iteration")]
    assert len(told) == len({line.split()[1] for line in told})


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_search_that_is_stopped_can_go_on(
    run: Run, data: str, out: Path, tmp_path: Path, checkpoint: bool
) -> None:
    words: tuple[Any, ...] = ("select", data, "-k", "1:3", *TYPES, "--seed", 3, "--out", out, "--tol", 1e-6)
    words += ("--checkpoint", tmp_path / "c") if checkpoint else ()
    with watching(stop(5)):
        result = run(*words)
    assert result.exit_code == 5, result.stderr
    assert not out.exists()
    if not checkpoint:
        assert "The best model so far is in" in result.stderr
        assert GaussianMixture.load(tmp_path / "best.interrupted.npz").n_iter_ == 3
        return
    assert f"The same command goes on from {tmp_path / 'c'}." in result.stderr
    told = run("info", tmp_path / "c")
    assert told.exit_code == 0, told.stderr
    assert "--n-components 1,2,3" in told.stdout
    assert "daskgmm select DATA --out OUT" in told.stdout
    assert "--covariance-type full --covariance-type diag" in told.stdout
    found = json.loads(run("info", tmp_path / "c", "--json").stdout)
    assert (found["estimator"], found["n_components"]) == ("GaussianMixtureSearch", [1, 2, 3])
    assert (found["covariance_type"], found["n_runs"]) == (["full", "diag"], 6)
    assert run(*words).exit_code == 0
    assert same(GaussianMixture.load(out), search(data, tol=1e-6).best_estimator_)


def test_the_help_tells_ends_that_are_left_out(run: Run) -> None:
    assert "[0<x<1]" in run("select", "--help").stdout  # of --held-out
    assert "[0.5<x<=1.0]" in run("fit", "--help").stdout  # of --learning-decay
