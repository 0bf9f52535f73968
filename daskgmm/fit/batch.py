"""Batch EM over stored rows, as an iterator of states."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from daskgmm.compute.cache import kept
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.run import EM, too_few
from daskgmm.fit.starts import seed, survey_size
from daskgmm.fit.state import State
from daskgmm.fit.survey import Survey, Threshold
from daskgmm.fit.sweep import groups, sweep
from daskgmm.fit.tasks import Examine
from daskgmm.model.update import Regularised


def batch(recipe: Recipe, engine: Engine, rows: Rows, state: State) -> Iterator[State]:
    """The state, and those after the survey, the seeding and each iteration, until all runs are done.

    Raises
    ------
    DataError
        If values, weights or a given start are unfit, or rows are fewer than components.
    """
    yield state
    # What one more pass reads need not stay: new memory costs as much as to read again.
    again = not state.runs or any(not run.done and recipe.max_iter - run.n_iter > 1 for run in state.runs)
    with kept(engine, rows, wanted=again) as near:
        if not state.runs:
            for state in _started(recipe, engine, near, state):
                yield state
        lasting = near.lasting()
        while not state.done:
            passes = state.n_passes + len(groups(state.runs))
            state = replace(state, runs=tuple(sweep(engine, lasting, state.runs)), n_passes=passes)
            yield state
    rows.check_unchanged()  # also where passes saw only what was kept


def _started(recipe: Recipe, engine: Engine, rows: Rows, state: State) -> Iterator[State]:
    """After the survey, unless that is done, and after the runs are seeded."""
    random = np.random.RandomState()
    random.set_state(state.random)
    # Drawn aside: where all rows are in the sample, the same seed gives scikit-learn's own start.
    sample_seed = int(copy.deepcopy(random).randint(2**31))
    if state.survey is None:
        size = survey_size(recipe.init_params, recipe.k, rows.n_features)
        state = replace(state, survey=survey(recipe, engine, rows, sample_seed, size), n_passes=1)
        yield state
    assert state.survey is not None
    mixtures = seed(recipe, state.survey, random)
    update = Regularised(recipe.reg_covar)
    runs = tuple(EM(mixture, update, recipe.tol, recipe.max_iter) for mixture in mixtures)
    # The sample has done its work: later files are small.
    yield State(random.get_state(legacy=False), n_passes=1, runs=runs)


def survey(recipe: Recipe, engine: Engine, rows: Rows, sample_seed: int, size: int) -> Survey:
    """The first pass, which draws a sample of ``size`` rows."""
    found = engine.reduce(rows, Examine(recipe.structure, recipe.k, sample_seed, Threshold(size)))
    rows.check_unchanged()
    if failure := too_few(found.overall.n_rows, recipe.k, rows.weighted):
        raise failure
    return found
