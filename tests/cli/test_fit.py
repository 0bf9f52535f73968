"""`daskgmm fit` does what the estimator does, and leaves a whole model or none."""

from __future__ import annotations

import json
import math
import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import Result

from daskgmm import GaussianMixture, load, watching
from daskgmm._typing import Array
from daskgmm.cli import main
from daskgmm.fit.events import Event, Reached
from tests.listeners import Heard

Run = Callable[..., Result]
Write = Callable[..., str]


def same_parameters(a: GaussianMixture, b: GaussianMixture) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in ("weights_", "means_", "covariances_"))
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.npz"


def untouched(folder: Path, before: set[str]) -> bool:
    """Whether a command left nothing behind, whole or partial."""
    return {path.name for path in folder.iterdir()} == before


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_the_model_is_the_one_the_estimator_finds(run: Run, data: str, out: Path, kind: Any) -> None:
    result = run("fit", data, "-k", 3, "--covariance-type", kind, "--seed", 7, "--out", out)
    assert result.exit_code == 0, result.stderr
    expected = GaussianMixture(3, covariance_type=kind, random_state=7).fit(data)
    assert same_parameters(GaussianMixture.load(out), expected)


def test_json_is_one_object_and_standard_error_stays_empty(run: Run, data: str, values: Array, out: Path) -> None:
    result = run("fit", data, "-k", 3, "--seed", 0, "--out", out, "--json")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    model = GaussianMixture.load(out)
    assert found.pop("seconds") > 0
    cost = found.pop("accounting")
    assert (cost["total"]["passes"], cost["survey"]["passes"]) == (found["n_passes"], 1)
    assert cost["total"]["bytes_read"] == values.nbytes
    assert found == {
        "out": str(out),
        "n_rows": 650,
        "total_weight": 650,
        "n_features": 3,
        "n_components": 3,
        "covariance_type": "full",
        "converged": True,
        "n_iter": model.n_iter_,
        "n_passes": model.n_passes_,
        "log_likelihood": model.lower_bound_,
        "remaining": model.remaining_,
    }


def test_rows_that_are_left_out_are_told(run: Run, write: Callable[..., str], values: Array, out: Path) -> None:
    holes = values.copy()
    holes[::10, 1] = np.nan
    words = ("-k", 2, "--nan-policy", "omit", "--seed", 0, "--json", "--out", out, "--overwrite")
    for command in ("fit", "select"):
        found = json.loads(run(command, write(f"{command}.zarr", holes), *words).stdout)
        assert (found["n_rows"], found["total_weight"]) == (650, 585)


def test_the_total_weight_is_that_of_the_rows_or_unknown(
    run: Run, data: str, write: Write, values: Array, out: Path
) -> None:
    words = ("-k", 2, "--weights", write("half", np.full(len(values), 0.5)), "--seed", 0, "--json", "--overwrite")
    batch, online = (
        json.loads(run("fit", data, *words, *more, "--out", out).stdout) for more in ((), ("--online",))
    )
    assert (batch["n_rows"], batch["total_weight"]) == (650, 325)
    assert (online["n_rows"], online["total_weight"]) == (650, None)


@pytest.mark.parametrize("passes", [1, 3])
def test_one_pass_of_online_em_cannot_tell_whether_it_converged(
    run: Run, data: str, out: Path, passes: int
) -> None:
    words = ("--online", "--max-iter", passes, "--tol", 1e-9, "--seed", 0, "--json", "--out", out)
    found = json.loads(run("fit", data, "-k", 2, *words).stdout)["converged"]
    assert found is (None if passes == 1 else load(out).converged_)
    assert json.loads(run("info", out, "--json").stdout)["converged"] is found
    assert load(out).summary().facts.get("converged") is found


def test_names_for_the_columns_of_a_store(run: Run, data: str, out: Path) -> None:
    result = run("fit", data, "-k", 2, "--seed", 0, "--variables", "u,g,r", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert run("info", out).stdout.splitlines()[-3].split()[-3:] == ["u", "g", "r"]


def test_the_table_is_aligned(run: Run, data: str, out: Path) -> None:
    result = run("fit", data, "-k", 3, "--seed", 0, "--out", out)
    lines = result.stdout.splitlines()
    assert dict(line.split("  ", 1) for line in lines)["converged"].strip() == "yes"
    # A value begins where the widest name and two blanks end.
    width = len("covariance type  ")
    assert all(line[width - 2 : width] == "  " and line[width] != " " for line in lines)


def test_every_parameter_of_the_estimator_is_an_option() -> None:
    options, apart = (
        {p.name for p in main.commands["fit"].params},
        {"feature_dim", "storage_options"},
    )
    assert set(GaussianMixture().get_params()) - apart <= options
    assert "storage" in options


def test_every_setting_reaches_the_estimator(run: Run, data: str, out: Path) -> None:
    settings: dict[str, Any] = {
        "n_components": 2,
        "covariance_type": "diag",
        "tol": 0.5,
        "reg_covar": 0.01,
        "acceleration": "squarem",
        "max_iter": 7,
        "n_init": 3,
        "init_params": "random_from_data",
        "random_state": 5,
        "block_size": "2 KiB",
        "nan_policy": "omit",
        "missing_chunks": "fill",
    }
    words: list[object] = []
    for name, value in settings.items():
        option = "seed" if name == "random_state" else name.replace("_", "-")
        words += [f"--{option}", value]
    result = run("fit", data, *words, "--out", out)
    assert result.exit_code == 0, result.stderr
    found = GaussianMixture.load(out).get_params()
    assert {name: found[name] for name in settings} == settings


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_parameters_to_start_from(
    run: Run, write: Write, data: str, out: Path, tmp_path: Path, suffix: str
) -> None:
    start = {
        "weights": np.array([0.25, 0.75]),
        "means": np.array([[0.0, 0, 0], [2, 2, 2]]),
        "precisions": np.array([[1.0, 2, 3], [4, 5, 6]]),
    }
    words: list[object] = []
    for name, value in start.items():
        place = str(tmp_path / f"{name}.npy")
        if suffix == "npy":
            np.save(place, value)
        else:
            place = write(f"{name}.zarr", value)
        words += [f"--{name}-init", place]
    words += ["--covariance-type", "diag", "--max-iter", 0, "--json"]
    result = run("fit", data, "-k", 2, *words, "--out", out)
    assert result.exit_code == 0, result.stderr  # the asked passes were made
    model = GaussianMixture.load(out)
    np.testing.assert_array_equal(model.weights_, start["weights"])
    np.testing.assert_array_equal(model.means_, start["means"])
    np.testing.assert_allclose(model.precisions_, start["precisions"], rtol=1e-14)
    found = json.loads(result.stdout)  # no E-step, no log-likelihood: JSON has no infinity
    assert (found["log_likelihood"], found["converged"], found["n_iter"]) == (None, False, 0)


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize("option", ["weights", "labels-init", "responsibilities-init"])
def test_values_that_go_with_the_rows(
    run: Run, write: Write, data: str, out: Path, tmp_path: Path, option: str, suffix: str
) -> None:
    random = np.random.default_rng(1)
    value = {
        "weights": random.uniform(size=650),
        "labels-init": random.integers(2, size=650),
        "responsibilities-init": random.dirichlet([1, 1], size=650),
    }[option]
    place = str(tmp_path / "value.npy")
    if suffix == "npy":
        np.save(place, value)
    else:
        place = write("value.zarr", value, rows=130)  # other chunks than the rows
    words = ("-k", 2, "--seed", 0, "--max-iter", 2, "--tol", 10)
    result = run("fit", data, *words, f"--{option}", place, "--out", out)
    assert result.exit_code == 0, result.stderr
    expected = GaussianMixture(2, random_state=0, max_iter=2, tol=10)
    if option == "weights":
        expected.fit(data, sample_weight=value)
    else:
        expected.set_params(**{option.replace("-", "_"): value}).fit(data)
    assert same_parameters(GaussianMixture.load(out), expected)


def test_a_warm_start_goes_on_with_the_settings_of_the_model(
    run: Run, data: str, out: Path, tmp_path: Path
) -> None:
    words = ("--reg-covar", 1e-4, "--tol", 0, "--seed", 0)
    first = tmp_path / "first.npz"
    assert run("fit", data, "-k", 3, *words, "--max-iter", 2, "--out", first).exit_code == 3
    result = run("fit", data, "--warm-start", first, "--max-iter", 3, "--out", out, "--json")
    assert result.exit_code == 3, result.stderr
    assert json.loads(result.stdout)["n_passes"] == 3  # no survey
    whole = tmp_path / "whole.npz"
    run("fit", data, "-k", 3, *words, "--max-iter", 5, "--out", whole)
    found = GaussianMixture.load(out)
    assert same_parameters(found, GaussianMixture.load(whole))
    # It was asked of that command alone: a later fit of the loaded model starts afresh.
    assert (found.reg_covar, found.warm_start) == (1e-4, False)


def test_a_warm_start_of_another_kind_keeps_the_background(
    run: Run, write: Callable[..., str], values: Array, tmp_path: Path
) -> None:
    outliers = np.random.default_rng(0).uniform(-40, 40, size=(100, values.shape[1]))
    x = np.concatenate([values, outliers])
    np.random.default_rng(1).shuffle(x)
    data, batch, online = write("spread.zarr", x), tmp_path / "batch.npz", tmp_path / "online.npz"
    how = ("-k", 3, "--seed", 0, "--background", "--nan-policy", "omit")
    assert run("fit", data, *how, "--out", batch).exit_code == 0
    share = GaussianMixture.load(batch).background_weight_
    assert share > 0.1
    for last, words, out in ((batch, ("--online",), online), (online, (), tmp_path / "again.npz")):
        result = run("fit", data, "--warm-start", last, *words, "--out", out)
        assert result.exit_code in (0, 3), result.stderr
        found = load(out)
        assert (found.background, found.nan_policy) == (True, "omit")
        assert found.background_weight_ == pytest.approx(share, abs=0.01)


def test_not_converged_is_exit_code_3_with_a_model(run: Run, data: str, out: Path) -> None:
    result = run("fit", data, "-k", 3, "--tol", 0, "--max-iter", 2, "--out", out, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["converged"] is False
    assert GaussianMixture.load(out).n_iter_ == 2
    # One line, and no Python warning.
    assert result.stderr.startswith("Not converged after 2 iterations")
    assert result.stderr.count("\n") == 1


def test_verbose_logs_a_line_per_interval(run: Run, data: str, out: Path) -> None:
    words = ("fit", data, "-k", 3, "--tol", 0, "--max-iter", 5, "--out", out, "--overwrite", "-v")
    lines = run(*words).stderr.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["stage", "survey", "seeding"]
    trace = GaussianMixture.load(out).lower_bounds_
    told = [line.split() for line in lines if line.startswith("iteration")]
    assert [int(words[1]) for words in told] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([float(words[2]) for words in told], trace, rtol=1e-7)
    changes = [float(words[3]) for words in told[1:]]  # the first has nothing to compare with
    np.testing.assert_allclose(changes, np.diff(trace), rtol=0.01)

    lines = run(*words, "--verbose-interval", 2).stderr.splitlines()
    told = [line.split() for line in lines if line.startswith("iteration")]
    assert [int(words[1]) for words in told] == [2, 4, 5]  # and the last


def test_errors_name_options(run: Run, write: Write, values: Array, out: Path, tmp_path: Path) -> None:
    place, data = tmp_path / "max_iter", write("data.zarr", values)
    words = ("fit", data, "-k", 3, "--out", out, "--checkpoint", place)
    result = run(*words, "--seed", 0, "--max-iter", 2, "--tol", 0)
    assert result.stderr.endswith("To go on: the same command, a larger --max-iter and --overwrite\n")
    result = run(*words, "--seed", 1, "--max-iter", 1, "--tol", 0, "--overwrite")
    assert result.exit_code == 4
    assert (
        f"{place} is of another fit:\n    --max-iter: 2 there, 1 now\n    --seed: 0 there, 1 now\n"
        in result.stderr
    )
    assert "only --max-iter may be larger, and --tol smaller" in result.stderr
    (Path(data) / "c/1/0").unlink()
    result = run("fit", data, "-k", 3, "--out", out, "--overwrite")
    assert result.exit_code == 4
    assert "Set --missing-chunks fill to" in result.stderr


def test_a_checkpoint_in_use_is_to_be_tried_again(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    results: list[Result] = []

    def meanwhile(event: Event) -> None:
        if isinstance(event, Reached) and not results:
            results.append(run("fit", data, "-k", 3, "--out", out, "--checkpoint", place))

    with watching(meanwhile):
        GaussianMixture(3, checkpoint=place).fit(data)
    (result,) = results
    assert result.exit_code == 5
    assert f"Another process is writing the checkpoint {place}. Wait until it has ended" in result.stderr
    assert not out.exists()
    assert run("fit", data, "-k", 3, "--out", out, "--checkpoint", place).exit_code == 0


def test_array_names_a_member_of_a_group(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "group.zarr"))
    (tmp_path / "data.zarr").rename(tmp_path / "group.zarr" / "x")
    group = tmp_path / "group.zarr"
    result = run("fit", group, "--array", "x", "-k", 3, "--seed", 0, "--out", out)
    assert result.exit_code == 0, result.stderr
    again = tmp_path / "again.npz"
    result = run("fit", group, "-k", 3, "--out", again)
    assert result.exit_code == 4
    assert "x (650, 3) float64" in result.stderr
    assert not again.exists()


def test_an_output_is_replaced_by_a_whole_one_only(
    run: Run, write: Write, data: str, out: Path, values: Array
) -> None:
    out.write_text("old")
    words = ("-k", 3, "--seed", 0, "--out", out)
    refused = run("fit", data, *words)
    assert (refused.exit_code, out.read_text()) == (2, "old")
    assert "--overwrite" in refused.stderr

    bad = values.copy()
    bad[432, 1] = np.nan
    failed = run("fit", write("bad.zarr", bad), *words, "--overwrite")
    assert (failed.exit_code, out.read_text()) == (4, "old")

    assert run("fit", data, *words, "--overwrite").exit_code == 0
    assert GaussianMixture.load(out).n_components == 3


USAGE: dict[str, tuple[tuple[object, ...], str]] = {
    "no k": ((), "'-k' / '--n-components'"),
    "k=0": (("-k", 0), "0 is not in the range x>=1"),
    "tol<0": (("-k", 2, "--tol", -1), "-1.0 is not in the range x>=0"),
    "tol=nan": (("-k", 2, "--tol", "nan"), "'tol' parameter"),
    "covariance": (("-k", 2, "--covariance-type", "round"), "'round' is not one of"),
    "block size": (("-k", 2, "--block-size", "much"), "'64 MiB'"),
    "no bytes": (("-k", 2, "--block-size", "0"), "'64 MiB'"),
    "seed": (("-k", 2, "--seed", -1), "not in the range"),
    "two starts": (("-k", 2, "--labels-init", "a", "--responsibilities-init", "b"), "not both"),
    "warm k": (("-k", 2, "--warm-start", "m"), "--n-components has no meaning"),
    "warm means": (("--means-init", "x", "--warm-start", "m"), "--means-init has no meaning"),
    "no url": (("-k", 2, "--storage-option", "anon=true"), "there is none"),
    "no pair": (("-k", 2, "--storage-option", "anon"), "KEY=VALUE"),
    "deep": (("-k", 2, "--storage-option", "a=" + "[" * 100_000), "nested too deeply"),
    "unknown": (("-k", 2, "--speed", "high"), "No such option"),
    "out url": (("-k", 2, "--out", "local://out.npz"), "not to a URL"),
    "out folder": (("-k", 2, "--out", "."), "is a directory"),
    "out nowhere": (("-k", 2, "--out", "no/where.npz"), "there is no folder"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_exit_code_2(run: Run, data: str, out: Path, tmp_path: Path, case: str) -> None:
    words, message = USAGE[case]
    before = names(tmp_path)
    result = run("fit", data, "--out", out, *words)  # a later --out wins
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert untouched(tmp_path, before)


def npy(place: Path, shape: tuple[int, ...], dtype: str = "<f8") -> str:
    """A file that declares an array of this shape, and holds none of it."""
    with place.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    with suppress(OSError):  # where the file system can hold it: a hole
        os.truncate(place, place.stat().st_size + math.prod(shape) * 8)
    return str(place)


def zarray(place: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> str:
    """A store that declares an array, and holds none of it."""
    zarr.create_array(str(place), shape=shape, chunks=chunks, dtype="f8")
    return str(place)


HUGE = 10**12
DECLARED: dict[str, tuple[str, Callable[[Path], str]]] = {
    "npy": ("means", lambda place: npy(place, (HUGE,))),
    "wide npy": ("means", lambda place: npy(place, (2, HUGE))),
    "other npy": ("means", lambda place: npy(place, (2, 4))),
    "zarr": ("precisions", lambda place: zarray(place, (HUGE,), (250,))),
    "other zarr": ("precisions", lambda place: zarray(place, (2, 3), (2, 3))),
    "chunks": ("weights", lambda place: zarray(place, (2,), (HUGE,))),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", DECLARED)
def test_a_start_of_another_shape_is_wrong_usage_before_it_is_read(
    run: Run, data: str, out: Path, tmp_path: Path, case: str
) -> None:
    name, make = DECLARED[case]
    place = make(tmp_path / ("start.npy" if "npy" in case else "start.zarr"))
    tracemalloc.start()
    try:
        result = run("fit", data, "-k", 2, f"--{name}-init", place, "--out", out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result.exit_code, result.stdout, peak < 2**26) == (2, "", True), result.stderr
    assert place in result.stderr
    assert "of shape (2," in result.stderr or "too large to read (2,)" in result.stderr


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("option", "shape"),
    [("weights", (649,)), ("weights", (HUGE,)), ("labels-init", (650, 2)), ("responsibilities-init", (650, 3))],
)
@pytest.mark.parametrize("make", [npy, lambda place, shape: zarray(place, shape, shape)])
def test_values_of_another_length_are_told_before_the_fit(
    run: Run, data: str, out: Path, tmp_path: Path, option: str, shape: tuple[int, ...], make: Any
) -> None:
    place = make(tmp_path / "values.npy" if make is npy else tmp_path / "values", shape)
    heard = Heard()
    with watching(heard):
        result = run("fit", data, "-k", 2, f"--{option}", place, "--out", out)
    assert (result.exit_code, heard.events) == (4, []), result.stderr
    assert f"{place} has shape {shape}, expected (650" in result.stderr


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_waited_on(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    result = run("fit", data, "-k", 2, "--means-init", tmp_path / "pipe.npy", "--out", out)
    assert (result.exit_code, "is no file" in result.stderr) == (4, True)


def _nan(write: Write, values: Array) -> tuple[object, ...]:
    values[[432, 433], 1] = np.nan
    return (write("bad.zarr", values), "-k", 2)


def _lost_chunk(write: Write, values: Array) -> tuple[object, ...]:
    place = write("bad.zarr", values)
    (Path(place) / "c" / "3" / "0").unlink()
    return (place, "-k", 2)


def _damaged(write: Write, values: Array) -> tuple[object, ...]:
    place = write("bad.zarr", values)
    (Path(place) / "zarr.json").write_text("{")
    return (place, "-k", 2)


def _negative(write: Write, values: Array) -> tuple[object, ...]:
    return (write("x", values), "-k", 2, "--weights", write("w", np.arange(650.0) - 1))


def _short_weights(write: Write, values: Array) -> tuple[object, ...]:
    return (write("x", values), "-k", 2, "--weights", write("w", np.ones(649)))


def _collapse(write: Write, values: Array) -> tuple[object, ...]:
    values[:, 2] = 1.0
    return (write("bad.zarr", values), "-k", 2, "--reg-covar", 0)


def _pickle(write: Write, values: Array) -> tuple[object, ...]:
    place = write("x", values)
    np.save(f"{place}.npy", np.array([{}], dtype=object), allow_pickle=True)
    return (place, "-k", 2, "--means-init", f"{place}.npy")


def _strings(write: Write, values: Array) -> tuple[object, ...]:
    place = write("x", values)
    np.save(f"{place}.npy", np.array(["a", "b"]))
    return (place, "-k", 2, "--weights-init", f"{place}.npy")


def _not_a_model(write: Write, values: Array) -> tuple[object, ...]:
    place = write("x", values)
    np.savez(f"{place}.npz", values)
    return (place, "--warm-start", f"{place}.npz")


BAD: dict[str, tuple[Callable[[Write, Array], tuple[object, ...]], str]] = {
    "no store": (lambda write, x: ("nowhere.zarr", "-k", 2), "There is no Zarr array at"),
    "protocol": (lambda write, x: ("what://x", "-k", 2), "Protocol not known"),
    "damaged": (_damaged, "cannot be opened"),
    "1d": (lambda write, x: (write("x", x[:, 0]), "-k", 2), "Expected 2D array, got 1D"),
    "complex": (lambda write, x: (write("x", x * 1j), "-k", 2), "Complex data not supported"),
    "nan": (_nan, "block 0, row(s) 432, 433"),
    "lost chunk": (_lost_chunk, "Chunk 'c/3/0'"),
    "few rows": (lambda write, x: (write("x", x[:2]), "-k", 3), "n_samples >= n_components"),
    "collapse": (_collapse, "component"),
    "negative": (_negative, "Negative values in data passed to sample_weight"),
    "short": (_short_weights, "w has shape (649,), expected (650,)"),
    "no npy": (
        lambda write, x: (write("x", x), "-k", 2, "--labels-init", "no.npy"),
        "There is no file",
    ),
    "strings": (_strings, "x.npy: dtype='numeric' is not compatible with arrays of bytes/strings"),
    "pickle": (_pickle, "x.npy holds pickled objects, which are not read"),
    "no model": (lambda write, x: (write("x", x), "--warm-start", "no.npz"), "no.npz cannot be read"),
    "not a model": (_not_a_model, "is not a model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_exit_code_4(
    run: Run, write: Write, values: Array, out: Path, tmp_path: Path, case: str
) -> None:
    make, message = BAD[case]
    words = make(write, values.copy())
    before = names(tmp_path)
    result = run("fit", *words, "--out", out)
    assert (result.exit_code, result.stdout) == (4, ""), result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert untouched(tmp_path, before)


def failing(error: BaseException) -> Callable[[Event], None]:
    """A listener that ends a fit as soon as its runs have begun."""

    def fail(event: Event) -> None:
        if isinstance(event, Reached) and event.state.runs:
            raise error

    return fail


@pytest.mark.parametrize("verbose", [False, True])
def test_an_unexpected_error_is_exit_code_1(run: Run, data: str, out: Path, tmp_path: Path, verbose: bool) -> None:
    before = names(tmp_path)
    with watching(failing(ZeroDivisionError("by nothing"))):
        result = run("fit", data, "-k", 2, "--out", out, *["--verbose"] * verbose)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "ZeroDivisionError: by nothing" in result.stderr
    assert ("Traceback" in result.stderr) == verbose
    assert ("Run again with --verbose" in result.stderr) != verbose
    assert untouched(tmp_path, before)


def test_an_interrupt_is_exit_code_5(run: Run, data: str, out: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    with watching(failing(KeyboardInterrupt())):
        result = run("fit", data, "-k", 2, "--out", out)
    assert (result.exit_code, result.stdout) == (5, "")
    assert "Interrupted" in result.stderr
    assert untouched(tmp_path, before)


def test_a_url_is_read_with_its_storage_options(
    run: Run, out: Path, values: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "memory://daskgmm-fit/x.zarr"
    array = zarr.create_array(place, shape=values.shape, chunks=(100, 3), dtype="f8")
    array[:] = values
    seen = []
    opened = zarr.open

    def watched(*place: Any, **options: Any) -> Any:
        seen.append(options["storage_options"])
        return opened(*place, **options)

    monkeypatch.setattr(zarr, "open", watched)
    pairs = ("anon=true", "size=3", 'name="3"', "word=a=b", "flag=False")
    words = [word for pair in pairs for word in ("--storage-option", pair)]
    result = run("fit", place, "-k", 3, "--seed", 0, "--out", out, *words)
    assert result.exit_code == 0, result.stderr
    expected = {"anon": True, "size": 3, "name": "3", "word": "a=b", "flag": False}
    assert seen
    assert all(options == expected for options in seen)
    assert same_parameters(GaussianMixture.load(out), GaussianMixture(3, random_state=0).fit(array))
