"""A race: all runs try, the best of each heat goes on, and the best of those wins."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.rows import as_rows
from daskgmm.errors import CollapseError
from daskgmm.fit.race import Rung, race
from daskgmm.fit.run import EM
from daskgmm.model.matrices import Matrices
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import FULL
from daskgmm.model.update import Regularised, Steady, Update

CENTRES = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
X = CENTRES[np.arange(600) % 3] + np.random.default_rng(0).normal(size=(600, 2))
UPDATES = {"batch": Regularised(1e-6), "online": Steady(1e-6)}


def mixture(means: Any, variance: float = 9.0) -> Mixture:
    k = len(means)
    return Mixture(np.full(k, 1 / k), np.array(means), Matrices.of(FULL, np.stack([variance * np.eye(2)] * k)))


def begin(means: Any, update: Update = UPDATES["batch"], tol: float = 0.0, variance: float = 9.0) -> EM:
    return EM(mixture(means, variance), update, tol, 10)


def bound(run: EM, x: Any = X) -> float:
    return float(run.mixture.score_samples(x).mean())


def scattered(seed: int) -> Any:
    return X[np.random.default_rng(seed).choice(len(X), 3, replace=False)]


@dataclass(frozen=True)
class Watched(Update):
    """An M-step that notes how many rows each of its statistics is of, and fails when it is told to."""

    fails: tuple[int, ...] = ()  # numbers of the M-steps that do
    seen: list[float] = field(default_factory=list)

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        self.seen.append(statistics.n_rows)
        if len(self.seen) - 1 in self.fails:
            raise CollapseError("A component collapsed.", 0)
        return UPDATES["batch"](mixture, statistics)


@pytest.mark.parametrize("update", UPDATES.values(), ids=list(UPDATES))
def test_the_best_of_each_heat_goes_on_and_the_best_of_those_wins(update: Update) -> None:
    """Races of batch and of online starts differ in the M-step alone."""
    heats = [[begin(scattered(3 * heat + i), update) for i in range(3)] for heat in range(2)]
    first, last = Rung(as_rows(X), 2), Rung(as_rows(X), 9)
    won = race(heats, [first, last])
    leaders = [max(first.climb(heat), key=lambda run: run.lower_bound) for heat in heats]
    expected = max(last.climb(leaders), key=lambda run: run.lower_bound)
    assert won.trace == expected.trace
    assert won.n_iter == 9
    np.testing.assert_array_equal(won.mixture.means, expected.mixture.means)
    assert all(won.lower_bound >= last.climb([run])[0].lower_bound for run in leaders)


def test_few_go_on() -> None:
    """So the M-steps: all runs make the first ones, one of each heat the next, and one the last, on other rows."""
    update = Watched()
    heats = [[begin(scattered(i), update) for i in range(3)], [begin(scattered(9), update)]]
    won = race(heats, [Rung(as_rows(X), 2), Rung(as_rows(X), 7), Rung(as_rows(X[:90]), 3, anew=True)])
    assert update.seen == [600] * (4 * 2 + 2 * 5) + [90] * 3
    assert won.n_iter == 3  # it began anew


@pytest.mark.parametrize("update", UPDATES.values(), ids=list(UPDATES))
def test_a_run_that_came_to_rest_may_go_on(update: Update) -> None:
    """Convergence on one rung is none on the next, which has other rows, or more patience."""
    run = begin(CENTRES, update, tol=1e9)
    assert Rung(as_rows(X), 9).climb([run])[0].n_iter == 2
    assert race([[run]], [Rung(as_rows(X), 9), Rung(as_rows(X), 9)]).n_iter == 3
    anew = race([[run]], [Rung(as_rows(X), 9), Rung(as_rows(X[:90]), 9, anew=True)])
    assert anew.n_iter == 2
    assert anew.converged


@pytest.mark.parametrize("order", [1, -1])
def test_the_better_kind_of_start_wins_at_the_end(order: int) -> None:
    long = np.random.RandomState(0).normal(size=(2000, 2)) * [9.0, 0.1]
    x = np.concatenate([long, long + np.array([0.0, 1.0])])  # two long clusters, which k-means cuts across
    across = begin([[-7.0, 0.5], [7.0, 0.5]], tol=1e-6, variance=20.0)
    along = begin([[0.0, 0.4], [0.0, 0.6]], tol=1e-6, variance=99.0)
    rungs = [Rung(as_rows(x), 10), Rung(as_rows(x), 100)]
    heats = [[across], [along]][::order]
    alone = [bound(race([heat], rungs), x) for heat in heats]
    assert bound(race(heats, rungs), x) == max(alone)
    assert min(alone) < max(alone)


def test_a_stuck_trial_is_left_behind() -> None:
    # Components on the same spot stay together for ever: going on from the first trial would show.
    stuck, good = begin(np.tile(X.mean(axis=0), (3, 1)), tol=1e-3), begin(CENTRES, tol=1e-3)
    for trials in ([stuck, good], [good, stuck]):
        won = race([trials], [Rung(as_rows(X), 10), Rung(as_rows(X), 100)])
        np.testing.assert_allclose(won.mixture.means, CENTRES, atol=0.5)


def test_a_leader_that_collapsed_gives_way() -> None:
    good, worse = begin(CENTRES, Watched(fails=(3,))), begin(CENTRES + 4.0, Watched())
    rungs = [Rung(as_rows(X), 2), Rung(as_rows(X), 5)]
    won = race([[good], [worse]], rungs)
    assert (won.n_iter, won.failure, won.update) == (5, None, worse.update)
    # Where no other is left, it goes on from its last sound parameters: more rows may hold it.
    alone = race([[begin(CENTRES, Watched(fails=(3,)))]], [*rungs, Rung(as_rows(X), 4, anew=True)])
    assert (alone.n_iter, alone.failure) == (4, None)


def test_a_heat_that_collapsed_sends_none_on() -> None:
    collapsed, sound = begin(CENTRES, Watched(fails=(0,))), begin(CENTRES + 1.0, Watched())
    rungs = [Rung(as_rows(X), 2), Rung(as_rows(X), 5)]
    assert race([[collapsed], [sound]], rungs).update is sound.update
    with pytest.raises(CollapseError, match="collapsed"):
        race([[begin(CENTRES, Watched(fails=(0,)))]], rungs)
