"""A search is its fits, side by side: company changes no result, and any state goes on to the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest

from daskgmm.compute.rows import Rows, as_rows
from daskgmm.compute.threads import Plain, Threads
from daskgmm.fit import starts
from daskgmm.fit.batch import batch
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.run import EM
from daskgmm.fit.score import Score
from daskgmm.fit.search import CRITERIA, TRUSTED, Candidate, Plan, search
from daskgmm.fit.state import State
from daskgmm.model.structure import STRUCTURES
from daskgmm.model.update import Regularised
from daskgmm.store.values import digest
from tests.structures import KINDS, draw_mixture, draw_rows

TRUTH = draw_mixture("full", 3, 2)
X = draw_rows(TRUTH, 1500)


def rows(**more: Any) -> Rows:
    return as_rows(X, block_size=400 * 16, **more)


def recipes(sizes: Any = (1, 2, 3, 4), kinds: Any = ("full", "diag"), **more: Any) -> tuple[Recipe, ...]:
    settings: dict[str, Any] = {"tol": 1e-4, "max_iter": 40, **more}
    return tuple(Recipe(structure=STRUCTURES[t], k=k, **settings) for t in kinds for k in sizes)


def plan(criterion: str = "bic", refine: int | None = 100, **more: Any) -> Plan:
    return Plan(recipes=recipes(**more), criterion=CRITERIA[criterion], refine=refine)


def begun(seed: int = 0) -> State:
    return State(np.random.RandomState(seed).get_state(legacy=False))


def states(plan: Plan, state: State | None = None, over: Rows | None = None) -> Iterator[State]:
    return search(plan, Plain(), over or rows(), state or begun())


def last(*arguments: Any) -> State:
    *_, found = states(*arguments)
    return found


def candidates(state: State) -> list[Candidate]:
    return [run for run in state.runs if isinstance(run, Candidate)]


# Company


@pytest.mark.parametrize("init_params", ["kmeans", "subsample", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_is_the_fit_by_itself(kind: str, init_params: str) -> None:
    """Whatever else is compared: the moments that a survey in full adds up are those of each kind to rounding."""
    chosen = plan(kinds=("full", kind) if kind != "full" else ("diag", "full"), init_params=init_params)
    found = [run for run in candidates(last(chosen)) if run.mixture.covariance.structure.name == kind]
    for k, candidate in enumerate(found, start=1):
        (recipe,) = recipes((k,), (kind,), init_params=init_params)
        *_, alone = batch(recipe, Threads(), rows(), begun())
        (run,) = alone.runs
        assert candidate.n_iter == run.n_iter
        assert candidate.converged == run.converged
        np.testing.assert_allclose(candidate.trace, run.trace, rtol=1e-10)
        np.testing.assert_allclose(candidate.mixture.means, run.mixture.means, rtol=1e-8, atol=1e-8)
        assert candidate.score is not None
        mean = run.mixture.score_samples(X).mean()
        assert candidate.score.mean == pytest.approx(mean, abs=1e-12)


def test_the_order_of_recipes_changes_no_bit() -> None:
    forth = plan()
    back = replace(forth, recipes=forth.recipes[::-1])
    a, b = last(forth), last(back)
    assert [digest(run) for run in a.runs] == [digest(run) for run in b.runs][::-1]
    assert a.n_passes == b.n_passes


def test_restarts_are_candidates_of_their_own() -> None:
    found = candidates(last(plan(sizes=(2, 3), kinds=("diag",), n_init=3, init_params="random")))
    assert [run.mixture.n_components for run in found] == [2, 2, 2, 3, 3, 3]
    assert len({run.lower_bound for run in found}) > 2


def test_passes_are_shared() -> None:
    found = last(plan())
    alone = [run.n_iter for run in candidates(found)]
    assert found.n_passes == 2 + max(alone)  # the survey, and the E-step that scores
    assert max(alone) < sum(alone)
    assert [run.n_passes for run in candidates(found)] == [n + 1 for n in alone]


def test_runs_that_do_not_fit_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = last(plan())
    size = max(run.nbytes for run in whole.runs)
    monkeypatch.setattr("daskgmm.fit.sweep.GROUP_BYTES", size)
    turns = last(plan())
    assert [digest(run) for run in turns.runs] == [digest(run) for run in whole.runs]
    assert turns.n_passes > whole.n_passes


# States


@pytest.mark.parametrize("criterion", ["icl", "held_out"])
def test_a_search_goes_on_from_any_state_to_the_same_bits(criterion: str) -> None:
    chosen = plan(criterion, refine=None, tol=1e-9)
    all_states = list(states(chosen))
    digests = [digest(state) for state in all_states]
    assert any(run.dropped for run in candidates(all_states[-1]))
    for number in range(0, len(all_states), 5):
        assert [digest(found) for found in states(chosen, all_states[number])] == digests[number:]


def test_a_finished_search_reads_nothing() -> None:
    class Unreadable(Threads):
        def reduce(self, *_: Any) -> Any:
            raise AssertionError("rows were read")

    chosen = plan()
    end = last(chosen)
    assert [*search(chosen, Unreadable(), rows(), end)] == [end]


def test_more_iterations_go_on_from_the_end() -> None:
    short, long = plan(tol=1e-6, max_iter=5), plan(tol=1e-6, max_iter=30)
    further = last(long, last(short).under(max_iter=30))
    for one, other in zip(candidates(further), candidates(last(long)), strict=True):
        assert digest(one.run) == digest(other.run)
        assert one.score == other.score


# What a candidate is worth


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_final_parameters(kind: str) -> None:
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(X))
    *_, end = states(plan(kinds=(kind,)), None, rows(weight=weight))
    for run in candidates(end):
        density, n = run.mixture.score_samples(X), weight.sum()
        resp = run.mixture.responsibilities(X)
        entropy = -(weight[:, None] * np.where(resp > 0, resp * np.log(np.where(resp > 0, resp, 1)), 0)).sum()
        assert run.score is not None
        assert run.score.total_weight == pytest.approx(n)
        assert run.score.log_likelihood == pytest.approx((weight * density).sum(), rel=1e-12)
        assert run.score.entropy == pytest.approx(entropy, rel=1e-9, abs=1e-8)
        assert run.score.icl == run.score.bic + 2 * run.score.entropy


def test_held_out_rows_are_scored_and_not_learnt() -> None:
    found = candidates(last(plan("held_out", sizes=(1, 3))))
    for run in found:
        assert run.held_out is not None
        held = run.held_out.among(np.arange(len(X)))
        assert 0.05 < held.mean() < 0.15
        assert run.held == pytest.approx(run.mixture.score_samples(X[held]).mean(), rel=1e-12)
        assert run.total == (~held).sum()
    one = X[~held]
    np.testing.assert_allclose(found[0].mixture.means[0], one.mean(axis=0), atol=1e-12)


# Who is dropped


def candidate(k: int, trace: tuple[float, ...], **more: Any) -> Candidate:
    run = EM(draw_mixture("full", k, 2), Regularised(), 0.0, 500, trace)
    return Candidate(run, total=1000.0, n_passes=len(trace), **more)


def climbing(limit: float, ratio: float, n: int = TRUSTED, gap: float = 1.0) -> tuple[float, ...]:
    return tuple(limit - gap * ratio**i for i in range(n))


def test_the_gain_that_remains_is_that_of_a_geometric_series() -> None:
    run = candidate(2, climbing(-3.0, 0.9))
    assert run.remaining == pytest.approx(0.9 ** (TRUSTED - 1), rel=1e-9)
    assert np.isnan(candidate(2, (-3.0, -2.0)).remaining)
    assert np.isnan(candidate(2, (-3.0, -2.9, -2.0)).remaining)  # it gains speed
    assert candidate(2, (-3.0, -2.0, -2.0)).remaining == 0.0
    assert replace(run, dropped=True).remaining == run.remaining


def judged(runs: list[Candidate], criterion: str = "bic", refine: int | None = None) -> list[bool]:
    chosen = Plan(recipes=(), criterion=CRITERIA[criterion], refine=refine)
    return [run.dropped for run in chosen.judged(runs)]


def test_the_hopeless_are_dropped_by_the_margin_of_the_criterion() -> None:
    """A third component costs six parameters: it is hopeless where thrice the gain that is left is less."""
    leader, margin = candidate(2, (-3.0,) * TRUSTED), 6 * np.log(1000) / 2 / 1000
    for share, dropped in ((0.33, True), (0.34, False), (2.0, False)):
        gap = share * margin / 0.5 ** (TRUSTED - 1)  # at first; so much of the margin is left
        trace = climbing(-3.0 + share * margin, 0.5, gap=gap)
        assert judged([leader, candidate(3, trace)]) == [False, dropped]
        assert judged([leader, candidate(3, trace[1:])]) == [False, False]  # too early to say


def test_a_start_that_few_rows_have_settled_is_told_by_what_these_lack() -> None:
    """Hopeless from the first pass on where thrice what the optimum of few rows lacks is less than the margin."""
    leader, margin = candidate(2, (-3.0,)), 6 * np.log(1000) / 2 / 1000
    for lacks, dropped in ((0.33 * margin, True), (0.34 * margin, False), (nan, False)):
        for trace in ((-3.0,), (-3.1, -3.0)):
            assert judged([leader, candidate(3, trace, lacks=lacks)]) == [False, dropped]
    # What three iterations tell is more than that.
    for share, dropped in ((0.33, True), (0.34, False)):
        later = climbing(-3.0 + share * margin, 0.5, 3, 4 * share * margin)
        assert judged([leader, candidate(3, later, lacks=0.0)]) == [False, dropped]
        assert judged([leader, candidate(3, later)]) == [False, False]


def test_the_hopeless_meet_all_rows_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "TRIAL_ROWS", 150)
    x = np.random.default_rng(1).normal(size=(6000, 2)) + 6 * (np.arange(6000) % 3)[:, None]
    chosen = plan(refine=None, sizes=(1, 3), kinds=("full", "diag"), init_params="subsample")
    runs = candidates(last(chosen, None, as_rows(x)))
    best = chosen.best(runs)
    assert best.mixture.n_components == 3
    assert best.converged
    for run in runs:
        if run.mixture.n_components == 1:
            assert (run.dropped, run.n_iter, run.n_passes) == (True, 1, 2)
            assert run.score is not None
            assert run.score.mean == pytest.approx(run.mixture.score_samples(x).mean(), rel=1e-12)


def test_leaders_are_never_dropped() -> None:
    runs = [candidate(k, climbing(-3.0, 0.5)) for k in (2, 3, 4, 5)]
    assert judged(runs) == [False, True, True, True]
    assert judged(runs, refine=3) == [False, False, False, True]
    assert judged(runs, refine=9) == [False] * 4


def test_what_has_no_entropy_yet_is_judged_by_the_least_that_it_can_have() -> None:
    trace = climbing(-3.0, 0.5)
    end = replace(candidate(2, trace, dropped=True), score=Score(-3000.0, 500.0, 1000.0, 11))
    assert judged([end, candidate(3, trace)], "icl") == [True, False]
    assert judged([replace(end, score=Score(-3000.0, 1.0, 1000.0, 11)), candidate(3, trace)], "icl") == [
        True,
        True,
    ]
    # No entropy is known: nobody is compared.
    assert judged([candidate(2, trace), candidate(9, trace)], "icl") == [False, False]


def test_held_out_rows_decide_by_their_likelihood() -> None:
    trace = climbing(-3.0, 0.5)
    runs = [candidate(2, trace, held=-3.0), candidate(3, trace, held=-3.1), candidate(4, trace, held=nan)]
    assert judged(runs, "held_out") == [False, True, False]


def test_a_candidate_that_fails_is_out() -> None:
    plane = np.column_stack([X, X[:, 0]])
    chosen = plan(sizes=(2,), kinds=("full", "diag"), reg_covar=0.0, init_params="kmeans")
    end = last(chosen, None, as_rows(plane))
    (only,) = candidates(end)  # the full one has no start
    assert only.mixture.covariance.structure is STRUCTURES["diag"]
