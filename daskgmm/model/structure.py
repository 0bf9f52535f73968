"""What the covariances of k components have in common: full, tied, diagonal, spherical.

A structure says in which shape scatter is added up, how it moves to other points, and which covariances maximise
the likelihood: its M-step. To add one, write what differs from `Structure` and enter it in `STRUCTURES`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.axes import Axes
from daskgmm.model.covariance import Covariance
from daskgmm.model.factors import EPS, collapsed
from daskgmm.model.matrices import Matrices

if TYPE_CHECKING:
    from daskgmm.model.parts import Parts
    from daskgmm.model.statistics import Statistics

TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Structure:
    """Covariances of one form, each component's own or one that all share."""

    name: str  # as ``covariance_type``
    form: type[Matrices] | type[Axes]
    shared: bool = False  # whether all components have the same covariance
    isotropic: bool = False  # whether all features have the same variance; scatter is then the mean over them

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        """Of covariances and precisions as scikit-learn has them: (k, d, d), (d, d), (k, d) or (k,)."""
        return (() if self.shared else (k,)) + (() if self.isotropic else (d,) * self.form.axes)

    def stored(self, values: Array, k: int, d: int) -> Array:
        """Values of that `shape` as they are held: (s, d, d), (s, d) or (s, 1), s = 1 where shared, else k."""
        return values.reshape(self.held(k, d))

    def held(self, k: int, d: int) -> tuple[int, ...]:
        """The shape of values as they are held."""
        return (1 if self.shared else k, *(1 if self.isotropic else d,) * self.form.axes)

    def shown(self, values: Array, k: int, d: int) -> Array:
        """The inverse of `stored`."""
        return values.reshape(self.shape(k, d))

    def n_parameters(self, k: int, d: int) -> int:
        """Number of free parameters in the covariances."""
        return (1 if self.shared else k) * (1 if self.isotropic else self.form.n_parameters(d))

    def move(self, weight: Array, shift: Array, delta: Array) -> Array:
        """What to add to a scatter to take it about ``reference + delta``: w·δδ' − s·δ' − δ·s'."""
        moved = self.form.outer(weight, shift, delta, self.shared)
        return moved.mean(axis=1, keepdims=True) if self.isotropic else moved

    def condensed(self, scatter: Array) -> Array:
        """What is kept of scatter matrices (k, d, d), in the shape of a scatter."""
        kept: Array = self.form.condensed(scatter)
        if self.shared:
            kept = kept.sum(axis=0, keepdims=True)
        return kept.mean(axis=1, keepdims=True) if self.isotropic else kept

    def prior_rows(self, degrees_of_freedom: Array, d: int) -> Array:
        """How many rows the log-determinant of a covariance has in an inverse Wishart, or inverse gamma, prior."""
        rows: Array = degrees_of_freedom + self.form.order(d)
        return (degrees_of_freedom + 2) / d if self.isotropic else rows

    def degrees_of_freedom(self, rows: float, d: int) -> float:
        """The inverse of `prior_rows`."""
        return float(rows * d - 2 if self.isotropic else rows - self.form.order(d))

    def trace(self, covariance: Covariance, scatter: Array, d: int) -> Array:
        """Traces of the products of precisions and scatters, (s,)."""
        summed: Array = (covariance.precisions * scatter).reshape(len(scatter), -1).sum(axis=1)
        return summed * (d if self.isotropic else 1)

    def lifted(self, scatter: Array, weight: Array, parts: "Parts") -> Array:
        """The scatter of all features that follows from that of some."""
        left = self.spread(parts.rest.values, weight)
        if self.isotropic:
            o, m = len(parts.seen), len(parts.unseen)
            mean: Array = (o * scatter + m * left) / (o + m)
            return mean
        return self.form.lifted(scatter, left, parts.seen, parts.unseen, parts.gain)

    def spread(self, values: Array, weight: Array) -> Array:
        """The scatter of components that weigh (k,) and have these covariances."""
        scatter: Array = values * (weight.sum() if self.shared else weight[self.form.beside])
        return scatter

    def fit(self, statistics: "Statistics", previous: Array, ridge: float) -> Covariance:
        """The covariances that maximise the likelihood, with ``ridge`` added to their diagonals: the M-step.

        Parameters
        ----------
        statistics : about the means that the components are to have.
        previous : values for components without weight, as they are held.

        Raises
        ------
        CollapseError
            If a covariance is not positive definite, or, without a ``ridge``, a variance below what float64
            resolves at its mean.
        """
        s, form = statistics, self.form
        alive = s.weight > TINY
        weight = (s.weight.sum(keepdims=True) if self.shared else s.weight)[form.beside]
        # No 0/0 for empty components: it would spread NaN.
        values = np.divide(s.scatter, weight, out=np.zeros_like(s.scatter), where=weight > 0)
        values = values + ridge * form.unit(values.shape[-1])
        values = np.where(weight > TINY, values, previous)
        if ridge == 0:  # else they are at least that: rows are exact about a mean that they are near, however far
            # Rows about a mean m are known to eps·|m|: a smaller spread than a few of those is rounding.
            sunk = ~(form.diagonals(values) > (4 * EPS * s.reference) ** 2) & alive[:, None]
            if sunk.any():
                raise collapsed(*np.argwhere(sunk)[0].tolist())
        return form.of(self, values, ridge)


STRUCTURES = {
    structure.name: structure
    for structure in (
        Structure("full", Matrices),
        Structure("tied", Matrices, shared=True),
        Structure("diag", Axes),
        Structure("spherical", Axes, isotropic=True),
    )
}
FULL, TIED, DIAGONAL, SPHERICAL = STRUCTURES.values()
