"""Batch EM as a run: monotone, blind to how rows and weights are spelt, and clear about its end."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from daskgmm import GaussianMixture
from daskgmm.errors import CollapseError, DataError
from daskgmm.fit.run import EM, best, too_few
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Regularised
from tests.fit.problems import Problem, distant, problems
from tests.strategies import chunkings
from tests.structures import EPS, KINDS, draw_mixture, draw_rows

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


@pytest.fixture(scope="module", autouse=True)
def synchronous() -> Iterator[None]:
    """Many short fits: threads would cost more than they save."""
    with dask.config.set(scheduler="synchronous"):
        yield


def assert_close(a: EM, b: EM, n: int, offset: float = 0.0) -> None:
    """The same fit up to the order of adding: n·eps in each step, of which EM passes on at most all."""
    assert (a.n_iter, str(a.failure)) == (b.n_iter, str(b.failure))
    atol = 100 * n * EPS * a.n_iter + 8 * a.n_iter * EPS * abs(offset)
    np.testing.assert_allclose(a.trace, b.trace, rtol=0, atol=atol)
    np.testing.assert_allclose(a.mixture.weights, b.mixture.weights, rtol=0, atol=atol)
    np.testing.assert_allclose(a.mixture.means, b.mixture.means, rtol=0, atol=10 * atol)
    np.testing.assert_allclose(a.mixture.covariance.values, b.mixture.covariance.values, rtol=0, atol=100 * atol)


# Laws of the steps


@given(distant)
def test_no_step_lowers_the_likelihood(problem: Problem) -> None:
    weight = problem.random.choice([0.5, 1.0, 4.0], len(problem.x))
    run = problem.fitted(weight=weight, max_iter=60)
    trace = np.array(run.trace)
    # Means are stored to eps·|offset|; at the maximum of the M-step that costs only its square.
    assert np.all(np.diff(trace) >= -1e-10 * np.maximum(1, abs(trace[:-1])))
    assert run.n_iter == 60 or run.failure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["faithful", "iris", "wine"])
def test_no_step_lowers_the_likelihood_of_real_data(kind: str, name: str, datasets: dict[str, Any]) -> None:
    x = datasets[name]
    labels = np.random.default_rng(0).integers(3, size=len(x))
    settings: dict[str, Any] = {"covariance_type": kind, "tol": 0.0, "reg_covar": 0.0, "max_iter": 80}
    trace = np.array(GaussianMixture(3, labels_init=labels, **settings).fit(x).lower_bounds_)
    assert len(trace) == 80
    assert np.all(np.diff(trace) >= -1e-10 * np.maximum(1, abs(trace[:-1])))
    assert trace[-1] > trace[0]


@given(problems)
def test_weights_are_repeated_rows(problem: Problem) -> None:
    times = problem.random.integers(1, 4, len(problem.x))
    weighted = problem.fitted(weight=times)
    assume(weighted.failure is None)
    assert_close(weighted, problem.fitted(np.repeat(problem.x, times, axis=0)), 3 * len(problem.x))


@given(problems, st.sampled_from([0.0, np.nan, np.inf]))
def test_rows_of_zero_weight_are_absent(problem: Problem, bad: float) -> None:
    keep = problem.random.random(len(problem.x)) < 0.7
    whole = problem.fitted(np.where(keep[:, None], problem.x, bad), keep.astype(float))
    assume(whole.failure is None)
    assert_close(whole, problem.fitted(problem.x[keep]), len(problem.x))


@given(problems, st.integers(-20, 20))
def test_the_unit_of_weight_does_not_matter(problem: Problem, power: int) -> None:
    # A power of two scales every sum without rounding, so not a bit differs.
    a, b = (problem.fitted(weight=np.full(len(problem.x), unit)) for unit in (1.0, 2.0**power))
    assert a.trace == b.trace
    np.testing.assert_array_equal(a.mixture.covariance.values, b.mixture.covariance.values)


@given(distant, st.data())
def test_chunks_do_not_matter(problem: Problem, data: st.DataObject) -> None:
    n, d = problem.x.shape
    chunks = data.draw(chunkings(n, 11))
    run = problem.fitted(da.from_array(problem.x, chunks=(chunks, d)), reg_covar=1e-6)
    assert_close(run, problem.fitted(reg_covar=1e-6), n, problem.offset)


@given(problems)
def test_the_order_of_components_does_not_matter(problem: Problem) -> None:
    flipped = problem.settings["means_init"][::-1]
    a, b = (problem.fitted(reg_covar=1e-6, **more) for more in ({}, {"means_init": flipped}))
    n = len(problem.x)
    np.testing.assert_allclose(a.trace, b.trace, rtol=0, atol=1e3 * n * EPS)
    np.testing.assert_allclose(a.mixture.means, b.mixture.means[::-1], rtol=0, atol=1e4 * n * EPS)


# Where a run ends


def slow() -> Problem:
    """Two components for one cluster."""
    problem = Problem("diag", 1, 200, 2, 2)
    problem.x = Problem("diag", 1, 200, 2, 1).x
    return problem


def test_convergence_is_a_change_below_tol() -> None:
    trace = slow().fitted(max_iter=50).trace
    changes = np.abs(np.diff(trace))
    assert np.all(changes > 1e-9)
    tol = float(changes[6])  # not below itself: the first smaller change ends the run
    run = slow().fitted(tol=tol, max_iter=50)
    expected = 2 + int(np.argmax(changes < tol))
    assert run.converged
    assert run.done
    assert run.n_iter == expected
    assert run.trace == trace[:expected]
    assert run.lower_bound == trace[expected - 1]


def test_a_run_goes_on_where_another_ended() -> None:
    problem = slow()
    ten = problem.fitted()
    model = GaussianMixture(**(problem.settings | {"warm_start": True, "max_iter": 4})).fit(problem.x)
    four = model.lower_bounds_
    rest = model.set_params(max_iter=6).fit(problem.x).lower_bounds_
    assert (*four, *rest) == ten.trace
    # What went before counts as the change of the first step.
    model.set_params(tol=1e9).fit(problem.x)
    assert (model.n_iter_, model.converged_) == (1, True)
    assert problem.fitted(tol=1e9).n_iter == 2


def test_no_iteration_keeps_the_start() -> None:
    problem = slow()
    run = problem.fitted(max_iter=0)
    np.testing.assert_array_equal(run.mixture.means, problem.settings["means_init"])
    assert (run.trace, run.lower_bound, run.done, run.moved) == ((), -math.inf, True, False)


def test_a_step_leaves_the_run_as_it_was() -> None:
    mixture = draw_mixture("full")
    run = EM(mixture, Regularised(1e-6), 0.0, 9)
    after = run.advance(run.task.mixture.expectation(draw_rows(mixture)))
    assert (run.n_iter, run.mixture is mixture) == (0, True)
    assert (after.n_iter, after.mixture is mixture) == (1, False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_collapsed_run_keeps_its_last_sound_parameters(kind: str) -> None:
    problem = Problem(kind, 0, 100, 2, 2)
    x = np.where(np.arange(100)[:, None] < (100 if kind == "tied" else 50), 30.0, problem.x)
    settings: dict[str, Any] = {"means_init": [[30.0, 30.0], [0.0, 0.0]], "max_iter": 9}
    failed = problem.fitted(x, **settings)
    assert isinstance(failed.failure, CollapseError)
    assert failed.failure.component in (0, None)
    assert failed.done
    assert np.all(np.isfinite(failed.mixture.covariance.values))
    sound = problem.fitted(x, **settings, reg_covar=1e-3)
    assert sound.n_iter == 9
    assert best([failed, sound]) is sound
    with pytest.raises(CollapseError, match="collapse"):
        best([failed, failed])


def test_the_best_run_has_the_highest_likelihood() -> None:
    run = EM(draw_mixture("full"), Regularised(), 0.0, 9)
    runs = [replace(run, trace=(bound,)) for bound in (-3.0, -1.0, -2.0)]
    assert best(runs) is runs[1]
    spiked = replace(run, trace=(5.0,), failure=CollapseError("", 0))
    assert best([*runs, spiked]) is runs[1]


def test_fewer_rows_than_components_end_a_run() -> None:
    mixture = draw_mixture("full", k=3)
    run = EM(mixture, Regularised(1e-6), 0.0, 9)
    after = run.advance(run.task.mixture.expectation(draw_rows(mixture, 2)))
    assert after.done
    assert str(after.failure) == str(too_few(2, 3))
    assert "n_components = 3, n_samples = 2" in str(after.failure)
    assert after.mixture is mixture


@pytest.mark.parametrize(
    ("weight", "told"),
    [(None, r"0 sample\(s\)"), (np.zeros(5), "at least one non-zero"), (np.eye(5)[0], "n_samples = 1")],
)
def test_rows_that_are_too_few_are_told_in_scikit_learns_words(weight: Any, told: str) -> None:
    rows = da.from_array(np.ones((5, 2) if weight is not None else (0, 2)))
    with pytest.raises(DataError, match=told):
        GaussianMixture(2).fit(rows, sample_weight=weight)


def test_what_its_task_finds_has_a_known_size() -> None:
    """Statistics are all that a run keeps of a pass: `nbytes` is theirs, for each structure."""
    for kind in KINDS:
        mixture = draw_mixture(kind, 3, 5)
        found: Statistics = EM(mixture, Regularised(), 0.0, 9).task.mixture.expectation(draw_rows(mixture))
        arrays = (found.reference, found.weight, found.shift, found.scatter)
        assert EM(mixture, Regularised(), 0.0, 9).nbytes == sum(a.nbytes for a in arrays)
