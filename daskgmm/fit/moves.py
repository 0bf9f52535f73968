"""Moves out of a local optimum: components are split where rows gain by it, and others merged or left out.

EM takes no component across a gap. A move does: it splits one that serves two clusters, and frees one where two
serve a single cluster (Ueda, Nakano, Ghahramani & Hinton 2000). What that gains and costs is bounded before EM
goes on, by new responsibilities of the rows of the components that change.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import xlogy

from daskgmm._typing import Array
from daskgmm.compute.engines import on_threads
from daskgmm.compute.rows import Rows
from daskgmm.compute.sources.memory import InMemory
from daskgmm.errors import CollapseError
from daskgmm.fit.run import EM
from daskgmm.fit.splits import Members, Split, splits
from daskgmm.fit.sweep import climb
from daskgmm.model.changes import Changes, Pairs, halved, put
from daskgmm.model.missing import misses
from daskgmm.model.mixture import Mixture

STEPS = 10  # of EM after a round of moves, before what came of it is compared
FAILURES = 2  # rounds in a row without use, which end a chain
MERGERS, PARTS = 2, 8  # for each component, that are looked at closely; and in so many parts, for threads
BLOCK_ROWS = 15_000  # of a sample, that a thread works through at a time


@dataclass(frozen=True, eq=False)
class Removal:
    """Two components merged, or one left out; and what a row of all loses by it at most."""

    components: tuple[int, ...]
    loss: float


@dataclass(frozen=True, eq=False)
class Move:
    """A component in two, and the removal that spares one for it."""

    split: Split
    removal: Removal

    @property
    def gain(self) -> float:
        """What a row gains by both, at least."""
        return self.split.gain - self.removal.loss

    @property
    def touched(self) -> tuple[int, ...]:
        """The components that change."""
        return self.split.component, *self.removal.components


def points_as_rows(x: Array, weight: Array | None, known: Array | None = None) -> Rows:
    """Rows of a sample, or first rows of a stream, in blocks that threads share; what is NaN there is missing."""
    given = {"x": x, "weight": weight, "known": known}
    held = {
        name: InMemory(shape=values.shape, dtype=values.dtype, chunks=(len(values),), array=values)
        for name, values in given.items()
        if values is not None
    }
    chunks = held["x"].plan(8 * BLOCK_ROWS * x.shape[1])
    cut = {name: source.cut(chunks) for name, source in held.items()}
    return Rows(cut.pop("x"), cut, missing_nan=misses(x))


def improved(run: EM, x: Array, weight: Array | None, rounds: int, random: np.random.RandomState) -> EM:
    """The run after rounds of moves, each followed by some EM steps, and kept if it gains more than these alone.

    After a round without use, the best move is made alone; after another, the chain ends.
    """
    rows, known, failures = points_as_rows(x, weight), Known.none(run.mixture), 0
    barred: set[tuple[int, ...]] = set()
    for _ in range(rounds if run.mixture.n_components > 1 else 0):
        members = Members.of(run.mixture, x, weight)
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is no number is no gain
                spared = removals(run.mixture, members)
                known = known.renewed(run.mixture, members, random, max(spared[0].loss, 0.0))
                moves = paired([one for one in known.found if one is not None], spared, barred)[
                    : 1 if failures else None
                ]
                trial = replace(run, mixture=moved(run.mixture, moves))
        except CollapseError:  # by rounding: nothing is certain
            break
        if not moves:
            break
        (after,) = climb(rows, [trial], STEPS, anew=True)
        alone = run.lower_bound + expected(run.trace, STEPS)
        if after.rank > (*run.rank[:2], alone):
            run, failures = after, 0
            continue
        failures += 1
        if failures == FAILURES:
            break
        if len(moves) == 1:
            barred.add(moves[0].touched)
    return run


def expected(trace: Sequence[float], steps: int) -> float:
    """What as many further EM steps would gain: the last gain, falling as it fell before (Aitken)."""
    if len(trace) < 3:
        return 0.0
    before, last = np.diff(trace[-3:])
    fall = min(max(last / before, 0.0), 1.0) if before > 0 else 0.0
    return float(max(last, 0.0) * sum(fall**i for i in range(1, steps + 1)))


def removals(mixture: Mixture, members: Members) -> list[Removal]:
    """Mergers and deletions, the cheapest first.

    Runnalls' bound for a merger holds whatever the rows' shares in the pair are. That these need not be told any
    more is taken off: what remains is the loss under the pair's shares together.
    """
    w, total = mixture.weights, members.weight.sum()
    i, j = np.triu_indices(mixture.n_components, 1)
    bound = Pairs.of(mixture, w, i, j).loss

    def mergers(pairs: Array) -> Iterator[Removal]:
        for p in pairs:
            a, b = int(i[p]), int(j[p])
            weight, r, s = members.between(a, b)
            told = (weight * (xlogy(r, r) + xlogy(s, s) - xlogy(r + s, r + s))).sum() / total
            told += xlogy(w[a] + w[b], w[a] + w[b]) - xlogy(w[a], w[a]) - xlogy(w[b], w[b])
            yield Removal((a, b), float(bound[p] - max(told, 0.0)))

    # What a component of too few rows gains is no gain.
    lost = np.where(w * total < mixture.n_features + 1, 0.0, members.lost)
    found = [Removal((component,), float(loss)) for component, loss in enumerate(lost)]
    close = np.argsort(bound, kind="stable")[: MERGERS * len(w)]
    for some in on_threads(lambda pairs: list(mergers(pairs)), np.array_split(close, PARTS)):
        found += some
    return sorted(found, key=lambda removal: removal.loss)


def paired(splits: Sequence[Split], removals: Sequence[Removal], barred: set[tuple[int, ...]]) -> list[Move]:
    """Splits, each with the cheapest removal that it gains more than; no two touch one component; best first."""
    taken: set[int] = set()
    found: list[Move] = []
    for split in sorted(splits, key=lambda split: -split.gain):
        moves = (Move(split, removal) for removal in removals if split.component not in removal.components)
        fit = (move for move in moves if not taken & set(move.touched) and move.touched not in barred)
        if (move := next(fit, None)) is not None and move.gain > 0:
            found.append(move)
            taken |= set(move.touched)
    return sorted(found, key=lambda move: -move.gain)


def moved(mixture: Mixture, moves: Sequence[Move]) -> Mixture:
    """The mixture after moves that touch no component twice."""
    changes: Changes = {}
    for move in moves:
        first, last = move.removal.components[0], move.removal.components[-1]
        if first != last:
            changes[first] = Pairs.of(mixture, mixture.weights, np.array([first]), np.array([last])).pair(0)
        changes |= halved(mixture, move.split.component, move.split.halves, last)
    after = put(mixture, changes)
    return replace(after, weights=after.weights / (after.weights.sum() / (1 - mixture.background_weight)))


@dataclass(frozen=True, eq=False)
class Known:
    """The best split of each component, if any, and what the component was when that was looked for."""

    weights: Array  # (k,)
    means: Array  # (k, d)
    half_log_det: Array  # (k,)
    found: tuple[Split | None, ...]

    @classmethod
    def none(cls, mixture: Mixture) -> "Known":
        """Of components that are not known."""
        k, d = mixture.means.shape
        return cls(np.full(k, np.inf), np.zeros((k, d)), np.zeros(k), (None,) * k)

    def renewed(
        self, mixture: Mixture, members: Members, random: np.random.RandomState, price: float = 0.0
    ) -> "Known":
        """Splits of the mixture's components: new ones for those that are not what they were."""
        k, d = mixture.means.shape
        level = np.broadcast_to(mixture.covariance.half_log_det(d), k)
        shift = [mixture.covariance.whiten(delta, j) for j, delta in enumerate(mixture.means - self.means)]
        alike = np.abs(mixture.weights - self.weights) < 0.1 * mixture.weights
        alike &= (np.square(shift).sum(axis=1) < 0.01 * d) & (np.abs(level - self.half_log_det) < 0.02 * (d + 5))
        fresh = {one.component: one for one in splits(mixture, members, np.flatnonzero(~alike), random, price)}
        return Known(
            np.where(alike, self.weights, mixture.weights),
            np.where(alike[:, None], self.means, mixture.means),
            np.where(alike, self.half_log_det, level),
            tuple(self.found[j] if alike[j] else fresh.get(j) for j in range(k)),
        )
