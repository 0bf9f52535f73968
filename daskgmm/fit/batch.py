"""Batch EM over stored rows, as an iterator of states."""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from daskgmm.compute.cache import kept
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.errors import DataError, warn
from daskgmm.fit.recipe import Recipe, sample_size
from daskgmm.fit.run import Run, too_few
from daskgmm.fit.score import unfit
from daskgmm.fit.starts import MORE_BYTES, MORE_ROWS, seed
from daskgmm.fit.state import GENERATORS, State
from daskgmm.fit.survey import Survey, Threshold, check_box
from daskgmm.fit.sweep import groups, sweep
from daskgmm.fit.tasks import Examine


def batch(recipe: Recipe, engine: Engine, rows: Rows, state: State) -> Iterator[State]:
    """The state, and those after the survey, the seeding and each iteration, until all runs are done.

    Raises
    ------
    DataError
        If values, weights or a given start are unfit, or rows are fewer than components.
    """
    begin = partial(surveyed, recipe, sample_rows(recipe, rows.n_features), partial(seeded, recipe))
    return advanced(engine, rows, state, begin)


def advanced(
    engine: Engine,
    rows: Rows,
    state: State,
    begin: Callable[[Engine, Rows, State], Generator[State, None, State]],
    judge: Callable[[Any], Iterable[Run]] = tuple,
) -> Iterator[State]:
    """The state, those of its beginning, and one after each pass, whose runs ``judge`` has looked at."""
    yield state
    # What one more pass reads need not stay: new memory costs as much as to read again.
    again = not state.runs or any(not run.done and run.max_iter - run.n_iter > 1 for run in state.runs)
    with kept(engine, rows, wanted=again) as near:
        if not state.runs:
            state = yield from begin(engine, near, state)
        lasting = near.lasting()
        while not state.done:
            passes = state.n_passes + len(groups(state.runs))
            runs = tuple(judge(sweep(engine, lasting, state.runs)))
            near.check_unchanged()
            state = replace(state, runs=runs, n_passes=passes)
            yield state
    rows.check_unchanged()  # also where passes saw only what was kept


def surveyed(
    recipe: Recipe,
    size: int,
    seeded: Callable[[Survey, np.random.RandomState, int], Sequence[Run]],
    engine: Engine,
    rows: Rows,
    state: State,
) -> Generator[State, None, State]:
    """After the survey, unless that is done, and after the runs are seeded; returns the last."""
    random = np.random.RandomState(GENERATORS[state.random["bit_generator"]]())
    random.set_state(state.random)
    # Drawn aside: where all rows are in the sample, the same seed gives scikit-learn's own start.
    sample_seed = int(copy.deepcopy(random).randint(2**31))
    if state.survey is None:
        state = replace(state, survey=survey(recipe, engine, rows, sample_seed, size), n_passes=1)
        yield state
    assert state.survey is not None
    runs = tuple(seeded(state.survey, random, sample_seed))
    # The sample has done its work: later files are small.
    state = State(random.get_state(legacy=False), n_passes=1, runs=runs)
    yield state
    return state


def sample_rows(recipe: Recipe, d: int) -> int:
    """Rows of the sample that a start is found on."""
    size = sample_size(recipe.k, d)
    if recipe.init_params in ("auto", "subsample"):  # the best of the starts that are tried goes on with more
        size = max(size, sample_size(recipe.k, d, min(MORE_ROWS, MORE_BYTES // (8 * d))))
    return size


def seeded(recipe: Recipe, survey: Survey, random: np.random.RandomState, _: int = 0) -> list[Run]:
    """The runs of a fit, at their starts."""
    recipe = recipe.on(survey.overall, survey.start is None, survey.box)
    update = recipe.m_step()
    return [recipe.run(mixture, update, recipe.tol, recipe.max_iter) for mixture in seed(recipe, survey, random)]


def survey(recipe: Recipe, engine: Engine, rows: Rows, sample_seed: int, size: int) -> Survey:
    """The first pass, which draws a sample of ``size`` rows."""
    lenient = rows.omit_nan or rows.missing_nan
    found = engine.reduce(
        rows, Examine(recipe.structure, recipe.k, sample_seed, Threshold(size), lenient, recipe.background)
    )
    rows.check_unchanged()
    n_rows = found.overall.n_rows
    if n_rows < recipe.fewest_rows:
        raise too_few(n_rows, recipe.k, "weight" in rows.columns)
    if (error := unfit(found.overall.total_weight)) is not None:
        raise error
    if rows.missing_nan:
        found = found.whole(recipe.structure, recipe.k)
        if found.empty:
            warn(f"{found.empty} row(s) of X have no value at all, and count as nothing.")
    if found.box is not None:
        check_box(found.box)
    if found.start is not None and not found.start.weight.any():
        raise DataError("No row that weighs anything has a label or responsibilities to start from.")
    return found
