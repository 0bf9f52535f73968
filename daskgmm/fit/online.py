"""Online EM: mini-batches of stored rows, or of a stream, that advance a `Stepwise` run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from daskgmm.compute.engine import Blocks, Bundle, Engine
from daskgmm.compute.rows import Block, Rows
from daskgmm.compute.window import Selection, Window, windows
from daskgmm.errors import DataError
from daskgmm.fit.em import Expectations
from daskgmm.fit.start import BAD_SCALE, TOO_LARGE
from daskgmm.fit.stepwise import StepRule, Stepwise
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
        with np.errstate(over="ignore", under="ignore"):  # `step` refuses such weights
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
    if found.total_weight > 0 and not 0 < squares < np.inf:
        raise DataError(BAD_SCALE)
    learnt = run.advance(found, squares, rule)
    if not learnt.finite:
        raise DataError(TOO_LARGE)
    for component in learnt.reseeded:
        warnings.warn(
            f"Component {component} had less than one effective row after batch {learnt.n_batches}; "
            "it starts anew from half of the heaviest component.",
            stacklevel=4,
        )
    return learnt


@dataclass(frozen=True)
class Place:
    """Where a pass stands: the windows behind it, and the rows of the next that were learnt."""

    window: int = 0
    row: int = 0


START = Place()


def learn(
    engine: Engine,
    rows: Rows,
    run: Stepwise,
    rule: StepRule,
    chosen: Selection,
    window_bytes: int,
    seed: int,
    place: Place = START,
) -> Iterator[tuple[Stepwise, Place, int]]:
    """Visit the chosen rows once, in mini-batches; after each, the run, its place and the blocks behind it.

    The pass begins at ``place``: with the run and the seed that belong there, it goes on to the same bits.
    A mini-batch holds ``batch_size`` rows, or a share `GROWTH` of all rows before it, if that is more: later steps
    are small, and gain nothing from more frequent ones. It is drawn from all blocks of a window.
    """
    done = 0
    for number, blocks in enumerate(windows(rows, chosen, window_bytes, seed)):
        done += len(blocks)
        if number < place.window:
            continue
        window = Window.load(engine, rows, blocks, chosen, seed + 1 + number)
        first = place.row if number == place.window else 0
        while first < window.n_rows:
            size = max(int(rule.batch_size), int(GROWTH * run.clock))
            last = window.n_rows if first + 1.5 * size > window.n_rows else first + size
            run = step(engine, window.batch(first, last), run, rule, rows)
            first = last
            yield run, Place(number, first) if first < window.n_rows else Place(number + 1), done
        del window  # before the next is read
