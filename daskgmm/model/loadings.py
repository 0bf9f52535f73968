"""The form of covariances that few factors explain: loadings and noise (Ghahramani & Hinton 1996)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.linalg import eigh

from daskgmm._typing import Array
from daskgmm.model.checks import holds, require
from daskgmm.model.covariance import Covariance
from daskgmm.model.factors import EPS, collapsed, precision_factors
from daskgmm.model.matrices import Matrices

if TYPE_CHECKING:
    from daskgmm.model.structure import Structure

# Steps of the search for loadings and noise, at most: in an M-step, which goes on where the last one ended, and
# from nothing. They end before that where a step gains less, in nats a row.
STEPS, FIRST_STEPS, GAIN = 3, 500, 1e-10
LEAST = 1e-6  # of a variance, that is noise


@dataclass(frozen=True, eq=False)
class Loadings(Matrices):
    """Covariance matrices ``loadings @ loadings.T`` + ``noise`` on the diagonal."""

    loadings: Array  # (k, d, q)
    noise: Array  # (k, d)

    def check(self) -> None:
        super().check()
        (k, d), q = self.values.shape[:2], self.structure.n_factors
        require(holds(self.loadings, (k, d, q)), "The loadings are not those of the factors.")
        require(holds(self.noise, (k, d), 0.0), "The noise has no variances.")

    @property
    def is_of_its_structure(self) -> bool:
        if self.loadings.shape[:2] != self.noise.shape or self.noise.shape != self.values.shape[:2]:
            return False
        off = np.abs(composed(self.loadings, self.noise) - self.values)
        unit = np.sqrt(self.diagonals(self.values))
        return bool(np.all(off <= 64 * (1 + self.structure.n_factors) * EPS * unit[:, :, None] * unit[:, None]))

    @classmethod
    def found(cls, structure: "Structure", values: Array, ridge: float, near: Covariance | None) -> Self:
        """The likeliest, for rows of such covariances (k, d, d); the search begins at noise that is near."""
        least = ridge if np.isfinite(ridge) else 0.0
        starts: Any = [None] * len(values)
        if isinstance(near, Loadings) and near.values.shape == values.shape:
            starts = near.noise
        rows = enumerate(zip(values, starts, strict=True))
        pairs = [analysed(scatter, structure.n_factors, least, noise, j) for j, (scatter, noise) in rows]
        loadings, noise = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return cls.made(structure, loadings, noise, ridge)

    @classmethod
    def made(cls, structure: "Structure", loadings: Array, noise: Array, ridge: float = np.inf) -> Self:
        """Those of given loadings and noise; ``ridge`` as in `Covariance.of`."""
        values = composed(loadings, noise)
        factor = precision_factors(values, ridge)
        return cls(structure, values, factor, loadings, noise)

    @classmethod
    def of(cls, structure: "Structure", values: Array, ridge: float = 0.0) -> Self:
        return cls.found(structure, values, ridge, None)

    @classmethod
    def from_precisions(cls, structure: "Structure", precisions: Array) -> Self:
        return cls.found(structure, Matrices.from_precisions(structure.loose, precisions).values, np.inf, None)

    def take(self, components: Array) -> Self:
        parts = (self.values, self.factor, self.loadings, self.noise)
        return type(self)(self.structure, *(part[components] for part in parts))


def composed(loadings: Array, noise: Array) -> Array:
    """Covariances (k, d, d)."""
    values = Matrices.completed(loadings @ np.swapaxes(loadings, 1, 2))
    d = noise.shape[1]
    values[:, np.arange(d), np.arange(d)] += noise
    return values


def analysed(scatter: Array, q: int, least: float, noise: Array | None, component: int) -> tuple[Array, Array]:
    """Loadings (d, q) and noise (d,) that fit a covariance (d, d) best, or better than ``noise`` does.

    Loadings are the best for the noise: with θ and u eigenvalues and -vectors of Ψ^-½·S·Ψ^-½, Ψ^½·u·√(θ − 1). Then
    each noise is the best for all the rest, in turn (Zhao, Yu & Jiang 2008). ``least`` is the least noise.
    """
    variances, d = np.diag(scatter), len(scatter)
    if not (np.isfinite(scatter).all() and np.all(variances > 0)):
        raise collapsed(component, *np.flatnonzero(variances <= 0)[:1].tolist())
    floor, steps = np.maximum(least, LEAST * variances), STEPS
    if noise is None:  # principal components of correlations
        scale, steps = 1 / np.sqrt(variances), FIRST_STEPS
        top = eigh(scatter * np.outer(scale, scale), eigvals_only=True, subset_by_index=[d - q, d - 1])
        noise = variances * max(1 - top.sum() / d, 0.1)
    noise, last = np.maximum(noise, floor), np.inf
    for _ in range(steps):
        scale = 1 / np.sqrt(noise)
        theta, axes = eigh(scatter * np.outer(scale, scale), subset_by_index=[d - q, d - 1])
        theta = np.maximum(theta, 1.0)
        loadings = axes * np.sqrt(theta - 1) / scale[:, None]
        misfit = np.log(noise).sum() + (variances / noise).sum() + (np.log(theta) - theta).sum()
        if last - misfit <= 2 * GAIN:
            break
        noise, last = _quietened(scatter, loadings, noise, floor), misfit
    return loadings, noise


def _quietened(scatter: Array, loadings: Array, noise: Array, floor: Array) -> Array:
    """Noise of one feature after another that maximises the likelihood, given that of the others.

    It is what the feature's regression on the others leaves of its rows, less what that leaves of its factors.
    """
    noise, scaled, unit = noise.copy(), loadings / noise[:, None], np.eye(loadings.shape[1])
    for i, row in enumerate(loadings):
        scaled[i] = 0.0  # Ψ⁻¹Λ of the others
        gain = np.linalg.solve(unit + loadings.T @ scaled, row)
        rest = -scaled @ gain
        rest[i] = 1.0
        noise[i] = max(rest @ scatter @ rest - row @ gain, floor[i])
        scaled[i] = row / noise[i]
    return noise
