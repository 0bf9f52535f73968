"""Batch EM: passes over the rows that advance a list of runs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskgmm.compute.engine import Bundle, Engine
from daskgmm.compute.rows import Block, Rows
from daskgmm.errors import CollapseError
from daskgmm.fit.checks import check_counts, check_finite
from daskgmm.fit.progress import Progress
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics

# Statistics of all the runs of one pass, in bytes: runs beyond it get a pass of their own.
GROUP_BYTES = 64 * 2**20


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
            mixture = self.mixture.maximise(statistics, self.reg_covar)
        except CollapseError as failure:
            return replace(self, failure=failure)
        return replace(
            self,
            mixture=mixture,
            trace=(*self.trace, bound),
            converged=abs(bound - self.lower_bound) < self.tol,
        )


@dataclass(frozen=True, eq=False)
class Expectations:
    """The E-steps of several mixtures over one block, while it is in memory."""

    mixtures: tuple[Mixture, ...]

    def __call__(self, block: Block) -> Bundle:
        found = Bundle(mixture.expectation(block.x, block.weight) for mixture in self.mixtures)
        if not all(np.isfinite(s.log_likelihood) for s in found):
            check_finite(block)
        return found


def em(engine: Engine, rows: Rows, runs: Sequence[Run], progress: Progress) -> tuple[list[Run], int]:
    """Advance ``runs`` together until all are done; the runs and how often the rows were read.

    A finished run drops out of the passes. Runs whose statistics would not fit together take turns.
    """
    runs, passes = list(runs), 0
    while live := [i for i, run in enumerate(runs) if not run.done]:
        size = max(1, GROUP_BYTES // _statistics_bytes(runs[live[0]].mixture))
        for group in (live[i : i + size] for i in range(0, len(live), size)):
            f = Expectations(tuple(runs[i].mixture for i in group))
            for i, statistics in zip(group, engine.reduce(rows, f, progress.blocks), strict=True):
                check_counts(statistics, len(statistics.weight))
                runs[i] = runs[i].advance(statistics)
            passes += 1
        progress.iteration(runs)
    return runs, passes


def best(runs: Sequence[Run]) -> Run:
    """The run of the highest likelihood among those that did not collapse; raises if all did."""
    sound = [run for run in runs if run.failure is None]
    if not sound:
        failure = runs[0].failure
        assert failure is not None
        raise failure
    return max(sound, key=lambda run: run.lower_bound)


def _statistics_bytes(mixture: Mixture) -> int:
    k, d = mixture.means.shape
    return 8 * int(np.prod(mixture.covariance.kernel_shape(k, d)) + 2 * k * d + k)
