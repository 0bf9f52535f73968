"""The M-step, and ways to make it safe: parameters from statistics."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from daskgmm._typing import Array
from daskgmm.errors import CollapseError
from daskgmm.model.blas import one_thread
from daskgmm.model.checks import at_least, require
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import TINY


class Update(ABC):
    """An M-step: what becomes of a mixture once the statistics of its E-step are known."""

    @abstractmethod
    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """The parameters that maximise the expected log-likelihood plus `penalty`."""

    def penalty(self, mixture: Mixture) -> float:
        """Log-density of the parameters under a prior, up to a constant: what is watched has it, too."""
        return 0.0


def maximise(s: Statistics, means: Array, values: Array, ridge: float) -> Mixture:
    """The parameters that maximise the expected log-likelihood, with ``ridge`` added to variances.

    A component without weight takes its mean from ``means`` and its covariance from ``values``. Raises
    `CollapseError` as `Structure.fit` does.
    """
    means = np.where((s.weight > TINY)[:, None], s.means, means)
    return Mixture(s.weight / s.weight.sum(), means, s.structure.fit(s.about(means), values, ridge))


@dataclass(frozen=True)
class Regularised(Update):
    """Maximum likelihood, and ``reg_covar`` on the diagonal of every covariance.

    An empty component keeps its mean and covariance at weight 0.
    """

    reg_covar: float = 0.0

    def check(self) -> None:
        """Raise `ValueError` unless the setting is one that can be."""
        require(at_least(0, self.reg_covar), "reg_covar is below 0.")

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """Raises `CollapseError` where a covariance is not positive definite."""
        with one_thread():
            return maximise(statistics, mixture.means, mixture.covariance.values, self.reg_covar)


@dataclass(frozen=True, eq=False)
class Steady(Update):
    """An M-step that no batch of rows can break.

    To each component d + 1 rows are added that lie about its own mean as all rows lie about theirs, or as those of
    ``anchor`` do: the mode under an inverse Wishart prior (Fraley & Raftery 2007). They keep a component of few
    rows from collapsing, and vanish as ``n_rows`` of the statistics grows. Weights and means stay those of the
    rows. Where even the covariance of all rows about their means is singular, which ``reg_covar`` > 0 prevents,
    covariances stay as they were. What is watched leaves the prior out, as it vanishes with the rows.
    """

    reg_covar: float = 0.0
    anchor: Covariance | None = None

    def check(self) -> None:
        """Raise `ValueError` unless the setting is one that can be."""
        require(at_least(0, self.reg_covar), "reg_covar is below 0.")

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        """Never raises for statistics that are finite."""
        s, structure = statistics, statistics.structure
        total = s.weight.sum()
        extra = (mixture.means.shape[1] + 1) * total / s.n_rows
        with one_thread():
            centred = s.about(s.means)
            if self.anchor is None:
                scatter = structure.shrunk(centred.scatter, s.weight, extra)
            else:
                scatter = centred.scatter + structure.spread(
                    self.anchor.values, np.full(mixture.n_components, extra)
                )
            filled = replace(centred, weight=s.weight + extra, shift=np.zeros_like(s.shift), scatter=scatter)
            try:
                found = maximise(filled, mixture.means, mixture.covariance.values, self.reg_covar)
            except CollapseError:
                return Mixture(s.weight / total, s.means, mixture.covariance)
        return Mixture(s.weight / total, found.means, found.covariance)
