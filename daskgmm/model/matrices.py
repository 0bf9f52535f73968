"""The form of covariances that are matrices."""

from functools import cache, partial
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dtrtrs  # what solve_triangular calls, at a tenth of its cost

from daskgmm._typing import Array
from daskgmm.model.covariance import Covariance
from daskgmm.model.factors import (
    EPS,
    covariance_of,
    factor_of_precision,
    inverted,
    lower_factors,
    precision_factors,
)
from daskgmm.model.kernels import layouts
from daskgmm.model.kernels.lanes import LANES

if TYPE_CHECKING:
    from daskgmm.model.structure import Structure

# Standard deviations from the first mean up to which components that share a factor share work on a row, too.
NEAR = {"f8": 1e3, "f4": 1e1}


class Matrices(Covariance):
    """Covariance matrices, (s, d, d)."""

    axes, beside = 2, np.s_[:, None, None]
    valid = "symmetric, positive-definite"
    sums = layouts.Triangles
    width = staticmethod(layouts.width)
    unit = staticmethod(np.eye)
    diagonals = staticmethod(partial(np.diagonal, axis1=1, axis2=2))
    log_dets = staticmethod(lambda values: np.linalg.slogdet(values)[1])
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

    @classmethod
    def of(cls, structure: "Structure", values: Array, ridge: float = 0.0) -> Self:
        return cls(structure, values, precision_factors(values, ridge))

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

    @property
    def tells_correlation(self) -> bool:
        return bool(self.factor.shape[1] == 1 or np.triu(self.factor.any(axis=0), 1).any())

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

    def parted(self, seen: Array, unseen: Array) -> "tuple[Matrices, Array, Matrices]":
        order, o = np.concatenate([seen, unseen]), len(seen)
        lower = lower_factors(self.values[:, order[:, None], order])
        own, rest = (inverted(lower[:, part, part]) for part in (np.s_[:o], np.s_[o:]))
        corner, gain = lower[:, o:, o:], lower[:, o:, :o] @ np.swapaxes(own, 1, 2)
        structure = self.structure.loose
        marginal = Matrices(structure, self.values[:, seen[:, None], seen], own)
        return marginal, gain, Matrices(structure, corner @ np.swapaxes(corner, 1, 2), rest)

    @property
    def coordinates(self) -> Array:
        i, j = np.triu_indices(self.factor.shape[1])
        diagonal = np.diagonal(self.factor, axis1=1, axis2=2)
        found: Array = np.where(i == j, np.log(diagonal)[:, j], self.factor[:, i, j] / diagonal[:, j])
        return found

    @classmethod
    def at(cls, structure: "Structure", coordinates: Array, d: int) -> Self:
        i, j = np.triu_indices(d)
        factor = np.zeros((len(coordinates), d, d))
        with np.errstate(all="ignore"):  # what float64 does not hold is infinite, 0 or NaN
            factor[:, i, j] = np.where(i == j, 1.0, coordinates) * np.exp(coordinates[:, i == j])[:, j]
        return cls(structure, np.stack([covariance_of(u, s) for s, u in enumerate(factor)]), factor)

    def whitened(self, changes: Array, d: int) -> Array:
        # e = inv(U) @ dU, with √2·e on the diagonal
        i, j = np.triu_indices(d)
        found: Array = changes * np.where(i == j, np.sqrt(2.0), np.diagonal(self.factor, axis1=1, axis2=2)[:, j])
        above = np.zeros((d, d, len(changes)))
        for u, own in zip(self.factor, np.moveaxis(found, 1, 0), strict=True):
            above[i, j] = np.where(i == j, 0.0, own).T
            solved, _ = dtrtrs(u, above.reshape(d, -1))
            own[:] = np.where(i == j, own, solved.reshape(above.shape)[i, j].T)  # a view of what is found
        return found

    def pack(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        (k, d), w = means.shape, layouts.width(means.shape[1])
        near, factor, offset = self._as_read(means, w, dtype)
        log_norm = log_weights - 0.5 * d * np.log(2 * np.pi) + self.half_log_det(d)
        if self.structure.shared and k > 1 and w >= 4:
            products = _times(factor.astype("f8"), near.astype("f8") - near[0].astype("f8")) + offset
            if (np.square(products).sum(axis=1) <= NEAR[dtype] ** 2).all():
                apart = np.ascontiguousarray((near - near[0]).T)
                return layouts.Shared(near, factor, products.astype(dtype), apart, log_norm)
        layout = layouts.Wide if w >= 2 * layouts.MANY_FEATURES and k > 1 else layouts.Triangular
        return layout(near, factor, offset.astype(dtype), log_norm)

    def gapped(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        (k, d), s = means.shape, len(self.values)
        near, factor, offset = self._as_read(means, d + -d % 4, dtype)
        groups = self.values[np.minimum(np.arange(s + -s % LANES), s - 1)].reshape(-1, LANES, d * d)
        covariance = np.ascontiguousarray(np.swapaxes(groups, 1, 2))
        half, own = np.broadcast_to(self.half_log_det(d), (k,)).copy(), not self.structure.shared
        apart = means - near[:, :d]
        return layouts.Filled(near, factor, offset.astype(dtype), log_weights, apart, covariance, half, own)

    def _as_read(self, means: Array, w: int, dtype: str) -> tuple[Array, Array, Array]:
        """Means and factors of this width as the kernels read them, and offsets."""
        (k, d), s = means.shape, len(self.factor)
        exact, factor = np.zeros((k, w)), np.zeros((s, w, w))
        exact[:, :d], factor[:, :d, :d] = means, np.swapaxes(self.factor, 1, 2)
        # Rows are measured from means that the dtype holds; what these leave out comes back in the offset.
        near = exact.astype(dtype)
        return near, factor.astype(dtype), _times(factor, exact - near)

    def matrices(self, d: int) -> Array:
        return self.values.copy()


# Where a matrix of d rows has its lower triangle; kept, as small blocks would spend a third of their time on it.
_lower = cache(partial(np.tri, dtype=bool))


def _times(factor: Array, vectors: Array) -> Array:
    """Each component's factor times its vector, (k, w); without BLAS, whose bits depend on its threads."""
    k, w = vectors.shape
    product: Array = np.einsum("kij,kj->ki", np.broadcast_to(factor, (k, w, w)), vectors)
    return product
