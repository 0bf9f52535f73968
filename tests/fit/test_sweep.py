"""One pass: every run that is not done meets each block while it is in memory, and none minds the company."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskgmm import GaussianMixture, watching
from daskgmm.compute.block import Block
from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import Plain, Threads
from daskgmm.errors import DataError
from daskgmm.fit.run import EM, Run
from daskgmm.fit.sweep import climb, groups, sweep
from daskgmm.model.update import Regularised, Steady, Update
from daskgmm.store.values import digest
from tests.listeners import SEEDED, Heard
from tests.structures import KINDS, draw_mixture, draw_rows

ROOM = 64 * 2**20  # of what the tasks of one pass find
X = draw_rows(draw_mixture("full", 3, 2), 200)

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


@dataclass(frozen=True, eq=False)
class Count(Run):
    """A run that is no EM: it counts rows, for some passes, and notes the blocks that it meets."""

    max_iter: int
    trace: tuple[float, ...] = ()
    met: list[int] = field(default_factory=list)
    size: int = 8

    @property
    def task(self) -> Callable[[Block], int]:
        return self._count

    def _count(self, block: Block) -> int:
        self.met.append(block.index)
        return len(block.x)

    def advance(self, found: int) -> "Count":
        return replace(self, trace=(*self.trace, found))

    @property
    def nbytes(self) -> int:
        return self.size


def test_runs_advance_together_and_drop_out() -> None:
    rows = as_rows(X, block_size=50 * 16)
    begun = [Count(passes) for passes in (3, 1, 0, 5)]
    runs = list(begun)
    for _ in range(5):
        runs = sweep(Plain(), rows, runs)
    assert all(run.done for run in runs)
    assert [run.trace for run in runs] == [(200.0,) * passes for passes in (3, 1, 0, 5)]
    assert [run.met for run in runs] == [[0, 1, 2, 3] * passes for passes in (3, 1, 0, 5)]
    assert [run.n_iter for run in begun] == [0] * 4  # frozen


def test_runs_that_are_done_read_nothing() -> None:
    class Unreadable(Threads):
        def reduce(self, *_: Any) -> Any:
            raise AssertionError("rows were read")

    done = [Count(0), replace(Count(9), trace=(1.0,) * 9)]
    for runs in (done, []):
        assert sweep(Unreadable(), as_rows(X), runs) == runs
        assert groups(runs) == []


quarters, more = st.integers(0, 6), st.integers(-1, 1)
shares = st.builds(lambda quarters, more: max(0, quarters * ROOM // 4 + more), quarters, more)


@given(st.lists(st.tuples(shares, st.sampled_from([True, True, False])), max_size=12))
def test_groups_fill_the_room_in_order(sizes: list[tuple[int, bool]]) -> None:
    """Each holds as many of the next live runs as there is room for; one that is larger is alone."""
    runs = [Count(int(live), size=size) for size, live in sizes]
    found = groups(runs)
    assert [number for group in found for number in group] == [i for i, run in enumerate(runs) if not run.done]
    totals = [sum(runs[number].size for number in group) for group in found]
    for group, total, after in zip(found, totals, [*found, None][1:], strict=True):
        assert total <= ROOM or len(group) == 1
        assert after is None or total + runs[after[0]].size > ROOM


def test_a_pass_reads_each_block_once_for_all_runs(reads: Any) -> None:
    counted = reads(X, (50, 2))
    settings: dict[str, Any] = {"n_init": 4, "init_params": "random", "tol": 0.0, "max_iter": 3, "random_state": 0}
    model = GaussianMixture(3, **settings).fit(counted.array)
    assert model.n_passes_ == 4  # the survey's, and one for each iteration
    assert counted.counts == dict.fromkeys(range(4), 4)


def test_what_a_pass_finds_fits_in_64_mib(reads: Any) -> None:
    """Statistics of 31 MiB each: two runs share a pass, and the third has one of its own."""
    k, d = 60, 256
    counted, heard = reads(np.random.default_rng(0).normal(size=(64, d)), (32, d)), Heard()
    settings: dict[str, Any] = {"n_init": 3, "init_params": "random_from_data", "tol": 0.0, "max_iter": 1}
    with watching(heard):
        model = GaussianMixture(k, **settings, random_state=0).fit(counted.array)
    seeded, done = heard.states[SEEDED:]
    assert [run.nbytes // 2**20 for run in seeded.runs] == [30] * 3
    assert (done.n_passes, model.n_passes_, [run.n_iter for run in done.runs]) == (3, 3, [1, 1, 1])
    assert counted.counts == {0: 3, 1: 3}


@pytest.mark.parametrize("kind", KINDS)
def test_company_changes_no_bit(kind: str) -> None:
    rows = as_rows(X, block_size=50 * 16)
    runs = [EM(draw_mixture(kind, 2 + seed, 2, seed), Regularised(1e-6), 0.0, 9) for seed in range(3)]
    together: list[Any] = [*runs, Count(9, size=ROOM)]  # a pass of its own
    alone = list(runs)
    for _ in range(3):
        together = sweep(Threads(), rows, together)
        alone = [sweep(Plain(), rows, [run])[0] for run in alone]
    assert [digest(run) for run in together[:3]] == [digest(run) for run in alone]
    assert together[3].trace == (200.0,) * 3


def test_a_run_with_too_few_rows_ends_alone() -> None:
    rows = as_rows(X[:4])
    small, large = (EM(draw_mixture("spherical", k, 2), Regularised(1e-6), 0.0, 3) for k in (2, 5))
    runs = sweep(Plain(), rows, [small, large])
    assert (runs[0].n_iter, runs[0].failure) == (1, None)
    assert isinstance(runs[1].failure, DataError)
    assert "n_components = 5, n_samples = 4" in str(runs[1].failure)
    assert groups(runs) == [[0]]
    (ended, _) = sweep(Plain(), rows, sweep(Plain(), rows, runs))
    assert (ended.n_iter, ended.done) == (3, True)
    np.testing.assert_array_equal(runs[1].mixture.means, large.mixture.means)


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "contains NaN"), (-np.inf, "contains infinity")])
def test_a_pass_refuses_values_that_are_not_finite(bad: float, words: str) -> None:
    x = X[:100].copy()
    model = GaussianMixture(2, warm_start=True, random_state=0, block_size=20 * 16).fit(x)
    before = model.means_
    x[77, 1] = bad
    with pytest.raises(DataError, match=rf"{words}: block 3, row\(s\) 77"):
        model.fit(x)  # goes on without a survey
    assert model.means_ is before


def test_no_iteration_reads_nothing_without_a_survey(reads: Any) -> None:
    counted = reads(X, (50, 2))
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(X)
    before = model.means_
    model.set_params(max_iter=0).fit(counted.array)
    assert counted.total == 0
    np.testing.assert_array_equal(model.means_, before)
    assert isinstance(counted.array, da.Array)


# Runs on rows in memory, to the end


@pytest.mark.parametrize("update", [Regularised(1e-6), Steady(1e-6)], ids=["batch", "online"])
def test_a_run_that_came_to_rest_may_go_on(update: Update) -> None:
    """So many iterations in all, unless it begins anew; and convergence on some rows is none on others."""
    (rested,) = climb(as_rows(X), [EM(draw_mixture("full", 3, 2), update, 1e9, 10)], 9)
    assert (rested.n_iter, rested.converged) == (2, True)
    (further,) = climb(as_rows(X), [rested], 9)
    assert (further.n_iter, further.trace[:2]) == (3, rested.trace)
    (anew,) = climb(as_rows(X[:90]), [rested], 9, anew=True)
    assert (anew.n_iter, anew.n_rows) == (2, 90)
    np.testing.assert_allclose(anew.trace[0], rested.mixture.score_samples(X[:90]).mean(), rtol=1e-12)


def test_runs_that_climb_together_climb_as_each_does_by_itself() -> None:
    starts = [EM(draw_mixture("full", 3, 2, seed), Regularised(1e-6), 0.0, 10) for seed in range(4)]
    together = climb(as_rows(X), starts, 5)
    for run, start in zip(together, starts, strict=True):
        (alone,) = climb(as_rows(X), [start], 5)
        assert run.trace == alone.trace
        assert run.n_iter == 5
