"""Covariances of the components of one mixture, with the Cholesky factors of their precisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from scipy.linalg import solve_triangular

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.factors import check_positive, factor_of_precision, precision_factor

if TYPE_CHECKING:
    from daskgmm.model.structure import Structure

# Standard deviations from the first mean up to which components that share a factor share work on a row, too.
NEAR = {"f8": 1e3, "f4": 1e1}


@dataclass(frozen=True, eq=False)
class Covariance(ABC):
    """One covariance for each of k components, or one that all share.

    Attributes
    ----------
    structure : Structure
        What they have in common.
    values : (s, ...) as the class says; s is k, or 1 where all components share one.
    factor : Cholesky factors of the precisions, of the same shape, upper triangular:
        ``precision = factor @ factor.T``.
    """

    structure: Structure
    values: Array
    factor: Array

    def __post_init__(self) -> None:
        self.values.setflags(write=False)
        self.factor.setflags(write=False)

    @classmethod
    @abstractmethod
    def of(cls, structure: Structure, values: Array, resolved: bool = True) -> Self:
        """From covariances; `CollapseError` names the first that is not positive definite.

        With ``resolved``, one that is singular within the rounding of a scatter is not, either: right where
        nothing was added to the diagonal.
        """

    @classmethod
    @abstractmethod
    def from_precisions(cls, structure: Structure, precisions: Array) -> Self:
        """From precisions (inverse covariances) in the same shape."""

    def take(self, components: Array) -> Self:
        """The covariances of these components, in this order; a component may come twice."""
        if self.structure.shared:
            return self
        return type(self)(self.structure, self.values[components], self.factor[components])

    @property
    @abstractmethod
    def precisions(self) -> Array:
        """Inverse covariances, in the same shape."""

    @staticmethod
    @abstractmethod
    def diagonals(values: Array) -> Array:
        """Variances in covariances: (s, d), or (s, 1) where all features have the same."""

    @property
    def variances(self) -> Array:
        """The `diagonals` of these."""
        return self.diagonals(self.values)

    @abstractmethod
    def half_log_det(self, d: int) -> Array:
        """Half the log-determinants of the precisions, (s,)."""

    @abstractmethod
    def colour(self, z: Array, component: int) -> Array:
        """Give standard normal rows ``z`` (n, d) the covariance of one component."""

    @abstractmethod
    def pack(self, means: Array, log_weights: Array, dtype: str) -> kernels.Model:
        """Parameters as the kernels read them: ``means`` (k, d), ``log_weights`` (k,), for work in "f8" or "f4"."""

    @property
    def amplification(self) -> float:
        """Largest Σ_j |f_ij|·σ_j over rows i of the transposed factors: 1 where features are uncorrelated."""
        return 1.0

    @cached_property
    def allows_single(self) -> bool:
        """Whether work in float32 costs a log-density no more than some 1e-5 per feature.

        A standardised value z_i = Σ_j f_ij·(x_j − m_j) is off by (d + 2)·eps·Σ_j |f_ij|·|x_j − m_j|: correlated
        features cancel in it. That sum is about the `amplification`.
        """
        variances = self.variances
        in_range = variances.min() > 1e-24 and variances.max() < 1e24  # squares and their sums stay normal
        return bool(in_range and self.amplification <= 32)

    def _log_norm(self, log_weights: Array, d: int) -> Array:
        """Log weights plus log normalising constants, (k,)."""
        log_norm: Array = log_weights - 0.5 * d * np.log(2 * np.pi) + self.half_log_det(d)
        return log_norm


class Matrices(Covariance):
    """Covariance matrices, (s, d, d)."""

    valid: ClassVar[str] = "symmetric, positive-definite"

    @staticmethod
    def shape(d: int) -> tuple[int, ...]:
        """Of one covariance."""
        return d, d

    @staticmethod
    def n_parameters(d: int) -> int:
        """Free ones, of one covariance."""
        return d * (d + 1) // 2

    @staticmethod
    def is_valid(values: Array) -> bool:
        """Whether values that a user gives may be covariances, as far as can be told without factors."""
        return np.allclose(values, np.swapaxes(values, -1, -2))

    @staticmethod
    def raised(values: Array, ridge: float) -> Array:
        """``ridge`` added to the diagonals."""
        return values + ridge * np.eye(values.shape[-1])

    @staticmethod
    def diagonals(values: Array) -> Array:
        return np.diagonal(values, axis1=1, axis2=2)

    @staticmethod
    def column(a: Array) -> Array:
        """Numbers (k,), each beside a covariance."""
        return a[:, None, None]

    @staticmethod
    def zeros(s: int, k: int, d: int) -> kernels.Triangles:
        """Sums for the kernels to add to."""
        w = kernels.width(d)
        return kernels.Triangles(np.zeros(1), np.zeros(k), np.zeros((k, w)), np.zeros((s, w, w)))

    @staticmethod
    def scatter(sums: Any, d: int) -> Array:
        """The kernels' scatter without its padding: (s, d, d)."""
        lower = sums.scatter[:, :d, :d]
        return np.where(np.tri(d, dtype=bool), lower, np.swapaxes(lower, 1, 2))

    @staticmethod
    def outer(weight: Array, shift: Array, delta: Array) -> Array:
        """Matrices (k, d, d) w·δδ' − s·δ' − δ·s'."""
        cross = shift[:, :, None] * delta[:, None, :]
        across = delta[:, :, None] * shift[:, None, :]
        square: Array = weight[:, None, None] * (delta[:, :, None] * delta[:, None, :])
        return square - (cross + across)

    @staticmethod
    def summed_outer(weight: Array, shift: Array, delta: Array) -> Array:
        """Their sum, (1, d, d)."""
        cross = shift.T @ delta
        summed: Array = (weight[:, None] * delta).T @ delta - cross - cross.T
        return summed[None]

    @classmethod
    def of(cls, structure: Structure, values: Array, resolved: bool = True) -> Self:
        return cls(structure, values, np.stack([precision_factor(c, j, resolved) for j, c in enumerate(values)]))

    @classmethod
    def from_precisions(cls, structure: Structure, precisions: Array) -> Self:
        pairs = [factor_of_precision(p, j) for j, p in enumerate(precisions)]
        return cls(structure, np.stack([c for c, _ in pairs]), np.stack([u for _, u in pairs]))

    @property
    def precisions(self) -> Array:
        return self.factor @ np.swapaxes(self.factor, 1, 2)

    @property
    def amplification(self) -> float:
        sums = np.einsum("sji,sj->si", np.abs(self.factor), np.sqrt(self.variances))
        return float(sums.max())

    def half_log_det(self, d: int) -> Array:
        logs: Array = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(axis=1)
        return logs

    def colour(self, z: Array, component: int) -> Array:
        # Solving with the factor avoids a second Cholesky: U' x = z has covariance inv(U U').
        factor = self.factor[min(component, len(self.factor) - 1)]
        coloured: Array = solve_triangular(factor.T, z.T, lower=True).T
        return coloured

    def pack(self, means: Array, log_weights: Array, dtype: str) -> kernels.Model:
        (k, d), w = means.shape, kernels.width(means.shape[1])
        exact, factor = np.zeros((k, w)), np.zeros((len(self.factor), w, w))
        exact[:, :d], factor[:, :d, :d] = means, np.swapaxes(self.factor, 1, 2)
        # Rows are measured from means that the dtype holds; what these leave out comes back in the offset.
        near = exact.astype(dtype)
        offset = _times(factor, exact - near)
        factor = factor.astype(dtype)
        log_norm = self._log_norm(log_weights, d)
        if self.structure.shared and k > 1 and w >= 4:
            products = _times(factor.astype("f8"), near.astype("f8") - near[0].astype("f8")) + offset
            if (np.square(products).sum(axis=1) <= NEAR[dtype] ** 2).all():
                apart = np.ascontiguousarray((near - near[0]).T)
                return kernels.Shared(near, factor, products.astype(dtype), apart, log_norm)
        layout = kernels.Wide if w >= 2 * kernels.MANY_FEATURES and k > 1 else kernels.Triangular
        return layout(near, factor, offset.astype(dtype), log_norm)


class Axes(Covariance):
    """Variances along the axes, (s, d), or (s, 1) where those of all features are the same."""

    valid: ClassVar[str] = "positive"

    @staticmethod
    def shape(d: int) -> tuple[int, ...]:
        """Of one covariance."""
        return (d,)

    @staticmethod
    def n_parameters(d: int) -> int:
        """Free ones, of one covariance."""
        return d

    @staticmethod
    def is_valid(values: Array) -> bool:
        """Whether values that a user gives may be variances."""
        return bool(np.all(values > 0))

    @staticmethod
    def raised(values: Array, ridge: float) -> Array:
        """``ridge`` added to the variances."""
        return values + ridge

    @staticmethod
    def diagonals(values: Array) -> Array:
        return values

    @staticmethod
    def column(a: Array) -> Array:
        """Numbers (k,), each beside a covariance."""
        return a[:, None]

    @staticmethod
    def zeros(s: int, k: int, d: int) -> kernels.Squares:
        """Sums for the kernels to add to."""
        return kernels.Squares(np.zeros(1), np.zeros(k), np.zeros((k, d)), np.zeros((s, d)))

    @staticmethod
    def scatter(sums: Any, d: int) -> Array:
        """The kernels' scatter: (s, d)."""
        found: Array = sums.scatter
        return found

    @staticmethod
    def outer(weight: Array, shift: Array, delta: Array) -> Array:
        """Diagonals (k, d) of w·δδ' − s·δ' − δ·s'."""
        moved: Array = delta * (weight[:, None] * delta - 2.0 * shift)
        return moved

    @classmethod
    def summed_outer(cls, weight: Array, shift: Array, delta: Array) -> Array:
        """Their sum, (1, d)."""
        return cls.outer(weight, shift, delta).sum(axis=0, keepdims=True)

    @classmethod
    def of(cls, structure: Structure, values: Array, resolved: bool = True) -> Self:
        check_positive(values)
        return cls(structure, values, 1.0 / np.sqrt(values))

    @classmethod
    def from_precisions(cls, structure: Structure, precisions: Array) -> Self:
        check_positive(precisions)
        return cls(structure, 1.0 / precisions, np.sqrt(precisions))

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

    def pack(self, means: Array, log_weights: Array, dtype: str) -> kernels.Model:
        near, factor = means.astype(dtype), np.broadcast_to(self.factor, (len(self.factor), means.shape[1]))
        offset = factor * (means - near)
        log_norm = self._log_norm(log_weights, means.shape[1])
        return kernels.Axes(near, factor.astype(dtype, order="C"), offset.astype(dtype), log_norm)


def _times(factor: Array, vectors: Array) -> Array:
    """Each component's factor times its vector, (k, w); without BLAS, whose bits depend on its threads."""
    k, w = vectors.shape
    product: Array = np.einsum("kij,kj->ki", np.broadcast_to(factor, (k, w, w)), vectors)
    return product
