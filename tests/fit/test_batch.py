"""A fit is an iterator of frozen states: whoever stops anywhere goes on from the last state to the same bits."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import FrozenInstanceError
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daskgmm import GaussianMixture, watching
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.compute.threads import Threads
from daskgmm.fit.accelerated import Accelerated
from daskgmm.fit.batch import batch
from daskgmm.fit.online import online
from daskgmm.fit.recipe import SAMPLE_BYTES, OnlineRecipe, Recipe, sample_size
from daskgmm.fit.state import State
from daskgmm.fit.stepwise import StepRule
from daskgmm.model.structure import FULL, STRUCTURES
from daskgmm.store.values import digest, pack
from tests.listeners import Heard, stop

X = np.concatenate(
    [np.random.default_rng(0).normal(size=(300, 3)), np.random.default_rng(1).normal(3.0, size=(300, 3))]
)
WEIGHT = np.random.default_rng(2).uniform(0.5, 2.0, len(X))

Algorithm = Callable[[State], Iterator[State]]

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization", "ignore:Component")


def recipe(kind: str = "full", k: int = 3, **more: Any) -> Recipe:
    settings: dict[str, Any] = {"tol": 1e-9, "max_iter": 7}
    return Recipe(structure=STRUCTURES[kind], k=k, **(settings | more))


def online_recipe(**more: Any) -> OnlineRecipe:
    rule = StepRule(100, 0.6, 2.0, None)
    return OnlineRecipe(structure=FULL, k=3, max_iter=2, tol=-1.0, rule=rule, **more)


def rows() -> Rows:
    return as_rows(X, weight=WEIGHT, block_size=100 * 24)


def begun(seed: int = 0) -> State:
    return State(np.random.RandomState(seed).get_state(legacy=False))


FITS: dict[str, Algorithm] = {
    "kmeans": lambda state: batch(recipe(), Threads(), rows(), state),
    "subsample": lambda state: batch(recipe("tied", init_params="subsample"), Threads(), rows(), state),
    "several runs": lambda state: batch(recipe(init_params="random", n_init=3), Threads(), rows(), state),
    "accelerated": lambda state: batch(recipe(run=Accelerated, max_iter=12), Threads(), rows(), state),
    "online": lambda state: online(online_recipe(), Threads(), rows(), state),
    "online, windows": lambda state: online(online_recipe(window_bytes=200 * 24), Threads(), rows(), state),
}


@pytest.fixture(scope="module", params=FITS)
def fit(request: pytest.FixtureRequest) -> tuple[Algorithm, list[State], list[str]]:
    """An algorithm, all its states, and their digests as they came."""
    algorithm, states, digests = FITS[request.param], [], []
    for state in algorithm(begun()):
        states.append(state)
        digests.append(digest(state))
    return algorithm, states, digests


Fit = tuple[Algorithm, list[State], list[str]]


def test_a_fit_goes_on_from_any_state_to_the_same_bits(fit: Fit) -> None:
    algorithm, states, digests = fit
    for number, state in enumerate(states):
        assert [digest(found) for found in algorithm(state)] == digests[number:]


def test_a_consumer_may_stop_anywhere(fit: Fit) -> None:
    algorithm, states, digests = fit
    for number in (1, len(states) // 2):
        with closing(algorithm(begun())) as running:  # type: ignore[type-var]
            *_, last = islice(running, number + 1)
        *_, found = algorithm(last)
        assert digest(found) == digests[-1]


def test_states_are_frozen(fit: Fit) -> None:
    _, states, digests = fit
    assert [digest(state) for state in states] == digests  # whatever came after them
    with pytest.raises(FrozenInstanceError):
        states[0].n_passes = 9  # type: ignore[misc]
    for run in states[-1].runs:
        with pytest.raises(ValueError, match="read-only"):
            run.mixture.means[0, 0] = 9.0


def test_states_tell_what_comes_next(fit: Fit) -> None:
    _, states, _ = fit
    stages = list(dict.fromkeys(state.stage for state in states))
    assert stages == ["survey", "seeding", *(f"pass {n + 1}" for n in range(1, states[-1].n_passes)), "done"]
    assert [state.done for state in states] == [False] * (len(states) - 1) + [True]
    assert [state.survey is not None for state in states] == [False, True] + [False] * (len(states) - 2)
    assert all(a.n_passes <= b.n_passes <= a.n_passes + 1 for a, b in pairwise(states))


def test_the_first_state_is_the_one_given_and_a_finished_fit_reads_nothing(fit: Fit) -> None:
    algorithm, states, _ = fit
    assert next(algorithm(states[2])) is states[2]

    class Unreadable(Threads):
        def reduce(self, *_: Any) -> Any:
            raise AssertionError("rows were read")

    assert [*batch(recipe(), Unreadable(), rows(), states[-1])] == [states[-1]]


def test_a_state_does_not_grow_with_the_rows() -> None:
    def stored(x: Any) -> int:
        *_, last = batch(recipe(), Threads(), as_rows(x), begun())
        arrays: dict[str, Any] = {}
        pack(last, arrays, "state")
        return sum(array.size for array in arrays.values())

    assert stored(X) == stored(np.tile(X, (20, 1)))


def test_whoever_consumes_the_states_changes_no_bit(tmp_path: Path) -> None:
    """A checkpoint, a display and a listener are consumers: the algorithm knows none of them."""
    settings: dict[str, Any] = {"n_components": 3, "random_state": 0, "tol": 1e-9, "max_iter": 7}
    heard = Heard()
    alone = GaussianMixture(**settings).fit(X)
    with watching(heard):
        watched = GaussianMixture(**settings, verbose=1, checkpoint=tmp_path / "c").fit(X)
    assert digest(watched.mixture_) == digest(alone.mixture_)
    assert watched.lower_bounds_ == alone.lower_bounds_
    *_, direct = batch(recipe(run=Accelerated), Threads(), as_rows(X), begun())
    assert digest(heard.states[-1]) == digest(direct)


def test_an_interrupt_leaves_the_last_state() -> None:
    model = GaussianMixture(3, random_state=0, tol=1e-9, max_iter=7)
    with pytest.raises(KeyboardInterrupt), watching(stop(2)):
        model.fit(X)
    assert not hasattr(model, "means_")  # seeded alone
    heard = Heard()
    with pytest.raises(KeyboardInterrupt), watching(heard, stop(6)):
        model.fit(X)
    assert model.mixture_ is heard.states[-1].runs[0].mixture
    assert (model.n_iter_, model.n_passes_) == (4, 5)


def test_runs_end_apart() -> None:
    """Of several, the last one ends the fit; a pass more is read for those alone that are not done."""
    settings: dict[str, Any] = {"init_params": "random", "n_init": 4, "tol": 1e-4, "max_iter": 60}
    *_, last = batch(recipe(**settings), Threads(), rows(), begun())
    counts = [run.n_iter for run in last.runs]
    assert len(set(counts)) > 1
    assert last.n_passes == 1 + max(counts)
    assert last.n_iter == max(counts)


# The sample that starts are found on


def sampled(init_params: str, k: int, d: int) -> int:
    """How many rows the survey is to draw."""
    engine: Engine = Threads()
    few = as_rows(np.random.default_rng(0).normal(size=(2 * k, d)))
    states = batch(recipe("diag", k, init_params=init_params), engine, few, begun())
    with closing(states):  # type: ignore[type-var]
        _, surveyed = islice(states, 2)
    assert surveyed.survey is not None
    return surveyed.survey.sample.size


def test_the_sample_has_a_size_for_every_shape() -> None:
    assert sample_size(1, 2) == 20_000
    assert sample_size(100, 64) == 20 * 100 * 65
    d = 10**6
    assert sample_size(4, d) * d * 8 <= SAMPLE_BYTES == 256 * 2**20
    assert sample_size(1000, 10**7) >= 1000  # never fewer rows than components


@pytest.mark.parametrize("tried", ["auto", "subsample"])
def test_starts_that_are_tried_get_more_rows_of_the_sample(tried: str) -> None:
    assert sampled(tried, 1, 2) == 60_000
    assert sampled(tried, 100, 64) == sample_size(100, 64)
    assert sampled(tried, 4, 1000) == sample_size(4, 1000)  # 60,000 would be too large
    assert 20_000 < sampled(tried, 4, 200) <= 64 * 2**20 / (8 * 200)


def test_other_starts_get_no_more() -> None:
    assert sampled("kmeans", 1, 2) == sample_size(1, 2)
