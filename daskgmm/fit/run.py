"""A run: where an algorithm stands, as a frozen value that says what it wants of a block and what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from daskgmm.compute.block import Block
from daskgmm.errors import CollapseError, DataError
from daskgmm.fit.tasks import Expect
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Update
from daskgmm.store.values import storable


class Run(Protocol):
    """What passes advance: `EM`, `Stepwise`, `Passes`, or what wraps one of them."""

    @property
    def mixture(self) -> Mixture:
        """The parameters so far."""

    @property
    def trace(self) -> tuple[float, ...]:
        """What is watched, such as the mean log-likelihood, once for each iteration."""

    @property
    def lower_bound(self) -> float:
        """The last of it."""

    @property
    def n_iter(self) -> int:
        """Iterations made."""

    @property
    def converged(self) -> bool:
        """Whether it came to rest."""

    @property
    def failure(self) -> DataError | None:
        """Why the run ended early."""

    @property
    def done(self) -> bool:
        """Whether it needs no more passes."""

    @property
    def moved(self) -> bool:
        """Whether it has left its start."""

    @property
    def task(self) -> Callable[[Block], Any]:
        """What it asks of a block: a function to something that adds up."""

    @property
    def nbytes(self) -> int:
        """Bytes of what its task finds."""

    def advance(self, found: Any) -> Self:
        """The run after its task has found this on all rows of a pass."""


R = TypeVar("R", bound=Run)


@storable
@dataclass(frozen=True, eq=False)
class EM:
    """Batch EM: each pass is an E-step over all rows, and an M-step.

    Attributes
    ----------
    mixture : Mixture
        The parameters after ``n_iter`` updates.
    update : Update
        The M-step.
    tol : float
        Converged once what is watched changes by less.
    max_iter : int
    trace : tuple of float
        Mean log-likelihood, and the update's penalty, per unit of weight found by each E-step, so of the parameters
        *before* each update, as scikit-learn's ``lower_bounds_``.
    previous : float
        What the first entry of the trace is compared with; −inf for a fresh start.
    converged : bool
    failure : DataError or None
    """

    mixture: Mixture
    update: Update
    tol: float
    max_iter: int
    trace: tuple[float, ...] = ()
    previous: float = -np.inf
    converged: bool = False
    failure: DataError | None = None

    @property
    def n_iter(self) -> int:
        """Updates made."""
        return len(self.trace)

    @property
    def done(self) -> bool:
        """Whether the run needs no more passes."""
        return self.converged or self.failure is not None or self.n_iter >= self.max_iter

    @property
    def moved(self) -> bool:
        """Whether an update was made."""
        return bool(self.trace)

    @property
    def lower_bound(self) -> float:
        """The last entry of the trace; ``previous`` before the first."""
        return self.trace[-1] if self.trace else self.previous

    @property
    def task(self) -> Expect:
        """The E-step."""
        return Expect(self.mixture)

    @property
    def nbytes(self) -> int:
        """Bytes of the statistics."""
        return statistics_bytes(self.mixture)

    def advance(self, found: Statistics) -> EM:
        """One M-step."""
        if failure := too_few(found.n_rows, self.mixture.n_components):
            return replace(self, failure=failure)
        penalty = self.update.penalty(self.mixture)
        bound = (found.log_likelihood + penalty) / found.total_weight
        try:
            mixture = self.update(self.mixture, found)
        except CollapseError as failure:
            return replace(self, failure=failure)
        return replace(
            self,
            mixture=mixture,
            trace=(*self.trace, bound),
            converged=abs(bound - self.lower_bound) < self.tol,
        )


def statistics_bytes(mixture: Mixture) -> int:
    """Bytes of the statistics that a mixture's E-step finds."""
    k, d = mixture.means.shape
    return 8 * int(mixture.covariance.values.size + 2 * k * d + k)


def too_few(n_rows: float, k: int, weighted: bool = True) -> DataError | None:
    """What to raise for fewer rows of positive weight than components, in scikit-learn's words; None for enough."""
    if n_rows >= k:
        return None
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
