"""The form of covariances along the axes: variances."""

from typing import TYPE_CHECKING, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.covariance import Covariance
from daskgmm.model.factors import EPS, check_positive
from daskgmm.model.kernels import layouts
from daskgmm.model.matrices import Matrices

if TYPE_CHECKING:
    from daskgmm.model.structure import Structure


class Axes(Covariance):
    """Variances along the axes, (s, d), or (s, 1) where those of all features are the same."""

    separate, axes, beside = True, 1, np.s_[:, None]
    valid = "positive"
    sums = layouts.Squares
    width = staticmethod(int)
    completed = staticmethod(np.asarray)
    unit = staticmethod(np.ones)
    diagonals = staticmethod(np.asarray)
    log_dets = staticmethod(lambda values: np.log(values).sum(axis=1))
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
        return type(self)(self.structure.loose, self.values[:, features], self.factor[:, features])

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
        log_norm = log_weights - 0.5 * d * np.log(2 * np.pi) + self.half_log_det(d)
        return layouts.Axes(*self._as_read(means, dtype), log_norm)

    def gapped(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        near, factor, offset = self._as_read(means, dtype)
        norm = 2 * np.log(np.broadcast_to(self.factor, factor.shape)) - np.log(2 * np.pi)
        return layouts.Gapped(near, factor, offset, norm.astype(dtype, order="C"), log_weights)

    def _as_read(self, means: Array, dtype: str) -> tuple[Array, Array, Array]:
        """Means, factors and offsets as the kernels read them."""
        factor = np.broadcast_to(self.factor, (len(self.factor), means.shape[1]))
        near = means.astype(dtype, order="C")
        return near, factor.astype(dtype, order="C"), (factor * (means - near)).astype(dtype, order="C")

    def matrices(self, d: int) -> Array:
        return self._of_all(d)[:, :, None] * np.eye(d)

    def blurred(self, means: Array, log_weights: Array, errors: int) -> layouts.Model:
        if errors > (d := means.shape[1]):
            return super().blurred(means, log_weights, errors)
        log_norm = log_weights - 0.5 * d * np.log(2 * np.pi)
        return layouts.BlurredAxes(np.array(means, order="C"), self._of_all(d), log_norm, errors)

    def _of_all(self, d: int) -> Array:
        """Variances of all d features, (s, d)."""
        return np.broadcast_to(self.values, (len(self.values), d)).copy()
