"""How well a mixture describes some rows: log-likelihood, and the criteria that weigh it against parameters."""

from dataclasses import dataclass
from math import e, isfinite, isinf, log

import numpy as np

from daskgmm.errors import DataError
from daskgmm.model.checks import at_least, require
from daskgmm.store.values import storable

# Of weights: beyond these, what is a small part of a sum, or a large multiple of it, is no number of all digits.
LIGHTEST = float(np.finfo(np.float64).tiny / np.finfo(np.float64).eps)
HEAVIEST = float(np.finfo(np.float64).max * np.finfo(np.float64).eps)


def unfit(total: float) -> DataError | None:
    """What to raise for weights of this sum, if anything."""
    if not total > 0:
        return DataError("Sample weights must contain at least one non-zero number.")
    if LIGHTEST <= total <= HEAVIEST:
        return None
    much = "little" if total < 1 else "much"
    return DataError(
        f"sample_weight adds up to {total:.3g}, too {much} for sums in float64, which take {LIGHTEST:.1g} to "
        f"{HEAVIEST:.1g}. Scale the weights."
    )


# What remains to be gained may be this share of what a parameter costs in the Bayesian criterion, ½·log(n) nats.
ENOUGH = 0.1


def enough(total_weight: float) -> float:
    """What more iterations may add for each unit of so much weight, in nats, without a bearing on criteria."""
    n = max(total_weight, e)
    return ENOUGH * 0.5 * log(n) / n


@storable
@dataclass(frozen=True)
class Score:
    """Weighted sums over rows. ``a + b`` equals the score of the concatenated rows.

    Attributes
    ----------
    log_likelihood : float
        In nats.
    entropy : float
        Of the responsibilities, in nats; NaN unless it was asked for, and so is ``icl``.
    total_weight : float
    n_parameters : int
        Of the mixture.
    """

    log_likelihood: float
    entropy: float
    total_weight: float
    n_parameters: int = 0

    def check(self) -> None:
        """Raise `ValueError` unless these may be sums over rows."""
        require(isfinite(self.log_likelihood) and not isinf(self.entropy), "The sums are no numbers.")
        require(unfit(self.total_weight) is None and at_least(0, self.n_parameters), "The rows weigh nothing.")

    @property
    def mean(self) -> float:
        """Log-likelihood per unit of weight."""
        return self.log_likelihood / self.total_weight

    @property
    def aic(self) -> float:
        """Akaike's criterion, lower is better (Akaike 1974)."""
        return -2 * self.log_likelihood + 2 * self.n_parameters

    @property
    def bic(self) -> float:
        """The Bayesian criterion, lower is better (Schwarz 1978)."""
        return float(-2 * self.log_likelihood + self.n_parameters * np.log(self.total_weight))

    @property
    def icl(self) -> float:
        """`bic` plus twice the entropy, lower is better (Biernacki, Celeux & Govaert 2000)."""
        return self.bic + 2 * self.entropy

    def unfinished(self, remaining: float) -> str | None:
        """What to say of the criteria where more iterations would add so much to the mean, if anything."""
        if not remaining > enough(self.total_weight):
            return None
        return (
            f"The fit ended some {remaining:.1g} nats per unit of weight below where it was going, in all "
            f"{remaining * self.total_weight:.3g}, and one parameter costs {log(self.total_weight) / 2:.3g}: "
            "criteria would compare how far fits went. Before that, fit with tol='auto' and a larger max_iter."
        )

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.log_likelihood + other.log_likelihood,
            self.entropy + other.entropy,
            self.total_weight + other.total_weight,
            self.n_parameters,
        )
