"""Starts: from the row sample of the survey, so that they never cost a pass of their own.

To add a way to start, write a function from `Ground` and random numbers to a mixture and enter it in `STARTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.engines import on_threads
from daskgmm.compute.rows import Rows
from daskgmm.errors import CollapseError
from daskgmm.fit.accelerated import Accelerated
from daskgmm.fit.moves import improved, points_as_rows
from daskgmm.fit.recipe import Recipe, sample_size
from daskgmm.fit.run import EM, best
from daskgmm.fit.survey import RowSample, Survey
from daskgmm.fit.sweep import climb
from daskgmm.model.blas import one_thread
from daskgmm.model.missing import completed, misses
from daskgmm.model.mixture import Mixture, pieces
from daskgmm.model.moments import moments
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Around

# "subsample": a start of each kind, tried with a short EM run; the better one goes on. k-means finds round
# clusters that k-means++ misses, and is misled by long ones; after a few iterations it leads in either case.
TRIED = ("k-means++", "kmeans")
TRIAL_ITER, SAMPLE_ITER = 10, 100
# Rows that those starts are tried on: fewer overfit at 16 components in 16 features, and cost more passes than
# they save.
TRIAL_ROWS = 10_000
# The best goes on with at most so many, and at most one in so many of all: that spares the data a pass or two.
MORE_ROWS, MORE_BYTES, MORE_SHARE = 60_000, 64 * 2**20, 2
ROUNDS, MORE_ROUNDS = 20, 3  # of moves on the few rows, and on more
# Where a move gains, or a start does not come to rest, there are many optima. On cancer, digits, wine and rings
# (benchmarks/problems.py) the best of four tries on the few rows, after a first one that gains, ended .130, .034,
# .065 and .012 nats a row below the best known on all rows; of eight .097, .015, .036 and .005; .066, .015, .036
# and .003 where the best two of them go on to more rows. Where the few rows are fewer than parameters (8x8
# patches) the best on them ended .05 lower on all.
TRIES, FINAL = 8, 2
REST = 1e-3  # nats a row that the last step of a start gains less than, which has come to rest
GO_ON = 3  # of so many chains one goes on to more rows
# So many beside the first go on to all rows. Of 14 problems where n_init=1 ends below the best known, n_init=10
# ended .005 nats a row above it on 6; on 3 where only the one that led on the sample went on.
AT_LAST = 2
FEW_ROWS = 4  # for each feature and one: with fewer, a covariance has seen other rows of its cluster as too far
FAR = 1e3  # standard deviations from 0, where squares of 1e6 leave ten digits
SAMPLE_TOL = 1e-5  # of EM on the sample of an online fit, which costs little


@dataclass(frozen=True, eq=False)
class Ground:
    """What a start is found on: the survey, and the points of a sample with their weights."""

    recipe: Recipe
    survey: Survey
    x: Array
    weight: Array | None
    stored: Array | None = None  # the same points as they are, where values are missing that ``x`` completes
    known: Array | None = None  # their components, −1 where not known

    @classmethod
    def of(cls, recipe: Recipe, survey: Survey, sample: RowSample) -> "Ground":
        """With what points miss completed, from the moments of those that have it."""
        (x, weight), known = sample.points(), sample.known
        if known is not None:
            known = known[sample.chosen] if (known >= 0).any() else None
        if not misses(x):
            return cls(recipe, survey, x, weight, known=known)
        return cls(recipe, survey, completed(x, weight, survey.overall.means[0]), weight, x, known)

    @property
    def block(self) -> Block:
        """The points as one block."""
        x, partial = (self.x, False) if self.stored is None else (self.stored, True)
        known = {} if self.known is None else {"known": self.known}
        return Block(x, weight=self.weight, columns=known, partial=partial)

    @property
    def rows(self) -> Rows:
        """The points as EM takes them."""
        return points_as_rows(self.x if self.stored is None else self.stored, self.weight, self.known)

    @property
    def movable(self) -> bool:
        """Whether moves may be made: not where components are given or labelled, nor where values are missing."""
        recipe, whole = self.recipe, self.stored is None and self.survey.labelled is None
        return whole and recipe.start.means is None and recipe.frozen is None

    @property
    def origin(self) -> Array:
        """Where to take distances from, (d,): 0, or far from that the value nearest to the mean.

        Scikit-learn's distances are differences of squares, which an offset drowns. To subtract a value of rows on
        a grid is exact, so that equal distances stay equal.
        """
        mean = self.x.mean(axis=0)
        nearest = self.x[np.abs(self.x - mean).argmin(axis=0), np.arange(len(mean))]
        return np.where(np.abs(mean) > FAR * self.x.std(axis=0), nearest, 0.0)


def seed(recipe: Recipe, survey: Survey, random: np.random.RandomState) -> list[Mixture]:
    """Starting mixtures of a batch fit: of "subsample" one or two, one that is given in full, else ``n_init``.

    Runs on the driver under one BLAS and OpenMP thread: scikit-learn's k-means differs in its last bits between
    thread counts.
    """
    if (whole := recipe.start.whole) is not None:
        return [recipe.begun(whole)]
    with one_thread():
        if survey.start is not None:
            return [recipe.begun(updated(recipe, survey, survey.start))]
        if (method := _method(recipe, survey)) == "subsample":
            return _subsampled(recipe, survey, random)
        return _found(Ground.of(recipe, survey, survey.sample), (method,), recipe.n_init, random)


def _method(recipe: Recipe, survey: Survey) -> str:
    """Of "auto" scikit-learn's own where all rows are in the sample; noise misleads it."""
    size = min(sample_size(recipe.k, survey.overall.means.shape[1]), survey.sample.size)
    alone = survey.overall.n_rows <= size and not recipe.background
    return ("kmeans" if alone else "subsample") if recipe.init_params == "auto" else recipe.init_params


def rows_seen(recipe: Recipe, survey: Survey) -> int:
    """How many rows of the sample EM has led the start of a fit on; 0 where it has on none."""
    if _method(recipe, survey) != "subsample":
        return 0
    return min(max(_sizes(recipe, survey)), len(survey.sample))


def _sizes(recipe: Recipe, survey: Survey) -> tuple[int, int]:
    """How many rows of the sample are few, and how many are more, if it has as many."""
    few = sample_size(recipe.k, survey.overall.means.shape[1], TRIAL_ROWS)
    return few, int(survey.overall.n_rows) // MORE_SHARE


def polished(recipe: Recipe, survey: Survey, random: np.random.RandomState) -> tuple[Mixture, Ground]:
    """The start of an online fit: EM on the whole sample, which no sample can break; and what it was found on.

    A chain of moves, unless the user asks for another way.
    """
    ground = Ground.of(recipe, survey, survey.sample)
    kinds = TRIED if recipe.init_params in ("auto", "subsample") else (recipe.init_params,)
    if kinds == TRIED and not _has_several(ground.x, recipe.k):
        kinds = TRIED[:1]  # k-means would warn
    with one_thread():
        # EM alone, which leaves no rare component behind that it has.
        (run,) = climb(ground.rows, _tries(ground, kinds, SAMPLE_TOL, random), SAMPLE_ITER)
        return run.mixture, ground


def _subsampled(recipe: Recipe, survey: Survey, random: np.random.RandomState) -> list[Mixture]:
    """Chains of moves on few rows of the sample; some go on on more, and the best of them to all rows.

    Their order on a sample is not that on all rows. The first goes on all the way, whatever the others find: it is
    that of a fit with one.
    """
    sample, more = (survey.sample.first(size) for size in _sizes(recipe, survey))
    few = Ground.of(recipe, survey, sample)
    # Each has its own, so that what it draws does not depend on how many there are.
    randoms = [np.random.RandomState(one) for one in random.randint(2**31, size=recipe.n_init)]
    firsts = _tries(few, TRIED, recipe.tol, randoms[0], TRIES)[:FINAL]
    each = one_thread()  # what this thread has set up need not reach another
    others = on_threads(each(lambda own: _tries(few, TRIED, recipe.tol, own)[0]), randoms[1:])
    runs = on_threads(each(lambda run: _settled(run, few.rows)), [*firsts, *others])
    if more.size > len(few.x):
        ground, seen, n = Ground.of(recipe, survey, more), len(few.x), len(firsts)
        rest = sorted(zip(runs[n:], randoms[1:], strict=True), key=lambda one: one[0].rank, reverse=True)
        owns = [np.random.RandomState(randoms[0].randint(2**31)) for _ in firsts]
        going = [*zip(runs[:n], owns, strict=True), *rest[: recipe.n_init // GO_ON]]
        runs = on_threads(each(lambda run, own: _further(run, ground, seen, own)), *zip(*going, strict=True))
        few = ground
    first = max(runs[: len(firsts)], key=lambda run: run.rank)
    ahead = {run.rank: run for run in runs[len(firsts) :] if run.rank != first.rank}  # as good is the same
    found = [run.mixture for run in (first, *(ahead[rank] for rank in sorted(ahead, reverse=True)[:AT_LAST]))]
    whole = len(few.x) == survey.overall.n_rows or not few.movable
    return found if whole else [widened(mixture, len(few.x)) for mixture in found]


def _tries(
    ground: Ground, kinds: tuple[str, ...], tol: float | str, random: np.random.RandomState, most: int = 1
) -> list[EM]:
    """The better of starts of these kinds, and moves from there on: once, or up to ``most`` times, the best first.

    Where the first comes to rest and no move gains, there is nothing to be found by another.
    """
    rows, update = ground.rows, ground.recipe.m_step()
    moving = kinds == TRIED and ground.movable

    def tried(random: np.random.RandomState) -> tuple[EM, EM]:
        trials = [EM(mixture, update, tol, TRIAL_ITER) for mixture in _found(ground, kinds, len(kinds), random)]
        start = best(climb(rows, trials, TRIAL_ITER))
        return start, improved(start, ground.x, ground.weight, ROUNDS, random) if moving else start

    start, first = tried(random)
    easy = not moving or (first is start and start.under(tol=REST).converged)
    if most == 1 or easy or start.mixture.n_parameters > len(ground.x):  # the most overfitted would win
        return [first]
    randoms = [np.random.RandomState(one) for one in random.randint(2**31, size=most - 1)]
    others = [run for _, run in on_threads(one_thread()(tried), randoms)]
    return sorted([first, *others], key=lambda run: run.rank, reverse=True)


def _has_several(x: Array, k: int) -> bool:
    """Whether so many points differ."""
    return len(np.unique(x[:, 0])) >= k or len(np.unique(x, axis=0)) >= k


def _further(run: EM, ground: Ground, seen: int, random: np.random.RandomState) -> EM:
    """The run on more rows than those that it has seen."""
    rows = ground.rows
    if ground.movable:
        run = replace(run, mixture=widened(run.mixture, seen))
    (run,) = climb(rows, [run], TRIAL_ITER, anew=True)
    if ground.movable:
        run = improved(run, ground.x, ground.weight, MORE_ROUNDS, random)
    return _settled(run, rows)


def widened(mixture: Mixture, seen: int) -> Mixture:
    """Covariances that few rows have told, drawn towards the mean of all before other rows come.

    The covariance of m rows in d features takes another row for (m + 1)/(m − d − 2) times as far, squared, as it
    is (the mean of an inverse Wishart): a component that saw few rows would lose the others of its cluster.
    """
    structure, rows, least = mixture.covariance.structure, mixture.weights * seen, mixture.n_features + 1
    few = rows < FEW_ROWS * least
    if structure.shared or not few.any():
        return mixture
    values = mixture.covariance.values
    share = np.where(few, least / (rows + least), 0.0)[structure.form.beside]
    mean = np.average(values, axis=0, weights=mixture.weights)
    values = (1 - share) * values + share * mean
    covariance = structure.covariance(values, mixture.weights, near=mixture.covariance)
    return replace(mixture, covariance=covariance)


def _settled(run: EM, rows: Rows) -> EM:
    """Where accelerated EM leads on these rows, which is further than EM comes in as many passes."""
    plain = isinstance(run.update, Around) or not run.mixture.covariance.structure.extrapolated
    kind = EM if plain else Accelerated
    begun = kind(run.mixture, run.update, run.tol, SAMPLE_ITER, previous=run.lower_bound)
    (after,) = climb(rows, [begun], SAMPLE_ITER)
    return after if after.rank > run.rank else run


def _found(ground: Ground, kinds: tuple[str, ...], count: int, random: np.random.RandomState) -> list[Mixture]:
    """So many starts, of these kinds in turn; those that collapse are left out.

    One around means that are given; or beside labels of some rows.
    """
    found: list[Mixture] = []
    failure = None
    means, labelled = ground.recipe.start.means, ground.survey.labelled
    for i in range(count if means is None else 1):
        try:
            if means is not None:
                own = around(ground, means)
            elif labelled is not None:
                own = beside_known(ground, labelled, random)
            else:
                own = STARTS[kinds[i % len(kinds)]](ground, random)
            found.append(ground.recipe.begun(own))
        except CollapseError as error:  # the other starts may do better
            failure = error
    if failure is not None and not found:
        raise failure
    return found


def beside_known(ground: Ground, labelled: Array, random: np.random.RandomState) -> Mixture:
    """Around the means of rows whose component is known; the other centres far from those and each other.

    k-means++ that has its first centres (Arthur & Vassilvitskii 2007), on rows of which no component is known.
    """
    assert ground.survey.known is not None
    x, centres = ground.x, ground.survey.known.means
    free = np.ones(len(x)) if ground.weight is None else ground.weight
    free = free if ground.known is None else np.where(ground.known < 0, free, 0.0)
    near = np.min([np.square(x - centre).sum(axis=1) for centre in centres[labelled]], axis=0)
    for j in np.flatnonzero(~labelled):
        chance = next((c for c in (free * near, free) if c.any()), np.ones(len(x)))
        centres[j] = x[random.choice(len(x), p=chance / chance.sum())]
        near = np.minimum(near, np.square(x - centres[j]).sum(axis=1))
    found = around(ground, centres)
    return replace(found, means=np.where(labelled[:, None], centres, found.means))


def kmeans(ground: Ground, random: np.random.RandomState) -> Mixture:
    """One M-step from the labels of scikit-learn's k-means, as in its mixtures."""
    recipe = ground.recipe
    labels = KMeans(recipe.k, n_init=1, random_state=random).fit(ground.x, sample_weight=ground.weight).labels_
    statistics = moments(recipe.structure, ground.x, ground.weight, labels, recipe.k)
    return updated(recipe, ground.survey, statistics)


def plus_plus(ground: Ground, random: np.random.RandomState) -> Mixture:
    """Around centres far from each other."""
    x = ground.x - ground.origin
    _, rows = kmeans_plusplus(x, ground.recipe.k, sample_weight=ground.weight, random_state=random)
    return around(ground, ground.x[rows])


def rows_at_random(ground: Ground, random: np.random.RandomState) -> Mixture:
    """Around rows drawn with their weights."""
    x, weight = ground.x, ground.weight
    share = None if weight is None else weight / weight.sum()
    return around(ground, x[random.choice(len(x), ground.recipe.k, replace=False, p=share)])


def responsibilities_at_random(ground: Ground, random: np.random.RandomState) -> Mixture:
    """One M-step from random responsibilities, drawn for some rows at a time: scikit-learn's own stream."""
    recipe, x, weight = ground.recipe, ground.x, ground.weight
    parts = []
    for rows in pieces(len(x)):
        resp = random.uniform(size=(len(x[rows]), recipe.k))
        resp /= resp.sum(axis=1, keepdims=True)
        w = None if weight is None else weight[rows]
        parts.append(moments(recipe.structure, x[rows], w, resp, recipe.k))
    return updated(recipe, ground.survey, reduce(add, parts))


STARTS: dict[str, Callable[[Ground, np.random.RandomState], Mixture]] = {
    "kmeans": kmeans,
    "k-means++": plus_plus,
    "random": responsibilities_at_random,
    "random_from_data": rows_at_random,
}


def around(ground: Ground, centres: Array) -> Mixture:
    """Rows go to their nearest centre; all components start with the covariance about those means.

    A covariance of its own from the few rows around an outlying centre would be singular, and EM would keep
    the component there.
    """
    recipe, x, weight = ground.recipe, ground.x, ground.weight
    k = len(centres)
    labels = pairwise_distances_argmin(x - ground.origin, centres - ground.origin)
    if ground.known is not None:
        labels = np.where(ground.known < 0, labels, ground.known)
    found = moments(recipe.structure, x, weight, labels, k)
    within = moments(recipe.structure, x - found.means[labels], weight)
    if recipe.known is not None:
        within = recipe.known.filled(within)
    covariance = recipe.structure.fit(within, within.scatter, recipe.reg_covar).take(np.zeros(k, int))
    alive = found.weight > 0
    # A centre without rows, one of several equal ones, starts with a weight that lets it move.
    share = np.where(alive, found.weight, found.total_weight / (len(x) + 1))
    means = np.where(alive[:, None], found.means, centres)
    return Mixture(share / share.sum(), means, covariance)


def updated(recipe: Recipe, survey: Survey, statistics: Statistics) -> Mixture:
    """M-step; components that got no row take the overall mean and covariance."""
    overall, structure = survey.overall, recipe.structure
    s = overall.about(overall.means)
    values = s.scatter / s.weight.sum()
    values = values + recipe.reg_covar * structure.form.unit(values.shape[-1])
    means = np.broadcast_to(overall.means, statistics.reference.shape)
    values = np.broadcast_to(values, statistics.scatter.shape)
    return recipe.estimated(statistics, means, values)
