"""The M-step, and ways to make it safe: parameters from statistics."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import xlogy

from daskgmm._typing import Array
from daskgmm.errors import CollapseError, warn
from daskgmm.model.blas import one_thread
from daskgmm.model.checks import at_least, holds, require
from daskgmm.model.covariance import Covariance
from daskgmm.model.factors import ILL_DEFINED
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import TINY, Structure


class Update(ABC):
    """An M-step: what becomes of a mixture once the statistics of its E-step are known."""

    @abstractmethod
    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """The parameters that maximise the expected log-likelihood plus `penalty`."""

    def penalty(self, mixture: Mixture) -> float:
        """Log-density of the parameters under a prior, up to a constant: what is watched has it, too."""
        return 0.0

    def fits(self, mixture: Mixture) -> bool:
        """Whether it is an M-step of such a mixture."""
        return True

    def counted(self, statistics: Statistics) -> float:
        """What the proportions count, in all components together: the rows' weight and a prior's."""
        return float(statistics.weight.sum())

    @property
    def speaks_for_each(self) -> bool:
        """Whether a prior speaks for each component by itself, also where that has no rows."""
        return False

    @property
    def inner(self) -> "Update":
        """What it wraps, if it does, else itself."""
        return self

    def around(self, change: Callable[["Update"], "Update"]) -> "Update":
        """The same with a change of what it wraps, or of itself."""
        return change(self)

    def bound(self, mixture: Mixture, found: Statistics, after: Mixture) -> float:
        """What is watched of an iteration: mean log-likelihood and penalty, of the mixture that it began with."""
        return (found.log_likelihood + self.penalty(mixture)) / found.total_weight


@dataclass(frozen=True, eq=False)
class Around(Update):
    """An M-step around another one."""

    update: Update

    @property
    def inner(self) -> Update:
        return self.update.inner

    def around(self, change: Callable[[Update], Update]) -> Update:
        return replace(self, update=self.update.around(change))

    def penalty(self, mixture: Mixture) -> float:
        return self.update.penalty(mixture)

    @property
    def speaks_for_each(self) -> bool:
        return self.update.speaks_for_each


def strict(error: CollapseError) -> bool:
    """Excuses no collapse."""
    return False


def maximise(
    s: Statistics,
    means: Array,
    previous: Array | Covariance,
    ridge: float,
    excuse: Callable[[CollapseError], bool] = strict,
    prior: "MAP | None" = None,
) -> Mixture:
    """The parameters that maximise the expected log-likelihood, with ``ridge`` added to variances.

    A component without weight takes its mean from ``means``; its covariance is as in `spread_of`. With a
    ``prior``, its log-density is maximised, too.
    """
    both, counts, shares = (s, s.weight, s.weight) if prior is None else prior.joined(s)
    means = np.where((both.weight > TINY)[:, None], both.means, means)
    centred = replace(both.about(means), weight=counts)
    return Mixture(shares / shares.sum(), means, spread_of(centred, previous, ridge, excuse))


def spread_of(
    centred: Statistics, previous: Array | Covariance, ridge: float, excuse: Callable[[CollapseError], bool]
) -> Covariance:
    """The covariances that maximise the expected log-likelihood, of statistics about the means.

    A component without weight takes its covariance from ``previous``. So does one whose covariance collapses, if
    ``excuse`` says so of the error: a step of expectation/conditional maximisation, which does not lower the
    likelihood either (Meng & Rubin 1993). Else that error is raised.
    """
    while True:
        try:
            return centred.structure.fit(centred, previous, ridge)
        except CollapseError as error:
            weight = centred.weight
            kept = (
                np.full(len(weight), True)
                if centred.structure.shared
                else np.arange(len(weight)) == error.component
            )
            if not weight[kept].any() or not excuse(error):
                raise
            centred = replace(centred, weight=np.where(kept, 0.0, weight))


@dataclass(frozen=True)
class Regularised(Update):
    """Maximum likelihood, and ``reg_covar`` on the diagonal of every covariance.

    An empty component keeps its mean and covariance at weight 0. With eps = 2.2e-16, from given responsibilities,
    a mean m that has moved by δ is off by some eps·(|m| + |δ| + σ), and a covariance by some eps·(σ² + δ²). Where
    a move to another place leaves nothing of a variance but that, and no covariance even with ``reg_covar``, the
    component keeps the one that it had until the next E-step, which sees it from its new mean.
    """

    reg_covar: float = 0.0

    def check(self) -> None:
        """Raise `ValueError` unless the setting is one that can be."""
        require(at_least(0, self.reg_covar), "reg_covar is below 0.")

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """Raises `CollapseError` where a covariance is not positive definite."""
        s = statistics

        def moved(error: CollapseError) -> bool:
            """Whether a move to another place took the variance away: what it left may be rounding."""
            diagonals = s.structure.form.diagonals
            left = diagonals(s.about(s.means).scatter) < 1e-3 * diagonals(s.scatter)
            return bool(self.reg_covar > 0 and left[error.component].any())

        with one_thread():
            return maximise(s, mixture.means, mixture.covariance, self.reg_covar, moved)


@dataclass(frozen=True, eq=False)
class MAP(Update):
    """The mode under a normal, inverse Wishart and Dirichlet prior, and ``reg_covar`` on the diagonals.

    The prior counts as rows: ``precision`` of them at each of its ``means``, with a ``scatter`` of their own
    (Gauvain & Lee 1994; Fraley & Raftery 2007).
    """

    structure: Structure
    means: Array  # (k, d)
    precision: Array  # (k,) rows that each mean counts as
    scatter: Array  # as statistics hold it
    count: Array  # (k,), or (1,) of all: rows that the determinant of a covariance counts
    extra: Array  # (k,) rows that the proportions count
    placed: bool = False  # whether each component has a place of its own: a fit then begins there
    reg_covar: float = 0.0

    def check(self) -> None:
        """Raise `ValueError` unless the setting is one that can be."""
        (k, d), s = self.means.shape, self.structure
        require(min(k, d) > 0 and holds(self.means, (k, d)), "The prior has no means.")
        require(holds(self.precision, (k,), 0.0) and holds(self.extra, (k,), 0.0), "The prior has no rows.")
        require(holds(self.scatter, s.held(k, d)), "The prior has no scatter.")
        require(holds(self.count, (1 if s.shared else k,), 0.0), "The prior counts no rows.")
        require(at_least(0, self.reg_covar), "reg_covar is below 0.")

    def fits(self, mixture: Mixture) -> bool:
        return self.means.shape == mixture.means.shape and self.structure is mixture.covariance.structure

    def counted(self, statistics: Statistics) -> float:
        return super().counted(statistics) + float(self.extra.sum())

    def joined(self, s: Statistics) -> tuple[Statistics, Array, Array]:
        """Statistics with the rows of the prior, and what covariances and weights count (k,)."""
        own = Statistics(
            self.structure, self.means, self.precision, np.zeros_like(self.means), self.scatter, 0.0, 0.0, 0
        )
        return s + own, s.weight + self.count / (len(s.weight) // len(self.count)), s.weight + self.extra

    @property
    def speaks_for_each(self) -> bool:
        return self.placed

    def filled(self, within: Statistics) -> Statistics:
        """Statistics of one component, about its mean, and of the rows that the prior of one counts as."""
        scatter = within.scatter + self.scatter.mean(axis=0)
        return replace(within, weight=within.weight + self.count.mean(), scatter=scatter)

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """Raises `CollapseError` where a covariance is not positive definite, as under a prior without scatter."""
        with one_thread():
            return maximise(statistics, mixture.means, mixture.covariance, self.reg_covar, prior=self)

    def penalty(self, mixture: Mixture) -> float:
        covariance = mixture.covariance
        apart = self.structure.move(self.precision, np.zeros_like(self.means), mixture.means - self.means)
        log_dets = self.count * covariance.half_log_det(mixture.n_features)
        inner = self.structure.trace(covariance, self.scatter + apart, mixture.n_features)
        return float(log_dets.sum() - 0.5 * inner.sum() + xlogy(self.extra, mixture.weights).sum())

    @property
    def mode(self) -> Mixture:
        """The parameters that are likeliest before there are rows."""
        k = len(self.means)
        share = self.extra if self.extra.any() else np.ones(k)
        with one_thread():
            values = self.scatter / self.count[self.structure.form.beside]
            return Mixture(share / share.sum(), self.means, self.structure.covariance(values, self.count))


@dataclass(frozen=True, eq=False)
class Steady(Update):
    """An M-step that no batch of rows can break.

    A component of fewer than 2·(d + 1) effective rows is filled up to that many, by rows that lie about its own
    mean as those of ``anchor`` do, or without one as all rows lie about theirs: the mode under an inverse Wishart
    prior (Fraley & Raftery 2007). It keeps the component from collapsing. One of more rows is left as they have
    it, however tight it is beside the others; where all share one covariance, all rows count for it. Weights and
    means stay those of the rows. A covariance that is singular nevertheless, as that of equal rows without
    ``reg_covar``, stays as it was, and a warning says why; those of other components do not. What is watched
    leaves the prior out, as it vanishes. A ``prior`` that is given stands in its place.
    """

    reg_covar: float = 0.0
    anchor: Covariance | None = None
    prior: MAP | None = field(default=None, metadata={"later": True})

    def check(self) -> None:
        """Raise `ValueError` unless the setting is one that can be."""
        require(at_least(0, self.reg_covar), "reg_covar is below 0.")

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """Never raises for statistics that are finite; warns of each covariance that stays as it was."""
        s, structure = statistics, statistics.structure
        if self.prior is not None:
            return self._under(self.prior, mixture, s)
        total, full = s.weight.sum(), 2 * (mixture.means.shape[1] + 1)
        share = s.weight / total
        lack = share * max(0, full - s.n_rows) if structure.shared else np.maximum(0, full - share * s.n_rows)
        extra = lack * total / s.n_rows
        with one_thread():
            centred = s.about(means := s.means)
            if self.anchor is None:
                within = centred.scatter.sum(axis=0, keepdims=True) / total
                prior = np.broadcast_to(within, centred.scatter.shape)
            else:
                prior = self.anchor.values
            scatter = centred.scatter + structure.spread(prior, extra)
            filled = replace(centred, weight=s.weight + extra, shift=np.zeros_like(s.shift), scatter=scatter)
            try:
                covariance = spread_of(filled, mixture.covariance, self.reg_covar, self.excuse)
            except CollapseError:  # of a given covariance, which float64 holds less well than its factor
                covariance = mixture.covariance
        return Mixture(share, means, covariance)

    @property
    def speaks_for_each(self) -> bool:
        return self.prior is not None and self.prior.speaks_for_each

    def _under(self, prior: MAP, mixture: Mixture, s: Statistics) -> Mixture:
        """The mode under a prior, for as many rows as the statistics stand for."""
        rows = s.scaled(s.n_rows / s.total_weight)
        with one_thread():
            try:
                return maximise(rows, mixture.means, mixture.covariance, self.reg_covar, self.excuse, prior)
            except CollapseError:
                return mixture

    def penalty(self, mixture: Mixture) -> float:
        return 0.0 if self.prior is None else self.prior.penalty(mixture)

    def counted(self, statistics: Statistics) -> float:
        if self.prior is None:
            return super().counted(statistics)
        scale = statistics.n_rows / statistics.total_weight
        return self.prior.counted(statistics.scaled(scale)) / scale

    def fits(self, mixture: Mixture) -> bool:
        structure, anchor = mixture.covariance.structure, self.anchor
        held = structure.held(*mixture.means.shape)
        alike = anchor is None or (anchor.structure is structure and anchor.values.shape == held)
        return alike and (self.prior is None or self.prior.fits(mixture))

    def excuse(self, error: CollapseError) -> bool:
        """Excuses every collapse, with a warning."""
        warn(f"{str(error).removeprefix(ILL_DEFINED)} The component keeps the covariance that it had.")
        return True


@dataclass(frozen=True, eq=False)
class Quiet(Steady):
    """The same without warnings, for what is only tried."""

    def excuse(self, error: CollapseError) -> bool:
        return True
