"""Online EM: mini-batches of stored rows, or of a stream, that advance a `Stepwise` run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from daskgmm.compute.engine import Blocks, Bundle, Engine
from daskgmm.compute.rows import Block, Rows
from daskgmm.compute.window import Selection, Window, windows
from daskgmm.errors import DataError
from daskgmm.fit.blas import one_thread
from daskgmm.fit.em import Expectations
from daskgmm.fit.progress import Progress
from daskgmm.fit.run import Run
from daskgmm.fit.stepwise import StepRule, Stepwise
from daskgmm.fit.survey import RowSample
from daskgmm.model.mixture import Mixture

GROWTH = 1 / 20  # rows of a mini-batch, as a share of the rows learnt before
BEGINNING = (-1, -1)  # before every row of every block


@dataclass(frozen=True, eq=False)
class Expectation:
    """Maps a block to the statistics of its rows, and the sum of their squared weights.

    Rows up to and with a place, the numbers of a block and of a row in it, are left out.
    """

    mixture: Mixture
    after: tuple[int, int] = BEGINNING

    def __call__(self, block: Block) -> Bundle:
        number, row = self.after
        first = 0 if block.index > number else len(block.x) if block.index < number else row + 1
        weight = None if block.weight is None else block.weight[first:]
        found = self.mixture.expectation(block.x[first:], weight)
        squares = float(len(block.x) - first) if weight is None else float((weight**2).sum())
        return Bundle((found, squares))


def step(
    engine: Engine,
    batch: Blocks,
    run: Stepwise,
    rule: StepRule,
    rows: Rows,
    after: tuple[int, int] = BEGINNING,
) -> Stepwise:
    """Learn from one mini-batch of ``rows``, or from what comes after a place in it.

    Raises
    ------
    DataError
        If a value is NaN or infinite, or too large; it names the block.

    Warns
    -----
    UserWarning
        If a component died.
    """
    span = engine.held_span(batch.n_blocks) if batch is not rows else None
    found, squares = engine.reduce(batch, Expectation(run.mixture, after), span=span)
    if not np.isfinite(found.log_likelihood + squares):
        engine.reduce(rows, Expectations((run.mixture,)))  # names the block
    learnt = run.advance(found, squares, rule)
    if not learnt.finite:
        raise DataError("Input X contains infinity or a value too large for dtype('float64'). Scale the data.")
    for component in learnt.reseeded:
        warnings.warn(
            f"Component {component} had less than one effective row after batch {learnt.n_batches}; "
            "it starts anew from half of the heaviest component.",
            stacklevel=4,
        )
    return learnt


def learn(
    engine: Engine, rows: Rows, run: Stepwise, rule: StepRule, chosen: Selection, window_bytes: int, seed: int
) -> Iterator[tuple[Stepwise, int]]:
    """Visit the chosen rows once, in mini-batches; after each, the run and how many blocks are behind it.

    A mini-batch holds ``batch_size`` rows, or a share `GROWTH` of all rows before it, if that is more: later steps
    are small, and gain nothing from more frequent ones. It is drawn from all blocks of a window.
    """
    done = 0
    for number, blocks in enumerate(windows(rows, chosen, window_bytes, seed)):
        window = Window.load(engine, rows, blocks, chosen, seed + 1 + number)
        first, done = 0, done + len(blocks)
        while first < window.n_rows:
            size = max(int(rule.batch_size), int(GROWTH * run.clock))
            last = window.n_rows if first + 1.5 * size > window.n_rows else first + size
            run = step(engine, window.batch(first, last), run, rule, rows)
            first = last
            yield run, done
        del window  # before the next is read


@dataclass(frozen=True)
class Passes:
    """How often to visit the rows, and how many bytes of them to hold at once.

    With ``held`` rows, a pass that raises their mean log-likelihood by less than ``tol`` is the last.
    """

    max_iter: int
    tol: float
    window_bytes: int
    held: RowSample | None = None

    def score(self, mixture: Mixture) -> float:
        """Mean log-likelihood of the held-out rows."""
        if self.held is None:
            return -np.inf
        x, weight = self.held.points()
        return float(np.average(mixture.score_samples(x), weights=weight))


def passes(
    engine: Engine,
    rows: Rows,
    run: Stepwise,
    rule: StepRule,
    chosen: Selection,
    how: Passes,
    random: np.random.RandomState,
    progress: Progress,
) -> tuple[Stepwise, Run]:
    """Visit the rows until done: the run, and its passes as those of a batch run."""
    told = Run(run.mixture, how.tol, how.max_iter, run.reg_covar)
    score = how.score(run.published)
    progress.stage("em")
    while not told.done:
        total, clock = 0.0, run.clock
        with one_thread():
            seed = int(random.randint(2**31))
            for after, done in learn(engine, rows, run, rule, chosen, how.window_bytes, seed):
                total += after.bound * (after.clock - run.clock)
                run = after
                progress.blocks(done, rows.n_blocks)
        before, score = score, how.score(run.published)
        told = replace(
            told,
            mixture=run.published,
            trace=(*told.trace, total / (run.clock - clock) if run.clock > clock else np.nan),
            converged=how.held is not None and score - before < how.tol,
        )
        progress.iteration([told])
    return run, told
