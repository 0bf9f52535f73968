"""The command as a process: exit codes, signals, pipes and terminals."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import dask
import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn
from sklearn.exceptions import ConvergenceWarning

import daskgmm
from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.cli import failure, main
from daskgmm.cli.display import Log, Terminal
from daskgmm.fit.events import Event, Progress, Reached, Stage
from tests.forks import Fork, path
from tests.listeners import Heard

Run = Callable[..., Result]

PROGRAM = 'from daskgmm.cli import main; main(prog_name="daskgmm")'


def start(*words: object, stderr: int | None = None) -> Fork:
    return Fork(PROGRAM, *words, stderr=stderr, TERM="xterm", COLUMNS="80")


@pytest.mark.timeout(90)
def test_a_pipe_gets_json_alone(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    command = [sys.executable, "-c", PROGRAM, *f"fit {data} -k 3 --seed 0 --out {out} --json".split()]
    found = subprocess.run(command, capture_output=True, timeout=80, env={**os.environ, "PYTHONPATH": path()})
    assert (found.returncode, found.stderr) == (0, b"")
    assert json.loads(found.stdout)["n_iter"] == GaussianMixture.load(out).n_iter_


@pytest.mark.timeout(90)
def test_a_missing_store_ends_a_process_with_4(model: str) -> None:
    with start("score", "nowhere.zarr", model) as process:
        told, errors = process.communicate(timeout=60)
    assert (process.returncode, told) == (4, "")
    assert errors.startswith("Error: There is no Zarr array at")


@pytest.mark.timeout(90)
def test_an_interrupt_signal_leaves_the_best_model_so_far_beside_its_place(data: str, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    before = {path.name for path in tmp_path.iterdir()}
    words = ("--tol", 0, "--max-iter", 10**9, "--verbose")
    with start("fit", data, "-k", 3, "--out", out, *words) as process:
        assert process.stderr
        try:
            assert any(line.startswith("iteration 2") for line in process.stderr)
            process.send_signal(signal.SIGINT)
            told, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, told) == (5, "")
    kept = tmp_path / "out.interrupted.npz"
    assert f"Error: Interrupted. The best model so far is in {kept}: --warm-start goes on from it." in errors
    assert {path.name for path in tmp_path.iterdir()} == before | {kept.name}
    assert GaussianMixture.load(kept).n_iter_ >= 2


@pytest.mark.timeout(100)
def test_a_terminated_command_goes_on_where_it_was(data: str, tmp_path: Path) -> None:
    place, whole, out = tmp_path / "c", tmp_path / "whole.npz", tmp_path / "out.npz"
    words = ("fit", data, "-k", 3, "--seed", 0, "--tol", 0, "--max-iter", 300, "--verbose")
    with start(*words, "--out", out, "--checkpoint", place) as process:
        assert process.stderr
        try:
            assert any(line.startswith("iteration 2") for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            told, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, told) == (5, "")
    assert errors.endswith(f"Error: Interrupted. The same command goes on from {place}.\n")
    assert not out.exists()
    runner = CliRunner()
    for file, more in ((out, ("--checkpoint", str(place))), (whole, ())):
        result = runner.invoke(main, [str(word) for word in (*words, "--out", file, *more)])
        assert result.exit_code == 3, result.stderr
        numbers = [int(line.split()[1]) for line in result.stderr.splitlines() if line.startswith("iteration ")]
        assert numbers == list(range(numbers[0], 301))
        assert (numbers[0] == 1) == (file == whole)
    ours, theirs = GaussianMixture.load(out), GaussianMixture.load(whole)
    assert ours.means_.tobytes() == theirs.means_.tobytes()
    assert ours.lower_bounds_ == theirs.lower_bounds_
    assert ours.checkpoint is None


@pytest.mark.timeout(100)
def test_a_terminated_online_fit_goes_on_where_it_was(data: str, tmp_path: Path) -> None:
    place, whole, out = tmp_path / "c", tmp_path / "whole.npz", tmp_path / "out.npz"
    words: tuple[object, ...] = (
        "fit",
        data,
        "-k",
        3,
        "--online",
        "--seed",
        0,
        "--tol",
        0,
        "--max-iter",
        100,
        "--batch-size",
        10,
    )
    words = (*words, "--init-size", 90, "--verbose")  # none are held out, so all passes are made
    with start(*words, "--out", out, "--checkpoint", place) as process:
        assert process.stderr
        try:
            assert any(line.startswith("iteration 2") for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 5
    assert errors.endswith(f"Error: Interrupted. The same command goes on from {place}.\n")
    assert not out.exists()
    runner = CliRunner()
    for file, more in ((out, ("--checkpoint", str(place))), (whole, ())):
        result = runner.invoke(main, [str(word) for word in (*words, "--out", file, *more)])
        assert result.exit_code == 0, result.stderr
    ours, theirs = MiniBatchGaussianMixture.load(out), MiniBatchGaussianMixture.load(whole)
    assert ours.means_.tobytes() == theirs.means_.tobytes()
    assert ours.lower_bounds_ == theirs.lower_bounds_
    assert (ours.n_iter_, ours.n_samples_seen_) == (100, theirs.n_samples_seen_)
    assert ours.checkpoint is None


@pytest.mark.timeout(90)
def test_a_terminal_shows_iterations_and_blocks(data: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = ("-k", 3, "--tol", 0, "--max-iter", 3, "--block-size", 1)
    with start("fit", data, *words, "--out", tmp_path / "out.npz", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        told, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 3
    assert told.startswith("out")  # results only
    text = shown.decode()
    for piece in ("survey", "seeding", "iteration 3", "mean log-likelihood", "Not converged"):
        assert piece in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_messages_break_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"To go on: {'/long' * 20}, --max-iter and more than fits one line, of which there are several.\n  next"
    assert failure.wrapped(text) == text  # no terminal: a line stays a line
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    lines = failure.wrapped(text).splitlines()
    assert {word for line in lines for word in line.split()} == {*text.split()}
    assert [len(line) > 80 for line in lines] == [False, True, False, False]
    assert lines[-1] == "  next"


def a_terminal() -> tuple[Terminal, Bars]:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    bars = Bars(TextColumn("{task.description}|{task.fields[count]}|"), console=console)
    return Terminal(bars), bars


def test_the_survey_fills_a_bar_of_its_own() -> None:
    terminal, bars = a_terminal()
    terminal(Stage("survey"))
    terminal(Progress(1, 7))
    (bar,) = bars.tasks
    assert bar.percentage == pytest.approx(100 / 7)
    assert (bar.description, bar.fields["count"]) == ("survey", "block 1/7")
    terminal(Stage("compiling"))  # within the pass
    assert [bar.description for bar in bars.tasks] == ["compiling the E-step (once)"]
    terminal(Progress(2, 7))
    assert [bar.description for bar in bars.tasks] == ["survey"]


def test_the_bar_goes_on_from_pass_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 2))  # two seconds from one look to the next
    monkeypatch.setattr("daskgmm.display.progress.perf_counter", lambda: float(next(clock)))
    terminal, bars = a_terminal()
    x = np.random.default_rng(0).normal(size=(4000, 2))
    seen: list[tuple[str, float, float | None, str]] = []

    def look(event: Event) -> None:
        terminal(event)
        (bar,) = bars.tasks
        if isinstance(event, Progress) and terminal.course.origin is not None:
            seen.append((bar.description, bar.completed, bar.total, bar.fields["count"]))

    with watching(look), dask.config.set(scheduler="synchronous"), pytest.warns(ConvergenceWarning):
        GaussianMixture(2, tol=0, max_iter=3, acceleration=None, random_state=0, init_params="random").fit(
            da.from_array(x, chunks=(1000, 2))
        )
    done = [completed for _, completed, _, _ in seen]
    assert done == sorted(set(done))  # it never goes back
    assert done[-1] == 4  # the survey is the first
    assert {total for _, _, total, _ in seen} == {4}
    assert {name for name, *_ in seen} == {f"pass {n} of 4" for n in (2, 3, 4)}
    counts = [count for *_, count in seen]
    assert counts[0] == "block 1/4"
    assert all("rows/s" in count and " left" in count for count in counts[1:])
    assert "change" in counts[-1]
    assert "<00:00 left" in counts[-1]
    assert counts[1] == "block 2/4  500.0 rows/s  <00:20 left"  # 1000 rows in two seconds, and 10 blocks to go
    assert max(len(f"{name:<13} {'-' * 8} {count}") for name, _, _, count in seen) <= 80


def test_no_iteration_is_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, told = Heard(), list[str]()
    x = np.random.default_rng(0).normal(size=(400, 2))
    with watching(heard), pytest.warns(ConvergenceWarning):
        GaussianMixture(2, max_iter=4, tol=0, acceleration=None, random_state=0).fit(x)
    first, *rest = (state for state in heard.states if state.n_iter)
    log = Log()
    monkeypatch.setattr(log, "say", told.append)
    # A fit that goes on from a checkpoint and refuses its first pass, and makes one more for the scores.
    for more, state in enumerate([first, first, *rest, rest[-1]]):
        log(Reached(replace(state, n_passes=first.n_passes + more)))
    assert [line.split()[1] for line in told if line.startswith("iteration")] == ["2", "3", "4"]


def test_version_and_help_name_the_exit_codes(run: Run) -> None:
    assert run("--version").stdout == f"daskgmm, version {daskgmm.__version__}\n"
    for words in ((), ("fit",), ("predict",), ("score",), ("info",), ("plot",)):
        result = run(*words, "--help")
        assert result.exit_code == 0
        assert "3  not converged; the model is written" in result.stdout


def test_missing_options_are_told_together(run: Run) -> None:
    told = run("fit")
    assert told.exit_code == 2
    assert "Missing 'DATA', '--out', '-k' / '--n-components'." in told.stderr
    assert "Missing 'DATA', '-k' / '--n-components', '--out'." in run("select").stderr
    assert "Missing argument 'DATA'." in run("fit", "--out", "x.npz", "-k", "3").stderr
    assert "Missing '--out', '-k' / '--n-components'." in run("fit", "x.zarr").stderr
    assert "Missing option '--out'." in run("fit", "x.zarr", "--warm-start", "model.npz").stderr


def test_a_wrong_value_is_told_the_nearest(run: Run, data: str) -> None:
    told = run("fit", data, "-k", 2, "--out", "x.npz", "--covariance-type", "ful")
    assert (told.exit_code, "Did you mean 'full'?" in told.stderr) == (2, True)
    assert "Did you mean" not in run("fit", data, "--covariance-type", "zzz").stderr
    assert "Did you mean" in run("fit", data, "--ouut", "x.npz").stderr


def test_an_output_is_no_stream(run: Run, data: str, model: str) -> None:
    for words in (("fit", data, "-k", 2), ("predict", data, model), ("plot", model), ("score", data, model)):
        told = run(*words, "--out", "-")
        assert (told.exit_code, "never standard output" in told.stderr) == (2, True)


def test_help_is_short_to_ask_for(run: Run) -> None:
    assert run("fit", "-h").stdout == run("fit", "--help").stdout
    assert run("-h").exit_code == 0


def test_exit_codes_hold_below_another_command(model: str) -> None:
    parent = click.Group("dask")
    parent.add_command(main)  # as Dask does with its entry points
    assert main.name == "gmm"
    result = CliRunner().invoke(parent, ["gmm", "score", "nowhere.zarr", model])
    assert result.exit_code == 4
    result = CliRunner().invoke(parent, ["gmm", "info", model, "--json"])
    assert json.loads(result.stdout)["n_components"] == 3
