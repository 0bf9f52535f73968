"""An online fit of stored rows: how it is set up, where it stands, and how it goes on from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.compute.window import Selection
from daskgmm.errors import DataError
from daskgmm.fit import archive
from daskgmm.fit.blas import one_thread
from daskgmm.fit.checkpoint import Keeper, Standing
from daskgmm.fit.checks import check_counts
from daskgmm.fit.online import START, Place, learn
from daskgmm.fit.progress import Progress
from daskgmm.fit.run import Run
from daskgmm.fit.seeding import Start, sample_size
from daskgmm.fit.start import begin, hold_out, positions
from daskgmm.fit.stepwise import StepRule, Stepwise
from daskgmm.fit.survey import RowSample, Survey, Surveyor, Threshold
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture

MIN_HELD = 100  # rows of the sample, below which none is held out


@dataclass(frozen=True, eq=False)
class Learning(Standing):
    """Where an online fit stands.

    Attributes
    ----------
    random : dict
        State of the random numbers before the stage or the pass that is next or under way.
    surveys : int
        How often the rows were read for a sample: 0 or 1.
    survey : Survey or None
        What that found, until there is a run.
    held_out : RowSample or None
        Rows that neither start nor passes see.
    run : Stepwise or None
        None until seeded.
    passes : Run or None
        The passes that are done, as those of a batch run; None before the first begins.
    score : float
        Mean log-likelihood of the held-out rows after the last of them.
    place : Place
        How far the pass under way is.
    clock, total : float
        Weight of all rows before that pass, and the sum of its rows' log-likelihoods so far.
    """

    random: dict[str, Any]
    surveys: int = 0
    survey: Survey | None = None
    held_out: RowSample | None = None
    run: Stepwise | None = None
    passes: Run | None = None
    score: float = -np.inf
    place: Place = START
    clock: float = 0.0
    total: float = 0.0

    @property
    def n_passes(self) -> int:
        """How often the rows were read."""
        return self.surveys + sum(run.n_iter for run in self.runs)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The passes, as one run."""
        return () if self.passes is None else (self.passes,)

    @property
    def learnt(self) -> bool:
        """Whether a mini-batch was learnt since the fit began."""
        return self.passes is not None and (self.passes.n_iter > 0 or self.place != START)

    def score_of(self, mixture: Mixture) -> float:
        """Mean log-likelihood of the held-out rows."""
        if self.held_out is None:
            return -np.inf
        x, weight = self.held_out.points()
        return float(np.average(mixture.score_samples(x), weights=weight))


archive.TYPES |= {c.__name__: c for c in (Learning, Place)}


@dataclass(frozen=True, eq=False)
class Learner:
    """How to learn online, the same for stored rows and for a stream.

    Attributes
    ----------
    structure : type of Covariance
    k : components.
    init_params : str
    start : Start
        What the user gave of it.
    init_size : int or None
        Rows to find the start on; None leaves it to whoever asks.
    rule : StepRule
    reg_covar : float
    max_iter : int
        Passes over stored rows.
    tol : float
        A pass that raises the mean log-likelihood of held-out rows by less is the last.
    window_bytes : int
        Of rows that are in memory at once.
    """

    structure: type[Covariance]
    k: int
    init_params: str
    start: Start
    init_size: int | None
    rule: StepRule
    reg_covar: float
    max_iter: int
    tol: float
    window_bytes: int

    def given(self, rows: int) -> Stepwise | None:
        """A run from a start that is given in full, and counts as ``init_size`` or so many rows."""
        start = self.start
        if start.weights is None or start.means is None or start.covariance is None:
            return None
        mixture = Mixture(start.weights, start.means, start.covariance)
        return Stepwise.implied(mixture, self.init_size or rows, self.reg_covar)

    def begin(self, survey: Survey, random: np.random.RandomState) -> Stepwise:
        """A run from EM on the sample of a survey."""
        return begin(survey, self.structure, self.k, self.init_params, self.start, random, self.reg_covar)

    def fit(
        self,
        engine: Engine,
        rows: Rows,
        state: Learning,
        keeper: Keeper[Learning],
        random: np.random.RandomState,
        progress: Progress,
    ) -> Learning:
        """Go on from ``state`` to the last pass; ``random`` is set to what belongs there.

        Raises
        ------
        DataError
            If values or weights are unfit, or no row weighs anything.
        """
        random.set_state(state.random)
        if state.run is None:
            state = self._seeded(engine, rows, state, keeper, random, progress)
        state = self.visit(engine, rows, state, keeper, random, progress)
        rows.check_unchanged()
        if state.passes is not None and np.isnan(state.passes.trace).all():
            raise DataError("Sample weights must contain at least one non-zero number.")
        return state

    def _seeded(
        self,
        engine: Engine,
        rows: Rows,
        state: Learning,
        keeper: Keeper[Learning],
        random: np.random.RandomState,
        progress: Progress,
    ) -> Learning:
        """Survey the rows, unless that is done, and find a start on the sample.

        With more passes than one, part of the sample is held out.
        """
        progress.stage("survey")
        survey = state.survey
        if survey is None:
            survey = self._survey(engine, rows, int(random.randint(2**31)), progress)
            state = keeper.keep(replace(state, random=random.get_state(legacy=False), surveys=1, survey=survey))
        progress.stage("seeding")
        held_out = None
        if self.max_iter > 1 and len(survey.sample.rows) >= MIN_HELD:
            survey, held_out = hold_out(survey)
        run = self.begin(survey, random)
        # The sample has done its work: later files are small.
        return keeper.keep(
            replace(state, random=random.get_state(legacy=False), survey=None, held_out=held_out, run=run)
        )

    def _survey(self, engine: Engine, rows: Rows, seed: int, progress: Progress) -> Survey:
        """The pass that draws the sample."""
        size = max(self.k, self.init_size or sample_size(self.k, rows.n_features))
        surveyor = Surveyor(self.structure, self.k, seed, Threshold(size))
        survey: Survey = engine.reduce(rows, surveyor, progress.blocks)
        rows.check_unchanged()
        check_counts(survey.overall, self.k, weighted=rows.weight is not None)
        return survey

    def visit(
        self,
        engine: Engine,
        rows: Rows,
        state: Learning,
        keeper: Keeper[Learning],
        random: np.random.RandomState,
        progress: Progress,
        span: Selection | None = None,
    ) -> Learning:
        """All passes that are left, over the rows of ``span`` that are not held out."""
        chosen = replace(span or Selection(), out=() if state.held_out is None else positions(state.held_out))
        run = state.run
        assert run is not None
        if state.passes is None:
            passes = Run(run.mixture, self.tol, self.max_iter, self.reg_covar)
            state = replace(state, passes=passes, score=state.score_of(run.published), clock=run.clock)
        assert state.passes is not None
        progress.stage("em", state.passes.n_iter)
        while not state.done:
            seed = int(random.randint(2**31))
            with one_thread():
                visits = learn(engine, rows, run, self.rule, chosen, self.window_bytes, seed, place=state.place)
                for after, place, done in visits:
                    total = state.total + after.bound * (after.clock - run.clock)
                    run = after
                    state = keeper.note(replace(state, run=run, place=place, total=total))
                    progress.blocks(done, rows.n_blocks)
            state = keeper.keep(_passed(state, run, random))
            assert state.passes is not None
            progress.iteration([state.passes])
        return state


def _passed(state: Learning, run: Stepwise, random: np.random.RandomState) -> Learning:
    """After the last row of a pass."""
    assert state.passes is not None
    score = state.score_of(run.published)
    passes = replace(
        state.passes,
        mixture=run.published,
        trace=(
            *state.passes.trace,
            state.total / (run.clock - state.clock) if run.clock > state.clock else np.nan,
        ),
        converged=state.held_out is not None and score - state.score < state.passes.tol,
    )
    return replace(
        state,
        random=random.get_state(legacy=False),
        passes=passes,
        score=score,
        place=START,
        clock=run.clock,
        total=0.0,
    )
