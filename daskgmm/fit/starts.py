"""Starts: from the row sample of the survey, so that they never cost a pass of their own.

To add a way to start, write a function from `Ground` and random numbers to a mixture and enter it in `STARTS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin

from daskgmm._typing import Array
from daskgmm.compute.rows import as_rows
from daskgmm.errors import CollapseError
from daskgmm.fit.race import Rung, race
from daskgmm.fit.recipe import Recipe, sample_size
from daskgmm.fit.run import EM
from daskgmm.fit.survey import RowSample, Survey
from daskgmm.model import kernels
from daskgmm.model.blas import one_thread
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Regularised, Steady, Update, maximise

# "subsample": starts of these kinds in turn, tried with short EM runs; the best of each goes on. k-means finds
# round clusters that k-means++ misses, and is misled by long ones; after a few iterations it leads in either case.
TRIED = ("k-means++", "kmeans")
TRIALS, TRIAL_ITER, SAMPLE_ITER = 5, 10, 100
# Rows that those starts are tried on: fewer overfit at 16 components in 16 features, and cost more passes than
# they save.
TRIAL_ROWS = 10_000
# The best goes on with at most so many, and at most one in so many of all: that spares the data a pass or two.
SURVEY_ROWS, SURVEY_BYTES, SURVEY_SHARE = 60_000, 64 * 2**20, 10
SAMPLE_TOL = 1e-5  # of EM on the sample of an online fit, which costs little


@dataclass(frozen=True, eq=False)
class Ground:
    """What a start is found on: the survey, and the points of its sample."""

    recipe: Recipe
    survey: Survey
    x: Array
    weight: Array | None

    @classmethod
    def of(cls, recipe: Recipe, survey: Survey, sample: RowSample) -> Ground:
        """A sample as points."""
        return cls(recipe, survey, *sample.points())


def seed(recipe: Recipe, survey: Survey, random: np.random.RandomState) -> list[Mixture]:
    """Starting mixtures of a batch fit: one for "subsample" or a start given in full, else ``n_init``.

    Runs on the driver under one BLAS and OpenMP thread: scikit-learn's k-means differs in its last bits between
    thread counts.
    """
    if (given := _given(recipe, survey)) is not None:
        return [given]
    size = min(sample_size(recipe.k, survey.overall.means.shape[1]), survey.sample.size)
    method = resolve(recipe.init_params, survey.overall.n_rows, size)
    with one_thread():
        if method != "subsample":
            ground = Ground.of(recipe, survey, survey.sample)
            return _found(ground, (method,), recipe.n_init, random)[0]
        return [_subsampled(recipe, survey, random)]


def polished(recipe: Recipe, survey: Survey, random: np.random.RandomState) -> tuple[Mixture, Ground]:
    """The start of an online fit: EM on the whole sample, which no sample can break; and what it was found on.

    k-means++ starts are tried with short runs unless the user asks for another way; the best goes on.
    """
    ground = Ground.of(recipe, survey, survey.sample)
    method = "k-means++" if recipe.init_params in ("auto", "subsample") else recipe.init_params
    trials = TRIALS if method == "k-means++" and recipe.start.means is None else 1
    with one_thread():
        found = _found(ground, (method,), trials, random)
    rows = as_rows(ground.x, weight=ground.weight)
    runs = _runs(found, Steady(recipe.reg_covar), SAMPLE_TOL)
    return race(runs, [Rung(rows, TRIAL_ITER), Rung(rows, SAMPLE_ITER)]).mixture, ground


def survey_size(init_params: str, k: int, d: int) -> int:
    """Rows that a batch fit draws: where starts are tried, also those that the best goes on with."""
    if init_params not in ("auto", "subsample"):
        return sample_size(k, d)
    return max(sample_size(k, d), sample_size(k, d, min(SURVEY_ROWS, SURVEY_BYTES // (8 * d))))


def resolve(init_params: str, n_rows: float, size: int) -> str:
    """What ``"auto"`` stands for: scikit-learn's k-means for up to ``size`` rows."""
    if init_params != "auto":
        return init_params
    return "kmeans" if n_rows <= size else "subsample"


def _given(recipe: Recipe, survey: Survey) -> Mixture | None:
    """The start that the user gave, as parameters or for each row."""
    if recipe.start.whole is not None or survey.start is None:
        return recipe.start.whole
    with one_thread():
        return recipe.start.onto(updated(recipe, survey, survey.start))


def _subsampled(recipe: Recipe, survey: Survey, random: np.random.RandomState) -> Mixture:
    """Starts tried on few rows of the sample; the best goes on there, and then on more."""
    k, d = recipe.k, survey.overall.means.shape[1]
    few = survey.sample.first(sample_size(k, d, TRIAL_ROWS))
    more = survey.sample.first(int(survey.overall.n_rows) // SURVEY_SHARE)
    ground = Ground.of(recipe, survey, few)
    count = 1 if recipe.start.means is not None else max(recipe.n_init, TRIALS)
    found = _found(ground, TRIED, count, random)
    rows = as_rows(ground.x, weight=ground.weight)
    rungs = [Rung(rows, TRIAL_ITER), Rung(rows, SAMPLE_ITER)]
    if more.size > len(ground.x):
        x, weight = more.points()
        rungs.append(Rung(as_rows(x, weight=weight), SAMPLE_ITER, anew=True))
    return race(_runs(found, Regularised(recipe.reg_covar), recipe.tol), rungs).mixture


def _found(
    ground: Ground, kinds: tuple[str, ...], count: int, random: np.random.RandomState
) -> list[list[Mixture]]:
    """So many starts, of these kinds in turn, each kind by itself; those that collapse are left out."""
    found: dict[str, list[Mixture]] = {}
    failure = None
    for i in range(count):
        kind = kinds[i % len(kinds)]
        try:
            mixture = _one(ground, kind, random)
        except CollapseError as error:  # the other starts may do better
            failure = error
        else:
            found.setdefault(kind, []).append(mixture)
    if failure is not None and not found:
        raise failure
    return list(found.values())


def _one(ground: Ground, kind: str, random: np.random.RandomState) -> Mixture:
    """A start of one kind, with the parts that the user gave."""
    start = ground.recipe.start
    if start.means is not None:
        return start.onto(around(ground, start.means))
    return start.onto(STARTS[kind](ground, random))


def _runs(found: list[list[Mixture]], update: Update, tol: float) -> list[list[EM]]:
    return [[EM(mixture, update, tol, TRIAL_ITER) for mixture in heat] for heat in found]


def kmeans(ground: Ground, random: np.random.RandomState) -> Mixture:
    """One M-step from the labels of scikit-learn's k-means, as in its mixtures."""
    recipe = ground.recipe
    labels = KMeans(recipe.k, n_init=1, random_state=random).fit(ground.x, sample_weight=ground.weight).labels_
    statistics = moments(recipe.structure, ground.x, ground.weight, labels, recipe.k)
    return updated(recipe, ground.survey, statistics)


def plus_plus(ground: Ground, random: np.random.RandomState) -> Mixture:
    """Around centres far from each other."""
    centres, _ = kmeans_plusplus(ground.x, ground.recipe.k, sample_weight=ground.weight, random_state=random)
    return around(ground, centres)


def rows_at_random(ground: Ground, random: np.random.RandomState) -> Mixture:
    """Around rows drawn with their weights."""
    x, weight = ground.x, ground.weight
    share = None if weight is None else weight / weight.sum()
    return around(ground, x[random.choice(len(x), ground.recipe.k, replace=False, p=share)])


def responsibilities_at_random(ground: Ground, random: np.random.RandomState) -> Mixture:
    """One M-step from random responsibilities, drawn for some rows at a time: scikit-learn's own stream."""
    recipe, x, weight = ground.recipe, ground.x, ground.weight
    parts = []
    for first in range(0, len(x), kernels.PIECE):
        rows = slice(first, first + kernels.PIECE)
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
    labels = pairwise_distances_argmin(x, centres)
    found = moments(recipe.structure, x, weight, labels, k)
    within = moments(recipe.structure, x - found.means[labels], weight)
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
    values = structure.form.raised(s.scatter / s.weight.sum(), recipe.reg_covar)
    means = np.broadcast_to(overall.means, statistics.reference.shape)
    return maximise(statistics, means, np.broadcast_to(values, statistics.scatter.shape), recipe.reg_covar)
