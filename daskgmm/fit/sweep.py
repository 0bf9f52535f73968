"""One pass: the tasks of all live runs over the same block while it is in memory, and each run advanced."""

from collections.abc import Sequence
from dataclasses import replace

from daskgmm.compute.engine import Blocks, Engine
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.fit.run import EM, R
from daskgmm.fit.tasks import Together

# What the tasks of one pass find, in bytes: runs beyond it get a pass of their own.
GROUP_BYTES = 64 * 2**20


def groups(runs: Sequence[R]) -> list[list[int]]:
    """Numbers of the live runs that share a pass, as far as what they find fits together; one at least in each."""
    found: list[list[int]] = []
    room = 0
    for number, run in enumerate(runs):
        if run.done:
            continue
        if not found or run.nbytes > room:
            found.append([])
            room = GROUP_BYTES
        found[-1].append(number)
        room -= run.nbytes
    return found


def sweep(engine: Engine, blocks: Blocks, runs: Sequence[R]) -> list[R]:
    """The runs after each live one has seen all blocks once, in as many passes as there are `groups`."""
    after = list(runs)
    for group in groups(runs):
        found = engine.reduce(blocks, Together(tuple(runs[number].task for number in group)))
        for number, part in zip(group, found, strict=True):
            after[number] = runs[number].advance(part)
    return after


def climb(rows: Rows, runs: Sequence[EM], max_iter: int, anew: bool = False) -> list[EM]:
    """The runs after up to so many iterations in all over rows in memory; ``anew``, as on other rows they must."""
    if anew:
        climbing = [EM(run.mixture, run.update, run.tol, max_iter) for run in runs]
    else:
        climbing = [replace(run, converged=False, max_iter=max_iter) for run in runs]
    while not all(run.done for run in climbing):
        climbing = sweep(engine_for(rows), rows, climbing)  # raises where nobody waits any more
    return climbing
