"""Batch EM: monotone, blind to how weights are spelt, and a list of runs that advance together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask.local import get_sync
from hypothesis import assume, given
from hypothesis import strategies as st

from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import as_rows
from daskgmm.errors import CollapseError, DataError
from daskgmm.fit import em as module
from daskgmm.fit.em import em
from daskgmm.fit.progress import Silent
from daskgmm.fit.run import Run, best
from daskgmm.model.covariance import STRUCTURES
from daskgmm.model.mixture import Mixture, moments

EPS = np.finfo(np.float64).eps
KINDS = sorted(STRUCTURES)
ENGINE = Engine(get_sync)


def rows_and_start(kind: str, seed: int, n: int, d: int, k: int, offset: float = 0.0) -> tuple[Any, Mixture]:
    """Rows about k centres, and a start at some of them."""
    random = np.random.default_rng(seed)
    centres = random.normal(scale=3, size=(k, d))
    x = offset + centres[random.integers(k, size=n)] + random.normal(size=(n, d))
    one = {"full": np.stack([np.eye(d)] * k), "tied": np.eye(d), "diag": np.ones((k, d)), "spherical": np.ones(k)}
    means = x[random.choice(n, k, replace=False)]
    return x, Mixture(np.full(k, 1 / k), means, STRUCTURES[kind].of(4 * one[kind]))


def fitted(x: Any, mixture: Mixture, weight: Any = None, steps: int = 10, reg_covar: float = 0.0) -> Run:
    rows = as_rows(x, weight, block_size=64 * x.shape[1] * 8)
    (run,), _ = em(ENGINE, rows, [Run(mixture, 0.0, steps, reg_covar)], Silent())
    return run


def assert_close(a: Run, b: Run, n: int, offset: float = 0.0) -> None:
    """The same fit up to the order of adding: n·eps in each step, of which EM passes on at most all."""
    assert (a.n_iter, a.failure) == (b.n_iter, b.failure)
    atol = 100 * n * EPS * a.n_iter + 8 * a.n_iter * EPS * abs(offset)
    np.testing.assert_allclose(a.trace, b.trace, rtol=0, atol=atol)
    np.testing.assert_allclose(a.mixture.weights, b.mixture.weights, rtol=0, atol=atol)
    np.testing.assert_allclose(a.mixture.means, b.mixture.means, rtol=0, atol=10 * atol)
    np.testing.assert_allclose(a.mixture.covariance.values, b.mixture.covariance.values, rtol=0, atol=100 * atol)


problems = {
    "kind": st.sampled_from(KINDS),
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(60, 300),
    "d": st.integers(1, 4),
    "k": st.integers(1, 4),
}


@given(**problems, offset=st.sampled_from([0.0, 1e8]))
def test_no_step_lowers_the_likelihood(kind: str, seed: int, n: int, d: int, k: int, offset: float) -> None:
    x, mixture = rows_and_start(kind, seed, n, d, k, offset)
    weight = np.random.default_rng(seed).choice([0.5, 1.0, 4.0], n)
    run = fitted(x, mixture, weight, steps=60)
    for before, after in zip(run.trace, run.trace[1:], strict=False):
        # Means are stored to eps·|offset|; at the maximum of the M-step that costs only its square.
        assert after >= before - 1e-10 * max(1, abs(before))
    assert run.n_iter == 60 or run.failure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["faithful", "iris", "wine"])
def test_no_step_lowers_the_likelihood_of_real_data(kind: str, name: str, datasets: dict[str, Any]) -> None:
    x = datasets[name]
    random = np.random.default_rng(0)
    labels = random.integers(3, size=len(x))
    s = moments(STRUCTURES[kind], x, None, labels, 3)
    base = Mixture(np.full(3, 1 / 3), s.means, STRUCTURES[kind](s.scatter, s.scatter))
    run = fitted(x, base.maximise(s), steps=80)
    trace = np.array(run.trace)
    assert np.all(np.diff(trace) >= -1e-10 * np.maximum(1, abs(trace[:-1])))
    assert trace[-1] > trace[0]


@given(**problems)
def test_weights_are_repeated_rows(kind: str, seed: int, n: int, d: int, k: int) -> None:
    x, mixture = rows_and_start(kind, seed, n, d, k)
    times = np.random.default_rng(seed).integers(1, 4, n)
    weighted = fitted(x, mixture, times)
    assume(weighted.failure is None)
    assert_close(weighted, fitted(np.repeat(x, times, axis=0), mixture), 3 * n)


@given(**problems, bad=st.sampled_from([0.0, np.nan, np.inf]))
def test_rows_of_zero_weight_are_absent(kind: str, seed: int, n: int, d: int, k: int, bad: float) -> None:
    x, mixture = rows_and_start(kind, seed, n, d, k)
    keep = np.random.default_rng(seed).random(n) < 0.7
    spoiled = np.where(keep[:, None], x, bad)
    whole = fitted(spoiled, mixture, keep.astype(float))
    assume(whole.failure is None)
    assert_close(whole, fitted(x[keep], mixture), n)


@given(**problems, power=st.integers(-20, 20))
def test_the_unit_of_weight_does_not_matter(kind: str, seed: int, n: int, d: int, k: int, power: int) -> None:
    # A power of two scales every sum without rounding, so not a bit differs.
    x, mixture = rows_and_start(kind, seed, n, d, k)
    a, b = fitted(x, mixture, np.ones(n)), fitted(x, mixture, np.full(n, 2.0**power))
    assert a.trace == b.trace
    np.testing.assert_array_equal(a.mixture.covariance.values, b.mixture.covariance.values)


@given(
    **problems,
    edges=st.sets(st.integers(0, 300), max_size=10),
    offset=st.sampled_from([0.0, 1e8]),
)
def test_chunks_do_not_matter(
    kind: str, seed: int, n: int, d: int, k: int, edges: set[int], offset: float
) -> None:
    x, mixture = rows_and_start(kind, seed, n, d, k, offset)
    bounds = [0, *sorted(e for e in edges if e <= n), n]
    chunks = tuple(b - a for a, b in itertools.pairwise(bounds))
    rows = as_rows(da.from_array(x, chunks=(chunks, d)))
    (run,), _ = em(ENGINE, rows, [Run(mixture, 0.0, 10, 1e-6)], Silent())
    assert_close(run, fitted(x, mixture, reg_covar=1e-6), n, offset)


@given(**problems)
def test_the_order_of_components_does_not_matter(kind: str, seed: int, n: int, d: int, k: int) -> None:
    x, mixture = rows_and_start(kind, seed, n, d, k)
    flipped = Mixture(mixture.weights[::-1], mixture.means[::-1].copy(), mixture.covariance)
    a, b = fitted(x, mixture, reg_covar=1e-6), fitted(x, flipped, reg_covar=1e-6)
    np.testing.assert_allclose(a.trace, b.trace, rtol=0, atol=1e3 * n * EPS)
    np.testing.assert_allclose(a.mixture.means, b.mixture.means[::-1], rtol=0, atol=1e4 * n * EPS)


# Runs


class Watch(Silent):
    def __init__(self) -> None:
        self.iterations: list[list[int]] = []
        self.told: list[tuple[int, int]] = []

    def blocks(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def iteration(self, runs: Sequence[Run]) -> None:
        self.iterations.append([run.n_iter for run in runs])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many mixtures each block met."""
    met: list[int] = []
    call = module.Expectations.__call__

    def spy(self: Any, block: Any) -> Any:
        met.append(len(self.mixtures))
        return call(self, block)

    monkeypatch.setattr(module.Expectations, "__call__", spy)
    return met


def test_runs_advance_together_and_drop_out(monkeypatch: pytest.MonkeyPatch) -> None:
    met = counted(monkeypatch)
    x, mixture = rows_and_start("full", 0, 100, 2, 2)
    rows = as_rows(x, block_size=50 * 16)
    runs = [Run(mixture, 0.0, steps, 1e-6) for steps in (3, 1, 0, 5)]
    watch = Watch()
    advanced, passes = em(ENGINE, rows, runs, watch)
    assert [run.n_iter for run in advanced] == [3, 1, 0, 5]
    assert passes == 5
    assert met == [3, 3, 2, 2, 2, 2, 1, 1, 1, 1]  # two blocks per pass
    assert watch.iterations == [[1, 1, 0, 1], [2, 1, 0, 2], [3, 1, 0, 3], [3, 1, 0, 4], [3, 1, 0, 5]]
    assert watch.told == [(1, 2), (2, 2)] * 5
    assert all(run.done for run in advanced)
    assert runs[0].n_iter == 0  # frozen


def test_company_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, one = rows_and_start("full", 0, 200, 3, 2)
    other = Mixture(one.weights, x[[5, 6]], one.covariance)
    rows = as_rows(x, block_size=50 * 24)
    runs = [Run(m, 0.0, 4, 1e-6) for m in (one, other)]
    together, passes = em(ENGINE, rows, runs, Silent())
    assert passes == 4
    alone = [em(ENGINE, rows, [run], Silent())[0][0] for run in runs]
    monkeypatch.setattr(module, "GROUP_BYTES", 1)  # each run gets a pass of its own
    in_turn, more = em(ENGINE, rows, runs, Silent())
    assert more == 8
    for a, b, c in zip(together, alone, in_turn, strict=True):
        assert a.trace == b.trace == c.trace
        np.testing.assert_array_equal(a.mixture.covariance.values, b.mixture.covariance.values)
        np.testing.assert_array_equal(a.mixture.covariance.values, c.mixture.covariance.values)


def test_convergence_is_a_change_below_tol() -> None:
    x, _ = rows_and_start("diag", 1, 200, 2, 1)
    _, mixture = rows_and_start("diag", 1, 200, 2, 2)  # two components for one cluster: slow
    trace = fitted(x, mixture, steps=50).trace
    changes = np.abs(np.diff(trace))
    assert np.all(changes > 1e-9)
    tol = float(changes[6])  # not below itself: the first smaller change ends the run
    (run,), passes = em(ENGINE, as_rows(x, block_size=64 * 16), [Run(mixture, tol, 50, 0.0)], Silent())
    expected = 2 + int(np.argmax(changes < tol))
    assert run.converged
    assert run.done
    assert run.n_iter == passes == expected
    assert run.trace == trace[:expected]
    assert run.lower_bound == trace[expected - 1]


def test_a_run_knows_where_it_goes_on() -> None:
    x, mixture = rows_and_start("diag", 1, 200, 2, 2)
    ten = fitted(x, mixture, steps=10)
    four = fitted(x, mixture, steps=4)
    (rest,), _ = em(
        ENGINE,
        as_rows(x, block_size=64 * 16),
        [Run(four.mixture, 0.0, 6, 0.0, previous=four.lower_bound)],
        Silent(),
    )
    assert four.trace + rest.trace == ten.trace
    # What went before counts as the change of the first step.
    s = four.mixture.expectation(x)
    again = Run(four.mixture, 1e9, 6, 0.0, previous=four.lower_bound).advance(s)
    assert again.converged
    assert not Run(four.mixture, 1e9, 6, 0.0).advance(s).converged


def test_no_runs_and_no_iterations_read_nothing() -> None:
    class Unreadable(Engine):
        def reduce(self, *_: Any) -> Any:
            raise AssertionError("rows were read")

    x, mixture = rows_and_start("diag", 1, 60, 2, 2)
    engine, rows = Unreadable(ENGINE.get), as_rows(x)
    runs, passes = em(engine, rows, [Run(mixture, 0.0, 0, 0.0)], Silent())
    assert (passes, runs[0].mixture) == (0, mixture)
    assert runs[0].lower_bound == -math.inf
    assert em(engine, rows, [], Silent()) == ([], 0)


def test_a_collapsed_run_keeps_its_last_sound_parameters() -> None:
    x, mixture = rows_and_start("full", 0, 100, 2, 2)
    x[:50] = 30.0
    lonely = Mixture(mixture.weights, np.array([[30.0, 30.0], [0.0, 0.0]]), mixture.covariance)
    runs, _ = em(ENGINE, as_rows(x), [Run(lonely, 0.0, 9, 0.0), Run(lonely, 0.0, 9, 1e-3)], Silent())
    failed, sound = runs
    assert isinstance(failed.failure, CollapseError)
    assert failed.failure.component == 0
    assert failed.done
    assert np.all(np.isfinite(failed.mixture.covariance.values))
    assert sound.n_iter == 9
    assert best(runs) is sound
    with pytest.raises(CollapseError, match="component 0"):
        best([failed, failed])


def test_the_best_run_has_the_highest_likelihood() -> None:
    _, mixture = rows_and_start("full", 0, 100, 2, 2)
    run = Run(mixture, 0.0, 9, 0.0)
    runs = [replace(run, trace=(bound,)) for bound in (-3.0, -1.0, -2.0)]
    assert best(runs) is runs[1]
    spiked = replace(run, trace=(5.0,), failure=CollapseError("", 0))
    assert best([*runs, spiked]) is runs[1]


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "contains NaN"), (-np.inf, "contains infinity")])
def test_a_pass_refuses_values_that_are_not_finite(bad: float, words: str) -> None:
    x, mixture = rows_and_start("full", 0, 100, 2, 2)
    x[77, 1] = bad
    with pytest.raises(DataError, match=rf"{words}: block 3, row\(s\) 77"):
        em(ENGINE, as_rows(x, block_size=20 * 16), [Run(mixture, 0.0, 2, 1e-6)], Silent())
