"""Full, tied, diagonal and spherical covariances: all that differs between structures.

Each class holds the covariances of the components in scikit-learn's own shape with the Cholesky factors of
their precisions, and knows how its scatter is stored, moved and turned into covariances. The kernels know two
layouts only: tied is full with one shared factor, spherical is diagonal with one number per component.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from scipy.linalg import solve_triangular

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.factors import check_positive, factor_of_precision, precision_factor


def _outer(a: Array, b: Array) -> Array:
    return a[:, :, None] * b[:, None, :]


def _cross(shift: Array, delta: Array) -> Array:
    return _outer(shift, delta) + _outer(delta, shift)


@dataclass(frozen=True, eq=False)
class Covariance(ABC):
    """Covariances of the components of one mixture.

    Attributes
    ----------
    values : ndarray
        Covariances in scikit-learn's shape for the structure: full (k, d, d), tied (d, d), diag (k, d),
        spherical (k,).
    factor : ndarray
        Cholesky factors of the precisions, as scikit-learn's ``precisions_cholesky_``: of the same shape, upper
        triangular, ``precision = factor @ factor.T``.
    """

    values: Array
    factor: Array
    name: ClassVar[str]

    def __post_init__(self) -> None:
        self.values.setflags(write=False)
        self.factor.setflags(write=False)

    @classmethod
    @abstractmethod
    def of(cls, values: Array, resolved: bool = True) -> Self:
        """From covariances; `CollapseError` names the first that is not positive definite.

        With ``resolved``, one that is singular within the rounding of a scatter is not, either: right where
        nothing was added to the diagonal.
        """

    @classmethod
    @abstractmethod
    def from_precisions(cls, precisions: Array) -> Self:
        """From precisions (inverse covariances) in the same shape."""

    @staticmethod
    @abstractmethod
    def shape(k: int, d: int) -> tuple[int, ...]:
        """Shape of covariances, precisions and scatter alike."""

    @staticmethod
    @abstractmethod
    def n_parameters(k: int, d: int) -> int:
        """Number of free parameters in the covariances."""

    @staticmethod
    @abstractmethod
    def kernel_shape(k: int, d: int) -> tuple[int, ...]:
        """Shape of the scatter that the kernels fill: (s, width, width), or (s, d)."""

    @staticmethod
    @abstractmethod
    def from_kernel(scatter: Array, d: int) -> Array:
        """The kernels' sums as scatter of this structure; may reuse their memory."""

    @abstractmethod
    def kernel_factor(self, k: int, d: int) -> Array:
        """The factor as the kernels read it: lower triangular (s, width, width), or (s, d)."""

    @staticmethod
    @abstractmethod
    def move(weight: Array, shift: Array, delta: Array) -> Array:
        """What to add to a scatter to take it about ``reference + delta``: w·δδ' − s·δ' − δ·s'."""

    @classmethod
    @abstractmethod
    def per_weight(cls, scatter: Array, weight: Array) -> Array:
        """Scatter divided by weight: the maximum-likelihood covariances. Empty components give 0."""

    def scatter(self, weight: Array) -> Array:
        """What `per_weight` turns into these covariances: the scatter of components that weigh (k,)."""
        return self.values * weight.reshape((-1,) + (1,) * (self.values.ndim - 1))

    @classmethod
    def shrunk(cls, scatter: Array, weight: Array, extra: float) -> Array:
        """Scatter, and that of rows of weight ``extra`` in each component that spread as all do in theirs."""
        within: Array = scatter.sum(axis=0) / weight.sum()
        return scatter + extra * within

    def take(self, components: Array) -> Self:
        """The covariances of these components, in this order; a component may come twice."""
        return type(self)(self.values[components], self.factor[components])

    @classmethod
    @abstractmethod
    def variances(cls, values: Array, k: int, d: int) -> Array:
        """Diagonals (k, d) of covariances ``values``."""

    @abstractmethod
    def regularised(self, values: Array, alive: Array, reg_covar: float) -> Array:
        """``values`` plus ``reg_covar`` on the diagonal; this covariance's own where not ``alive`` (k,)."""

    @abstractmethod
    def half_log_det(self, d: int) -> Array:
        """Half the log-determinants of the precisions: (k,), or (1,) where shared."""

    def amplification(self, k: int, d: int) -> float:
        """Largest Σ_j |f_ij|·σ_j over rows i of the transposed factors: 1 where features are uncorrelated."""
        sigma = np.sqrt(self.variances(self.values, k, d))
        factor = np.broadcast_to(np.abs(self.factor), (k, d, d))
        return float(np.einsum("kji,kj->ki", factor, sigma).max())

    @abstractmethod
    def colour(self, z: Array, component: int) -> Array:
        """Give standard normal rows ``z`` (n, d) the covariance of one component."""

    @property
    @abstractmethod
    def precisions(self) -> Array:
        """Inverse covariances, in the same shape."""


def _share(scatter: Array, weight: Array) -> Array:
    """``scatter[k] / weight[k]``, 0 for empty components: 0/0 would spread NaN."""
    w = weight.reshape((-1,) + (1,) * (scatter.ndim - 1))
    return np.divide(scatter, w, out=np.zeros_like(scatter), where=w > 0)


def _triangles(s: int, d: int) -> tuple[int, int, int]:
    """Shape of ``s`` packed triangles of ``d`` features."""
    width = kernels.width(d, triangular=True)
    return s, width, width


class Full(Covariance):
    """A covariance matrix for each component, (k, d, d)."""

    name = "full"

    @classmethod
    def of(cls, values: Array, resolved: bool = True) -> Self:
        return cls(values, np.stack([precision_factor(c, j, resolved) for j, c in enumerate(values)]))

    @classmethod
    def from_precisions(cls, precisions: Array) -> Self:
        pairs = [factor_of_precision(p, j) for j, p in enumerate(precisions)]
        return cls(np.stack([c for c, _ in pairs]), np.stack([u for _, u in pairs]))

    @staticmethod
    def shape(k: int, d: int) -> tuple[int, ...]:
        return k, d, d

    @staticmethod
    def n_parameters(k: int, d: int) -> int:
        return k * d * (d + 1) // 2

    @staticmethod
    def kernel_shape(k: int, d: int) -> tuple[int, ...]:
        return _triangles(k, d)

    @staticmethod
    def from_kernel(scatter: Array, d: int) -> Array:
        kernels.mirror(scatter)
        return scatter[:, :d, :d]

    def kernel_factor(self, k: int, d: int) -> Array:
        packed = np.zeros(_triangles(k, d))
        packed[:, :d, :d] = np.swapaxes(self.factor, 1, 2)
        return packed

    @staticmethod
    def move(weight: Array, shift: Array, delta: Array) -> Array:
        return weight[:, None, None] * _outer(delta, delta) - _cross(shift, delta)

    @classmethod
    def per_weight(cls, scatter: Array, weight: Array) -> Array:
        return _share(scatter, weight)

    @classmethod
    def variances(cls, values: Array, k: int, d: int) -> Array:
        return np.diagonal(values, axis1=1, axis2=2)

    def regularised(self, values: Array, alive: Array, reg_covar: float) -> Array:
        kept = np.where(alive[:, None, None], values, self.values)
        return kept + alive[:, None, None] * (reg_covar * np.eye(values.shape[-1]))

    def half_log_det(self, d: int) -> Array:
        logs: Array = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(axis=1)
        return logs

    def colour(self, z: Array, component: int) -> Array:
        # Solving with the factor avoids a second Cholesky: U' x = z has covariance inv(U U').
        coloured: Array = solve_triangular(self.factor[component].T, z.T, lower=True).T
        return coloured

    @property
    def precisions(self) -> Array:
        return self.factor @ np.swapaxes(self.factor, 1, 2)


class Tied(Covariance):
    """One covariance matrix that all components share, (d, d)."""

    name = "tied"

    @classmethod
    def of(cls, values: Array, resolved: bool = True) -> Self:
        return cls(values, precision_factor(values, 0, resolved))

    @classmethod
    def from_precisions(cls, precisions: Array) -> Self:
        return cls(*factor_of_precision(precisions, 0))

    @staticmethod
    def shape(k: int, d: int) -> tuple[int, ...]:
        return d, d

    @staticmethod
    def n_parameters(k: int, d: int) -> int:
        return d * (d + 1) // 2

    @staticmethod
    def kernel_shape(k: int, d: int) -> tuple[int, ...]:
        return _triangles(1, d)

    @staticmethod
    def from_kernel(scatter: Array, d: int) -> Array:
        kernels.mirror(scatter)
        return scatter[0, :d, :d]

    def kernel_factor(self, k: int, d: int) -> Array:
        packed = np.zeros(_triangles(1, d))
        packed[0, :d, :d] = self.factor.T
        return packed

    @staticmethod
    def move(weight: Array, shift: Array, delta: Array) -> Array:
        cross = shift.T @ delta
        moved: Array = (weight[:, None] * delta).T @ delta - cross - cross.T
        return moved

    @classmethod
    def per_weight(cls, scatter: Array, weight: Array) -> Array:
        covariance: Array = scatter / weight.sum()
        return covariance

    def scatter(self, weight: Array) -> Array:
        scatter: Array = self.values * weight.sum()
        return scatter

    @classmethod
    def shrunk(cls, scatter: Array, weight: Array, extra: float) -> Array:
        shrunk: Array = scatter * (1 + len(weight) * extra / weight.sum())
        return shrunk

    def take(self, components: Array) -> Self:
        return self

    @classmethod
    def variances(cls, values: Array, k: int, d: int) -> Array:
        return np.broadcast_to(np.diag(values), (k, d))

    def regularised(self, values: Array, alive: Array, reg_covar: float) -> Array:
        return values + reg_covar * np.eye(len(values))

    def half_log_det(self, d: int) -> Array:
        logs: Array = np.log(np.diag(self.factor)).sum(keepdims=True)
        return logs

    def colour(self, z: Array, component: int) -> Array:
        coloured: Array = solve_triangular(self.factor.T, z.T, lower=True).T
        return coloured

    @property
    def precisions(self) -> Array:
        return self.factor @ self.factor.T


class _Axes(Covariance):
    """Variances along the axes only: what diagonal and spherical have in common."""

    @classmethod
    def of(cls, values: Array, resolved: bool = True) -> Self:
        check_positive(values)
        return cls(values, 1.0 / np.sqrt(values))

    @classmethod
    def from_precisions(cls, precisions: Array) -> Self:
        check_positive(precisions)
        return cls(1.0 / precisions, np.sqrt(precisions))

    def amplification(self, k: int, d: int) -> float:
        return 1.0

    @staticmethod
    def kernel_shape(k: int, d: int) -> tuple[int, ...]:
        return k, d

    @property
    def precisions(self) -> Array:
        return self.factor**2


class Diagonal(_Axes):
    """A variance for each component and feature, (k, d)."""

    name = "diag"

    @staticmethod
    def shape(k: int, d: int) -> tuple[int, ...]:
        return k, d

    @staticmethod
    def n_parameters(k: int, d: int) -> int:
        return k * d

    @staticmethod
    def from_kernel(scatter: Array, d: int) -> Array:
        return scatter

    def kernel_factor(self, k: int, d: int) -> Array:
        return np.ascontiguousarray(self.factor)

    @staticmethod
    def move(weight: Array, shift: Array, delta: Array) -> Array:
        moved: Array = delta * (weight[:, None] * delta - 2.0 * shift)
        return moved

    @classmethod
    def per_weight(cls, scatter: Array, weight: Array) -> Array:
        return _share(scatter, weight)

    @classmethod
    def variances(cls, values: Array, k: int, d: int) -> Array:
        return values

    def regularised(self, values: Array, alive: Array, reg_covar: float) -> Array:
        return np.where(alive[:, None], values + reg_covar, self.values)

    def half_log_det(self, d: int) -> Array:
        logs: Array = np.log(self.factor).sum(axis=1)
        return logs

    def colour(self, z: Array, component: int) -> Array:
        coloured: Array = z / self.factor[component]
        return coloured


class Spherical(_Axes):
    """One variance for each component, (k,); its scatter is the sum over features."""

    name = "spherical"

    @staticmethod
    def shape(k: int, d: int) -> tuple[int, ...]:
        return (k,)

    @staticmethod
    def n_parameters(k: int, d: int) -> int:
        return k

    @staticmethod
    def from_kernel(scatter: Array, d: int) -> Array:
        # The mean over features, so that scatter / weight is the variance.
        variance: Array = scatter.mean(axis=1)
        return variance

    def kernel_factor(self, k: int, d: int) -> Array:
        return np.repeat(self.factor[:, None], d, axis=1)

    @staticmethod
    def move(weight: Array, shift: Array, delta: Array) -> Array:
        moved: Array = Diagonal.move(weight, shift, delta).mean(axis=1)
        return moved

    @classmethod
    def per_weight(cls, scatter: Array, weight: Array) -> Array:
        return _share(scatter, weight)

    @classmethod
    def variances(cls, values: Array, k: int, d: int) -> Array:
        return np.broadcast_to(values[:, None], (k, d))

    def regularised(self, values: Array, alive: Array, reg_covar: float) -> Array:
        return np.where(alive, values + reg_covar, self.values)

    def half_log_det(self, d: int) -> Array:
        return d * np.log(self.factor)

    def colour(self, z: Array, component: int) -> Array:
        coloured: Array = z / self.factor[component]
        return coloured


STRUCTURES: dict[str, type[Covariance]] = {c.name: c for c in (Full, Tied, Diagonal, Spherical)}
