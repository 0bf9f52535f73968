"""`daskgmm fit --online` and `daskgmm update`: a store that grows is learnt row by row, never twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm._typing import Array

Run = Callable[..., Result]
NAMES = ("weights_", "means_", "covariances_", "effective_sample_size_", "n_samples_seen_", "n_batches_seen_")


def assert_same(a: Any, b: Any) -> None:
    for name in NAMES:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.npz"


@pytest.fixture
def online(run: Run, data: str, tmp_path: Path) -> Path:
    """A model of all 650 rows, learnt in one pass."""
    place = tmp_path / "online.npz"
    result = run("fit", data, "-k", 3, "--online", "--seed", 0, "--out", place)
    assert result.exit_code == 0, result.stderr
    return place


def grow(data: str, rows: Array) -> None:
    array = zarr.open_array(data, mode="r+")
    array.append(rows)


def more(seed: int, n: int) -> Array:
    random = np.random.default_rng(seed)
    means = np.array([[0.0, 0, 0], [3, 0, 1], [0, 4, -2]])
    return means[random.choice(3, size=n, p=[0.5, 0.3, 0.2])] + random.normal(size=(n, 3))


def loaded(place: Path) -> MiniBatchGaussianMixture:
    return MiniBatchGaussianMixture.load(place)


def test_fit_online_is_what_the_estimator_finds(run: Run, data: str, out: Path) -> None:
    settings: dict[str, Any] = {
        "batch_size": 40,
        "learning_decay": 0.7,
        "learning_offset": 3.0,
        "init_size": 300,
        "max_iter": 2,
    }
    words = [w for name, value in settings.items() for w in (f"--{name.replace('_', '-')}", value)]
    result = run("fit", data, "-k", 3, "--online", "--seed", 7, "--out", out, "--json", *words)
    assert result.exit_code == 0, result.stderr
    expected = MiniBatchGaussianMixture(3, random_state=7, **settings).fit(data)
    assert_same(loaded(out), expected)
    assert loaded(out).get_params() == expected.get_params()
    told = json.loads(result.stdout)
    assert told["n_samples_seen"] == expected.n_samples_seen_
    assert told["effective_sample_size"] == expected.effective_sample_size_
    assert told["next_row"] == 650


def test_one_pass_that_was_asked_for_is_done(run: Run, data: str, out: Path) -> None:
    result = run("fit", data, "-k", 3, "--online", "--half-life", 200, "--out", out, "--verbose")
    assert result.exit_code == 0
    assert "iteration 1" in result.stderr
    assert loaded(out).half_life == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--online", "--n-init", 2], "--n-init has no meaning with --online"),
        (["--online", "--labels-init", "x.npy"], "--labels-init has no meaning with --online"),
        (["--half-life", 5], "--half-life has no meaning without --online"),
        (["--online", "--learning-decay", 0.5], "--learning-decay"),
        (["--online", "--max-iter", 0], "max_iter"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, data: str, out: Path, words: list[object], message: str
) -> None:
    result = run("fit", data, "-k", 3, "--out", out, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_update_goes_on_at_the_next_row(run: Run, data: str, online: Path, out: Path) -> None:
    grow(data, more(1, 400))
    result = run("update", online, data, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["first_row"], told["n_rows"], told["next_row"]) == (650, 400, 1050)
    assert told["n_samples_seen"] == 1050
    expected = loaded(online)
    assert not np.array_equal(expected.means_, loaded(out).means_)
    # The same in two steps gives other mini-batches, and a model that is close.
    half = out.with_name("half.npz")
    assert run("update", online, data, "--rows", "650:800", "--out", half).exit_code == 0
    assert loaded(half).next_row_ == 800
    assert run("update", half, data, "--out", half, "--overwrite").exit_code == 0
    assert loaded(half).n_samples_seen_ == 1050
    np.testing.assert_allclose(loaded(half).weights_, loaded(out).weights_, atol=0.05)


def test_a_repeat_changes_nothing(run: Run, data: str, online: Path) -> None:
    grow(data, more(1, 400))
    assert run("update", online, data, "--out", online, "--overwrite").exit_code == 0
    before = online.read_bytes()
    for words in ([], ["--rows", "650:1050"], ["--rows", "0:700"], ["--rows", ":"]):
        result = run("update", online, data, "--out", online, "--overwrite", *words)
        assert result.exit_code == 0, result.stderr
        assert online.read_bytes() == before
        assert "nothing new to learn" in result.stderr
    assert loaded(online).n_samples_seen_ == 1050


def test_rows_that_are_part_known_and_part_passed_over(run: Run, data: str, online: Path, out: Path) -> None:
    grow(data, more(1, 400))
    result = run("update", online, data, "--rows", "600:700", "--out", out, "--json")
    assert "Rows 600 to 650 were learnt already, and are left out" in result.stderr
    assert json.loads(result.stdout)["n_rows"] == 50
    result = run("update", online, data, "--rows", "700:", "--out", out, "--json", "--overwrite")
    assert "Rows 650 to 700 are passed over" in result.stderr
    assert json.loads(result.stdout)["n_rows"] == 350


def test_rows_of_no_weight_are_behind_the_model_too(
    run: Run, data: str, online: Path, out: Path, write: Any
) -> None:
    grow(data, more(1, 100))
    weights = write("w.zarr", np.append(np.ones(650), np.zeros(100)))
    result = run("update", online, data, "--weights", weights, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert loaded(out).next_row_ == 750
    np.testing.assert_array_equal(loaded(out).means_, loaded(online).means_)
    assert json.loads(result.stdout)["log_likelihood"] is not None


@pytest.mark.parametrize("rows", ["5", "a:b", "3:3", "9:2", "-1:5"])
def test_bad_ranges_are_wrong_usage(run: Run, data: str, online: Path, out: Path, rows: str) -> None:
    result = run("update", online, data, f"--rows={rows}", "--out", out)
    assert result.exit_code == 2
    assert not out.exists()


def test_what_cannot_be_updated(
    run: Run, data: str, online: Path, model: str, out: Path, write: Any, values: Array
) -> None:
    wide, short = write("wide.zarr", np.zeros((700, 4))), write("short.zarr", values[:100])
    bad = write("bad.zarr", np.append(values, [[0, np.nan, 0]], axis=0))
    before = online.read_bytes()
    for words, message in (
        ((model, data), "only models of fit --online learn on"),
        ((online, wide), "X has 4 features, but MiniBatchGaussianMixture is expecting 3"),
        ((online, short), "has 100 rows, and the model has learnt 650 already"),
        ((online, short), f"fit --online --warm-start {online}"),
        ((online, data, "--rows", "650:900"), "has 650 rows, and row 900 is asked for"),
        ((online, data, "--rows", "700:"), "has 650 rows, and row 700 is asked for"),
        ((online, bad), "NaN: block"),
        ((online, "nowhere.zarr"), "nowhere.zarr"),
    ):
        result = run("update", *words, "--out", out)
        assert result.exit_code == 4, (words, result.stderr)
        assert message in result.stderr
        assert not out.exists()
    assert run("update", online, data, "--out", online).exit_code == 2  # in the way
    assert online.read_bytes() == before


def test_queries_read_online_models(run: Run, data: str, online: Path, tmp_path: Path, values: Array) -> None:
    labels = tmp_path / "labels.zarr"
    assert run("predict", data, online, "--out", labels).exit_code == 0
    np.testing.assert_array_equal(zarr.open_array(labels)[...], loaded(online).predict(values))
    told = json.loads(run("score", data, online, "--json").stdout)
    np.testing.assert_allclose(told["log_likelihood"], loaded(online).score(values), rtol=1e-12)
    told = json.loads(run("info", online, "--json").stdout)
    assert told["estimator"] == "MiniBatchGaussianMixture"
    assert (told["n_samples_seen"], told["next_row"]) == (650, 650)
    assert told["settings"]["learning_decay"] == 0.6


def test_batch_and_online_go_on_from_each_other(run: Run, data: str, online: Path, model: str, out: Path) -> None:
    result = run("fit", data, "--warm-start", online, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert isinstance(GaussianMixture.load(out), GaussianMixture)
    result = run("fit", data, "--online", "--warm-start", model, "--out", out, "--overwrite", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["n_passes"] == 1
    assert loaded(out).random_state == 0  # as in the batch model
    result = run("fit", data, "--online", "--warm-start", online, "--out", out, "--overwrite", "--json")
    assert json.loads(result.stdout)["n_samples_seen"] == 1300


@pytest.fixture
def waiting(values: Array, tmp_path: Path) -> Path:
    """A model that has seen the first 40 of the 150 rows that it starts with."""
    place = tmp_path / "waiting.npz"
    MiniBatchGaussianMixture(3, random_state=0).partial_fit(values[:40]).save(place)
    return place


def test_a_model_that_waits_is_shown_and_goes_on(run: Run, data: str, waiting: Path, out: Path) -> None:
    told = json.loads(run("info", waiting, "--json").stdout)
    settings = told.pop("settings")
    assert settings["learning_decay"] == 0.6
    assert told == {
        "model": str(waiting),
        "estimator": "MiniBatchGaussianMixture",
        "status": "no mixture yet: 110 more rows are needed to seed it",
        "n_components": 3,
        "n_features": 3,
        "covariance_type": "full",
        "n_samples_seen": 40,
        "n_batches_seen": 1,
        "n_rows_to_start": 110,
        "next_row": 40,
        "feature_names": None,
    }
    assert run("info", waiting).exit_code == 0
    few = run("update", waiting, data, "--rows", "40:60", "--out", out, "--json")
    assert few.exit_code == 0, few.stderr
    assert json.loads(few.stdout)["n_rows_to_start"] == 90
    assert loaded(out).n_samples_seen_ == 60
    rest = run("update", out, data, "--out", out, "--overwrite", "--json")
    assert rest.exit_code == 0, rest.stderr
    assert json.loads(rest.stdout)["n_samples_seen"] == 650
    assert loaded(out).means_.shape == (3, 3)


def test_a_model_that_waits_answers_nothing(run: Run, data: str, waiting: Path, out: Path) -> None:
    before = waiting.read_bytes()
    for words in (
        ("score", data, waiting),
        ("predict", data, waiting, "--out", out),
        ("fit", data, "--warm-start", waiting, "--out", out),
        ("fit", data, "--online", "--warm-start", waiting, "--out", out),
    ):
        result = run(*words)
        assert (result.exit_code, result.stdout) == (4, ""), words
        assert "is no mixture yet: 40 of the first 150 rows have come" in result.stderr
        assert not out.exists()
    assert waiting.read_bytes() == before


def test_a_model_of_a_stream_says_so_and_that_its_rows_count_as_the_first(
    run: Run, data: str, values: Array, tmp_path: Path, out: Path
) -> None:
    place = tmp_path / "stream.npz"
    MiniBatchGaussianMixture(3, random_state=0).partial_fit(values[:200]).save(place)
    assert "learnt from a stream" in run("info", place).stdout
    result = run("update", place, data, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "Beginning at row 200: the rows that the model has learnt, of a store or a stream" in result.stderr
    assert "fit --online --warm-start" in result.stderr
