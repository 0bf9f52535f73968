"""Covariances of the components of one mixture, with the Cholesky factors of their precisions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.checks import holds, require
from daskgmm.model.kernels import layouts

if TYPE_CHECKING:
    from daskgmm.model.structure import Structure


@dataclass(frozen=True, eq=False)
class Covariance(ABC):
    """One covariance for each of k components, or one that all share: s is k or 1."""

    structure: "Structure"  # what they have in common
    values: Array  # (s, ...) as the class says
    factor: Array  # Cholesky factors of the precisions, of that shape, upper: ``precision = factor @ factor.T``

    separate: ClassVar[bool] = False  # whether the value of a feature tells nothing of others in a component
    axes: ClassVar[int]  # of features, of the values of one component
    beside: ClassVar[Any]  # picks from numbers (k,) those that go with the values
    valid: ClassVar[str]  # what values have to be, in words
    sums: ClassVar[Any]  # what the kernels add to
    width: ClassVar[Any]  # of d: features with the zeros that the kernels ask for
    unit: ClassVar[Any]  # of d features: what is added to values to add 1 to all variances
    completed: ClassVar[Any]  # a scatter: with what the kernels leave out of it
    diagonals: ClassVar[Any]  # of values: (s, d), or (s, 1) where all features have the same
    log_dets: ClassVar[Any]  # of values: log-determinants (s,), not finite where there is none
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
        require(self.is_of_its_structure, "The covariances have not in common what their structure says.")

    @property
    def is_of_its_structure(self) -> bool:
        """Whether values are what the structure allows."""
        return self.structure.holds(self.values)

    @property
    @abstractmethod
    def has_its_factor(self) -> bool:
        """Whether ``factor.T @ values @ factor`` is 1 within rounding, with a factor that is triangular."""

    def take(self, components: Array) -> Self:
        """The covariances of these components, in this order; a component may come twice."""
        if self.structure.shared:
            return self
        return type(self)(self.structure, self.values[components], self.factor[components])

    def where(self, chosen: Array, other: Self) -> Self:
        """These of components that are chosen (k,), the other ones of the rest; one that all share if all are."""
        if self.structure.shared:
            return self if chosen.all() else other
        names = [f.name for f in fields(self) if f.name != "structure"]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        beside = {name: chosen.reshape(-1, *(1,) * (a.ndim - 1)) for name, (a, _) in pairs.items()}
        return replace(self, **{name: np.where(beside[name], *pair) for name, pair in pairs.items()})

    @abstractmethod
    def parted(self, seen: Array, unseen: Array) -> "tuple[Covariance, Array, Covariance]":
        """What the covariances say of two groups of features, numbered (o,) and (m,), that have none in common.

        The covariances of those that are seen; the gain (s, m, o), by which the mean of the others follows what is
        seen; and the covariances that the others then keep. All come out of one factor of each matrix, without a
        difference of covariances.
        """

    def between(self, component: int) -> "Covariance":
        """The averages of one component's covariance and those of each that comes after it."""
        structure = self.structure.loose
        if self.structure.shared:
            return self
        mean = 0.5 * self.values[component] + 0.5 * self.values[component + 1 :]
        return structure.form.of(structure, mean, np.inf)

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

    @abstractmethod
    def gapped(self, means: Array, log_weights: Array, dtype: str) -> layouts.Model:
        """The same for rows that may miss values."""

    @abstractmethod
    def matrices(self, d: int) -> Array:
        """The covariances of d features as matrices, (s, d, d)."""

    def blurred(self, means: Array, log_weights: Array, errors: int) -> layouts.Model:
        """Parameters as the kernels read them for rows with so many ``errors`` of their own; in float64."""
        d = means.shape[1]
        return layouts.Blurred(
            np.array(means, order="C"), self.matrices(d), log_weights - 0.5 * d * np.log(2 * np.pi), errors
        )

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
        variances = self.diagonals(self.values)
        in_range = variances.min() > 1e-24 and variances.max() < 1e24  # squares and their sums stay normal
        return bool(in_range and self.amplification <= 32)

    @property
    def tells_correlation(self) -> bool:
        """Whether rows have told how features correlate: not where a start is given without correlation.

        Sums in float32 are off by some eps of themselves. Where rows correlate much more than these covariances,
        that is much of the smallest eigenvalue after the M-step.
        """
        return True
