"""Accelerated EM: fewer passes to the same place, never down, and whatever stops it, to the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskgmm import GaussianMixture, watching
from daskgmm.compute.rows import as_rows
from daskgmm.errors import CollapseError
from daskgmm.fit import accelerated
from daskgmm.fit.accelerated import METHODS, TRIALS, Accelerated, Memory
from daskgmm.fit.run import EM
from daskgmm.fit.sweep import climb
from daskgmm.model import local
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Regularised
from daskgmm.store.values import digest, pack, restored
from tests.fit.problems import Problem, problems
from tests.listeners import stop
from tests.structures import KINDS, draw_mixture

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module", autouse=True)
def synchronous() -> Iterator[None]:
    """Many short fits: threads would cost more than they save."""
    with dask.config.set(scheduler="synchronous"):
        yield


def overlapping(kind: str, n: int = 500) -> tuple[Any, Mixture]:
    """Rows of three components that hide each other, and a start."""
    truth = draw_mixture(kind, 3, 2, seed=2)
    x, _ = truth.sample(n, np.random.RandomState(0))
    wide = truth.covariance.structure.form.of(truth.covariance.structure, 2 * truth.covariance.values)
    return x, Mixture(np.full(3, 1 / 3), 0.5 * truth.means + 0.5 * x.mean(axis=0), wide)


def advanced(run: EM, x: Any, passes: int) -> list[Any]:
    """The runs after each of so many passes."""
    found: list[Any] = []
    while len(found) < passes and not run.done:
        run = run.advance(run.task.mixture.expectation(x))
        found.append(run)
    return found


def begun(kind: type[EM], start: Mixture, tol: float = 0.0, **more: Any) -> Any:
    return kind(start, Regularised(), tol, 10_000, **more)


def passes_to(runs: list[Any], bound: float) -> int:
    return next(number for number, run in enumerate(runs) if run.lower_bound >= bound)


# Where it goes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_passes_to_the_same_optimum(kind: str, method: str) -> None:
    x, start = overlapping(kind)
    plain = advanced(begun(EM, start, 1e-9), x, 1500)
    fast = advanced(begun(Accelerated, start, 1e-11, method=method), x, 300)
    assert abs(fast[-1].lower_bound - plain[-1].lower_bound) < 1e-5
    goal = min(fast[-1].lower_bound, plain[-1].lower_bound) - 1e-6
    assert passes_to(fast, goal) <= 0.7 * passes_to(plain, goal)


@settings(max_examples=15)
@given(problems, st.sampled_from(sorted(METHODS)))
def test_the_trace_never_falls(problem: Problem, method: str) -> None:
    run = problem.fitted(acceleration=method, max_iter=25)
    assert isinstance(run, Accelerated)
    trace = np.array(run.trace)
    assert np.all(np.diff(trace) >= -1e-10 * np.maximum(1, abs(trace[:-1])))
    if run.failure is None:  # the parameters are an EM step further
        assert run.mixture.score_samples(problem.x).mean() >= run.lower_bound - 1e-10 * max(
            1, abs(run.lower_bound)
        )


def test_the_first_two_points_are_those_of_em() -> None:
    x, start = overlapping("full")
    plain, fast = advanced(begun(EM, start), x, 3), advanced(begun(Accelerated, start), x, 3)
    assert fast[1].trace == plain[1].trace
    assert digest(fast[1].mixture) == digest(plain[1].mixture)
    assert fast[2].trace[2] != plain[2].trace[2]


def test_a_full_step_along_the_em_step_is_the_em_step() -> None:
    products = np.array([[4.0]])
    for method in METHODS.values():
        np.testing.assert_array_equal(method(products), [1.0])


@pytest.mark.parametrize("method", METHODS)
def test_steps_that_shrink_evenly_are_summed_at_once(method: str) -> None:
    """From an EM step s to the next, (1 − 1/a)·s: the rest of the series is a times the latter."""
    a, s = 8.0, 3.0
    changes = np.array([s, s / a, s * (1 - 1 / a)])  # move, turn and step
    multiples = METHODS[method](np.outer(changes, changes))
    np.testing.assert_allclose(multiples @ changes, a * changes[-1], rtol=1e-12)


# Trials that are no good


def trying(kind: str = "full") -> tuple[Any, Any]:
    """Rows, and a run whose next pass looks at a trial."""
    x, start = overlapping(kind)
    run = next(
        run for run in advanced(begun(Accelerated, start), x, 9) if run.trial is not None and run.n_iter > 3
    )
    return x, run


def worse(run: Any) -> Any:
    """The same run with a trial that is worse."""
    trial = replace(run.mixture, means=run.mixture.means + 1.0)
    return replace(run, trial=trial)


@pytest.mark.parametrize("kind", KINDS)
def test_a_worse_trial_is_refused_and_after_some_comes_the_em_step(kind: str) -> None:
    x, run = trying(kind)
    before = run
    for number in range(1, TRIALS + 1):
        after = worse(run).advance(worse(run).task.mixture.expectation(x))
        assert (after.trace, after.mixture, after.point) == (before.trace, before.mixture, before.point)
        assert (after.refused, after.done) == (number, False)
        assert after.reach < run.reach
        assert len(after.memory.moves) == min(len(run.memory.moves) + 1, accelerated.PAIRS)
        run = after
    assert run.trial is None
    assert run.task.mixture is before.mixture
    run = run.advance(run.task.mixture.expectation(x))
    assert run.trace[:-1] == before.trace
    assert (run.refused, run.point) == (0, before.mixture)


def collapsing(mixture: Mixture, statistics: Statistics) -> Mixture:
    raise CollapseError("It collapsed.", 0)


def test_a_trial_that_collapses_is_refused_and_an_em_step_that_does_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, run = trying()
    found = run.task.mixture.expectation(x)
    with monkeypatch.context() as patch:
        patch.setattr(Regularised, "__call__", lambda self, *found: collapsing(*found))
        after = run.advance(found)
        assert (after.failure, after.refused, after.mixture) == (None, 1, run.mixture)
        plain = replace(run, trial=None)
        ended = plain.advance(found)
    assert isinstance(ended.failure, CollapseError)
    assert (ended.done, ended.mixture, ended.trace) == (True, run.mixture, run.trace)
    assert after.advance(after.task.mixture.expectation(x)).failure is None


def test_a_trial_stays_where_rows_of_each_component_know_it() -> None:
    x, start = overlapping("full")
    light = Mixture(np.array([1e-9, 0.5, 0.5 - 1e-9]), start.means, start.covariance)
    for run in advanced(begun(Accelerated, light), x, 40):
        if run.trial is not None:
            change = local.coordinates(run.trial) - local.coordinates(run.point)
            assert local.largest(change, run.point) <= accelerated.FELT * (1 + 1e-9)


# What it is part of


def test_it_climbs_on() -> None:
    x, start = overlapping("full", 500)
    rows = as_rows(x)
    (first,) = climb(rows, [begun(Accelerated, start, 1e-9)], 5)
    assert (type(first), first.n_iter) == (Accelerated, 5)
    (second,) = climb(rows, [first], 30)
    assert second.trace[:5] == first.trace
    assert second.n_iter > 5


def test_a_run_is_stored_with_all_that_it_remembers() -> None:
    x, start = overlapping("tied")
    for run in advanced(begun(Accelerated, start), x, 12):
        arrays: dict[str, Any] = {}
        again = restored(pack(run, arrays, "value"), arrays, Accelerated)
        found = run.task.mixture.expectation(x)
        assert digest(again.advance(found)) == digest(run.advance(found))


def test_what_no_run_can_be_is_refused() -> None:
    _, run = trying()
    other = draw_mixture("full", 2, 2)
    memory = Memory(run.memory.moves[:, 1:], run.memory.turns[:, 1:])
    for wrong in (
        {"method": "none"},
        {"reach": 0.0},
        {"trial": other},
        {"point": other},
        {"point": None},
        {"memory": memory},
        {"memory": replace(memory, turns=run.memory.turns)},
    ):
        arrays: dict[str, Any] = {}
        packed = pack(replace(run, **wrong), arrays, "value")
        with pytest.raises(ValueError, match=r"\."):
            restored(packed, arrays, Accelerated)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_killed_at_any_moment_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    x, _ = overlapping(kind, 300)
    settings: dict[str, Any] = {"covariance_type": kind, "random_state": 0, "tol": 1e-12, "max_iter": 30}
    settings |= {"init_params": "random", "acceleration": "lbfgs"}
    whole = GaussianMixture(3, **settings).fit(x)
    moments = 20 if kind == "full" else 2
    assert whole.n_passes_ > 3 + moments
    for moment in range(moments):
        place = tmp_path / str(moment)
        with pytest.raises(KeyboardInterrupt), watching(stop(3 + moment)):
            GaussianMixture(3, **settings, checkpoint=place).fit(x)
        again = GaussianMixture(3, **settings, checkpoint=place).fit(x)
        assert digest(again.mixture_) == digest(whole.mixture_)
        assert (again.lower_bounds_, again.n_passes_) == (whole.lower_bounds_, whole.n_passes_)


# The estimator


def test_the_default_accelerates_unless_iterations_are_counted() -> None:
    x, _ = overlapping("full", 300)
    settings: dict[str, Any] = {"random_state": 0, "init_params": "random", "max_iter": 12}
    for tol, same in ((0.0, None), (1e-9, "lbfgs")):
        a, b = (GaussianMixture(2, tol=tol, **settings | more).fit(x) for more in ({}, {"acceleration": same}))
        assert a.lower_bounds_ == b.lower_bounds_
    plain = GaussianMixture(2, tol=1e-9, acceleration=None, **settings).fit(x)
    assert plain.lower_bounds_ != b.lower_bounds_
    assert plain.n_passes_ == plain.n_iter_ + 1


def test_refused_trials_count_as_passes() -> None:
    x, _ = overlapping("full", 300)
    model = GaussianMixture(4, tol=1e-9, max_iter=100, random_state=0, init_params="random").fit(x)
    assert model.n_passes_ > model.n_iter_ + 1
    assert len(model.lower_bounds_) == model.n_iter_
