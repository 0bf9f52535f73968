"""Moves by split and merge: what they gain is certain, what EM makes of them is never worse, and seeds decide."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from daskgmm.fit import moves
from daskgmm.fit.moves import Known, expected, improved, moved, paired, removals
from daskgmm.fit.run import EM, best
from daskgmm.fit.splits import Members, splits
from daskgmm.model.changes import merge, split
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES
from daskgmm.model.update import Regularised
from tests.structures import KINDS, covariances

EACH = pytest.mark.parametrize("kind", KINDS)
CENTRES = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
X = CENTRES[np.arange(1200) % 4] + np.random.default_rng(0).normal(size=(1200, 2))
# Two in one cluster, one for two: no EM step leads out of it.
STUCK = np.array([[-0.3, 0.0], [0.3, 0.0], [8.0, 4.0], [0.0, 8.0]])


def mixture_of(kind: str, means: Any) -> Mixture:
    k, d = means.shape
    structure = STRUCTURES[kind]
    values = structure.stored(covariances(np.tile(np.eye(d), (k, 1, 1)), np.ones(k), kind), k, d)
    return Mixture(np.full(k, 1 / k), means, structure.form.of(structure, values))


def settled(kind: str = "full", x: Any = X, weight: Any = None, means: Any = STUCK, steps: int = 30) -> EM:
    run = EM(mixture_of(kind, means), Regularised(1e-6), 0.0, 1000)
    for _ in range(steps):
        run = run.advance(run.mixture.expectation(x, weight))
    return run


def bound(mixture: Mixture, x: Any = X) -> float:
    return float(mixture.score_samples(x).mean())


def chain(run: EM, x: Any = X, weight: Any = None, seed: int = 0) -> EM:
    return improved(run, x, weight, 20, np.random.RandomState(seed))


@EACH
def test_moves_lead_where_em_does_not(kind: str) -> None:
    stuck = settled(kind)
    assert stuck.trace[-1] - stuck.trace[-2] < 1e-3
    after = chain(stuck)
    nearest = np.linalg.norm(after.mixture.means[:, None] - CENTRES, axis=2)
    assert nearest.min(axis=0).max() < 0.3
    assert after.lower_bound > stuck.lower_bound + 0.1


@EACH
def test_what_a_split_gains_is_certain(kind: str) -> None:
    """Before any EM step of the whole, but for rows that a component has little of, and for noise."""
    mixture = settled(kind).mixture
    found = splits(mixture, Members.of(mixture, X, None), range(4), np.random.RandomState(0))
    widest = max(found, key=lambda one: one.gain)
    assert widest.component == 2
    assert widest.gain > (0.02 if kind == "tied" else 0.1)  # one that all share stays as it is
    for one in found:
        assert bound(split(mixture, one.component, one.halves)) - bound(mixture) >= one.gain


@EACH
def test_a_split_that_promises_much_less_than_its_price_is_left_out(kind: str) -> None:
    mixture, members = settled(kind).mixture, Members.of(settled(kind).mixture, X, None)
    found, fair, dear = (
        splits(mixture, members, range(4), np.random.RandomState(0), price) for price in (0.0, 0.02, 20.0)
    )
    assert max(one.gain for one in fair) == max(one.gain for one in found)
    assert len(fair) <= len(found)
    assert not dear


@EACH
def test_what_a_removal_loses_is_certain(kind: str) -> None:
    # At a fixed point of EM: there components have the moments of their rows.
    mixture = settled(kind, steps=600).mixture
    for removal in removals(mixture, Members.of(mixture, X, None)):
        if len(removal.components) == 2:
            loss = bound(mixture) - bound(merge(mixture, *removal.components))
            assert loss <= removal.loss + 1e-4
        elif removal.loss < 1:  # else some rows lose more than is counted
            (gone,) = removal.components
            kept = np.delete(np.arange(4), gone)
            w = mixture.weights[kept] / mixture.weights[kept].sum()
            left = Mixture(w, mixture.means[kept], mixture.covariance.take(kept))
            np.testing.assert_allclose(bound(mixture) - bound(left), removal.loss, rtol=1e-6, atol=1e-9)


@EACH
def test_a_chain_never_ends_worse(kind: str) -> None:
    rng = np.random.default_rng(1)
    for seed in range(4):
        start = settled(kind, means=X[rng.choice(len(X), 4, replace=False)], steps=10)
        after = chain(start, seed=seed)
        assert after is start or after.rank > start.rank


def test_where_nothing_is_to_gain_the_run_stays_as_it_is() -> None:
    good = settled(means=CENTRES)
    assert chain(good) is good
    lone = settled(means=CENTRES[:1])
    assert chain(lone) is lone


def test_the_seed_decides() -> None:
    x = np.concatenate([X, 3 * X + 40])
    start = settled(x=x, means=np.concatenate([STUCK, STUCK + 1]), steps=10)
    a, b = (chain(start, x) for _ in range(2))
    np.testing.assert_array_equal(a.mixture.means, b.mixture.means)
    assert a.trace == b.trace


def test_a_weight_of_two_counts_as_two_rows() -> None:
    x = X[:600]
    twice = chain(settled(x=x, weight=np.full(600, 2.0)), x, np.full(600, 2.0))
    doubled = np.repeat(x, 2, axis=0)
    other = chain(settled(x=doubled), doubled)
    np.testing.assert_allclose(twice.mixture.means, other.mixture.means, atol=1e-6)
    np.testing.assert_allclose(twice.lower_bound, other.lower_bound, rtol=1e-9)


def test_rows_of_no_weight_have_no_say() -> None:
    weight = np.ones(2400)
    weight[1200:] = 0.0
    x = np.concatenate([X, np.full((1200, 2), 1e3)])
    with_them, without = chain(settled(x=x, weight=weight), x, weight), chain(settled())
    np.testing.assert_allclose(with_them.mixture.means, without.mixture.means, atol=1e-6)


def test_a_component_without_rows_of_its_own_gives_way() -> None:
    """It fits two rows as closely as it likes: no likelihood speaks for it."""
    x = np.concatenate([X, [[20.0, 20.0], [20.0, 20.0 + 1e-6]]])
    start = settled(x=x, means=np.array([[20.0, 20.0], [0.0, 0.0], [8.0, 4.0], [0.0, 8.0]]))
    assert start.mixture.weights.min() * len(x) < 3
    after = chain(start, x)
    assert after.mixture.weights.min() * len(x) > 3
    assert after.rank > start.rank
    assert best([start, after]) is after
    assert best([start, replace(after, failure=None, mixture=start.mixture, trace=(0.0,))]).trace == (0.0,)


def test_no_half_is_smaller_than_two_for_each_axis() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(500, 2)), 20 + rng.normal(size=(5, 2))])
    mixture = settled(x=x, means=np.zeros((1, 2)), steps=3).mixture
    random = np.random.RandomState(0)
    assert not splits(mixture, Members.of(mixture, x, None), [0], random)
    more = np.concatenate([x, 20 + rng.normal(size=(5, 2))])
    mixture = settled(x=more, means=np.zeros((1, 2)), steps=3).mixture
    (found,) = splits(mixture, Members.of(mixture, more, None), [0], random)
    np.testing.assert_allclose(found.halves.weights.min(), 10 / 510, rtol=0.05)


def test_moves_touch_no_component_twice() -> None:
    x = np.concatenate([X, X + 30, X + 60])
    means = np.concatenate([STUCK, STUCK + 30, STUCK + 60])
    mixture = settled(x=x, means=means).mixture
    members = Members.of(mixture, x, None)
    found = paired(
        splits(mixture, members, range(12), np.random.RandomState(0)), removals(mixture, members), set()
    )
    touched = [component for move in found for component in move.touched]
    assert len(found) == 3
    assert len(set(touched)) == len(touched)
    after = moved(mixture, found)
    np.testing.assert_allclose(after.weights.sum(), 1, rtol=1e-12)
    assert bound(after, x) - bound(mixture, x) >= sum(move.gain for move in found) - 1e-3
    (first,) = paired([found[0].split], removals(mixture, members), {found[0].touched})
    assert first.touched != found[0].touched


def test_only_components_that_changed_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = settled().mixture
    members, random = Members.of(mixture, X, None), np.random.RandomState(0)
    asked: list[list[int]] = []

    def spy(mixture: Any, members: Any, components: Any, *more: Any) -> Any:
        asked.append(list(components))
        return splits(mixture, members, components, *more)

    monkeypatch.setattr(moves, "splits", spy)
    known = Known.none(mixture).renewed(mixture, members, random)
    means = mixture.means.copy()
    means[3] += 0.5
    again = known.renewed(Mixture(mixture.weights, means, mixture.covariance), members, random)
    assert asked == [[0, 1, 2, 3], [3]]
    assert again.found[:3] == known.found[:3]


def test_what_em_alone_would_gain_is_told_from_the_last_steps() -> None:
    assert expected((-3.0, -2.0), 10) == 0
    np.testing.assert_allclose(expected((-4.0, -2.0, -1.0), 3), 0.5 + 0.25 + 0.125)
    np.testing.assert_allclose(expected((-4.0, -3.0, -1.0), 3), 6.0)  # it speeds up: as if it went on so
    assert expected((-4.0, -3.0, -3.5), 3) == 0
