"""One pass that scores: log-likelihood, and the entropy that the integrated likelihood asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.rows import Block
from daskgmm.fit.checks import all_finite, check_finite
from daskgmm.model.mixture import Mixture


@dataclass(frozen=True)
class Score:
    """Weighted sums over rows. ``a + b`` equals the score of the concatenated rows."""

    log_likelihood: float
    entropy: float
    total_weight: float

    @property
    def mean(self) -> float:
        """Log-likelihood per unit of weight."""
        return self.log_likelihood / self.total_weight

    def aic(self, n_parameters: int) -> float:
        """Akaike's criterion (Akaike 1974)."""
        return -2 * self.log_likelihood + 2 * n_parameters

    def bic(self, n_parameters: int) -> float:
        """The Bayesian criterion (Schwarz 1978)."""
        return float(-2 * self.log_likelihood + n_parameters * np.log(self.total_weight))

    def icl(self, n_parameters: int) -> float:
        """`bic` plus twice the entropy (Biernacki, Celeux & Govaert 2000)."""
        return self.bic(n_parameters) + 2 * self.entropy

    def __add__(self, other: Score) -> Score:
        return Score(
            self.log_likelihood + other.log_likelihood,
            self.entropy + other.entropy,
            self.total_weight + other.total_weight,
        )


@dataclass(frozen=True, eq=False)
class Scorer:
    """Maps a block to its `Score`; the entropy is 0 unless asked for."""

    mixture: Mixture
    entropy: bool = False

    def __call__(self, block: Block) -> Score:
        x, weight = seen(block)
        density, sound = self.mixture.answer(x, "score_samples")
        if not sound and not all_finite(x):
            check_finite(block)
        total = float(len(x)) if weight is None else float(weight.sum())
        log_likelihood = _weighted_sum(density, weight)
        entropy = _weighted_sum(self.mixture.entropies(x), weight) if self.entropy else 0.0
        return Score(log_likelihood, entropy, total)


def seen(block: Block) -> tuple[Array, Array | None]:
    """Rows of positive weight and their weights; a copy only where there are others."""
    if block.weight is None or block.weight.all():
        return block.x, block.weight
    kept = block.weight > 0
    return block.x[kept], block.weight[kept]


def _weighted_sum(values: Array, weight: Array | None) -> float:
    # Not a dot product: BLAS would make its bits depend on the number of threads.
    return float(values.sum() if weight is None else (values * weight).sum())


@dataclass(frozen=True, eq=False)
class Query:
    """Maps a block to one answer per row: ``labels``, ``responsibilities`` or ``score_samples``.

    Rows that ``nan_policy="omit"`` leaves out answer ``missing``.
    """

    mixture: Mixture
    answer: str
    missing: float

    def __call__(self, block: Block) -> Array:
        x, _ = seen(block)
        found, sound = self.mixture.answer(x, self.answer)
        if not sound and not all_finite(x):
            check_finite(block)
        if len(x) == len(block.x):
            return found
        out = np.full((len(block.x), *found.shape[1:]), self.missing, dtype=found.dtype)
        assert block.weight is not None
        out[block.weight > 0] = found
        return out
