"""Mixtures of several sizes and structures, compared: all candidates meet each block while it is in memory."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isnan, nan
from typing import Any

import numpy as np

from daskgmm.compute.engine import Engine
from daskgmm.compute.engines import on_threads
from daskgmm.compute.rows import Rows
from daskgmm.errors import CollapseError, DataError
from daskgmm.fit.batch import advanced, sample_rows, seeded, surveyed
from daskgmm.fit.held_out import Apart, HeldOut
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.run import Run, too_few
from daskgmm.fit.score import Score
from daskgmm.fit.starts import rows_seen
from daskgmm.fit.state import State
from daskgmm.fit.survey import Survey
from daskgmm.fit.tasks import Conclude
from daskgmm.model.checks import at_least, require
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import FULL
from daskgmm.store.values import LATER, storable

# A candidate is given up if so many times the gain that it is estimated to have left would not do. What iterations
# tell of that is trusted after so many of them; sooner, if others on a sample went before.
SAFETY, TRUSTED, SOONER = 3.0, 10, 3


@storable
@dataclass(frozen=True, eq=False)
class Candidate(Run):
    """A run that is compared with others: once it has ended, one more E-step tells what its mixture is worth."""

    run: Run
    held_out: HeldOut | None = None  # rows that it does not learn from
    total: float = 0.0  # weight of those that it does
    score: Score | None = None  # of those, once it has ended
    held: float = nan  # mean log-likelihood of held-out rows, as its last E-step had it
    n_passes: int = 0  # E-steps
    dropped: bool = False  # whether it ended because it was hopeless
    # Nats a row that its start, an optimum of few rows, is expected to lack; NaN where that cannot be told.
    lacks: float = field(default=nan, metadata=LATER)

    def check(self) -> None:
        """Raise `ValueError` unless it may stand so."""
        require(at_least(0, self.total, self.n_passes), "Weights or passes are below 0.")
        require(self.score is None or self.ended, "It has a score before its end.")

    @property
    def mixture(self) -> Mixture:  # type: ignore[override]
        return self.run.mixture

    @property
    def tol(self) -> float | str:  # type: ignore[override]
        return self.run.tol

    @property
    def max_iter(self) -> int:  # type: ignore[override]
        return self.run.max_iter

    @property
    def trace(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.run.trace

    @property
    def converged(self) -> bool:  # type: ignore[override]
        return self.run.converged

    @property
    def failure(self) -> DataError | None:  # type: ignore[override]
        return self.run.failure

    @property
    def rated(self) -> Score | None:  # type: ignore[override]
        return self.score or self.run.rated

    @property
    def lower_bound(self) -> float:
        return self.run.lower_bound

    @property
    def nbytes(self) -> int:
        return self.run.nbytes

    def under(self, **settings: Any) -> "Candidate":
        run = self.run.under(**settings)
        return replace(self, run=run, score=self.score if self.dropped or run.done else None)

    @property
    def ended(self) -> bool:
        """Whether its mixture stays as it is."""
        return self.dropped or self.run.done

    @property
    def done(self) -> bool:
        return self.score is not None or self.failure is not None

    @property
    def task(self) -> Any:
        task = Conclude(self.mixture) if self.ended else self.run.task
        return task if self.held_out is None else Apart(task, self.mixture, self.held_out)

    def advance(self, found: Any) -> "Candidate":
        found, rated = (found, None) if self.held_out is None else found
        after = replace(
            self,
            total=found.total_weight,
            n_passes=self.n_passes + 1,
            held=nan if rated is None or not rated.total_weight else rated.mean,
        )
        return replace(after, score=found) if self.ended else replace(after, run=self.run.advance(found))

    @property
    def standing(self) -> Score:
        """Its score so far, of its last E-step; the entropy is known at its end."""
        return self.score or Score(self.lower_bound * self.total, nan, self.total, self.mixture.n_parameters)

    @property
    def outcome(self) -> str:
        if not self.done:
            return ""
        k, score = self.mixture.n_components, self.standing
        name = f"{k} component{'s' * (k > 1)}, {self.mixture.covariance.structure.name}"
        if self.failure is not None:
            return f"{name}: collapsed"
        told = f"bic {score.bic:.10g}" if isnan(self.held) else f"held out {self.held:.8g}"
        end = "given up" if self.dropped else "converged" if self.converged else "not converged"
        return f"{name}: {told}, {end} after {self.n_iter} iteration{'s' * (self.n_iter != 1)}"

    @property
    def remaining(self) -> float:
        return self.run.remaining


@dataclass(frozen=True)
class Criterion:
    """What candidates are compared by, in nats per unit of weight: less is better."""

    cost: Callable[[Candidate], float]  # NaN where it is not known yet
    least: Callable[[Candidate], float]  # no more than that, and always known
    holds_out: bool = False  # whether rows are held out for it


def _bic(candidate: Candidate) -> float:
    return candidate.standing.bic / (2 * candidate.total)


def _aic(candidate: Candidate) -> float:
    return candidate.standing.aic / (2 * candidate.total)


def _icl(candidate: Candidate) -> float:
    return candidate.standing.icl / (2 * candidate.total)


def _missed(candidate: Candidate) -> float:
    return -candidate.held


CRITERIA = {
    "bic": Criterion(_bic, _bic),
    "aic": Criterion(_aic, _aic),
    "icl": Criterion(_icl, _bic),  # an entropy is not below 0
    "held_out": Criterion(_missed, _missed, holds_out=True),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """What a search compares, and by what."""

    recipes: tuple[Recipe, ...]  # one for each size and structure
    criterion: Criterion
    share: float = 0.1  # of the rows, where some are held out
    refine: int | None = None  # leaders that are run to their end; None: the best

    def cost(self, candidate: Candidate) -> float:
        """By the criterion; infinite where it is not known, or the run has failed."""
        if candidate.failure is not None or not candidate.total:
            return inf
        cost = self.criterion.cost(candidate)
        return inf if cost != cost else cost

    def best(self, runs: Sequence[Candidate]) -> Candidate:
        """The candidate of the least cost; among equals, or those that have failed, of the fewest parameters."""
        return min(runs, key=lambda run: (self.cost(run), run.mixture.n_parameters))

    def judged(self, runs: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The candidates, without hope for those that cannot be expected to come up to the best any more.

        One is dropped whose cost would be higher than that of the best, as that is now, even if it gained
        ``SAFETY`` times what it is estimated to have left.
        """
        costs = [self.cost(run) for run in runs]
        leaders = np.argsort(costs, kind="stable")[: self.refine or 1].tolist()

        def hopeless(run: Candidate) -> bool:
            trusted = run.n_iter >= (TRUSTED if isnan(run.lacks) else SOONER) and not isnan(run.remaining)
            left = run.remaining if trusted else run.lacks
            return not run.ended and self.criterion.least(run) - SAFETY * left > min(costs)

        return tuple(
            replace(run, dropped=True) if number not in leaders and hopeless(run) else run
            for number, run in enumerate(runs)
        )


def search(plan: Plan, engine: Engine, rows: Rows, state: State) -> Iterator[State]:
    """The state, and those after the survey, the seeding and each pass, until all candidates are compared.

    Each recipe starts where it would by itself: one survey serves all.

    Raises
    ------
    DataError
        If values or weights are unfit, or rows are fewer than the components of a recipe.
    """
    structures, d = {recipe.structure for recipe in plan.recipes}, rows.n_features
    structure = structures.pop() if len(structures) == 1 else FULL  # its moments give those of all others
    widest = replace(max(plan.recipes, key=lambda recipe: recipe.k), structure=structure)
    size = max(sample_rows(recipe, d) for recipe in plan.recipes)
    begin = partial(surveyed, widest, size, partial(_seeded, plan))
    return advanced(engine, rows, state, begin, plan.judged)


def _seeded(plan: Plan, survey: Survey, random: np.random.RandomState, seed: int) -> list[Candidate]:
    """The candidates at their starts; a recipe none of whose starts is sound has none."""
    held_out = HeldOut(plan.share, seed) if plan.criterion.holds_out else None
    last = -1 if survey.labelled is None else int(np.flatnonzero(survey.labelled)[-1])
    if last >= (least := min(recipe.k for recipe in plan.recipes)):
        raise DataError(
            f"known names component {last}, and a candidate has {least} component(s): compare n_components "
            f"from {last + 1} on."
        )

    def begun(recipe: Recipe) -> list[Candidate] | CollapseError:
        own = survey.under(recipe.structure, recipe.k, sample_rows(recipe, survey.sample.rows.shape[1]))
        if held_out is not None:
            own = held_out.without(own)
            if len(own.sample) < recipe.fewest_rows:
                raise too_few(len(own.sample), recipe.k)
        try:
            runs = seeded(recipe, own, copy.deepcopy(random))
        except CollapseError as error:  # others may do
            return error
        # The optimum of m rows is p/2m below that of all, for p parameters; NaN where none was looked for.
        rows = rows_seen(recipe, own)
        lacks = [run.mixture.n_parameters / (2 * rows) if rows else nan for run in runs]
        return [Candidate(run, held_out, lacks=lack) for run, lack in zip(runs, lacks, strict=True)]

    found = on_threads(begun, plan.recipes)
    random.random_sample()  # whoever has these numbers, too, goes on with others
    failures = [one for one in found if isinstance(one, CollapseError)]
    if len(failures) == len(found):
        raise failures[-1]
    return [run for one in found if not isinstance(one, CollapseError) for run in one]
