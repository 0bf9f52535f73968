"""Where an online fit starts: EM on a sample of the rows, or on the first rows of a stream."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.rows import Block, as_rows
from daskgmm.errors import DataError
from daskgmm.fit.blas import one_thread
from daskgmm.fit.checks import all_finite, check_finite
from daskgmm.fit.run import Run, best
from daskgmm.fit.score import seen
from daskgmm.fit.seeding import SAMPLE_ITER, TRIAL_ITER, TRIALS, Start, advanced, seed
from daskgmm.fit.stepwise import Stepwise, steady
from daskgmm.fit.survey import RowSample, Survey, Surveyor, Threshold
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics

SAMPLE_TOL = 1e-5  # of EM on the sample, which costs little
TOO_LARGE = "Input X contains infinity or a value too large for dtype('float64'). Scale the data."
BAD_SCALE = "Sample weights are too small or too large for float64 to hold their squares. Scale them."
EVERY = 10  # one row of so many in the sample is held out


@dataclass(frozen=True, eq=False)
class SteadyRun(Run):
    """An EM run whose M-step no sample can break: `steady`."""

    def advance(self, statistics: Statistics) -> Run:
        """One M-step; converged once the mean log-likelihood changes by less than ``tol``."""
        bound = statistics.log_likelihood / statistics.total_weight
        with one_thread():
            mixture = steady(self.mixture, statistics, statistics.n_rows, self.reg_covar)
        return replace(
            self,
            mixture=mixture,
            trace=(*self.trace, bound),
            converged=abs(bound - self.lower_bound) < self.tol,
        )


def begin(
    survey: Survey,
    structure: type[Covariance],
    k: int,
    init_params: str,
    start: Start,
    random: np.random.RandomState,
    reg_covar: float,
) -> Stepwise:
    """An online fit that starts from EM on the sample of a survey; the sample's rows count as learnt.

    k-means++ starts are tried with short EM runs unless the user asks for another way; the best goes on.
    """
    method = "k-means++" if init_params in ("auto", "subsample") else init_params
    trials = TRIALS if method == "k-means++" and start.means is None else 1
    mixtures = seed(survey, structure, k, method, start, trials, random, SAMPLE_TOL, reg_covar)
    x, weight = survey.sample.points()
    rows = as_rows(x, weight)
    runs = advanced(rows, [SteadyRun(m, SAMPLE_TOL, TRIAL_ITER, reg_covar) for m in mixtures])
    (run,) = advanced(rows, [replace(best(runs), converged=False, max_iter=SAMPLE_ITER)])
    _warn_of_equal(run.mixture)
    found = run.mixture.expectation(x, weight)
    with np.errstate(all="ignore"):
        even = float(len(x) if weight is None else weight.sum() ** 2 / (weight**2).sum())
    if not 0 < even < np.inf:
        raise DataError(BAD_SCALE)
    unit = survey.overall.total_weight / survey.overall.n_rows
    return Stepwise.begin(run.mixture, found, even, reg_covar, unit)


def check_size(x: Array) -> None:
    """Refuse rows whose squares float64 cannot hold: kept, they would fail every batch after them."""
    with np.errstate(over="ignore"):
        if not np.isfinite((x**2).sum()):
            raise DataError(TOO_LARGE)


def _warn_of_equal(mixture: Mixture) -> None:
    """Components that start alike stay alike."""
    distinct = len(np.unique(mixture.means, axis=0))
    if distinct < mixture.n_components:
        warnings.warn(
            f"The rows that the model starts from have room for {distinct} of {mixture.n_components} components: "
            "the others start as copies, and may stay so. A larger init_size, or rows in another order, helps.",
            stacklevel=6,
        )


def survey_of(x: Array, weight: Array | None, structure: type[Covariance], k: int) -> Survey:
    """The survey of rows in memory, all of which are in its sample."""
    return Surveyor(structure, k, 0, Threshold(len(x)))(Block(x, weight, None, 0, 0))


def hold_out(survey: Survey) -> tuple[Survey, RowSample]:
    """Keep every tenth row of the sample from the start: what is left, and those rows."""
    sample = survey.sample
    order = np.argsort(sample.position)
    last = int(np.argmax(sample.keys)) if len(order) > sample.size else -1
    rows = order[order != last]
    held = np.zeros(len(order), bool)
    held[rows[EVERY - 1 :: EVERY]] = True
    kept = ~held
    if last >= 0:
        held[last] = True  # the threshold belongs to both

    def part(mask: Array) -> RowSample:
        size = int(mask.sum()) - (last >= 0)
        return RowSample(size, sample.keys[mask], sample.position[mask], sample.rows[mask], sample.weight[mask])

    return replace(survey, sample=part(kept)), part(held)


def positions(sample: RowSample) -> tuple[int, ...]:
    """Numbers of the rows that `RowSample.points` gives."""
    mask = np.ones(len(sample.keys), bool)
    if len(mask) > sample.size:
        mask[int(np.argmax(sample.keys))] = False
    return tuple(np.sort(sample.position[mask]).tolist())


@dataclass(frozen=True, eq=False)
class Waiting:
    """The first rows of a stream, until there are enough to seed the model."""

    x: Array
    weight: Array
    feature_names: Array | None
    n_batches: int = 0
    next_row: int = 0

    def with_batch(self, x: Array, weight: Array, offered: int) -> Waiting:
        """With some rows of one batch more, of which so many were offered."""
        return replace(
            self,
            x=np.concatenate([self.x, x]),
            weight=np.concatenate([self.weight, weight]),
            n_batches=self.n_batches + 1,
            next_row=self.next_row + offered,
        )


@dataclass(frozen=True, eq=False)
class Head:
    """The first rows of positive weight. ``a + b`` equals the head of the concatenated rows.

    Attributes
    ----------
    size : rows wanted.
    x : (m, d) float64.
    weight : (m,)
    places : (m, 2) block of each row, and its place there.
    """

    size: int
    x: Array
    weight: Array
    places: Array

    def __add__(self, other: Head) -> Head:
        room = max(0, self.size - len(self.x))
        return Head(
            self.size,
            np.concatenate([self.x, other.x[:room]]),
            np.concatenate([self.weight, other.weight[:room]]),
            np.concatenate([self.places, other.places[:room]]),
        )


@dataclass(frozen=True)
class HeadOf:
    """Maps a block to its `Head`, and refuses one that holds NaN or infinity anywhere."""

    size: int

    def __call__(self, block: Block) -> Head:
        if not all_finite(seen(block)[0]):
            check_finite(block)
        weight = np.ones(len(block.x)) if block.weight is None else block.weight
        first = np.flatnonzero(weight)[: self.size]
        places = np.column_stack([np.full(len(first), block.index), first])
        return Head(self.size, np.asarray(block.x[first], np.float64), weight[first], places)
