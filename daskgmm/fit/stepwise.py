"""An online fit as a value: every batch moves the statistics a step, and the parameters follow."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import expm1, inf, isfinite, isinf, log, log1p, nan, sqrt
from typing import Any, ClassVar, Self

import numpy as np

from daskgmm.errors import DataError
from daskgmm.fit.placing import placed_anew
from daskgmm.fit.recent import Recent, sample_rows
from daskgmm.fit.run import Run
from daskgmm.fit.tasks import BEGINNING, TOO_LARGE, Learn
from daskgmm.model.checks import at_least, positive, require
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Steady, Update
from daskgmm.store.values import LATER, storable

BAD_SCALE = "Sample weights are too small or too large for float64. Scale them."
# How much of all rows before has to come, without a half-life, before recent rows are looked at again.
LOOK = 1 / 4
SETTLED = 10  # batches after which it is known how much they scatter
ABSURD = 1e140  # nats: more count as so many, whose square is a number


@storable
@dataclass(frozen=True)
class StepRule:
    """How large a step is: a function of rows, never of calls.

    With t = (rows before) / ``batch_size``, a batch of b rows gets
    γ = 1 − (1 − (t + offset)^−decay)^(b / batch_size) (Liang & Klein 2009; Hoffman, Blei & Bach 2010, for full
    batches), or γ = 1 − 2^(−b / half_life).
    """

    batch_size: float
    decay: float
    offset: float
    half_life: float | None

    def check(self) -> None:
        """Raise `ValueError` unless the estimators take such settings."""
        require(at_least(1, self.batch_size, self.offset), "batch_size or offset is below 1.")
        require(0.5 < self.decay <= 1, "decay is not in (0.5, 1].")
        require(self.half_life is None or positive(self.half_life), "half_life is not above 0.")

    def step(self, before: float, rows: float) -> float:
        """γ in (0, 1] for ``rows`` rows after ``before`` rows."""
        if self.half_life is not None:
            return -expm1(-log(2) * rows / self.half_life)
        full = (before / self.batch_size + self.offset) ** -self.decay
        return 1.0 if full >= 1 else -expm1(rows / self.batch_size * log1p(-full))

    def share(self, before: float, rows: float) -> float:
        """How far the average moves: all the way with a half-life, else so that early statistics hardly count.

        The statistics at n rows get a weight that grows with n: the last half has 75 % of it, the first tenth
        1 % (Lacoste-Julien, Schmidt & Bach 2012). No end of the data need be known, as for an average over the
        last half, and the noise is that of 3/4 of the rows, not of half of them.
        """
        return 1.0 if self.half_life is not None else 1 - (before / (before + rows)) ** 2


@storable
@dataclass(frozen=True)
class Spread:
    """Sums of squares of row weights: in the statistics, in their average, and of the two together.

    With a_i the weight of row i in statistics of total weight 1, 1 / Σ a_i² is the effective number of rows (Kish
    1965). A row of weight 2 is two rows.
    """

    now: float
    mixed: float
    average: float

    def check(self) -> None:
        """Raise `ValueError` unless these are sums of squares of shares."""
        sums = (self.now, self.mixed, self.average)
        require(positive(*sums) and max(sums) < 1 + 1e-6, "The shares of rows are not above 0 and at most 1.")

    def step(self, gamma: float, share: float, rows: float) -> "Spread":
        """After a step ``gamma`` over so many rows."""
        now = (1 - gamma) ** 2 * self.now + gamma**2 / rows
        old = (1 - gamma) * self.mixed
        mixed = (1 - share) * old + share * now
        return Spread(now, mixed, (1 - share) ** 2 * self.average + 2 * share * (1 - share) * old + share**2 * now)


@storable
@dataclass(frozen=True)
class Watch:
    """How likely the rows of late were, batch by batch, each before it was learnt.

    With b the rows of a batch, its mean log-likelihood scatters about the moving mean with a variance v/b, as long
    as nothing changes: v is the moving mean of b·(batch − mean)².
    """

    mean: float  # moving mean log-likelihood of a row
    variance: float = 0.0  # v, of a row
    n_batches: int = 1
    drift: float = nan  # by how many standard errors the last batch fell short of the mean before

    def check(self) -> None:
        """Raise `ValueError` unless these may be means over batches."""
        require(isfinite(self.mean) and at_least(0, self.variance) and not isinf(self.drift), "No such means.")
        require(at_least(1, self.n_batches), "There was no batch.")

    def after(self, bound: float, rows: float, share: float) -> "Watch":
        """With a batch more of so many rows, which weigh ``share`` of all by now."""
        n, short = self.n_batches + 1, self.mean - bound
        drift = short * sqrt(rows / self.variance) if self.variance > 0 and n > SETTLED else nan
        square = rows * min(abs(short), ABSURD) ** 2
        # The first batches weigh alike: there is no mean before them.
        variance = self.variance + max(share, 1 / (n - 1)) * (square - self.variance)
        return Watch(self.mean - max(share, 1 / n) * short, variance, n, drift)


@storable
@dataclass(frozen=True, eq=False)
class Stepwise(Run):
    """An online fit: all that it knows, in memory that does not grow."""

    mixture: Mixture  # parameters of the next E-step
    statistics: Statistics  # of total weight 1: s ← (1 − γ)·s + γ·batch (Cappé & Moulines 2009)
    average: Statistics  # of those over the later part of the rows: what `published` is the M-step of
    spread: Spread
    clock: float  # weight of all rows so far, those of the start included: what step sizes depend on
    update: Update  # the M-step, `Steady` or around it; its prior has the covariances that components began with
    rule: StepRule
    n_rows: float = 0  # of positive weight, learnt from, the start's left out
    n_batches: int = 0  # learnt from
    bound: float = -inf  # mean log-likelihood of the last batch before it was learnt; at the start, of the sample
    reseeded: tuple[int, ...] = ()  # components that the last step placed anew
    unit: float = (
        1.0  # weight that counts as one row: 1, or what the start's rows weigh on average if that is less
    )
    after: tuple[int, int] = BEGINNING  # block and row in the next batch, up to which the start has learnt
    # Rows of late, each with the weight that it has in what is published.
    recent: Recent | None = field(default=None, metadata=LATER)
    # Clock when they were looked at last, to see whether a component serves elsewhere.
    looked: float = field(default=0.0, metadata=LATER)
    watch: Watch | None = field(default=None, metadata=LATER)
    labelled: bool = field(default=False, metadata=LATER)  # whether components were known of some rows
    done: ClassVar[bool] = False  # a stream has no end

    def check(self) -> None:
        """Raise `ValueError` unless the parts belong together and it may stand so."""
        (k, d), structure = self.mixture.means.shape, self.mixture.covariance.structure
        require(
            self.statistics.matches(self.mixture.means, structure)
            and self.average.matches(self.mixture.means, structure),
            "The statistics are not those of the mixture.",
        )
        require(isinstance(self.update.inner, Steady), "The M-step is not that of a stream.")
        require(self.update.fits(self.mixture), "The prior is not that of the mixture.")
        require(positive(self.clock, self.unit), "The start weighs nothing.")
        require(at_least(0, self.n_rows, self.n_batches), "Counts are below 0.")
        require(self.bound < inf and at_least(-1, *self.after), "The last batch cannot be.")
        require(at_least(0, self.looked), "Rows were looked at before there were any.")
        require(self.recent is None or self.recent.x.shape[1] == d, "Recent rows are others.")
        require(sorted({*self.reseeded} & {*range(k)}) == [*self.reseeded], "There are no such components.")

    @classmethod
    def begin(
        cls,
        mixture: Mixture,
        statistics: Statistics,
        rows: float,
        update: Update,
        rule: StepRule,
        unit: float,
    ) -> Self:
        """Start from statistics that count as ``rows`` rows, each of which weighs ``unit``."""
        s = replace(statistics.scaled(1 / statistics.total_weight), n_rows=0)
        update = anchored(update, mixture)
        mixture = update(mixture, replace(s, n_rows=rows))
        spread = Spread(1 / rows, 1 / rows, 1 / rows)
        return cls(mixture, s, s, spread, rows, update, rule, bound=s.log_likelihood, unit=unit)

    @classmethod
    def implied(cls, mixture: Mixture, rows: float, reg_covar: float, rule: StepRule) -> Self:
        """Start from the statistics that rows of this mixture would have; it is a fixed point of their M-step."""
        s, spread = implied(mixture), Spread(1 / rows, 1 / rows, 1 / rows)
        return cls(mixture, s, s, spread, rows, Steady(reg_covar, mixture.covariance), rule)

    @property
    def steady(self) -> Steady:
        """Its M-step, without what is around it."""
        steady = self.update.inner
        assert isinstance(steady, Steady)
        return steady

    @property
    def task(self) -> Learn:
        return Learn(self.mixture, sample_rows(*self.mixture.means.shape), self.n_batches, self.after)

    @property
    def n_iter(self) -> int:
        """Mini-batches learnt from: a stream has no end to keep a trace for."""
        return self.n_batches

    @property
    def lower_bound(self) -> float:
        return self.bound

    @cached_property
    def published(self) -> Mixture:
        """The parameters to show and to predict with."""
        spread = self.spread
        if spread.now == spread.mixed == spread.average:  # Σ (a − b)² = 0: both weigh the rows alike
            return self.mixture
        return self.update(self.mixture, replace(self.average, n_rows=self.effective_rows))

    @property
    def effective_rows(self) -> float:
        """Effective rows in the statistics that are published, 1 / Σ a_i²; a second visit counts again."""
        return 1 / self.spread.average

    def advance(self, found: Any) -> "Stepwise":
        """One step: blend the statistics, update the parameters, and at times place a component anew.

        ``found`` are the statistics of ``mixture`` on new rows, a sample of those, and how many are labelled.

        Raises
        ------
        DataError
            If a sum or parameter is no number.
        """
        batch, sample, *labelled = found
        weight = batch.total_weight
        if not np.isfinite(batch.log_likelihood):
            raise DataError(f"{TOO_LARGE}. Scale the data.")
        if not weight > 0:
            return replace(self, n_batches=self.n_batches + 1, reseeded=(), after=BEGINNING)
        if not 0 < self.unit / weight < inf > weight:
            raise DataError(BAD_SCALE)
        rule, rows = self.rule, weight / self.unit
        # The start counts as rows, too: none of them may weigh more than a row now.
        gamma = max(rule.step(self.clock, rows), rows / (rows + 1 / self.spread.now))
        share = rule.share(self.clock, rows)
        fresh = gamma * share if rule.half_life is not None else share  # what new rows weigh in the average
        sample = sample.weighing(fresh / weight)
        s = blend(self.statistics, batch.scaled(1 / weight), gamma, self.mixture)
        bound = batch.log_likelihood / weight
        after = replace(
            self,
            statistics=s,
            spread=self.spread.step(gamma, share, rows),
            clock=self.clock + rows,
            n_rows=self.n_rows + batch.n_rows,
            n_batches=self.n_batches + 1,
            bound=bound,
            watch=Watch(bound) if self.watch is None else self.watch.after(bound, rows, fresh),
            reseeded=(),
            after=BEGINNING,
            recent=sample if self.recent is None else self.recent.weighing(1 - fresh) + sample,
            labelled=self.labelled or any(labelled),
        )
        mixture = self.update(self.mixture, replace(s, n_rows=1 / after.spread.now))
        if not all(np.isfinite(a).all() for a in (s.shift, s.scatter, mixture.means, mixture.covariance.factor)):
            raise DataError(f"{TOO_LARGE}. Scale the data.")
        average = s if share == 1 else blend(self.average, s, share, self.mixture)
        return replace(after, mixture=mixture, average=average)._looked()

    def _looked(self) -> "Stepwise":
        """With a component placed anew, if it is time to look at recent rows and one does more good elsewhere."""
        recent, rule = self.recent, self.rule
        assert recent is not None
        steady = self.update
        # A component that stands for something stays so.
        if self.labelled or not isinstance(steady, Steady) or steady.speaks_for_each:
            return self
        wait = self.looked * LOOK if rule.half_life is None else rule.half_life
        if len(recent.x) < recent.size or self.clock - self.looked < max(wait, recent.size):
            return self
        after = replace(self, looked=self.clock)
        if (moved := placed_anew(self.published, self.effective_rows, recent.x, steady.reg_covar)) is None:
            return after
        mixture, component = moved
        s = replace(implied(mixture), log_likelihood=self.statistics.log_likelihood)
        now = self.spread.now
        return replace(
            after,
            mixture=mixture,
            statistics=s,
            average=s,
            spread=Spread(now, now, now),
            reseeded=(component,),
            update=anchored(steady, mixture),
        )


def anchored(update: Update, mixture: Mixture) -> Update:
    """An M-step of a stream whose components begin as those of this mixture."""
    return update.around(lambda steady: replace(steady, anchor=mixture.covariance))  # type: ignore[type-var]


def blend(old: Statistics, new: Statistics, share: float, near: Mixture) -> Statistics:
    """``(1 − share)·old + share·new``, about the means of ``near``."""
    both = old.scaled(1 - share).about(near.means) + new.scaled(share).about(near.means)
    return replace(both, n_rows=0)  # a count has no share


def implied(mixture: Mixture) -> Statistics:
    """Statistics of total weight 1 whose M-step is ``mixture``."""
    share = mixture.weights / (mixture.weights.sum() + mixture.background_weight)
    shift = np.zeros_like(mixture.means)
    scatter = mixture.covariance.structure.spread(mixture.covariance.values, share)
    return Statistics(mixture.covariance.structure, mixture.means, share, shift, scatter, 0.0, 1.0, 0)
