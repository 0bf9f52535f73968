"""Starts: from the row sample of the survey, so that they never cost a pass of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import pairwise_distances_argmin

from daskgmm._typing import Array
from daskgmm.compute.engine import engine_for
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.errors import CollapseError
from daskgmm.fit.blas import one_thread
from daskgmm.fit.em import em
from daskgmm.fit.progress import Silent
from daskgmm.fit.run import Run, best
from daskgmm.fit.survey import RowSample, Survey
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import TILE_ROWS, Mixture, moments
from daskgmm.model.statistics import Statistics

# "subsample": starts of these kinds in turn, tried with short EM runs; the best of each goes on. k-means finds
# round clusters that k-means++ misses, and is misled by long ones; after a few iterations it leads in either case.
TRIED = ("k-means++", "kmeans")
TRIALS, TRIAL_ITER, SAMPLE_ITER = 5, 10, 100
# Rows that those starts are tried on, and that any other is found on, unless there are many means and axes.
TRIAL_ROWS, START_ROWS, SAMPLE_BYTES = 10_000, 20_000, 256 * 2**20
# The best goes on with at most so many, and at most one in so many of all: that spares the data a pass or two.
SURVEY_ROWS, SURVEY_BYTES, SURVEY_SHARE = 60_000, 64 * 2**20, 10


@dataclass(frozen=True, eq=False)
class Start:
    """The parts of a start that the user gives; None leaves them to ``init_params``."""

    weights: Array | None = None
    means: Array | None = None
    covariance: Covariance | None = None

    def onto(self, mixture: Mixture) -> Mixture:
        """``mixture`` with the given parts in place of its own."""
        return Mixture(
            mixture.weights if self.weights is None else self.weights,
            mixture.means if self.means is None else self.means,
            mixture.covariance if self.covariance is None else self.covariance,
        )


def sample_size(k: int, d: int, few: int = START_ROWS) -> int:
    """Rows that seeding works on: ``few``, or 20 for each mean and axis of each component, within 256 MiB."""
    return max(2 * k, min(max(few, 20 * k * (d + 1)), SAMPLE_BYTES // (8 * d)))


def survey_size(init_params: str, k: int, d: int) -> int:
    """Rows that a batch fit draws: where starts are tried, also those that the best goes on with."""
    if init_params not in ("auto", "subsample"):
        return sample_size(k, d)
    return max(sample_size(k, d), sample_size(k, d, min(SURVEY_ROWS, SURVEY_BYTES // (8 * d))))


def resolve(init_params: str, n_rows: int, size: int) -> str:
    """What ``"auto"`` stands for: scikit-learn's k-means for up to ``size`` rows."""
    if init_params != "auto":
        return init_params
    return "kmeans" if n_rows <= size else "subsample"


def seed(
    survey: Survey,
    structure: type[Covariance],
    k: int,
    init_params: str,
    start: Start,
    n_init: int,
    random: np.random.RandomState,
    tol: float,
    reg_covar: float,
) -> list[Mixture]:
    """Starting mixtures: one for ``"subsample"`` or a start given in full, else ``n_init``.

    Runs on the driver under one BLAS and OpenMP thread: scikit-learn's k-means differs in its last bits between
    thread counts.
    """
    if start.weights is not None and start.means is not None and start.covariance is not None:
        return [Mixture(start.weights, start.means, start.covariance)]
    d, n_rows = survey.overall.means.shape[1], survey.overall.n_rows
    method = resolve(init_params, n_rows, min(sample_size(k, d), survey.sample.size))
    trials = method == "subsample"
    sample = survey.sample.first(sample_size(k, d, TRIAL_ROWS)) if trials else survey.sample
    many = 1 if start.means is not None else max(n_init, TRIALS) if trials else n_init
    with one_thread():
        if survey.start is not None:
            return [start.onto(_update(survey, survey.start, reg_covar))]
        x, weight = sample.points()
        kinds = TRIED if trials else (method,)
        found: dict[str, list[Mixture]] = {}
        failure = None
        for i in range(many):
            kind = kinds[i % len(kinds)]
            try:
                mixture = _from_sample(survey, structure, x, weight, k, kind, start, random, reg_covar)
            except CollapseError as error:  # the other starts may do better
                failure = error
            else:
                found.setdefault(kind, []).append(mixture)
        if failure is not None and not found:
            raise failure
        if not trials:
            return found[method]
        larger = survey.sample.first(n_rows // SURVEY_SHARE)
        return [_polished(as_rows(x, weight), larger, list(found.values()), tol, reg_covar)]


def _from_sample(
    survey: Survey,
    structure: type[Covariance],
    x: Array,
    weight: Array | None,
    k: int,
    method: str,
    start: Start,
    random: np.random.RandomState,
    reg_covar: float,
) -> Mixture:
    """One start from the sampled rows: scikit-learn's for k-means and random, else around some centres."""
    if start.means is not None:
        return start.onto(_around(start.means, structure, x, weight, reg_covar))
    if method == "random":
        statistics = _at_random(structure, x, weight, k, random)
    elif method == "random_from_data":
        share = None if weight is None else weight / weight.sum()
        centres = x[random.choice(len(x), k, replace=False, p=share)]
        return start.onto(_around(centres, structure, x, weight, reg_covar))
    elif method == "k-means++":
        centres, _ = kmeans_plusplus(x, k, sample_weight=weight, random_state=random)
        return start.onto(_around(centres, structure, x, weight, reg_covar))
    else:
        labels = KMeans(k, n_init=1, random_state=random).fit(x, sample_weight=weight).labels_
        statistics = moments(structure, x, weight, labels, k)
    return start.onto(_update(survey, statistics, reg_covar))


def _at_random(
    structure: type[Covariance], x: Array, weight: Array | None, k: int, random: np.random.RandomState
) -> Statistics:
    """Statistics under random responsibilities, drawn for some rows at a time: scikit-learn's own stream."""
    parts = []
    for first in range(0, len(x), TILE_ROWS):
        rows = slice(first, first + TILE_ROWS)
        resp = random.uniform(size=(len(x[rows]), k))
        resp /= resp.sum(axis=1, keepdims=True)
        parts.append(moments(structure, x[rows], None if weight is None else weight[rows], resp, k))
    return reduce(add, parts)


def _around(
    centres: Array, structure: type[Covariance], x: Array, weight: Array | None, reg_covar: float
) -> Mixture:
    """Rows go to their nearest centre; all components start with the covariance about those means.

    A covariance of its own from the few rows around an outlying centre would be singular, and EM would keep
    the component there.
    """
    k, d = centres.shape
    labels = pairwise_distances_argmin(x, centres)
    groups = moments(structure, x, weight, labels, k)
    within = moments(structure, x - groups.means[labels], weight)
    values = np.broadcast_to(structure.per_weight(within.scatter, within.weight), structure.shape(k, d))
    alive = groups.weight > 0
    # A centre without rows, one of several equal ones, starts with a weight that lets it move.
    share = np.where(alive, groups.weight, groups.total_weight / (len(x) + 1))
    means = np.where(alive[:, None], groups.means, centres)
    regularised = structure(values, values).regularised(values, np.ones(k, bool), reg_covar)
    return Mixture(share / share.sum(), means, structure.of(regularised, resolved=reg_covar == 0))


def _update(survey: Survey, statistics: Statistics, reg_covar: float) -> Mixture:
    """M-step; components that got no row take the overall mean and covariance."""
    k, d = statistics.reference.shape
    structure, overall = statistics.structure, survey.overall
    values = structure.per_weight(overall.about(overall.means).scatter, overall.weight)
    spread = np.broadcast_to(values, structure.shape(k, d))
    spread = structure(spread, spread).regularised(spread, np.ones(k, bool), reg_covar)
    # Only the values are taken over, so the base needs no factor (and may be singular).
    base = Mixture(np.full(k, 1 / k), np.broadcast_to(overall.means, (k, d)), structure(spread, spread))
    return base.maximise(statistics, reg_covar)


def _polished(rows: Rows, larger: RowSample, kinds: list[list[Mixture]], tol: float, reg_covar: float) -> Mixture:
    """Short EM runs on few rows, then on from the best of each kind; the best of those goes on on more, if any."""
    runs = advanced(rows, [Run(mixture, tol, TRIAL_ITER, reg_covar) for kind in kinds for mixture in kind])
    leaders, first = [], 0
    for kind in kinds:
        tried, first = runs[first : first + len(kind)], first + len(kind)
        if any(run.failure is None for run in tried):
            leaders.append(replace(best(tried), converged=False, max_iter=SAMPLE_ITER))
    polished = advanced(rows, leaders or [best(runs)])
    # What collapses on the sample need not collapse on the rows: go on from the last sound parameters.
    leader = max(polished, key=lambda run: (run.failure is None, run.lower_bound))
    if larger.size > (rows.n_rows or 0):
        (leader,) = advanced(as_rows(*larger.points()), [Run(leader.mixture, tol, SAMPLE_ITER, reg_covar)])
    return leader.mixture


def advanced(rows: Rows, runs: list[Run]) -> list[Run]:
    """EM on rows in memory until all runs are done."""
    return em(engine_for(rows), rows, runs, Silent())[0]
