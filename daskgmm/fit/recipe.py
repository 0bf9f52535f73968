"""The settings of a fit as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from daskgmm._typing import Array
from daskgmm.fit.stepwise import StepRule
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import Structure

START_ROWS, SAMPLE_BYTES = 20_000, 256 * 2**20


def sample_size(k: int, d: int, few: int = START_ROWS) -> int:
    """Rows that a start is found on: ``few``, or 20 for each mean and axis of each component, within 256 MiB."""
    return max(2 * k, min(max(few, 20 * k * (d + 1)), SAMPLE_BYTES // (8 * d)))


@dataclass(frozen=True, eq=False)
class Start:
    """The parts of a start that the user gives; None leaves them to ``init_params``."""

    weights: Array | None = None
    means: Array | None = None
    covariance: Covariance | None = None

    @property
    def whole(self) -> Mixture | None:
        """The mixture, where all parts are given."""
        if self.weights is None or self.means is None or self.covariance is None:
            return None
        return Mixture(self.weights, self.means, self.covariance)

    def onto(self, mixture: Mixture) -> Mixture:
        """``mixture`` with the given parts in place of its own."""
        return Mixture(
            mixture.weights if self.weights is None else self.weights,
            mixture.means if self.means is None else self.means,
            mixture.covariance if self.covariance is None else self.covariance,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """What a fit is to find, and how.

    Attributes
    ----------
    structure : Structure
    k : components.
    init_params : str
        How to start, by a name in `starts.STARTS`, "subsample" or "auto".
    start : Start
        What the user gave of it.
    n_init : int
        Starts, of which the best wins.
    reg_covar : float
        Added to the diagonal of every covariance.
    tol : float
        Converged once the mean log-likelihood changes by less; online, that of held-out rows rises by less.
    max_iter : int
        Iterations; online, passes.
    """

    structure: Structure
    k: int
    init_params: str = "auto"
    start: Start = field(default_factory=Start)
    n_init: int = 1
    reg_covar: float = 1e-6
    tol: float = 1e-3
    max_iter: int = 100


@dataclass(frozen=True, eq=False, kw_only=True)
class OnlineRecipe(Recipe):
    """The same for online EM, over stored rows or a stream.

    Attributes
    ----------
    rule : StepRule
    init_size : int or None
        Rows to find the start on; None leaves it to whoever asks.
    window_bytes : int
        Of rows that are in memory at once.
    """

    rule: StepRule
    init_size: int | None = None
    window_bytes: int = 2**28
