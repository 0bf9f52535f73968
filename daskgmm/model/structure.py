"""What the covariances of k components have in common: full, tied, diagonal, and those of mclust.

A structure says in which shape scatter is added up, how it moves to other points, and which covariances maximise
the likelihood: its M-step. To add one, write what differs from `Structure` and enter it in `STRUCTURES`.

With Σ_k = λ_k·D_k·A_k·D_k' and det A_k = 1, a component has a volume λ, a shape A and an orientation D. Each is
equal or varies; orientations may be those of the features (Banfield & Raftery 1993; Celeux & Govaert 1995).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from daskgmm._typing import Array
from daskgmm.errors import DataError
from daskgmm.model.axes import Axes
from daskgmm.model.covariance import Covariance
from daskgmm.model.factors import EPS, collapsed
from daskgmm.model.loadings import Loadings
from daskgmm.model.matrices import Matrices

if TYPE_CHECKING:
    from daskgmm.model.statistics import Statistics

TINY = float(np.finfo(np.float64).tiny)
SETTLED, STEPS = 1e-13, 200  # relative change of volumes that ends the search for them, and its steps at most


@dataclass(frozen=True)
class Structure:
    """Covariances of one form, each component's own or one that all share."""

    # Whether a component may be flat by itself, as others tell its shape.
    lent: ClassVar[bool] = False
    # Whether it pays to look further than the step of EM; not where few parameters make large matrices.
    extrapolated: ClassVar[bool] = True
    # How well what a user gives has to fit, in its standard deviations.
    told: ClassVar[float] = 1e-6

    name: str  # as ``covariance_type``
    form: type[Matrices] | type[Axes]
    shared: bool = False  # whether all components have the same covariance
    isotropic: bool = False  # whether all features have the same variance; scatter is then the mean over them
    n_factors: int = 0  # of each component, where there are any

    def __reduce__(self) -> tuple[object, ...]:
        """There is one of each in a process."""
        return structure_of, (self.key,)

    @property
    def key(self) -> str:
        """What `structure_of` knows it by."""
        return f"{self.name} {self.n_factors}" if self.n_factors else self.name

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        """Of covariances and precisions in scikit-learn's way: (k, d, d), (d, d), (k, d), (d,), (k,) or (1,)."""
        own = () if self.isotropic else (d,) * self.form.axes
        return own or (1,) if self.shared else (k, *own)

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

    @property
    def plain(self) -> "Structure":
        """That of scikit-learn which such covariances have, too; one along the axes is each component's own."""
        shared = self.shared and self.form is Matrices
        return next(s for s in PLAIN if (s.form, s.shared, s.isotropic) == (self.form, shared, self.isotropic))

    @property
    def related(self) -> bool:
        """Whether the covariance of a component tells something of those of others."""
        return self.shared

    @property
    def loose(self) -> "Structure":
        """The same without what relates components to each other: that of marginals, and of what is only tried."""
        return self

    def covariance(
        self, values: Array, weight: Array, ridge: float = np.inf, near: Covariance | None = None
    ) -> Covariance:
        """Of covariances S that fit the rows of components of weights w (k,), the likeliest of this structure.

        It maximises −Σ_k w_k·(log det Σ_k + tr Σ_k⁻¹·S_k) given ``values`` S. ``ridge`` is as in `Covariance.of`.
        What is found step by step begins at those that are ``near``.
        """
        return self.form.of(self, values, ridge)

    def imposed(self, covariance: Covariance, weight: Array, near: Covariance | None = None) -> Covariance:
        """The likeliest of this structure for a covariance of `loose`; the same where nothing is constrained."""
        if covariance.structure == self:
            return covariance
        return self.covariance(covariance.values, weight, np.inf, near)

    def holds(self, values: Array) -> bool:
        """Whether covariances are of this structure, as far as a user's may be rounded."""
        if self.loose is self:
            return True
        found, unit = self.covariance(values, np.ones(len(values))).values, np.sqrt(self.form.diagonals(values))
        unit = unit[:, :, None] * unit[:, None] if self.form.axes == 2 else unit**2
        return bool(np.all(np.abs(found - values) <= self.told * unit))

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

    def spread(self, values: Array, weight: Array) -> Array:
        """The scatter of components that weigh (k,) and have these covariances."""
        scatter: Array = values * (weight.sum() if self.shared else weight[self.form.beside])
        return scatter

    def fit(self, statistics: "Statistics", previous: Array | Covariance, ridge: float) -> Covariance:
        """The covariances that maximise the likelihood, with ``ridge`` added to their diagonals: the M-step.

        Parameters
        ----------
        statistics : about the means that the components are to have.
        previous : for components without weight: a covariance, or values as they are held.

        Raises
        ------
        CollapseError
            If a covariance is not positive definite, or, without a ``ridge``, a variance below what float64
            resolves at its mean.
        """
        s, form = statistics, self.form
        near, kept = (previous, previous.values) if isinstance(previous, Covariance) else (None, previous)
        alive = s.weight > TINY
        weight = (s.weight.sum(keepdims=True) if self.shared else s.weight)[form.beside]
        # No 0/0 for empty components: it would spread NaN.
        values = np.divide(s.scatter, weight, out=np.zeros_like(s.scatter), where=weight > 0)
        values = values + ridge * form.unit(values.shape[-1])
        values = np.where(weight > TINY, values, kept)
        bare = not ridge > 0  # else, spreads are at least that: rows near a mean are exact about it, however far
        if bare and not self.lent:
            self._check_sunk(values, s)
        found = self.covariance(values, np.where(alive, s.weight, 0.0), ridge, near)
        if bare and self.lent:
            self._check_sunk(found.values, s)
        return found

    def _check_sunk(self, values: Array, s: "Statistics") -> None:
        """Rows about a mean m are known to eps·|m|: a smaller spread than a few of those is rounding."""
        sunk = ~(self.form.diagonals(values) > (4 * EPS * s.reference) ** 2) & (s.weight > TINY)[:, None]
        if sunk.any():
            raise collapsed(*np.argwhere(sunk)[0].tolist())


PLAIN = FULL, TIED, DIAGONAL, SPHERICAL = (
    Structure("full", Matrices),
    Structure("tied", Matrices, shared=True),
    Structure("diag", Axes),
    Structure("spherical", Axes, isotropic=True),
)


class Related(Structure, ABC):
    """Covariances of components that have something in common, but not all."""

    @property
    def related(self) -> bool:
        return True

    @property
    def loose(self) -> Structure:
        return self.plain

    @abstractmethod
    def constrained(self, values: Array, weight: Array) -> Array:
        """The values that `covariance` is to have."""

    def covariance(
        self, values: Array, weight: Array, ridge: float = np.inf, near: Covariance | None = None
    ) -> Covariance:
        return self.form.of(self, self.constrained(values, weight), ridge)


class EqualVolume(Related):
    """Σ_k = λ·C_k with det C_k = 1: mclust's EVI and EVV."""

    def n_parameters(self, k: int, d: int) -> int:
        return 1 + k * (self.form.n_parameters(d) - 1)

    def constrained(self, values: Array, weight: Array) -> Array:
        """C_k is that of S_k, and λ the mean of the volumes (Celeux & Govaert 1995, [λB_k] and [λC_k])."""
        with np.errstate(all="ignore"):
            logs = self.form.log_dets(values) / values.shape[1]
            sound = np.isfinite(logs)  # others are no covariances, and stay
            top = logs.max(initial=-np.inf, where=sound)
            volume = top + np.log(_average(np.where(sound, np.exp(logs - top), 0.0), weight))
            return np.asarray(values * np.where(sound, np.exp(volume - logs), 1.0)[self.form.beside])


class EqualShape(Related):
    """Σ_k = λ_k·C: mclust's VEI and VEE."""

    lent = True

    def n_parameters(self, k: int, d: int) -> int:
        return k + self.form.n_parameters(d) - 1

    def constrained(self, values: Array, weight: Array) -> Array:
        """C and the volumes in turn, each the best for the other, to the end (Celeux & Govaert 1995, [λ_kC])."""
        d, form = values.shape[1], self.form
        volume, shape = form.diagonals(values).mean(axis=1), values[:1]
        for _ in range(STEPS):
            share = np.divide(weight, volume, out=np.zeros_like(volume), where=volume > 0)
            shape, before = _average(values, share)[None], volume
            volume = self.trace(form.of(self, shape, np.inf), values, d) / d
            if np.all(np.abs(volume - before) <= SETTLED * volume):
                break
        return np.asarray(volume[form.beside] * shape)


@dataclass(frozen=True)
class Turned(Related):
    """Σ_k = D_k·B_k·D_k', each with an orientation of its own: mclust's EEV and VEV."""

    lent = True
    along: EqualShape | None = None  # what the variances B_k have in common; None: all

    def n_parameters(self, k: int, d: int) -> int:
        return (d if self.along is None else self.along.n_parameters(k, d)) + k * d * (d - 1) // 2

    def constrained(self, values: Array, weight: Array) -> Array:
        """D_k are the eigenvectors of S_k, by size of its eigenvalues (Celeux & Govaert 1995, [λ_kD_kAD_k'])."""
        if not np.isfinite(values).all():
            return values
        found, axes = np.linalg.eigh(values)
        found = np.maximum(found, 0.0)
        found = _average(found, weight)[None] if self.along is None else self.along.constrained(found, weight)
        return self.form.completed(axes * found[:, None] @ np.swapaxes(axes, 1, 2))


class Factors(Structure):
    """Σ_k = Λ_kΛ_k' + Ψ_k with few factors and Ψ_k diagonal: mixtures of factor analysers."""

    lent, extrapolated, told = True, False, 1e-3

    @property
    def plain(self) -> Structure:
        return FULL

    @property
    def loose(self) -> Structure:
        return FULL

    def n_parameters(self, k: int, d: int) -> int:
        """Without the rotations of the factors, which change no covariance (McLachlan & Peel 2000)."""
        q = self.n_factors
        return k * (d * (q + 1) - q * (q - 1) // 2)

    def covariance(
        self, values: Array, weight: Array, ridge: float = np.inf, near: Covariance | None = None
    ) -> Covariance:
        return Loadings.found(self, values, ridge, near)


def _average(values: Array, weight: Array) -> Array:
    """The mean of components that weigh (k,); of all alike, if nothing weighs."""
    return np.asarray(np.average(values, axis=0, weights=weight if weight.any() else None))


_TIED_DIAGONAL = Structure("tied_diag", Axes, shared=True)
_TIED_SPHERICAL = Structure("tied_spherical", Axes, shared=True, isotropic=True)
# What mclust calls those that have a name here.
_CODES = {
    "EII": _TIED_SPHERICAL,
    "VII": SPHERICAL,
    "EEI": _TIED_DIAGONAL,
    "VVI": DIAGONAL,
    "EEE": TIED,
    "VVV": FULL,
}
STRUCTURES = {
    structure.name: structure
    for structure in (
        *PLAIN,
        _TIED_DIAGONAL,
        _TIED_SPHERICAL,
        EqualVolume("EVI", Axes),
        EqualVolume("EVV", Matrices),
        EqualShape("VEI", Axes),
        EqualShape("VEE", Matrices),
        Turned("EEV", Matrices),
        Turned("VEV", Matrices, along=EqualShape("VEI", Axes)),
    )
} | _CODES
FACTORS = "factors"
NAMES = (*STRUCTURES, FACTORS)


@cache
def _factors(n_factors: int) -> Structure:
    """The one of so many factors: structures are known by identity."""
    return Factors(FACTORS, Loadings, n_factors=n_factors)


def structure_of(name: str, n_factors: int | None = None) -> Structure:
    """The structure that a ``covariance_type`` or a key names; `DataError` if it lacks a number of factors."""
    name, _, number = name.partition(" ")
    if name != FACTORS:
        return STRUCTURES[name]
    if (many := int(number) if number else n_factors or 0) < 1:
        raise DataError("covariance_type='factors' needs n_factors, the number of factors of each component.")
    return _factors(many)
