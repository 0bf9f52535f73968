"""Covariances of the components of one mixture, with the Cholesky factors of their precisions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.linalg import solve_triangular

from daskgmm._typing import Array
from daskgmm.model import factors
from daskgmm.model.checks import holds, require
from daskgmm.model.factors import (
    EPS,
    check_positive,
    factor_of_precision,
    inverted,
    lower_factors,
    precision_factor,
)
from daskgmm.model.kernels import layouts

if TYPE_CHECKING:
    from daskgmm.model.structure import Structure

# Standard deviations from the first mean up to which components that share a factor share work on a row, too.
NEAR = {"f8": 1e3, "f4": 1e1}


@dataclass(frozen=True, eq=False)
class Covariance(ABC):
    """One covariance for each of k components, or one that all share: s is k or 1."""

    structure: "Structure"  # what they have in common
    values: Array  # (s, ...) as the class says
    factor: Array  # Cholesky factors of the precisions, of that shape, upper: ``precision = factor @ factor.T``

    axes: ClassVar[int]  # of features, of the values of one component
    beside: ClassVar[Any]  # picks from numbers (k,) those that go with the values
    valid: ClassVar[str]  # what values have to be, in words
    sums: ClassVar[Any]  # what the kernels add to
    width: ClassVar[Any]  # of d: features with the zeros that the kernels ask for
    unit: ClassVar[Any]  # of d features: what is added to values to add 1 to all variances
    completed: ClassVar[Any]  # a scatter: with what the kernels leave out of it
    diagonals: ClassVar[Any]  # of values: (s, d), or (s, 1) where all features have the same
    condensed: ClassVar[Any]  # of matrices (s, d, d): what values of this form keep of them

    @staticmethod
    @abstractmethod
    def n_parameters(d: int) -> int:
        """Free ones, of one component."""

    @staticmethod
    @abstractmethod
    def order(d: int) -> int:
        """What the exponent of a determinant has beside the degrees of freedom, in the density of their prior."""

    @staticmethod
    @abstractmethod
    def is_valid(values: Array) -> bool:
        """Whether values that a user gives may be covariances, as far as can be told without factors."""

    @staticmethod
    @abstractmethod
    def outer(weight: Array, shift: Array, delta: Array, summed: bool) -> Array:
        """w·δδ' − s·δ' − δ·s' of each component, or summed over components, in the shape of values."""

    @staticmethod
    @abstractmethod
    def lifted(scatter: Array, left: Array, seen: Array, unseen: Array, gain: Array) -> Array:
        """The scatter of all features from that of those that are seen, and what these leave of the others'."""

    @classmethod
    @abstractmethod
    def of(cls, structure: "Structure", values: Array, ridge: float = 0.0) -> Self:
        """From covariances; `CollapseError` names the first that is not positive definite.

        One that is singular within the rounding of a scatter is not, either, unless ``ridge``, which its diagonal
        is known to hold, is more than rounding. An infinite ``ridge`` stands for covariances that are given.
        """

    @classmethod
    @abstractmethod
    def from_precisions(cls, structure: "Structure", precisions: Array) -> Self:
        """From precisions (inverse covariances) in the same shape."""

    def check(self) -> None:
        """Raise `ValueError` unless values are covariances, and the factors theirs."""
        shape = self.values.shape
        require(type(self) is self.structure.form, "The form of the covariances is not that of their structure.")
        require(len(shape) == 1 + self.axes and min(shape) > 0, "There are no covariances.")
        require(holds(self.values, shape) and holds(self.factor, shape), "Covariances or factors are no numbers.")
        require(shape[1:] == shape[1:2] * self.axes, "The covariances are not square.")
        with np.errstate(all="ignore"):
            sound = self.is_valid(self.values) and self.has_its_factor
        require(sound, "The factors are not those of the covariances.")

    @property
    @abstractmethod
    def has_its_factor(self) -> bool:
        """Whether ``factor.T @ values @ factor`` is 1 within rounding, with a factor that is triangular."""

    def take(self, components: Array) -> Self:
        """The covariances of these components, in this order; a component may come twice."""
        if self.structure.shared:
            return self
        return type(self)(self.structure, self.values[components], self.factor[components])

    @abstractmethod
    def parted(self, seen: Array, unseen: Array) -> tuple[Self, Array, Self]:
        """What the covariances say of two groups of features, numbered (o,) and (m,), that have none in common.

        The covariances of those that are seen; the gain (s, m, o), by which the mean of the others follows what is
        seen; and the covariances that the others then keep. All come out of one factor of each matrix, without a
        difference of covariances.
        """

    def between(self, component: int) -> Self:
        """The averages of one component's covariance and those of each that comes after it."""
        if self.structure.shared:
            return self
        mean = 0.5 * self.values[component] + 0.5 * self.values[component + 1 :]
        return self.of(self.structure, mean, np.inf)

    @property
    def deviations(self) -> Array:
        """Standard deviations of the features, (s, d), or (s, 1) where all have the same."""
        deviations: Array = np.sqrt(self.diagonals(self.values))
        return deviations

    @property
    @abstractmethod
    def precisions(self) -> Array:
        """Inverse covariances, in the same shape."""

    @abstractmethod
    def half_log_det(self, d: int) -> Array:
        """Half the log-determinants of the precisions, (s,)."""

    @abstractmethod
    def colour(self, z: Array, component: int) -> Array:
        """Give standard normal rows ``z`` (n, d) the covariance of one component."""

    @abstractmethod
    def whiten(self, rows: Array, component: int) -> Array:
        """Rows (n, d), or one (d,), measured from the mean of one component, in its standard deviations."""

    @property
    @abstractmethod
    def coordinates(self) -> Array:
        """Numbers (s, c), any of which are covariances: logs of the factors' diagonals, ratios of the rest."""

    @classmethod
    @abstractmethod
    def at(cls, structure: "Structure", coordinates: Array, d: int) -> Self:
        """The inverse of `coordinates`, of d features; `CollapseError` where float64 holds no such covariance."""

    @abstractmethod
    def whitened(self, changes: Array, d: int) -> Array:
        """Small changes (m, s, c) of `coordinates` as normal distributions of d features feel them.

        Their squares add up to the Fisher information of a row: 2·Σ e_ii² + Σ e_ij² with ``e = inv(U) @ dU``.
        """

    @abstractmethod
    def pack(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        """Parameters as the kernels read them: ``means`` (k, d), ``log_weights`` (k,); work in "f8" or "f4"."""

    @property
    def amplification(self) -> float:
        """Largest Σ_j |f_ij|·σ_j over rows i of the transposed factors: 1 where features are uncorrelated."""
        return 1.0

    @cached_property
    def allows_single(self) -> bool:
        """Whether work in float32 costs a log-density no more than some 1e-5 per feature.

        A standardised value z_i = Σ_j f_ij·(x_j − m_j) is off by (d + 2)·eps·Σ_j |f_ij|·|x_j − m_j|: correlated
        features cancel in it. That sum is about the `amplification`. Statistics are off by some eps of themselves:
        where rows correlate much more than these covariances, as with a start that is given without correlation,
        that is much of the smallest eigenvalue after the M-step. From there on work is in float64.
        """
        variances = self.diagonals(self.values)
        in_range = variances.min() > 1e-24 and variances.max() < 1e24  # squares and their sums stay normal
        return bool(in_range and self.amplification <= 32)


class Matrices(Covariance):
    """Covariance matrices, (s, d, d)."""

    axes, beside = 2, np.s_[:, None, None]
    valid = "symmetric, positive-definite"
    sums = layouts.Triangles
    width = staticmethod(layouts.width)
    unit = staticmethod(np.eye)
    diagonals = staticmethod(partial(np.diagonal, axis1=1, axis2=2))
    condensed = staticmethod(np.asarray)

    @staticmethod
    def n_parameters(d: int) -> int:
        return d * (d + 1) // 2

    @staticmethod
    def order(d: int) -> int:
        return d + 1

    @staticmethod
    def is_valid(values: Array) -> bool:
        other, variances = np.swapaxes(values, -1, -2), np.abs(np.diagonal(values, axis1=-2, axis2=-1))
        unit = np.sqrt(variances[..., :, None] * variances[..., None, :])  # whatever features are measured in
        return bool(np.all(np.abs(values - other) <= 1e-5 * np.abs(other) + 1e-8 * unit))

    @staticmethod
    def completed(lower: Array) -> Array:
        whole: Array = np.where(_lower(lower.shape[-1]), lower, np.swapaxes(lower, 1, 2))
        return whole

    @staticmethod
    def outer(weight: Array, shift: Array, delta: Array, summed: bool) -> Array:
        if summed:
            cross = shift.T @ delta
            moved: Array = (weight[:, None] * delta).T @ delta - cross - cross.T
            return Matrices.completed(moved[None])  # which BLAS need not add up alike on both sides
        square = weight[:, None, None] * (delta[:, :, None] * delta[:, None, :])
        apart: Array = square - (shift[:, :, None] * delta[:, None, :] + delta[:, :, None] * shift[:, None, :])
        return apart

    @staticmethod
    def lifted(scatter: Array, left: Array, seen: Array, unseen: Array, gain: Array) -> Array:
        d = len(seen) + len(unseen)
        below, out = gain @ scatter, np.empty((len(scatter), d, d))
        out[:, seen[:, None], seen] = scatter
        out[:, unseen[:, None], seen] = below
        out[:, seen[:, None], unseen] = np.swapaxes(below, 1, 2)
        out[:, unseen[:, None], unseen] = Matrices.completed(below @ np.swapaxes(gain, 1, 2) + left)
        return out

    @classmethod
    def of(cls, structure: "Structure", values: Array, ridge: float = 0.0) -> Self:
        return cls(structure, values, np.stack([precision_factor(c, j, ridge) for j, c in enumerate(values)]))

    @classmethod
    def from_precisions(cls, structure: "Structure", precisions: Array) -> Self:
        pairs = [factor_of_precision(p, j) for j, p in enumerate(precisions)]
        return cls(structure, np.stack([c for c, _ in pairs]), np.stack([u for _, u in pairs]))

    @property
    def precisions(self) -> Array:
        return self.factor @ np.swapaxes(self.factor, 1, 2)

    @property
    def has_its_factor(self) -> bool:
        # Off by c·d·eps·a_i·a_j, with a_j = Σ_i |u_ij|·σ_i, which Cauchy's inequality makes of the backward errors
        # of a Cholesky factor and its inverse (Higham 2002, theorems 10.3 and 14.1), whichever was found first.
        d = self.values.shape[1]
        for values, u in zip(self.completed(self.values), self.factor, strict=True):
            a = np.sqrt(np.diag(values)) @ np.abs(u)
            close = np.abs(u.T @ values @ u - np.eye(d)) <= 64 * (d + 2) * EPS * np.outer(a, a)
            sized = np.isfinite(a @ a)  # infinity is no larger than infinity
            if not (sized and close.all() and np.all(np.diag(u) > 0)) or np.tril(u, -1).any():
                return False
        return True

    @property
    def amplification(self) -> float:
        sums = np.einsum("sji,sj->si", np.abs(self.factor), np.sqrt(self.diagonals(self.values)))
        return float(sums.max())

    def half_log_det(self, d: int) -> Array:
        logs: Array = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(axis=1)
        return logs

    def colour(self, z: Array, component: int) -> Array:
        # Solving with the factor avoids a second Cholesky: U' x = z has covariance inv(U U').
        factor = self.factor[min(component, len(self.factor) - 1)]
        coloured: Array = solve_triangular(factor.T, z.T, lower=True).T
        return coloured

    def whiten(self, rows: Array, component: int) -> Array:
        # Without BLAS, as the bits of a product would depend on its threads.
        whitened: Array = np.einsum("...i,ij->...j", rows, self.factor[min(component, len(self.factor) - 1)])
        return whitened

    def parted(self, seen: Array, unseen: Array) -> tuple[Self, Array, Self]:
        order, o = np.concatenate([seen, unseen]), len(seen)
        lower = lower_factors(self.values[:, order[:, None], order])
        own, rest = (np.stack([inverted(f[part, part]) for f in lower]) for part in (np.s_[:o], np.s_[o:]))
        corner, gain = lower[:, o:, o:], lower[:, o:, :o] @ np.swapaxes(own, 1, 2)
        marginal = type(self)(self.structure, self.values[:, seen[:, None], seen], own)
        return marginal, gain, type(self)(self.structure, corner @ np.swapaxes(corner, 1, 2), rest)

    @property
    def coordinates(self) -> Array:
        return factors.coordinates(self.factor)

    @classmethod
    def at(cls, structure: "Structure", coordinates: Array, d: int) -> Self:
        factor = factors.at(coordinates, d)
        return cls(structure, np.stack([factors.covariance_of(u, s) for s, u in enumerate(factor)]), factor)

    def whitened(self, changes: Array, d: int) -> Array:
        return factors.whitened(self.factor, changes)

    def pack(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        (k, d), w = means.shape, layouts.width(means.shape[1])
        exact, factor = np.zeros((k, w)), np.zeros((len(self.factor), w, w))
        exact[:, :d], factor[:, :d, :d] = means, np.swapaxes(self.factor, 1, 2)
        # Rows are measured from means that the dtype holds; what these leave out comes back in the offset.
        near = exact.astype(dtype)
        offset = _times(factor, exact - near)
        factor = factor.astype(dtype)
        log_norm = log_weights - 0.5 * d * np.log(2 * np.pi) + self.half_log_det(d)
        if self.structure.shared and k > 1 and w >= 4:
            products = _times(factor.astype("f8"), near.astype("f8") - near[0].astype("f8")) + offset
            if (np.square(products).sum(axis=1) <= NEAR[dtype] ** 2).all():
                apart = np.ascontiguousarray((near - near[0]).T)
                return layouts.Shared(near, factor, products.astype(dtype), apart, log_norm)
        layout = layouts.Wide if w >= 2 * layouts.MANY_FEATURES and k > 1 else layouts.Triangular
        return layout(near, factor, offset.astype(dtype), log_norm)


class Axes(Covariance):
    """Variances along the axes, (s, d), or (s, 1) where those of all features are the same."""

    axes, beside = 1, np.s_[:, None]
    valid = "positive"
    sums = layouts.Squares
    width = staticmethod(int)
    completed = staticmethod(np.asarray)
    unit = staticmethod(np.ones)
    diagonals = staticmethod(np.asarray)
    condensed = staticmethod(Matrices.diagonals)

    @staticmethod
    def n_parameters(d: int) -> int:
        return d

    @staticmethod
    def order(d: int) -> int:
        return 2

    @staticmethod
    def is_valid(values: Array) -> bool:
        return bool(np.all(values > 0))

    @staticmethod
    def outer(weight: Array, shift: Array, delta: Array, summed: bool) -> Array:
        moved: Array = delta * (weight[:, None] * delta - 2.0 * shift)
        return moved.sum(axis=0, keepdims=True) if summed else moved

    @staticmethod
    def lifted(scatter: Array, left: Array, seen: Array, unseen: Array, gain: Array) -> Array:
        out = np.empty((len(scatter), len(seen) + len(unseen)))
        out[:, seen], out[:, unseen] = scatter, left
        return out

    @classmethod
    def of(cls, structure: "Structure", values: Array, ridge: float = 0.0) -> Self:
        check_positive(values)
        return cls(structure, values, 1.0 / np.sqrt(values))

    @classmethod
    def from_precisions(cls, structure: "Structure", precisions: Array) -> Self:
        check_positive(precisions)
        return cls(structure, 1.0 / precisions, np.sqrt(precisions))

    @property
    def has_its_factor(self) -> bool:
        off = np.abs(self.values * self.factor * self.factor - 1) <= 16 * EPS
        return bool(off.all() and np.all(self.factor > 0))

    @property
    def precisions(self) -> Array:
        return self.factor**2

    def half_log_det(self, d: int) -> Array:
        logs = np.log(self.factor)
        summed: Array = d // logs.shape[1] * logs.sum(axis=1)
        return summed

    def colour(self, z: Array, component: int) -> Array:
        coloured: Array = z / self.factor[min(component, len(self.factor) - 1)]
        return coloured

    def whiten(self, rows: Array, component: int) -> Array:
        whitened: Array = rows * self.factor[min(component, len(self.factor) - 1)]
        return whitened

    def parted(self, seen: Array, unseen: Array) -> tuple[Self, Array, Self]:
        own, rest = (self._of_features(part) for part in (seen, unseen))
        return own, np.zeros((len(self.values), len(unseen), len(seen))), rest

    def _of_features(self, features: Array) -> Self:
        """Of some features; where all have the same variance, that stays."""
        if self.structure.isotropic:
            return self
        return type(self)(self.structure, self.values[:, features], self.factor[:, features])

    @property
    def coordinates(self) -> Array:
        logs: Array = np.log(self.factor)
        return logs

    @classmethod
    def at(cls, structure: "Structure", coordinates: Array, d: int) -> Self:
        with np.errstate(all="ignore"):
            factor = np.exp(coordinates)
            values = 1.0 / factor**2
        check_positive(np.where(np.isfinite(factor + values), values, 0.0))
        return cls(structure, values, factor)

    def whitened(self, changes: Array, d: int) -> Array:
        found: Array = changes * np.sqrt(2.0 * (d // changes.shape[-1]))
        return found

    def pack(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        d = means.shape[1]
        near, factor = means.astype(dtype), np.broadcast_to(self.factor, (len(self.factor), d))
        offset = factor * (means - near)
        log_norm = log_weights - 0.5 * d * np.log(2 * np.pi) + self.half_log_det(d)
        return layouts.Axes(near, factor.astype(dtype, order="C"), offset.astype(dtype), log_norm)


# Where a matrix of d rows has its lower triangle; kept, as small blocks would spend a third of their time on it.
_lower = cache(partial(np.tri, dtype=bool))


def _times(factor: Array, vectors: Array) -> Array:
    """Each component's factor times its vector, (k, w); without BLAS, whose bits depend on its threads."""
    k, w = vectors.shape
    product: Array = np.einsum("kij,kj->ki", np.broadcast_to(factor, (k, w, w)), vectors)
    return product
