"""Variational inference over stored rows: EM whose M-step gives a posterior in place of a mixture."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.fit.batch import advanced, sample_rows, surveyed
from daskgmm.fit.mergers import merged
from daskgmm.fit.moves import points_as_rows
from daskgmm.fit.recipe import Recipe, sample_size
from daskgmm.fit.run import EM, Run, best, rest
from daskgmm.fit.starts import Ground, seed
from daskgmm.fit.state import State
from daskgmm.fit.stepwise import implied
from daskgmm.fit.survey import Survey
from daskgmm.fit.sweep import climb
from daskgmm.model.checks import require
from daskgmm.model.mixture import Mixture
from daskgmm.model.posterior import Posterior, Variational
from daskgmm.model.statistics import Statistics
from daskgmm.store.values import storable

SAMPLE_ITER = 50  # on the sample, before components are merged; in turn, until none are


@storable
@dataclass(frozen=True, eq=False)
class Inference(EM):
    """Variational inference: each pass is an E-step over all rows, under what is believed so far.

    The trace has scikit-learn's lower bound: of all rows together, and of the posterior *after* each update.
    """

    watched: ClassVar[str] = "lower bound"

    def check(self) -> None:
        super().check()
        sound = isinstance(self.mixture, Posterior) and isinstance(self.update, Variational)
        require(sound and self.update.fits(self.mixture), "The posterior is not that of the prior.")

    @property
    def rank(self) -> tuple[bool, bool, float]:
        # A component without rows costs what the prior says, and fits nothing.
        return self.failure is None, True, self.lower_bound

    @property
    def remaining(self) -> float:
        return np.nan if self.rated is None else rest(self.trace) / self.rated.total_weight


@dataclass(frozen=True, eq=False, kw_only=True)
class BayesianRecipe(Recipe):
    """The same for variational inference."""

    belief: Variational  # the M-step, with the prior
    total_weight: float = np.nan  # of all rows, once they are known

    def on(self, overall: Statistics, start: bool = False, box: Array | None = None) -> Self:
        return replace(self, belief=self.belief.from_rows(overall), total_weight=overall.total_weight)

    def estimated(self, statistics: Statistics, means: Array, values: Array) -> Mixture:
        if any(part is not None for part in vars(self.start).values()):  # it is to go onto a mixture
            return super().estimated(statistics, means, values)
        return self.belief(None, statistics.scaled(self.total_weight / statistics.total_weight))

    def believed(self, mixture: Mixture) -> Posterior:
        """What all rows would have one believe, were they as the mixture has them."""
        if isinstance(mixture, Posterior):
            return mixture
        # The covariances have reg_covar by now.
        return replace(self.belief, reg_covar=0.0)(mixture, implied(mixture).scaled(self.total_weight))


def variational(recipe: BayesianRecipe, engine: Engine, rows: Rows, state: State) -> Iterator[State]:
    """The state, and those after the survey, the seeding and each iteration, as `batch` gives them."""
    if "noise" in rows.columns and recipe.init_params == "auto":  # mergers would take errors for overlap
        recipe = replace(recipe, init_params="kmeans")
    begin = partial(surveyed, recipe, sample_rows(recipe, rows.n_features), partial(seeded, recipe))
    return advanced(engine, rows, state, begin)


def seeded(recipe: BayesianRecipe, survey: Survey, random: np.random.RandomState, _: int = 0) -> list[Run]:
    """The runs of a fit, at their starts; of "subsample" the best on the sample, where it has come to."""
    recipe = recipe.on(survey.overall)
    size = min(sample_size(recipe.k, survey.overall.means.shape[1]), survey.sample.size)
    further = recipe.init_params == "subsample" or survey.overall.n_rows > size
    further &= recipe.init_params in ("auto", "subsample") and survey.start is None
    if recipe.init_params in ("auto", "subsample"):
        recipe = replace(recipe, init_params="kmeans")
    found = [recipe.believed(mixture) for mixture in seed(recipe, survey, random)]
    runs = [Inference(posterior, recipe.belief, recipe.tol, recipe.max_iter) for posterior in found]
    if not further:
        return list(runs)
    ahead = best([_ahead(run, Ground.of(recipe, survey, survey.sample)) for run in runs])
    return [replace(runs[0], mixture=ahead.mixture)]


def _ahead(begun: Inference, ground: Ground) -> EM:
    """Where inference on the sample leads, with mergers; a row of it weighs as many as it stands for."""
    recipe = ground.recipe
    run: EM = begun
    assert isinstance(recipe, BayesianRecipe)
    weight = np.ones(len(ground.x)) if ground.weight is None else ground.weight
    weight = weight * (recipe.total_weight / weight.sum())
    stored = ground.x if ground.stored is None else ground.stored
    rows = points_as_rows(stored, weight, ground.known)
    for _ in range(recipe.k):
        (run,) = climb(rows, [replace(begun, mixture=run.mixture)], SAMPLE_ITER)
        # Mergers know nothing of what rows miss, and would take the names of components.
        if run.failure is not None or ground.stored is not None or ground.survey.labelled is not None:
            break
        after = merged(run.mixture, recipe.belief, ground.x, weight)
        if after is None:
            break
        run = replace(run, mixture=after)
    return run
