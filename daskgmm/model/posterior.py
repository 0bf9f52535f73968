"""What is believed of a mixture's parameters once rows are known: a conjugate prior, and its posterior.

Variational inference (Attias 2000; Blei & Jordan 2006; Bishop 2006, section 10.2) with scikit-learn's conventions:
degrees of freedom count rows, whatever the structure; where components share a covariance, each has its own prior.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from scipy.special import betaln, digamma, gammaln

from daskgmm._typing import Array
from daskgmm.model.blas import one_thread
from daskgmm.model.checks import at_least, holds, positive, require
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure
from daskgmm.model.update import Update


@dataclass(frozen=True, eq=False)
class Expected(Mixture):
    """A mixture whose components weigh in its density as logarithms say: it need not integrate to 1."""

    logs: Array  # (k,)

    @property
    def log_weights(self) -> Array:
        return self.logs

    def seen(self, features: Array, covariance: Covariance) -> Mixture:
        return replace(self, means=self.means[:, features], covariance=covariance)

    def alone(self, component: int) -> Mixture:
        one = super().alone(component)
        return Expected(one.weights, one.means, one.covariance, self.logs[component][None])


@dataclass(frozen=True, eq=False)
class Posterior(Mixture):
    """What is believed of the parameters: ``weights``, ``means`` and ``covariance`` are what is expected of them.

    The mean of a component is normal about ``means`` with covariance Σ / ``mean_precision``, its precision Wishart
    with ``degrees_of_freedom``, and ``covariance`` the inverse of its expectation. The density that it has as a
    mixture is ``Σ_k exp(E[log π_k + log N(x; μ_k, Σ_k)])``: what rows' responsibilities follow from.
    """

    concentration: Array  # (k,) of a Dirichlet distribution; (2, k) of the beta distributions of sticks
    mean_precision: Array  # (k,)
    degrees_of_freedom: Array  # (k,); (1,) where all components share a covariance

    def __post_init__(self) -> None:
        super().__post_init__()
        for values in (self.concentration, self.mean_precision, self.degrees_of_freedom):
            values.setflags(write=False)

    def check(self) -> None:
        """Raise `ValueError` unless such a belief may be held."""
        super().check()
        (k, d), c = self.means.shape, self.concentration
        sound = holds(c, (2, k) if c.ndim == 2 else (k,)) and bool((c > 0).all())
        require(sound, "The weights are no distributions.")
        sound = holds(self.mean_precision, (k,)) and positive(*self.mean_precision)
        require(sound, "The means are no distributions.")
        count, nu = len(self.covariance.values), self.degrees_of_freedom
        require(holds(nu, (count,)) and bool((nu > d - 1).all()), "There are too few degrees of freedom.")
        with np.errstate(all="ignore"):
            same = np.abs(self.weights - shares(c)) <= 1e-9  # NaN is no less
            sound = bool(same.all() and np.isfinite(self.log_weights).all())
        require(sound, "The weights are not those of their distributions.")

    @property
    def log_weights(self) -> Array:
        """E[log π_k] + ½·(E[log det Λ_k] − log det E[Λ_k] − d/β_k), (k,) (Bishop 2006, 10.64 to 10.66)."""
        d, nu = self.n_features, self.degrees_of_freedom
        log_det = digamma(_halves(nu, d)).sum(axis=0) + d * np.log(2.0) - d * np.log(nu)
        logs: Array = log_shares(self.concentration) + 0.5 * (log_det - d / self.mean_precision)
        return logs

    @cached_property
    def expected(self) -> Expected:
        """What it is to rows."""
        return Expected(self.weights, self.means, self.covariance, self.log_weights)

    def seen(self, features: Array, covariance: Covariance) -> Mixture:
        return self.expected.seen(features, covariance)

    def alone(self, component: int) -> Mixture:
        return self.expected.alone(component)

    @cached_property
    def plain(self) -> Mixture:
        """The mixture of the expected parameters."""
        return Mixture(self.weights, self.means, self.covariance)

    @property
    def log_normaliser(self) -> float:
        """Logarithms of what the distributions are divided by, in nats, less all that no row changes."""
        (k, d), nu, c = self.means.shape, self.degrees_of_freedom, self.concentration
        half_log_det = self.covariance.half_log_det(d) - 0.5 * d * np.log(nu)
        wishart = nu * (half_log_det + 0.5 * d * np.log(2.0)) + gammaln(_halves(nu, d)).sum(axis=0)
        weights = betaln(*c).sum() if c.ndim == 2 else gammaln(c).sum() - gammaln(c.sum())
        spread = 0.5 * d * np.log(self.mean_precision).sum()
        return float(k // len(nu) * wishart.sum() + weights - spread)


@dataclass(frozen=True, eq=False, kw_only=True)
class Variational(Update):
    """The posterior under a prior, given responsibilities of the rows.

    Without ``reg_covar``, no step lowers `bound`. What is None is taken `from_rows`.
    """

    structure: Structure
    process: bool  # whether the weights are those of a Dirichlet process, by the breaking of sticks
    concentration: float  # of the weights
    mean_precision: float  # rows that the mean of each component counts as
    degrees_of_freedom: float  # rows that its covariance counts as
    mean: Array | None = None  # (d,)
    covariance: Array | None = None  # (1, ...) times the degrees of freedom, as the structure holds it
    reg_covar: float = 0.0  # added to the covariance of the rows of each component

    def check(self) -> None:
        """Raise `ValueError` unless this may be known before there are rows."""
        require(self.mean is not None and self.covariance is not None, "The prior is not known yet.")
        assert self.mean is not None
        assert self.covariance is not None
        (d,) = self.mean.shape
        require(positive(self.concentration, self.mean_precision), "The prior counts no rows.")
        require(d > 0 and at_least(0, self.reg_covar) and self.degrees_of_freedom > d - 1, "It has too few.")
        require(holds(self.mean, (d,)) and holds(self.covariance, self.structure.held(1, d)), "It has no shape.")

    def fits(self, mixture: Mixture) -> bool:
        """Whether it is a prior of such a mixture."""
        same = self.mean is not None and self.mean.shape == mixture.means.shape[1:]
        return same and self.structure is mixture.covariance.structure

    def given(self, mean: Array, covariance: Array) -> Self:
        """With these in the place of what is None."""
        mean = mean if self.mean is None else self.mean
        return replace(self, mean=mean, covariance=covariance if self.covariance is None else self.covariance)

    def from_rows(self, overall: Statistics) -> Self:
        """With the mean and the covariance of all rows, these being their moments as one component."""
        s, whole = overall.about(overall.means), float(overall.weight.sum())
        return self.given(s.reference[0], s.scatter / (whole - 1 if whole >= 2 else whole))

    def __call__(self, mixture: Mixture | None, statistics: Statistics) -> Posterior:
        """Raises `CollapseError` where a covariance is not positive definite: with a singular prior."""
        s, structure, k = statistics, self.structure, len(statistics.weight)
        unit = structure.form.unit(s.scatter.shape[-1])
        ridged = replace(s, scatter=s.scatter + structure.spread(self.reg_covar * unit, s.weight))
        with one_thread():
            both = ridged + self._as_rows(k)
            centred = both.about(both.means)
            counts = self.degrees_of_freedom + (s.weight.sum(keepdims=True) / k if structure.shared else s.weight)
            values = centred.scatter / ((k if structure.shared else 1) * counts[structure.form.beside])
            covariance = structure.form.of(structure, values, self.reg_covar)
        sizes = sticks(s.weight, self.concentration) if self.process else self.concentration + s.weight
        return Posterior(shares(sizes), centred.reference, covariance, sizes, both.weight, counts)

    def bound(self, mixture: Mixture, found: Statistics, after: Mixture) -> float:
        """The lower bound of the log-evidence of all rows together, in nats, less scikit-learn's constants.

        Of the responsibilities that the E-step found, and of the posterior that follows from these.
        """
        assert isinstance(after, Posterior)
        return found.log_likelihood - mixture.joint(found) + after.log_normaliser

    def _as_rows(self, k: int) -> Statistics:
        """Statistics of the rows that the prior counts as."""
        assert self.mean is not None
        assert self.covariance is not None
        structure, d = self.structure, len(self.mean)
        scatter = np.broadcast_to(self.covariance, structure.held(k, d)) * (k if structure.shared else 1)
        weight, means = np.full(k, float(self.mean_precision)), np.tile(self.mean, (k, 1))
        return Statistics(structure, means, weight, np.zeros((k, d)), scatter, 0.0, 0.0, 0)


def sticks(weight: Array, concentration: float) -> Array:
    """Beta distributions (2, k) of what each component takes of what is left, of the last ones' weights, too."""
    after = np.append(weight[::-1].cumsum()[-2::-1], 0.0)
    return np.stack([1.0 + weight, concentration + after])


def shares(sizes: Array) -> Array:
    """Expected proportions (k,) of a Dirichlet distribution, or of sticks, scaled to sum to 1."""
    if sizes.ndim == 1:
        return np.asarray(sizes / sizes.sum())
    taken, left = sizes / sizes.sum(axis=0)
    found: Array = taken * np.append(1.0, left[:-1].cumprod())
    found /= found.sum()
    return found


def log_shares(sizes: Array) -> Array:
    """Expected logarithms of proportions (k,)."""
    if sizes.ndim == 1:
        return np.asarray(digamma(sizes) - digamma(sizes.sum()))
    taken, left = digamma(sizes) - digamma(sizes.sum(axis=0))
    found: Array = taken + np.append(0.0, left[:-1].cumsum())
    return found


def _halves(nu: Array, d: int) -> Array:
    """(ν − i) / 2 for all features, (d, s): what a Wishart distribution of d features has gamma functions of."""
    return np.asarray(0.5 * (nu - np.arange(d)[:, None]))
