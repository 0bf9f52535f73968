"""Batch EM: passes over the rows that advance a list of runs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from daskgmm.compute.engine import Bundle, Engine
from daskgmm.compute.rows import Block, Rows
from daskgmm.fit.checks import check_counts, check_finite
from daskgmm.fit.progress import Progress
from daskgmm.fit.run import Run
from daskgmm.model.mixture import Mixture

# Statistics of all the runs of one pass, in bytes: runs beyond it get a pass of their own.
GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Expectations:
    """The E-steps of several mixtures over one block, while it is in memory."""

    mixtures: tuple[Mixture, ...]

    def __call__(self, block: Block) -> Bundle:
        found = Bundle(mixture.expectation(block.x, block.weight) for mixture in self.mixtures)
        if not all(np.isfinite(s.log_likelihood) for s in found):
            check_finite(block)
        return found


def em(
    engine: Engine,
    rows: Rows,
    runs: Sequence[Run],
    progress: Progress,
    keep: Callable[[Sequence[Run], int], object] | None = None,
) -> tuple[list[Run], int]:
    """Advance ``runs`` together until all are done; the runs and how often the rows were read.

    ``keep`` gets both after each iteration: what a checkpoint goes on from. A finished run drops out of the
    passes. Runs whose statistics would not fit together take turns.
    """
    rows = replace(rows, start=None)  # only the survey looks at it
    weighted = rows.weight is not None
    runs, passes = list(runs), 0
    while live := [i for i, run in enumerate(runs) if not run.done]:
        size = max(1, GROUP_BYTES // _statistics_bytes(runs[live[0]].mixture))
        for group in (live[i : i + size] for i in range(0, len(live), size)):
            f = Expectations(tuple(runs[i].mixture for i in group))
            found = engine.reduce(rows, f, progress.blocks)
            rows.check_unchanged()
            for i, statistics in zip(group, found, strict=True):
                check_counts(statistics, len(statistics.weight), weighted)
                runs[i] = runs[i].advance(statistics)
            passes += 1
        if keep is not None:
            keep(runs, passes)
        progress.iteration(runs)
    return runs, passes


def _statistics_bytes(mixture: Mixture) -> int:
    k, d = mixture.means.shape
    return 8 * int(np.prod(mixture.covariance.kernel_shape(k, d)) + 2 * k * d + k)
