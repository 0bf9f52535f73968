"""What is known of a mixture before its rows: a conjugate prior of each component."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.checks import require
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure
from daskgmm.model.update import MAP


@dataclass(frozen=True, eq=False)
class NormalInverseWishart:
    """A prior for the means, covariances and proportions of a mixture, for ``prior=``.

    The mean of a component is normal about ``mean`` with covariance Σ / ``mean_precision``, its covariance Σ is
    inverse Wishart (variances inverse gamma), and the proportions are Dirichlet. What is None is taken from the
    rows as Fraley & Raftery (2007) have it: ``NormalInverseWishart()`` is what ``prior="weak"`` names.

    Parameters
    ----------
    mean : (d,) or (k, d), optional
        None takes the mean of all rows.
    mean_precision : float or (k,), default=0.01
        How many rows the prior mean counts as.
    degrees_of_freedom : float or (k,), optional
        None takes d + 2, the least at which a covariance has an expectation.
    scale : optional
        In the shape of ``covariances_``, or of that of one component. None takes the covariance of all rows,
        divided by k^(2/d): the volume of one component of k. The authors give diagonal covariances the mean
        variance of all features; here each feature has its own, so that units do not matter.
    weight_concentration : float or (k,), default=1.0
        Of the Dirichlet prior, at least 1. A component counts as so many rows more, less one.

    Notes
    -----
    With n rows in a component, scatter W about their mean ȳ, and κ, ν, Λ, m as above, the mode is Σ = (W + Λ +
    κn/(κ + n)·(ȳ − m)(ȳ − m)') / (n + ν + d + 2); diagonal: n + ν + 3; spherical: with traces, and n·d + ν + d + 2
    (Fraley & Raftery 2007, Bayesian regularization for normal mixture estimation and model-based clustering).
    Rows count by their weights.
    """

    mean: Any = None
    mean_precision: Any = 0.01
    degrees_of_freedom: Any = None
    scale: Any = None
    weight_concentration: Any = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                array = np.array(value, dtype=np.float64)
                array.setflags(write=False)
                object.__setattr__(self, field.name, array if array.ndim else float(array))
        self.check()

    def check(self) -> None:
        """Raise `ValueError` unless the values are numbers of the right sign."""
        for field in fields(self):
            value = getattr(self, field.name)
            told = f"{field.name} of the prior must be finite numbers, got {value!r}."
            require(value is None or isinstance(value, (float, np.ndarray)), told)
            require(value is None or bool(np.isfinite(value).all()), told)
        require(bool(np.all(np.asarray(self.mean_precision) >= 0)), "mean_precision of the prior is below 0.")
        require(bool(np.all(np.asarray(self.weight_concentration) >= 1)), "weight_concentration is below 1.")

    @property
    def placed(self) -> bool:
        """Whether each component has a place of its own."""
        return self.mean is not None and np.ndim(self.mean) == 2

    @classmethod
    def from_mixture(cls, mixture: Any, relevance: float = 16.0) -> Self:
        """The prior that adapts a background model: each component of it counts as ``relevance`` rows.

        With n rows in a component, its mean moves by n / (n + relevance) of the way to theirs, and so does its
        second moment (Reynolds, Quatieri & Dunn 2000, eqs. 11 to 14). Proportions have the Dirichlet prior of
        k·relevance rows that are shared out as in the background. A fit starts from the background.

        Parameters
        ----------
        mixture : a fitted estimator
        relevance : float
            Above 0.
        """
        if not relevance > 0:
            raise ValueError(f"relevance must be above 0, got {relevance}.")
        known: Mixture = getattr(mixture, "mixture_", mixture)
        (k, d), structure = known.means.shape, known.covariance.structure
        count = relevance * (k if structure.shared else 1)
        dof = structure.degrees_of_freedom(count - (k if structure.shared else 1), d)
        scale = structure.shown(count * known.covariance.values * (d if structure.isotropic else 1), k, d)
        return cls(known.means, relevance, dof, scale, 1 + relevance * k * known.weights)

    def on(self, structure: Structure, k: int, overall: Statistics, reg_covar: float) -> MAP:
        """The M-step under this prior; ``overall`` are the moments of all rows as one component.

        Raises
        ------
        ValueError
            If a shape does not fit k components of d features.
        """
        d = overall.reference.shape[1]
        weight = overall.weight.sum()
        spread = overall.about(overall.means).scatter / (weight - 1 if weight >= 2 else weight)
        held = structure.held(k, d)
        mean = _shaped("mean", overall.means[0] if self.mean is None else self.mean, (k, d))
        precision = _shaped("mean_precision", self.mean_precision, (k,))
        dof = d + 2.0 if self.degrees_of_freedom is None else self.degrees_of_freedom
        if self.scale is None:
            scatter = np.broadcast_to(spread / k ** (2 / d), held)
        else:
            scatter = structure.stored(_shaped("scale", self.scale, structure.shape(k, d)), k, d)
        scatter = scatter / (d if structure.isotropic else 1)  # a mean over features
        dof = _shaped("degrees_of_freedom", dof, (len(scatter),))
        flat = precision > 0  # a mean without a prior of its own has no share in the determinant
        count = structure.prior_rows(dof, d) + (flat.sum(keepdims=True) if structure.shared else flat)
        if not np.all(count >= 0):
            raise ValueError("degrees_of_freedom of the prior are too few.")
        extra = _shaped("weight_concentration", self.weight_concentration, (k,)) - 1
        return MAP(structure, mean, precision, scatter, count, extra, self.placed, reg_covar)


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """A value as an array of this shape, or that of one component; `ValueError` for another."""
    try:
        return np.array(np.broadcast_to(value, shape), dtype=np.float64)
    except ValueError:
        raise ValueError(f"{name} of the prior has shape {np.shape(value)}, expected {shape}.") from None
