"""One pass: the tasks of all live runs over the same block while it is in memory, and each run advanced."""

from collections.abc import Sequence

from daskgmm.compute.engine import Blocks, Engine
from daskgmm.fit.run import R
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
