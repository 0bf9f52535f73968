"""A race: many short runs, of which the best go on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.fit.run import EM, best
from daskgmm.fit.sweep import sweep


@dataclass(frozen=True, eq=False)
class Rung:
    """One stage of a race."""

    rows: Rows  # in memory, that runs advance on
    max_iter: int  # iterations in all, those of earlier stages included unless it begins anew
    anew: bool = False  # whether a run begins anew from its parameters, as on other rows it must

    def climb(self, runs: Sequence[EM]) -> list[EM]:
        """The runs once all are done with this stage."""
        if self.anew:
            climbing = [EM(run.mixture, run.update, run.tol, self.max_iter) for run in runs]
        else:
            climbing = [replace(run, converged=False, max_iter=self.max_iter) for run in runs]
        while not all(run.done for run in climbing):
            climbing = sweep(engine_for(self.rows), self.rows, climbing)  # raises where nobody waits any more
        return climbing


def race(heats: Sequence[Sequence[EM]], rungs: Sequence[Rung]) -> EM:
    """The winner of runs in several heats: of each the best goes on to the second rung, of those the best on.

    What collapses on a sample need not collapse on all rows: a failed run goes on from its last sound parameters
    where no other is left.
    """
    first, *later = rungs
    runs = first.climb([run for heat in heats for run in heat])
    leaders, place = [], 0
    for heat in heats:
        tried, place = runs[place : place + len(heat)], place + len(heat)
        if any(run.failure is None for run in tried):
            leaders.append(best(tried))
    leaders = leaders or [best(runs)]
    for rung in later:
        leaders = [max(rung.climb(leaders), key=lambda run: run.rank)]
    return max(leaders, key=lambda run: run.rank)
