"""How well a mixture describes some rows: log-likelihood, and the criteria that weigh it against parameters."""

from dataclasses import dataclass

import numpy as np


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

    def __add__(self, other: "Score") -> "Score":
        return Score(
            self.log_likelihood + other.log_likelihood,
            self.entropy + other.entropy,
            self.total_weight + other.total_weight,
            self.n_parameters,
        )
