"""Online EM over stored rows, as an iterator of states: passes in mini-batches that advance a `Stepwise` run."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from math import inf, isfinite, isinf
from typing import Any

import numpy as np

from daskgmm.compute.engine import Blocks, Engine
from daskgmm.compute.rows import Rows
from daskgmm.compute.window import Selection, Window, windows
from daskgmm.errors import DataError, warn
from daskgmm.fit.batch import survey
from daskgmm.fit.recipe import OnlineRecipe, sample_size
from daskgmm.fit.run import Run
from daskgmm.fit.starts import polished
from daskgmm.fit.state import GENERATORS, State
from daskgmm.fit.stepwise import BAD_SCALE, Stepwise
from daskgmm.fit.survey import RowSample, Survey
from daskgmm.fit.sweep import sweep
from daskgmm.fit.tasks import Expect, Learn, expectation
from daskgmm.model.blas import one_thread
from daskgmm.model.checks import at_least, require
from daskgmm.model.missing import Incomplete
from daskgmm.model.mixture import Mixture
from daskgmm.store.values import storable

GROWTH = 1 / 20  # rows of a mini-batch, as a share of the rows learnt before
MIN_HELD, EVERY = 100, 10  # rows of the sample, below which none is held out; one of so many is


@storable
@dataclass(frozen=True)
class Position:
    """Where a pass stands: the windows behind it, and the rows of the next that were learnt."""

    window: int = 0
    row: int = 0

    def check(self) -> None:
        """Raise `ValueError` unless it is a place."""
        require(at_least(0, self.window, self.row), "A pass begins at 0.")


@storable
@dataclass(frozen=True, eq=False)
class Passes(Run):
    """A stepwise run over stored rows, pass by pass.

    The trace has the mean log-likelihood of the rows of each pass, each under the parameters before it was learnt.
    """

    run: Stepwise
    tol: float  # a pass that raises the score by less is the last
    max_iter: int
    held_out: RowSample | None = None  # rows that neither start nor passes see
    trace: tuple[float, ...] = ()
    score: float = -np.inf  # mean log-likelihood of the held-out rows after the last pass, or before the first
    gain: float = np.inf  # what the last pass added to that
    converged: bool = False
    position: Position = Position()  # how far the pass under way is
    clock: float = 0.0  # weight of all rows before that pass
    total: float = 0.0  # sum of its rows' log-likelihoods so far

    def check(self) -> None:
        """Raise `ValueError` unless the parts belong together and it may stand so."""
        left = self.max_iter - self.n_iter
        require(at_least(0, self.tol, left, self.clock), "tol, max_iter or clock is too small.")
        require(isfinite(self.total) and self.score < inf, "The score is no number.")
        require(not any(map(isinf, self.trace)), "The trace is infinite.")  # NaN: a pass over rows without weight
        held_out = self.held_out
        require(held_out is None or held_out.rows.shape[1] == self.mixture.n_features, "Held-out rows are others.")

    @classmethod
    def begin(cls, run: Stepwise, recipe: OnlineRecipe, held_out: RowSample | None = None) -> "Passes":
        """Before the first pass."""
        score = _score(run.published, held_out)
        return cls(run, float(recipe.tol), recipe.max_iter, held_out, score=score, clock=run.clock)

    @property
    def mixture(self) -> Mixture:  # type: ignore[override]
        """The parameters to show and to predict with."""
        return self.run.published

    @property
    def moved(self) -> bool:
        return bool(self.trace) or self.position != Position()

    @property
    def lower_bound(self) -> float:
        """Of the last pass; in the first, of the last mini-batch."""
        return self.trace[-1] if self.trace else self.run.bound

    @property
    def nbytes(self) -> int:  # of the parameters that learn: the published ones are an M-step away
        return self.run.nbytes

    @property
    def task(self) -> Learn:
        return self.run.task

    def advance(self, found: Any) -> "Passes":
        """After one mini-batch."""
        run = self.run.advance(found)
        return replace(self, run=run, total=self.total + run.bound * (run.clock - self.run.clock))

    def passed(self) -> "Passes":
        """After the last row of a pass."""
        score, clock = _score(self.run.published, self.held_out), self.run.clock
        mean = self.total / (clock - self.clock) if clock > self.clock else np.nan
        after = replace(
            self,
            trace=(*self.trace, mean),
            score=score,
            gain=score - self.score,
            position=Position(),
            clock=clock,
            total=0.0,
        )
        return replace(after, converged=after.at_rest)

    @property
    def at_rest(self) -> bool:
        """Whether the last pass added less than ``tol`` to the score."""
        return self.held_out is not None and self.gain < self.tol


def _score(mixture: Mixture, held_out: RowSample | None) -> float:
    """Mean log-likelihood of the held-out rows."""
    if held_out is None:
        return -np.inf
    x, weight = held_out.points()
    return float(np.average(Incomplete(mixture).answer(x, "score_samples")[0], weights=weight))


def online(
    recipe: OnlineRecipe, engine: Engine, rows: Rows, state: State, span: Selection | None = None
) -> Iterator[State]:
    """The state, and those after the survey, the seeding, each mini-batch and each pass over the rows of ``span``.

    Raises
    ------
    DataError
        If values or weights are unfit.
    """
    yield state
    random = np.random.RandomState(GENERATORS[state.random["bit_generator"]]())
    random.set_state(state.random)
    if not state.runs:
        state = yield from _started(recipe, engine, rows, state, random)
    while not state.done:
        seed, passes = int(random.randint(2**31)), state.runs[0]
        assert isinstance(passes, Passes)
        with one_thread():
            for after in visit(recipe, engine, rows, passes, seed, span or Selection()):
                passes, state = after, replace(state, runs=(after,), mid_pass=True)
                yield state
        passes = passes.passed()
        state = State(random.get_state(legacy=False), n_passes=state.n_passes + 1, runs=(passes,))
        yield state
    rows.check_unchanged()
    if span is None and all(np.isnan(run.trace).all() for run in state.runs):
        raise DataError("Sample weights must contain at least one non-zero number.")


def _started(
    recipe: OnlineRecipe, engine: Engine, rows: Rows, state: State, random: np.random.RandomState
) -> Generator[State, None, State]:
    """After the survey, unless that is done, and after the run is seeded; returns the last.

    With more passes than one, part of the sample is held out.
    """
    k, found = recipe.k, state.survey
    if found is None:
        seed = int(random.randint(2**31))
        size = max(k, recipe.init_size or sample_size(k, rows.n_features))
        found = survey(recipe, engine, rows, seed, size)
        yield State(random.get_state(legacy=False), n_passes=1, survey=found)
    held_out = None
    # Rows are kept without their noise, by which alone they could be judged.
    if recipe.max_iter > 1 and len(found.sample.rows) >= MIN_HELD and "noise" not in rows.columns:
        sample, held_out = found.sample.hold_out(EVERY)
        found = replace(found, sample=sample)
    run = begin(recipe, found, random)
    # The sample has done its work: later files are small.
    state = State(random.get_state(legacy=False), n_passes=1, runs=(Passes.begin(run, recipe, held_out),))
    yield state
    return state


def begin(recipe: OnlineRecipe, found: Survey, random: np.random.RandomState) -> Stepwise:
    """A run that starts from EM on the sample of a survey; the sample's rows count as learnt.

    Warns
    -----
    UserWarning
        If components start as copies.
    """
    recipe = recipe.on(found.overall, True, found.box)
    mixture, ground = polished(recipe, found, random)
    distinct = len(np.unique(mixture.means, axis=0))
    if distinct < recipe.k:
        warn(
            f"The rows that the model starts from have room for {distinct} of {recipe.k} components: "
            "the others start as copies, and stay so until rows differ. A larger init_size, or rows in another "
            "order, helps."
        )
    sample, overall = found.sample, found.overall
    # Weights of 1 and more count rows; where they are less on average, only their ratios tell something.
    unit = min(1.0, overall.total_weight / overall.n_rows)
    whole = len(sample.keys) <= sample.size  # all rows are in the sample: it counts as what they weigh
    count = overall.total_weight / unit if whole else float(len(ground.x))
    if not 0 < 1 / count < np.inf:
        raise DataError(BAD_SCALE)
    statistics = expectation(mixture, ground.block)
    run = Stepwise.begin(mixture, statistics, count, recipe.m_step(), recipe.rule, unit)
    return replace(run, labelled=found.labelled is not None)


def visit(
    recipe: OnlineRecipe, engine: Engine, rows: Rows, passes: Passes, seed: int, span: Selection
) -> Iterator[Passes]:
    """Visit the rows of ``span`` that are not held out once, in mini-batches; the run after each.

    The pass begins at its position: with the seed that belongs there, it goes on to the same bits.
    A mini-batch holds ``batch_size`` rows, or a share `GROWTH` of all rows before it, if that is more: later steps
    are small, and gain nothing from more frequent ones. It is drawn from all blocks of a window.
    """
    held_out = passes.held_out
    chosen = replace(span, out=() if held_out is None else tuple(held_out.position[held_out.chosen].tolist()))
    begun, quiet = passes.position, replace(engine, report=None)
    done = 0
    for number, blocks in enumerate(windows(rows, chosen, recipe.window_bytes, seed)):
        done += len(blocks)
        if number < begun.window:
            continue
        window = Window.load(quiet, rows, blocks, chosen, seed + 1 + number)
        first = begun.row if number == begun.window else 0
        while first < window.n_rows:
            size = max(int(recipe.rule.batch_size), int(GROWTH * passes.run.clock))
            last = window.n_rows if first + 1.5 * size > window.n_rows else first + size
            passes = step(quiet, window.batch(first, last), passes, rows)
            first = last
            here = Position(number, first) if first < window.n_rows else Position(number + 1)
            passes = replace(passes, position=here)
            if engine.report:
                engine.report(done, rows.n_blocks)
            yield passes
        del window  # before the next is read


def step(engine: Engine, batch: Blocks, run: Any, rows: Rows) -> Any:
    """A `Stepwise` run, or what wraps one, after one mini-batch of ``rows``.

    Raises
    ------
    DataError
        If a value is NaN or infinite, or too large; it names the block.

    Warns
    -----
    UserWarning
        If a component was placed anew.
    """
    try:
        (after,) = sweep(engine, batch, [run])
    except DataError:
        engine.reduce(rows, Expect(run.task.mixture))  # names the block, where that is to blame
        raise
    learnt = after.run if isinstance(after, Passes) else after
    for component in learnt.reseeded:
        warn(
            f"Component {component} did least: after batch {learnt.n_batches} it starts anew where recent rows "
            "were least expected."
        )
    return after
