"""Online EM over a stream: the first rows wait until they can seed the model, later batches advance it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.engine import Engine
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.compute.window import Selection
from daskgmm.errors import DataError
from daskgmm.fit.moves import points_as_rows
from daskgmm.fit.online import begin, step
from daskgmm.fit.recent import ROWS_PER_COMPONENT
from daskgmm.fit.recipe import OnlineRecipe
from daskgmm.fit.stepwise import BAD_SCALE, Stepwise
from daskgmm.fit.survey import TINY, First, Survey, Threshold, check_box, joined, labels_of
from daskgmm.fit.tasks import BEGINNING, TOO_LARGE, Examine, TakeFirst
from daskgmm.model.checks import at_least, holds, require
from daskgmm.model.missing import misses
from daskgmm.model.update import Steady
from daskgmm.store.values import LATER, storable


@storable
@dataclass(frozen=True, eq=False)
class Waiting:
    """The first rows of a stream, until there are enough to seed the model."""

    x: Array  # (m, d) float64
    weight: Array  # (m,)
    n_batches: int = 0  # that they came in
    known: Array | None = field(default=None, metadata=LATER)  # (m,) their components, −1 where not known

    def check(self) -> None:
        """Raise `ValueError` unless these are rows that may wait."""
        m, d = self.x.shape
        require(d > 0 and holds(np.nan_to_num(self.x, nan=0.0, posinf=np.inf), (m, d)), "The rows are no numbers.")
        require(holds(self.weight, (m,), TINY), "The rows weigh nothing.")
        require(at_least(min(m, 1), self.n_batches), "The rows came in no batch.")
        require(labels_of(self.known, m), "The rows have no labels.")
        _check(self)

    @classmethod
    def for_rows(cls, rows: Rows) -> "Waiting":
        """None yet."""
        return cls(np.empty((0, rows.n_features)), np.empty(0))

    def joined(self, first: First) -> "Waiting":
        """With those of one batch more."""
        x, weight = np.concatenate([self.x, first.x]), np.concatenate([self.weight, first.weight])
        known = joined(self.known, first.known, len(self.x), len(first.x))
        return Waiting(x, weight, self.n_batches + 1, known)

    def survey(self, recipe: OnlineRecipe) -> Survey:
        """The survey of these rows, all of which are in its sample."""
        weight = None if (self.weight == 1).all() else self.weight
        known = {} if self.known is None else {"known": self.known}
        block = Block(self.x, weight=weight, columns=known, partial=misses(self.x))
        examine = Examine(recipe.structure, recipe.k, 0, Threshold(len(self.x)), boxed=recipe.background)
        found = examine(block)
        if found.box is not None:
            check_box(found.box)
        return found.whole(recipe.structure, recipe.k) if block.partial else found


def start_rows(recipe: OnlineRecipe) -> int:
    """How many first rows of a stream seed the model."""
    return int(max(recipe.k, recipe.init_size or ROWS_PER_COMPONENT * recipe.k))


def given(recipe: OnlineRecipe, rows: int) -> Stepwise | None:
    """A run from a start that is given in full, and counts as ``init_size`` or so many rows."""
    if (whole := recipe.start.whole) is None or recipe.background:  # whose box rows have to tell
        return None
    rows = recipe.init_size or rows
    run = Stepwise.implied(whole, rows, recipe.reg_covar, recipe.rule)
    known = recipe.on(run.statistics.scaled(rows).pooled()).known
    return replace(run, update=recipe.m_step(Steady(recipe.reg_covar, whole.covariance, known)))


def resumed(recipe: OnlineRecipe, run: Stepwise) -> Stepwise:
    """A run that goes on with these settings; under the prior that it began with, if it had one."""
    known = None
    if recipe.prior is not None:
        known = run.steady.prior or recipe.on(run.statistics.scaled(run.effective_rows).pooled()).known
    update = recipe.m_step(replace(run.steady, reg_covar=recipe.reg_covar, prior=known))
    return replace(run, rule=recipe.rule, update=update)


def learn(
    recipe: OnlineRecipe,
    rows: Rows,
    run: Waiting | Stepwise,
    random: np.random.RandomState,
) -> Waiting | Stepwise:
    """What a batch of a stream makes of the run; `DataError` leaves it as it was."""
    engine = engine_for(rows)
    if isinstance(run, Waiting):
        started = seeded(recipe, run, random, lambda size: engine.reduce(rows, TakeFirst(size)))
        if isinstance(started, Waiting):
            return started
        run = started
    found: Stepwise = step(engine, rows, run, rows)
    return found


def resumable(
    recipe: OnlineRecipe, rows: Rows, waiting: Waiting, span: Selection, random: np.random.RandomState
) -> Waiting | tuple[int, Stepwise]:
    """What the first rows of a span make of those that wait; where a model starts, with the next row."""
    after = seeded(recipe, waiting, random, partial(first_rows, engine_for(rows), rows, span))
    if isinstance(after, Waiting):
        return after
    block, row = after.after
    first = span.first if after.after == BEGINNING else int(rows.x.offsets[block]) + row + 1
    return first, replace(after, after=BEGINNING, n_batches=after.n_batches + (first > span.first))


def first_rows(engine: Engine, rows: Rows, span: Selection, size: int) -> First:
    """The first rows of a span, from as few blocks as hold them."""
    found = First(size, np.empty((0, rows.n_features)), np.empty(0), np.empty((0, 2), np.int64))
    for number in span.blocks(rows):
        if len(found.x) >= size:
            break
        (more,) = engine.each(rows, TakeFirst(size, span), [number])
        found += more
    return found


def seeded(
    recipe: OnlineRecipe,
    waiting: Waiting,
    random: np.random.RandomState,
    take: Callable[[int], First],
) -> Waiting | Stepwise:
    """The run that the first rows of a batch, and those before them, seed; the others are yet to be learnt.

    ``take`` gets a number of rows, and gives so many first ones of the batch, if it has them.
    """
    if (run := given(recipe, ROWS_PER_COMPONENT * recipe.k)) is not None:
        if len(waiting.x):  # the start was given since they came
            before = points_as_rows(waiting.x, waiting.weight, waiting.known)
            run = step(engine_for(before), before, run, before)
        return run
    size = start_rows(recipe)
    first = take(max(0, size - len(waiting.x)))
    waiting = waiting.joined(first)
    _check(waiting)
    if len(waiting.x) < size:
        return waiting
    run = begin(recipe, waiting.survey(recipe), random)
    last: tuple[int, int] = tuple(first.places[-1].tolist()) if len(first.places) else BEGINNING
    return replace(run, n_rows=len(waiting.x), n_batches=waiting.n_batches - 1, after=last)


def _check(waiting: Waiting) -> None:
    """Refuse rows that could not seed the model: kept, they would fail every batch after them."""
    x, weight = waiting.x, waiting.weight
    with np.errstate(over="ignore", under="ignore"):
        if len(weight) and not ((weight**2).sum() > 0 and weight.sum() ** 2 < np.inf):
            raise DataError(BAD_SCALE)
        # Sums of squared distances between rows, as they weigh and where the largest share is a whole row's.
        squares = 4 * len(x) * np.nansum(x**2, axis=1)
        if not (squares.sum() < np.inf and (weight * squares).sum() < np.inf):
            raise DataError(f"{TOO_LARGE}. Scale the data.")
