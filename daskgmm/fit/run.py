"""A run: where an algorithm stands, as a frozen value that says what it wants of a block and what it becomes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from daskgmm.compute.block import Block
from daskgmm.errors import DataError
from daskgmm.fit.score import Score, enough, unfit
from daskgmm.fit.tasks import Expect
from daskgmm.model.checks import at_least, require
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Update
from daskgmm.store.values import LATER, storable

ROUNDING = 1e-14  # of a bound: less is no gain
AUTO = "auto"  # as a ``tol``: until what remains to be gained is `enough`


class Run(ABC):
    """What passes advance: `EM`, `Stepwise`, `Passes`, or what wraps one of them."""

    mixture: Mixture  # the parameters so far
    tol: float | str  # it comes to rest once what is watched changes by less, or `AUTO`
    trace: tuple[float, ...] = ()  # what is watched, such as the mean log-likelihood, once for each iteration
    max_iter: int
    previous: float = -np.inf  # what the first entry of the trace is compared with; −inf for a fresh start
    converged: bool = False  # whether it came to rest
    failure: DataError | None = None  # why it ended early
    rated: Score | None = None  # what the last E-step over all rows found of its mixture
    n_rows: float = 0.0  # rows of the last pass
    watched: ClassVar[str] = "mean log-likelihood"  # what the trace has

    @property
    @abstractmethod
    def task(self) -> Callable[[Block], Any]:
        """What it asks of a block: a function to something that adds up."""

    @abstractmethod
    def advance(self, found: Any) -> Self:
        """The run after its task has found this on all rows of a pass."""

    @property
    def at_rest(self) -> bool:
        """Whether its last iteration gained less than ``tol``, or, under `AUTO`, little remains to be gained."""
        if self.tol == AUTO:
            return self.rated is not None and self.remaining < enough(self.rated.total_weight)
        before = self.trace[-2] if len(self.trace) > 1 else self.previous
        return bool(self.trace) and abs(self.trace[-1] - before) < float(self.tol)

    def under(self, **settings: Any) -> Self:
        """The run with another ``tol`` or ``max_iter``: where it goes on longer, as if they had been so before."""
        run = replace(self, **settings)  # type: ignore[type-var]
        return replace(run, converged=run.at_rest)  # type: ignore[type-var]

    @property
    def remaining(self) -> float:
        """Nats per unit of weight that more iterations would add to the bound; NaN where that cannot be told."""
        return nan

    @property
    def n_iter(self) -> int:
        """Iterations made."""
        return len(self.trace)

    @property
    def done(self) -> bool:
        """Whether it needs no more passes."""
        return self.converged or self.failure is not None or len(self.trace) >= self.max_iter

    @property
    def moved(self) -> bool:
        """Whether it has left its start."""
        return bool(self.trace)

    @property
    def lower_bound(self) -> float:
        """The last entry of the trace; ``previous`` before the first."""
        return self.trace[-1] if self.trace else self.previous

    @property
    def outcome(self) -> str | None:
        """What it has come to, where it is one of many that are compared; nothing before its end."""
        return None

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """What runs over the same rows compare by: the higher, the better.

        A component that has not d + 1 rows fits these as closely as it likes, and tells nothing of others.
        """
        fewest = float(self.mixture.weights.min()) * self.n_rows
        return self.failure is None, not 0 < fewest < self.mixture.n_features + 1, self.lower_bound

    @property
    def nbytes(self) -> int:
        """Bytes of what its task finds: the statistics of its mixture."""
        mixture = self.mixture
        return 8 * int(mixture.covariance.values.size + 2 * mixture.means.size + len(mixture.weights))


R = TypeVar("R", bound=Run)


@storable
@dataclass(frozen=True, eq=False)
class EM(Run):
    """Batch EM: each pass is an E-step over all rows, and an M-step.

    The trace has the mean log-likelihood, and the update's penalty, per unit of weight that each E-step found, so
    of the parameters *before* each update, as scikit-learn's ``lower_bounds_``.
    """

    mixture: Mixture
    update: Update  # the M-step
    tol: float | str
    max_iter: int
    trace: tuple[float, ...] = ()
    previous: float = -np.inf
    converged: bool = False
    failure: DataError | None = None
    rated: Score | None = field(default=None, metadata=LATER)
    n_rows: float = field(default=0.0, metadata=LATER)

    def check(self) -> None:
        """Raise `ValueError` unless it may stand so."""
        require(self.tol == AUTO or at_least(0, float(self.tol)), "tol is too small.")
        require(at_least(0, self.max_iter - self.n_iter, self.n_rows), "max_iter is too small.")
        require(self.update.fits(self.mixture), "The prior is not that of the mixture.")
        require(all(map(isfinite, self.trace)) and self.previous < inf, "The trace holds no numbers.")

    @property
    def task(self) -> Expect:
        return Expect(self.mixture)

    def advance(self, found: Statistics) -> Self:
        try:
            bound, mixture = self.step(self.mixture, found)
        except DataError as failure:
            return replace(self, failure=failure)
        return self.reached(mixture, bound, found)

    def step(self, mixture: Mixture, found: Statistics) -> tuple[float, Mixture]:
        """What is watched of a mixture, and its M-step; raises what there is against it."""
        k = len(mixture.weights)
        if found.n_rows < k and not (self.update.speaks_for_each and found.n_rows >= 1):
            raise too_few(found.n_rows, k)
        if (error := unfit(found.total_weight)) is not None:
            raise error
        after = self.update(mixture, found)
        return self.update.bound(mixture, found, after), after

    def reached(self, mixture: Mixture, bound: float, found: Statistics) -> Self:
        """After an iteration."""
        rated = Score(found.log_likelihood, nan, found.total_weight)
        trace, n_rows = (*self.trace, bound), float(found.n_rows)
        run = replace(self, mixture=mixture, trace=trace, rated=rated, n_rows=n_rows)
        return replace(run, converged=run.at_rest)

    @property
    def remaining(self) -> float:
        return rest(self.trace)


def rest(trace: tuple[float, ...], m: int = 1) -> float:
    """What is yet to come, if m changes always add up to so much less than the m before (Aitken 1926).

    NaN where they do not shrink, or are too few. Of log-likelihoods: Böhning et al. (1994).
    """
    if len(trace) < 2 * m + 1:
        return nan
    before, change = np.diff(trace[::-m][2::-1]).tolist()
    if change <= ROUNDING * max(1.0, abs(trace[-1])):
        return 0.0
    return change**2 / (before - change) if before > change else nan


def too_few(n_rows: float, k: int, weighted: bool = True) -> DataError:
    """What to raise for fewer rows of positive weight than components, in scikit-learn's words."""
    if n_rows == 0 and not weighted:
        return DataError("Found array with 0 sample(s) while a minimum of 1 is required.")
    if n_rows == 0:
        return DataError("Sample weights must contain at least one non-zero number.")
    return DataError(f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {n_rows}")


def best(runs: Sequence[R]) -> R:
    """The run of the highest `rank`; raises what the first failed of if all did."""
    leader = max(runs, key=lambda run: run.rank)
    if leader.failure is not None:
        assert runs[0].failure is not None
        raise runs[0].failure
    return leader
