"""One EM run as a value: where it stands, when it is done, and which of several is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskgmm.errors import CollapseError
from daskgmm.fit.blas import one_thread
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics


@dataclass(frozen=True, eq=False)
class Run:
    """One EM run: where it stands, and when it is done.

    Attributes
    ----------
    mixture : Mixture
        The parameters after ``n_iter`` updates.
    trace : tuple of float
        Mean log-likelihood per unit of weight found by each E-step, so of the parameters *before* each update,
        as scikit-learn's ``lower_bounds_``.
    previous : float
        What the first entry of the trace is compared with; −inf for a fresh start.
    failure : CollapseError or None
        Why the run ended early.
    """

    mixture: Mixture
    tol: float
    max_iter: int
    reg_covar: float
    trace: tuple[float, ...] = ()
    previous: float = -np.inf
    converged: bool = False
    failure: CollapseError | None = None

    @property
    def n_iter(self) -> int:
        """Updates made."""
        return len(self.trace)

    @property
    def done(self) -> bool:
        """Whether the run needs no more passes."""
        return self.converged or self.failure is not None or self.n_iter >= self.max_iter

    @property
    def lower_bound(self) -> float:
        """The last entry of the trace; ``previous`` before the first."""
        return self.trace[-1] if self.trace else self.previous

    def advance(self, statistics: Statistics) -> Run:
        """One M-step; converged once the mean log-likelihood changes by less than ``tol``."""
        bound = statistics.log_likelihood / statistics.total_weight
        try:
            with one_thread():
                mixture = self.mixture.maximise(statistics, self.reg_covar)
        except CollapseError as failure:
            return replace(self, failure=failure)
        return replace(
            self,
            mixture=mixture,
            trace=(*self.trace, bound),
            converged=abs(bound - self.lower_bound) < self.tol,
        )


def best(runs: Sequence[Run]) -> Run:
    """The run of the highest likelihood among those that did not collapse; raises if all did."""
    sound = [run for run in runs if run.failure is None]
    if not sound:
        failure = runs[0].failure
        assert failure is not None
        raise failure
    return max(sound, key=lambda run: run.lower_bound)
