"""A run: where an algorithm stands, as a frozen value that says what it wants of a block and what it becomes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, nan
from typing import Any, Self, TypeVar

import numpy as np

from daskgmm.compute.block import Block
from daskgmm.errors import CollapseError, DataError
from daskgmm.fit.score import Score, unfit
from daskgmm.fit.tasks import Expect
from daskgmm.model.checks import at_least, require
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import MAP, Update
from daskgmm.store.values import LATER, storable


class Run(ABC):
    """What passes advance: `EM`, `Stepwise`, `Passes`, or what wraps one of them."""

    mixture: Mixture  # the parameters so far
    tol: float  # it comes to rest once what is watched changes by less
    trace: tuple[float, ...] = ()  # what is watched, such as the mean log-likelihood, once for each iteration
    max_iter: int
    previous: float = -np.inf  # what the first entry of the trace is compared with; −inf for a fresh start
    converged: bool = False  # whether it came to rest
    failure: DataError | None = None  # why it ended early
    rated: Score | None = None  # what the last E-step over all rows found of its mixture

    @property
    @abstractmethod
    def task(self) -> Callable[[Block], Any]:
        """What it asks of a block: a function to something that adds up."""

    @abstractmethod
    def advance(self, found: Any) -> Self:
        """The run after its task has found this on all rows of a pass."""

    @property
    def at_rest(self) -> bool:
        """Whether its last iteration changed what is watched by less than ``tol``."""
        before = self.trace[-2] if len(self.trace) > 1 else self.previous
        return bool(self.trace) and abs(self.trace[-1] - before) < self.tol

    def under(self, **settings: Any) -> Self:
        """The run with another ``tol`` or ``max_iter``: where it goes on longer, as if they had been so before."""
        run = replace(self, **settings)  # type: ignore[type-var]
        return replace(run, converged=run.at_rest)  # type: ignore[type-var]

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
    tol: float  # converged once what is watched changes by less
    max_iter: int
    trace: tuple[float, ...] = ()
    previous: float = -np.inf
    converged: bool = False
    failure: DataError | None = None
    rated: Score | None = field(default=None, metadata=LATER)

    def check(self) -> None:
        """Raise `ValueError` unless it may stand so."""
        require(at_least(0, self.tol, self.max_iter - self.n_iter), "tol or max_iter is too small.")
        prior = getattr(self.update, "prior", self.update)
        require(not isinstance(prior, MAP) or prior.fits(self.mixture), "The prior is not that of the mixture.")
        require(all(map(isfinite, self.trace)) and self.previous < inf, "The trace holds no numbers.")

    @property
    def task(self) -> Expect:
        return Expect(self.mixture)

    def advance(self, found: Statistics) -> "EM":
        k = len(self.mixture.weights)
        if found.n_rows < k:
            return replace(self, failure=too_few(found.n_rows, k))
        if (error := unfit(found.total_weight)) is not None:
            return replace(self, failure=error)
        bound = (found.log_likelihood + self.update.penalty(self.mixture)) / found.total_weight
        try:
            mixture = self.update(self.mixture, found)
        except CollapseError as failure:
            return replace(self, failure=failure)
        return replace(
            self,
            mixture=mixture,
            trace=(*self.trace, bound),
            converged=abs(bound - self.lower_bound) < self.tol,
            rated=Score(found.log_likelihood, nan, found.total_weight),
        )


def too_few(n_rows: float, k: int, weighted: bool = True) -> DataError:
    """What to raise for fewer rows of positive weight than components, in scikit-learn's words."""
    if n_rows == 0 and not weighted:
        return DataError("Found array with 0 sample(s) while a minimum of 1 is required.")
    if n_rows == 0:
        return DataError("Sample weights must contain at least one non-zero number.")
    return DataError(f"Expected n_samples >= n_components but got n_components = {k}, n_samples = {n_rows}")


def best(runs: Sequence[R]) -> R:
    """The run of the highest bound among those that did not fail; raises what the first failed of if all did."""
    sound = [run for run in runs if run.failure is None]
    if not sound:
        failure = runs[0].failure
        assert failure is not None
        raise failure
    return max(sound, key=lambda run: run.lower_bound)
