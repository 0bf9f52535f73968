"""What a fit tells: events in order, to those alone who listen meanwhile; nothing is printed by default."""

import importlib.util
import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from daskgmm.cli.display import Log
from daskgmm.errors import CollapseError
from daskgmm.fit.events import Event, Message, Progress, Reached, Stage, Verbose, standing
from daskgmm.fit.online import Passes
from daskgmm.fit.run import EM
from daskgmm.fit.state import State
from daskgmm.model.update import Regularised
from tests.listeners import SEEDED, At, Heard, stop
from tests.structures import draw_mixture

X = np.concatenate(
    [np.random.default_rng(0).normal(size=(150, 2)), np.random.default_rng(1).normal(5.0, size=(150, 2))]
)
SETTINGS: dict[str, Any] = {"n_components": 2, "random_state": 0, "tol": 0.0, "max_iter": 2}

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


def fit(x: Any = X, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(**(SETTINGS | settings))
    model.fit(x)
    return model


def plain(events: Iterable[Event]) -> list[Any]:
    """Events as words and numbers, without what the disk has compiled already."""
    told: list[Any] = []
    for event in events:
        match event:
            case Stage("compiling"):
                continue
            case Stage(name) | Message(name):
                told.append(name)
            case Progress(done, total):
                told.append((done, total))
            case Reached(state):
                told.append([run.n_iter for run in state.runs])
    return told


def test_a_batch_fit_is_told_in_order() -> None:
    heard = Heard()
    with watching(heard):
        fit(da.from_array(X, chunks=(150, 2)), init_params="random", n_init=2)
    passed = [(1, 2), (2, 2)]
    begun, surveyed, seeded = [[], "survey", *passed], [[], "seeding"], [[0, 0], "pass 2", *passed]
    assert plain(heard.events) == [*begun, *surveyed, *seeded, [1, 1], "pass 3", *passed, [2, 2], "done"]


def test_an_online_fit_is_told_in_order() -> None:
    model, heard = MiniBatchGaussianMixture(2, batch_size=50, random_state=0, max_iter=1), Heard()
    model.fit(X)  # all is compiled
    with watching(heard):
        model.fit(X)
    stages = [event for event in heard.events if isinstance(event, Stage)]
    assert [stage.name for stage in stages] == [
        "survey",
        "seeding",
        "pass 2",
        "done",
    ]  # each once, though it goes on
    states = heard.states
    runs = [state.runs[0] for state in states if state.mid_pass]
    learnt = [run.position.row for run in runs if isinstance(run, Passes)]
    assert learnt == [50, 100, 150, 200, 250, 0]  # the last ends the window
    assert [state.mid_pass for state in states] == [False] * 3 + [True] * 6 + [False]
    assert [state.n_passes for state in states] == [0, *[1] * 8, 2]


def test_compiling_is_told(tmp_path: Path) -> None:
    """Wherever it happens: here something is compiled that no disk has seen, as the fit stands at its seeds."""
    source = tmp_path / "fresh.py"
    code = "from daskgmm.model.kernels.compiling import compiled\n\n@compiled\ndef twice(x):\n    return 2 * x\n"
    source.write_text(code)
    spec = importlib.util.spec_from_file_location("fresh", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fit()  # what fits compile is there
    heard = Heard()
    with watching(At(SEEDED, lambda: (module.twice(21), module.twice(1.5))), heard):
        fit()
    told = [event for event in heard.events if not isinstance(event, Progress)]
    place = told.index(Stage("compiling"))
    assert heard.events.count(Stage("compiling")) == 1  # though two things were, in turn
    assert plain(told[:place]) == [[], "survey", [], "seeding"]


def test_a_pass_that_was_begun_before_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"batch_size": 50, "random_state": 0, "max_iter": 1, "checkpoint": tmp_path / "c"}
    with (
        dask.config.set({"daskgmm.checkpoint-interval": "0 s"}),
        pytest.raises(KeyboardInterrupt),
        watching(stop(5)),
    ):
        MiniBatchGaussianMixture(2, **settings).fit(X)
    log, heard = Log(), Heard()
    with watching(log, heard):
        MiniBatchGaussianMixture(2, **settings, verbose=1).fit(X)
    assert heard.states[0].mid_pass
    told, logged = capsys.readouterr()
    assert told.count("iteration 1: mean log-likelihood") == logged.count("iteration 1") == 1


def test_a_run_that_came_to_rest_changes_no_more() -> None:
    run = EM(draw_mixture("full"), Regularised(), 1e-3, 9)
    runs = (replace(run, trace=(-3.0, -1.0), converged=True), replace(run, trace=(-4.0, -3.0, -2.0)))
    bound, change = standing(State({}, runs=runs))
    assert bound == -1.0
    assert change != change


def test_nothing_is_printed_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    fit()
    MiniBatchGaussianMixture(2, random_state=0).fit(X)
    assert capfd.readouterr() == ("", "")


def test_the_log_has_one_line_for_each_iteration(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="daskgmm"):
        model = fit(max_iter=5)
    assert {(record.name, record.levelname) for record in caplog.records} == {("daskgmm", "INFO")}
    lines = [line for line in caplog.messages if line.startswith("iteration ")]
    assert [line.split(":")[0] for line in lines] == [f"iteration {n}" for n in range(1, 6)]
    for bound, line in zip(model.lower_bounds_, lines, strict=True):
        assert f"mean log-likelihood {bound:.8g}" in line
    assert [", change " in line for line in lines] == [False] + 4 * [True]  # the first has nothing to compare with
    stages = [line.removeprefix("waiting for: ") for line in caplog.messages if line.startswith("waiting")]
    assert [name for name in stages if name != "compiling"][:3] == ["survey", "seeding", "pass 2"]


def test_the_log_is_quiet_at_other_levels(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="daskgmm"):
        fit()
    assert caplog.messages == []


# Who is told


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError])
def test_a_listener_is_told_nothing_afterwards(error: type[BaseException] | None) -> None:
    heard = Heard()
    if error is None:
        with watching(heard):
            fit()
    else:
        with pytest.raises(error), watching(heard, stop(4, error)):
            fit()
    before = len(heard.events)
    assert before
    fit()
    assert len(heard.events) == before


def test_listeners_within_others_are_told_after_them() -> None:
    told: list[str] = []
    with watching(lambda event: told.append("outer")):
        with watching(lambda event: told.append("inner"), lambda event: told.append("last")):
            fit()
        inside = len(told)
        assert told == ["outer", "inner", "last"] * (inside // 3)
        fit()
    assert set(told[inside:]) == {"outer"}


def test_fits_of_other_threads_are_not_told() -> None:
    heard = Heard()
    with watching(heard):
        other = threading.Thread(target=fit)
        other.start()
        other.join()
    assert heard.events == []


def test_what_a_listener_raises_ends_the_fit_and_leaves_the_model() -> None:
    model = fit()
    before = model.mixture_
    with pytest.raises(ZeroDivisionError), watching(stop(4, ZeroDivisionError)):
        model.fit(X[::2])
    assert model.mixture_ is before


# Where a fit stands, in two numbers


def test_standing_is_the_best_run_and_its_last_change() -> None:
    run = EM(draw_mixture("full"), Regularised(), 0.0, 9)

    def at(*runs: EM) -> tuple[float, float]:
        return standing(State({}, runs=runs))

    assert np.isnan(at()).all()
    assert np.isnan(at(run)).all()
    assert at(replace(run, trace=(-2.0,)))[0] == -2.0
    assert np.isnan(at(replace(run, trace=(-2.0,)))[1])
    assert at(replace(run, trace=(-2.0,), previous=-5.0)) == (-2.0, 3.0)
    best, worse = replace(run, trace=(-9.0, -1.0)), replace(run, trace=(-3.0, -2.0))
    assert at(worse, best) == (-1.0, 8.0)
    spiked = replace(run, trace=(3.0, 5.0), failure=CollapseError("", 0))
    assert at(spiked, best) == (-1.0, 8.0)
    assert np.isnan(at(spiked)).all()


def test_verbose_tells_how_runs_end(capsys: pytest.CaptureFixture[str]) -> None:
    run = EM(draw_mixture("full"), Regularised(), 0.0, 9)
    ends = (
        replace(run, trace=(-2.0,) * 4),
        replace(run, trace=(-3.0,) * 2, converged=True),
        replace(run, trace=(5.0,), failure=CollapseError("", 0)),
        replace(run, trace=(-4.0,) * 3),  # not yet at an iteration that is told
    )
    verbose = Verbose(2)
    for passes, runs in enumerate([(run,), ends]):
        verbose(Reached(State({}, n_passes=passes, runs=runs)))
    assert capsys.readouterr().out.splitlines() == [
        "  run 0, iteration 4: mean log-likelihood -2.000000",
        "  run 1, iteration 2: mean log-likelihood -3.000000 converged",
        "  run 2, iteration 1: mean log-likelihood 5.000000 collapsed",
    ]
