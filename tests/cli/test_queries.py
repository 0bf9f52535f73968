"""`predict`, `score` and `info` answer as the estimator does; an array is whole or absent."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from itertools import accumulate, count
from pathlib import Path
from time import sleep
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from daskgmm import BayesianGaussianMixture, GaussianMixture, MiniBatchGaussianMixture
from daskgmm._typing import Array
from daskgmm.cli.output import chunk_rows
from daskgmm.fit.state import State
from daskgmm.store import checkpoint
from tests.store.bucket import KEPT

Run = Callable[..., Result]
Write = Callable[..., str]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.zarr"


@pytest.fixture
def bad(write: Write, values: Array) -> str:
    """A store whose last rows cannot be labelled."""
    damaged = values.copy()
    damaged[640, 0] = np.inf
    return write("bad.zarr", damaged)


Watch = Callable[[Callable[[int], object]], None]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Have a function called with the number of each chunk that `predict` answers lazily, within its task."""

    def watch(each: Callable[[int], object]) -> None:
        predict: Any = GaussianMixture.predict

        def watched(self: GaussianMixture, x: Any, **how: Any) -> Any:
            def seen(block: Array, block_info: Any = None) -> Array:
                each(block_info[0]["chunk-location"][0])
                return block

            answers = predict(self, x, **how)
            if isinstance(answers, np.ndarray):
                return answers
            return answers.map_blocks(seen, dtype=answers.dtype, meta=np.empty(0, answers.dtype))

        monkeypatch.setattr(GaussianMixture, "predict", watched)

    return watch


def opened(place: object) -> Any:
    return zarr.open_array(str(place), mode="r")


@pytest.mark.parametrize("block_size", ["1", "5 KB", "64 MiB"])
@pytest.mark.parametrize("proba", [False, True])
def test_answers_equal_the_estimators(
    run: Run,
    data: str,
    model: str,
    out: Path,
    fitted: GaussianMixture,
    values: Array,
    proba: bool,
    block_size: str,
) -> None:
    words = ("--block-size", block_size, "--json", *["--proba"] * proba)
    result = run("predict", data, model, "--out", out, *words)
    assert (result.exit_code, result.stderr) == (0, "")
    written = opened(out)
    expected = fitted.predict_proba(values) if proba else fitted.predict(values)
    assert written.dtype == expected.dtype
    assert written.attrs["complete"] is True
    if proba:  # sums in another order, for other blocks
        np.testing.assert_allclose(written[:], expected, rtol=1e-9, atol=1e-300)
    else:
        np.testing.assert_array_equal(written[:], expected)
    found = json.loads(result.stdout)
    assert found.pop("seconds") > 0
    assert found == {
        "out": str(out),
        "content": "probabilities" if proba else "labels",
        "n_rows": 650,
        "n_components": 3,
        "dtype": str(written.dtype),
        "chunks": list(written.chunks),
    }
    assert written.nchunks_initialized == written.nchunks  # none is told by its fill value


def test_labels_of_the_smallest_type(
    run: Run, data: str, model: str, out: Path, fitted: GaussianMixture, values: Array
) -> None:
    result = run("predict", data, model, "--out", out, "--dtype", "smallest", "--json")
    assert result.exit_code == 0, result.stderr
    assert opened(out).dtype == json.loads(result.stdout)["dtype"] == "int8"
    np.testing.assert_array_equal(opened(out)[:], fitted.predict(values))


def test_uneven_blocks_share_no_chunk(
    run: Run, write: Write, model: str, out: Path, fitted: GaussianMixture, values: Array
) -> None:
    # Shards of 200 rows hold blocks of 150 and 50: the largest common chunk has 50 rows.
    place = write("sharded.zarr", values, rows=50, shards=(200, 3))
    result = run("predict", place, model, "--out", out, "--block-size", 150 * 3 * 8)
    assert result.exit_code == 0, result.stderr
    assert opened(out).chunks == (50,)
    np.testing.assert_array_equal(opened(out)[:], fitted.predict(values))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12).map(tuple))
def test_no_chunk_lies_in_two_blocks(blocks: tuple[int, ...]) -> None:
    rows = chunk_rows(blocks)
    bounds = list(accumulate(blocks))[:-1]
    assert all(bound % rows == 0 for bound in bounds)
    larger = range(rows + 1, sum(blocks) + 1)
    assert not bounds or all(any(bound % size for bound in bounds) for size in larger)
    assert bounds or rows == sum(blocks)


def test_blocks_shrink_where_answers_are_wider_than_rows(
    run: Run, write: Write, tmp_path: Path, out: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(960, 1)).astype("f4")
    place = write("narrow.zarr", x, rows=10)
    model = tmp_path / "wide.npz"
    k = 30
    means = np.linspace(-2, 2, k)[:, None]
    wide = GaussianMixture.from_parameters(np.full(k, 1 / k), means, np.ones(k), "spherical")
    wide.save(model)
    # 240 rows of 4 bytes fit a block, and 480 answers of 8 bytes would take four of its size.
    run("predict", place, model, "--out", out, "--block-size", 30 * 8 * 20, "--proba")
    assert opened(out).chunks == (20, k)
    run("predict", place, model, "--out", out, "--block-size", 8 * 40, "--overwrite")
    assert opened(out).chunks == (40,)


def test_omitted_rows_have_no_answer(
    run: Run, write: Write, model: str, out: Path, values: Array, fitted: GaussianMixture
) -> None:
    holes = values.copy()
    holes[5:205, 1] = np.nan
    place = write("holes.zarr", holes)
    assert run("predict", place, model, "--out", out).exit_code == 4
    assert not out.exists()
    words: tuple[object, ...] = ("--nan-policy", "omit", "--block-size", 1)
    assert run("predict", place, model, "--out", out, *words).exit_code == 0
    expected = fitted.predict(values)
    expected[5:205] = -1
    np.testing.assert_array_equal(opened(out)[:], expected)
    assert opened(out).nchunks_initialized == 7  # a chunk without any answer is written all the same
    words += ("--proba", "--overwrite")
    assert run("predict", place, model, "--out", out, *words).exit_code == 0
    np.testing.assert_array_equal(np.isnan(opened(out)[:, 0]), expected == -1)


def test_an_array_is_replaced_by_a_whole_one_only(
    run: Run, write: Write, data: str, bad: str, model: str, out: Path, tmp_path: Path
) -> None:
    old = np.array([3, 1, 4])
    write("out.zarr", old)
    before = names(tmp_path)
    refused = run("predict", data, model, "--out", out)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    np.testing.assert_array_equal(opened(out)[:], old)

    failed = run("predict", bad, model, "--out", out, "--overwrite", "--block-size", 1)
    assert (failed.exit_code, failed.stdout) == (4, "")
    assert "row(s) 640" in failed.stderr
    np.testing.assert_array_equal(opened(out)[:], old)
    assert names(tmp_path) == before

    assert run("predict", data, model, "--out", out, "--overwrite").exit_code == 0
    assert opened(out).shape == (650,)
    assert names(tmp_path) == before  # nothing beside OUT, and not the old array


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 5), (ZeroDivisionError, 1), (MemoryError, 1)])
def test_nothing_is_left_after_an_interrupt_or_error(
    run: Run,
    data: str,
    model: str,
    out: Path,
    tmp_path: Path,
    watch: Watch,
    error: type[BaseException],
    code: int,
) -> None:
    seen: list[bool] = []

    def fails_late(_: int) -> None:
        seen.append(any(name.startswith("out.zarr.daskgmm-") for name in names(tmp_path)))
        if len(seen) == 6:
            raise error

    watch(fails_late)
    before = names(tmp_path)
    result = run("predict", data, model, "--out", out, "--block-size", 1)
    assert (result.exit_code, result.stdout) == (code, "")
    assert len(seen) >= 6
    assert all(seen)  # blocks were written beside OUT meanwhile
    assert names(tmp_path) == before


def test_no_block_is_written_after_the_end(run: Run, data: str, model: str, tmp_path: Path, watch: Watch) -> None:
    calls = count()
    finished = []

    def slow_then_failing(block: int) -> None:
        if next(calls) == 1:
            raise ZeroDivisionError
        sleep(0.3)
        finished.append(block)

    watch(slow_then_failing)
    before = names(tmp_path)
    with dask.config.set(num_workers=3):
        result = run("predict", data, model, "--out", tmp_path / "out.zarr", "--block-size", 1)
    ended = len(finished)
    sleep(0.6)
    assert result.exit_code == 1
    assert len(finished) == ended >= 1
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "group"])
def test_only_arrays_are_replaced(run: Run, data: str, model: str, out: Path, tmp_path: Path, kind: str) -> None:
    place = out
    if kind == "file":
        place.write_text("mine")
    elif kind == "folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    else:
        zarr.create_group(str(place))
    before = names(tmp_path)
    result = run("predict", data, model, "--out", out, "--overwrite")
    assert result.exit_code == 2
    assert f"{place} is in the way" in result.stderr
    assert names(tmp_path) == before
    if kind == "folder":
        assert (place / "mine").read_text() == "mine"


@pytest.mark.parametrize("out", ["data.zarr", "data.zarr/labels", ".", "link.zarr"])
def test_an_output_never_overlaps_with_the_input(
    run: Run, data: str, model: str, tmp_path: Path, out: str, values: Array
) -> None:
    (tmp_path / "link.zarr").symlink_to("data.zarr")
    result = run("predict", data, model, "--out", tmp_path / out, "--overwrite")
    assert result.exit_code == 2
    assert "overlaps with the input" in result.stderr
    np.testing.assert_array_equal(opened(data)[:], values)


def test_labels_may_lie_beside_the_rows_in_their_group(run: Run, data: str, model: str, tmp_path: Path) -> None:
    group = tmp_path / "group.zarr"
    zarr.create_group(str(group))
    Path(data).rename(group / "x")
    result = run("predict", group, model, "--array", "x", "--out", group / "labels")
    assert result.exit_code == 0, result.stderr
    assert {name for name, _ in zarr.open_group(str(group), mode="r").members()} == {"x", "labels"}


def test_a_url_is_complete_last(
    run: Run,
    data: str,
    bad: str,
    model: str,
    fitted: GaussianMixture,
    values: Array,
    watch: Watch,
) -> None:
    url = f"{KEPT}://daskgmm-predict/labels.zarr"
    seen = []
    watch(lambda block: seen.append(opened(url).attrs["complete"]))
    result = run("predict", data, model, "--out", url, "--block-size", 1)
    assert result.exit_code == 0, result.stderr
    assert seen == [False] * 7
    assert opened(url).attrs["complete"] is True
    np.testing.assert_array_equal(opened(url)[:], fitted.predict(values))

    refused = run("predict", data, model, "--out", url)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    failed = run("predict", bad, model, "--out", url, "--overwrite", "--block-size", 1)
    assert failed.exit_code == 4
    with pytest.raises(FileNotFoundError):
        opened(url)


def test_a_file_url_is_a_path(run: Run, data: str, model: str, out: Path) -> None:
    result = run("predict", f"file://{data}", model, "--out", f"file://{out}")
    assert result.exit_code == 0, result.stderr
    assert opened(out).shape == (650,)
    assert run("predict", data, model, "--out", f"file://{data}", "--overwrite").exit_code == 2


def _wide(write: Write, model: str) -> tuple[object, ...]:
    return write("wide.zarr", np.zeros((10, 4))), model


QUERY_FAULTS: dict[str, tuple[Callable[[Write, str], tuple[object, ...]], int, str]] = {
    "no store": (lambda write, m: ("nowhere.zarr", m), 4, "There is no Zarr array at"),
    "features": (_wide, 4, "X has 4 features, but GaussianMixture is expecting 3"),
    "1d": (lambda write, m: (write("x", np.zeros(9)), m), 4, "Expected 2D array"),
    "no model": (lambda write, m: (write("x", np.zeros((9, 3))), "no.npz"), 4, "no.npz"),
    "one word": (lambda write, m: (m,), 2, "Missing argument"),
}


@pytest.mark.parametrize("command", ["predict", "score"])
@pytest.mark.parametrize("case", QUERY_FAULTS)
def test_faults_of_queries(
    run: Run, write: Write, model: str, out: Path, tmp_path: Path, case: str, command: str
) -> None:
    make, code, message = QUERY_FAULTS[case]
    words = make(write, model)
    before = names(tmp_path)
    result = run(command, *words, *(("--out", out) if command == "predict" else ()))
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert message in result.stderr
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("place", "message"),
    [("no/where.zarr", "there is no folder"), ("what://x", "Protocol not known")],
)
def test_an_output_that_cannot_be_is_wrong_usage(
    run: Run, data: str, model: str, place: str, message: str
) -> None:
    result = run("predict", data, model, "--out", place)
    assert result.exit_code == 2
    assert message in result.stderr


def test_score_says_what_the_estimator_says(
    run: Run, data: str, model: str, fitted: GaussianMixture, values: Array
) -> None:
    result = run("score", data, model, "--json", "--icl")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.pop("seconds") > 0
    assert found.pop("accounting")["score"]["bytes_read"] == values.nbytes
    assert found == {
        "log_likelihood": pytest.approx(fitted.score(values), rel=1e-13),
        "n_rows": 650,
        "total_weight": 650,
        "aic": pytest.approx(fitted.aic(values), rel=1e-13),
        "bic": pytest.approx(fitted.bic(values), rel=1e-13),
        "icl": pytest.approx(fitted.icl(values), rel=1e-13),
    }
    assert "icl" not in json.loads(run("score", data, model, "--json").stdout)


def test_score_takes_weights(
    run: Run, write: Write, data: str, model: str, fitted: GaussianMixture, values: Array
) -> None:
    weight = np.random.default_rng(2).uniform(size=650)
    place = write("weights.zarr", weight, rows=99)
    found = json.loads(run("score", data, model, "--weights", place, "--json").stdout)
    assert found["log_likelihood"] == pytest.approx(fitted.score(values, sample_weight=weight))
    assert found["bic"] == pytest.approx(fitted.bic(values, sample_weight=weight))
    assert found["total_weight"] == pytest.approx(math.fsum(weight))
    none = write("none.zarr", np.zeros(650))
    result = run("score", data, model, "--weights", none)
    assert (result.exit_code, result.stdout) == (4, "")


def test_info(run: Run, model: str, fitted: GaussianMixture) -> None:
    result = run("info", model, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["weights"] == fitted.weights_.tolist()
    assert (found["n_components"], found["n_features"], found["n_parameters"]) == (3, 3, 29)
    assert found["settings"]["random_state"] == 0
    assert found["log_likelihood"] == fitted.lower_bound_
    assert (found["rows"], found["bic"]) == (650, fitted.bic_)
    heaviest = found["components"][0]
    assert heaviest["mean"] == fitted.means_[heaviest["component"]].tolist()
    lines = run("info", model).stdout.splitlines()
    assert lines[-5:] == ["", *fitted.summary().table.splitlines()]
    assert all(len(line) <= 79 for line in lines if not line.startswith("model"))
    assert any(line.split() == ["passes", str(fitted.n_passes_)] for line in lines)


def test_info_tells_what_went_with_the_rows(run: Run, values: Array, model: str, out: Path) -> None:
    GaussianMixture(1).fit(values, noise=np.ones(values.shape)).save(out)
    assert json.loads(run("info", out, "--json").stdout)["beside"] == "noise"
    assert re.search(r"^fitted with +noise$", run("info", out).stdout, re.MULTILINE)
    assert "beside" not in json.loads(run("info", model, "--json").stdout)


def test_info_has_the_background(run: Run, model: str, data: str, out: Path) -> None:
    result = run("fit", data, "-k", 2, "--seed", 0, "--max-iter", 2, "--background", "--out", out)
    assert result.exit_code in (0, 3), result.stderr
    found = json.loads(run("info", out, "--json").stdout)
    assert found["background_weight"] == GaussianMixture.load(out).background_weight_
    assert run("info", out).stdout.splitlines()[-1].startswith("background ")
    assert json.loads(run("info", model, "--json").stdout)["background_weight"] == 0


@pytest.mark.parametrize("online", [(), ("--online",)])
def test_info_of_a_checkpoint(run: Run, data: str, tmp_path: Path, online: tuple[str, ...]) -> None:
    words = ("fit", data, "-k", 3, "--seed", 0, "--max-iter", 2, "--tol", 0, "--verbose", *online)
    place, out = tmp_path / "fit.ckpt", tmp_path / "out.npz"
    before = run(*words, "--out", out, "--checkpoint", place)
    assert before.exit_code in (0, 3)
    result = run("info", place, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    model = (MiniBatchGaussianMixture if online else GaussianMixture).load(out)
    found = json.loads(result.stdout)
    given = found.pop("options")
    assert (given.pop("--online", False), given["--tol"], given["--seed"]) == (bool(online), 0, 0)
    assert (found["data"].pop("rows"), found.pop("data")["X's dtype"]) == (650, "<f8")
    assert found == {
        "checkpoint": str(place),
        "estimator": type(model).__name__,
        "n_components": 3,
        "covariance_type": "full",
        "n_rows": zarr.open_array(data).shape[0],
        "finished": True,
        "n_passes": model.n_passes_,
        "n_runs": 1,
        "n_runs_ended": 1,
        "n_iter": model.n_iter_,
        "log_likelihood": model.lower_bound_,
        **({"n_samples_seen": model.n_samples_seen_} if isinstance(model, MiniBatchGaussianMixture) else {}),
    }
    # The command that it prints goes on.
    (line,) = [line for line in run("info", place).stdout.splitlines() if line.startswith("goes on with")]
    _, *command = shlex.split(line.removeprefix("goes on with"))
    again = run(*({"DATA": data, "OUT": out}.get(word, word) for word in command), "--overwrite")
    told = f"The fit is finished, from {place}; passes over the rows so far: {model.n_passes_}."
    assert again.stderr.startswith(f"{told} The rows were not read.\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_info_tells_all_that_a_checkpoint_compares(
    run: Run, write: Write, data: str, tmp_path: Path, as_json: bool
) -> None:
    place, weights = tmp_path / "c", write("w.zarr", np.ones(650))
    np.save(tmp_path / "means.npy", np.eye(3))
    words = (
        "--means-init",
        tmp_path / "means.npy",
        "--weights",
        weights,
        "--nan-policy",
        "omit",
        "--tol",
        1.2345678e-4,
    )
    fitted = run("fit", data, "-k", 3, "--seed", 0, *words, "--out", tmp_path / "out.npz", "--checkpoint", place)
    assert fitted.exit_code == 0, fitted.stderr
    found = checkpoint.read(place, State)
    assert found is not None
    told = re.sub(r"\s+", " ", run("info", place, *["--json"] * as_json).stdout)
    for name, value in found[0].items():
        if value in (None, False) or name in ("estimator", "omit_nan", "decode_cf"):
            continue
        option = "--seed" if name == "random_state" else f"--{name.replace('_', '-')}"
        assert option in told or name in told, name
        shown = json.dumps(value) if as_json and name not in ("means_init",) else str(value)
        assert shown.replace('"', "") in told.replace('"', "").replace("=yes", "True"), name
    if not as_json:
        assert "--means-init PATH" in told
        assert "--weights PATH" in told
    assert ("--nan-policy" in told, "sample_weight's dtype" in told) == (True, True)


def test_info_of_what_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_text("nothing")
    zarr.create_array(tmp_path / "x.zarr", shape=(3, 2), dtype="f8")
    zarr.create_group(tmp_path / "g.zarr").create_array("x", shape=(3, 2), dtype="f8")
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    (tmp_path / "model").write_bytes(b"PK damaged")
    for place, message in (
        (tmp_path / "no.npz", "is not a model"),
        (f"local://{tmp_path}/no.npz", "is not a model"),
        (tmp_path / "none.npz", "No such file"),
        (tmp_path / "x.zarr", "x.zarr is data: Zarr array (format 3), float64 of shape (3, 2)."),
        (tmp_path / "x.zarr", "Of data, daskgmm check tells more"),
        (tmp_path / "x.npy", "x.npy is data: NumPy file, float64 of shape (3, 2)."),
        (tmp_path / "g.zarr", "g.zarr is a Zarr group, not an array. Its arrays are:\n    x (3, 2) float64"),
        (tmp_path / "model", "is not a model"),
        (tmp_path, "is a folder"),
    ):
        result = run("info", place)
        assert (result.exit_code, result.stdout) == (4, "")
        assert message in result.stderr


def test_a_checkpoint_tells_what_is_known_frozen_and_beside(write: Any, run: Any, tmp_path: Any) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    data, labels = write("x", x), write("known", np.arange(60) % 3 - 1)
    means = str(tmp_path / "means.npy")
    np.save(means, [[0.0, 0.0], [1.0, 1.0]])
    place, out = str(tmp_path / "c"), str(tmp_path / "m.npz")
    how = ("-k", 2, "--seed", 0, "--background", "--frozen", "means", "--means-init", means, "--tol", 1)
    run("fit", data, "--out", out, *how, "--known", labels, "--checkpoint", place)
    (line,) = [line for line in run("info", place).stdout.splitlines() if line.startswith("goes on with")]
    for words in ("--background", "--frozen means", "--means-init PATH", "--known PATH"):
        assert words in line


def test_a_posterior_is_told_as_one(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    place, saved = tmp_path / "c", tmp_path / "bayesian.npz"
    fitted = BayesianGaussianMixture(4, random_state=0, tol=1.0, checkpoint=place).fit(data)
    fitted.save(saved)
    told = json.loads(run("info", saved, "--json").stdout)
    assert told["lower_bound"] == fitted.lower_bound_
    assert not {"bic", "aic", "log_likelihood"} & told.keys()
    scored = json.loads(run("score", data, saved, "--icl", "--json").stdout)
    assert scored["log_likelihood"] == pytest.approx(fitted.score(data), rel=1e-12)
    assert not {"bic", "aic", "icl"} & scored.keys()
    assert run("predict", data, saved, "--out", out).exit_code == 0
    np.testing.assert_array_equal(zarr.open_array(out)[:], fitted.predict(data).compute())
    standing = json.loads(run("info", place, "--json").stdout)
    assert standing["lower_bound"] == fitted.lower_bound_
    assert "daskgmm fit DATA --out OUT --checkpoint" in run("info", place).stdout
