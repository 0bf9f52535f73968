"""GaussianMixtureSearch: how many components, and of which covariance type."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import StrOptions

from daskgmm._typing import Array, Data, InitParams
from daskgmm.compute.rows import Rows
from daskgmm.errors import warn
from daskgmm.estimators.alone import one_at_a_time
from daskgmm.estimators.fitted import Attribute, Fitted
from daskgmm.estimators.fitting import Watched
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.parameters import Beforehand, Known, at_least, estimator, like, parameter, real
from daskgmm.estimators.scikit import with_callbacks
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.search import CRITERIA, Candidate, Plan, search
from daskgmm.fit.state import State
from daskgmm.model.structure import NAMES, structure_of

PARAMS = ("n_components", "covariance_type")


@dataclass(frozen=True, eq=False)
class Searched(Fitted):
    """All that a search leaves behind: what the best candidate does, itself, and the table of all."""

    estimator: GaussianMixture = field(default_factory=GaussianMixture)
    index: int = 0  # of its row in the table
    results: Mapping[str, Array] = field(default_factory=dict)


@estimator
@dataclass(eq=False, repr=False)
class GaussianMixtureSearch(Watched):
    """Choose the number of components and the covariance type: all candidates are fitted in the same passes.

    Each number of components with each covariance type is a candidate, which starts and goes on as a
    `GaussianMixture` with these settings would by itself. One survey serves all. A candidate that has come to rest
    drops out, and one more E-step tells its log-likelihood and criteria. Queries are answered by the best.

    {parameters}

    {attributes}

    Notes
    -----
    A candidate is dropped, and counts as not converged, where three times the gain that it can expect would not
    bring its criterion to the best one so far. ``refine`` keeps more. What it can expect depends on its start. Of
    one that EM has led to rest on m rows of a sample, it is p/2m nats a row for p parameters: on average the
    optimum on so few rows is that far below the one on all. From the third iteration on, the last three values
    tell (Aitken's limit). From other starts they do from the tenth on, and no candidate is dropped before.

    What candidates find of the rows is added up side by side as far as it fits in 64 MiB for each block; beyond
    that they take turns, in further passes.

    scikit-learn's ``GridSearchCV`` splits rows by their numbers, which takes an array in memory or a Dask array: a
    path has none. ``criterion="held_out"`` does here what it is for.

    Schwarz (1978), Estimating the dimension of a model; Biernacki, Celeux & Govaert (2000), Assessing a mixture
    model for clustering with the integrated completed likelihood; McLachlan & Peel (2000), Finite mixture models,
    ch. 6.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixtureSearch
    >>> x = np.random.default_rng(0).normal(size=(500, 2)) + 10 * (np.arange(500) % 3)[:, None]
    >>> search = GaussianMixtureSearch(range(1, 6), covariance_types=["full", "spherical"], random_state=0).fit(x)
    >>> search.best_params_
    {'n_components': 3, 'covariance_type': 'spherical'}
    """

    n_components: Any = parameter(
        tuple(range(1, 11)),
        ["array-like", at_least(1)],
        "Numbers of components to compare: a range, a list, or a single one.",
    )
    _: KW_ONLY
    covariance_types: Any = parameter(
        ("full",), ["array-like", StrOptions(set(NAMES))], "Covariance types to compare, or a single one."
    )
    n_factors: int | None = like(GaussianMixture, "n_factors")
    criterion: str = parameter(
        "bic",
        [StrOptions(set(CRITERIA))],
        """What decides: the least "bic", "aic" or "icl" of the rows, or the greatest mean log-likelihood of rows
        that are "held_out", which neither starts nor candidates see.""",
    )
    held_out: float = parameter(
        0.1,
        [real(0, 1, "neither")],
        """Share of the rows that is held out, for that criterion alone. A hash of a row's number decides, so that
        no pass has to.""",
    )
    refine: int | None = parameter(
        None,
        [at_least(1), None],
        """Candidates that lead, so many, are fitted to their end even if they are hopeless, so that their rows of
        the table are those of fits by themselves; None asks that of the best alone.""",
    )
    tol: float | str = like(GaussianMixture, "tol", "auto")
    max_iter: int = like(GaussianMixture, "max_iter", 1000)
    acceleration: str | None = like(GaussianMixture, "acceleration")
    n_init: int = like(GaussianMixture, "n_init")
    init_params: InitParams = like(GaussianMixture, "init_params")
    prior: Known = like(Beforehand, "prior")
    background: bool = like(Beforehand, "background")

    best_estimator_ = Attribute[GaussianMixture](
        lambda f: cast(Searched, f).estimator, "The best candidate, a fitted `GaussianMixture`."
    )
    best_params_ = Attribute[dict[str, Any]](
        lambda f: dict(zip(PARAMS, (f.mixture.n_components, f.mixture.covariance.structure.name), strict=True)),
        "Its ``n_components`` and ``covariance_type``.",
    )
    best_index_ = Attribute[int](lambda f: cast(Searched, f).index, "Its row in ``results_``.")
    results_ = Attribute[dict[str, Array]](
        lambda f: dict(cast(Searched, f).results),
        """The table: a dict of arrays with a value for each candidate. Of their settings ``n_components`` and
        ``covariance_type``; of the rows that they learnt ``log_likelihood`` (mean, nats per unit of weight),
        ``bic``, ``aic`` and ``icl``; ``held_out``, the mean log-likelihood of the others, or NaN; of their fits
        ``n_iter``, ``n_passes``, ``converged``, ``dropped``; and ``smallest_weight``, that of a component.""",
    )

    @with_callbacks
    @one_at_a_time
    def fit(self, X: Data, y: Any = None, sample_weight: Any = None, noise: Any = None, known: Any = None) -> Self:
        """Compare all candidates on stored rows: one pass for the survey, then as many as the slowest takes.

        Parameters
        ----------
        X : (n, d)
            Rows, of any kind that `GaussianMixture` names.
        y : ignored
        sample_weight : (n,), optional
            Weights >= 0; a row of weight 2 counts as two rows. Their sum is n in the criteria.
        noise, known : optional
            As in `GaussianMixture.fit`. Every candidate has to have the components that labels name, and its
            criteria are those of rows and labels together: a labelled row counts log(weight·density) of its own
            component. Rows that are held out count without their labels, which starts may have seen.

        Returns
        -------
        self

        Raises
        ------
        DataError, CollapseError, CheckpointError, FileNotFoundError, KeyboardInterrupt, ClusterLostError
            As `GaussianMixture.fit`. A candidate whose covariance collapses has NaN in the table; it is an error
            if all do.
        ValueError
            For numbers of components or covariance types that are none, or come twice.

        Warns
        -----
        ConvergenceWarning
            If the best candidate did not converge within ``max_iter``.
        """
        self._validate_params()
        rows = self._rows(X, weight=sample_weight, noise=noise, known=known)
        plan = self._plan(rows.n_features)
        self._follow(X, rows, partial(search, plan), (), partial(self._identity, None))
        if self._fitted.n_iter == self.max_iter > 0 and not self._fitted.converged:
            told = "The best candidate did not converge: increase max_iter or tol."
            warn(told, ConvergenceWarning)
        return self

    def save(self, path: str | Path) -> None:
        """Write the best candidate to a file, as its own `save` does; `GaussianMixture.load` reads it."""
        self._check_fitted()
        self.best_estimator_.save(path)

    def _sizes(self) -> list[int]:
        """The numbers of components, checked."""
        sizes = [self.n_components] if isinstance(self.n_components, Integral) else list(self.n_components)
        if not all(isinstance(k, Integral) and int(k) >= 1 for k in sizes) or not len(sizes) == len({*sizes}) > 0:
            raise ValueError(f"n_components must be different integers >= 1, got {self.n_components!r}.")
        return [int(k) for k in sizes]

    def _types(self) -> list[str]:
        """The covariance types, checked."""
        types = [self.covariance_types] if isinstance(self.covariance_types, str) else list(self.covariance_types)
        known = [structure_of(name, self.n_factors).name for name in types if name in NAMES]
        if not types or not len(types) == len(known) == len({*known}):
            told = f"covariance_types must be different ones of {list(NAMES)}, got {self.covariance_types!r}."
            raise ValueError(told)
        return known

    def _alone(self, k: int, covariance_type: Any) -> GaussianMixture:
        """A candidate by itself."""
        shared = GaussianMixture().get_params().keys() & self.get_params().keys() - {"n_components", "checkpoint"}
        settings = {name: getattr(self, name) for name in shared}
        return GaussianMixture(k, covariance_type=covariance_type, **settings)

    def _plan(self, d: int) -> Plan:
        """What is compared, for rows of d features."""
        recipes = [self._alone(k, name)._recipe(d) for name in self._types() for k in self._sizes()]
        criterion = CRITERIA[self.criterion]
        return Plan(recipes=tuple(recipes), criterion=criterion, share=self.held_out, refine=self.refine)

    def _identity(self, last: Fitted | None) -> dict[str, Any]:
        own = {"n_components": self._sizes(), "covariance_types": self._types()}
        return {**super()._identity(last), **own}

    def _found(self, state: State, rows: Rows) -> Searched:
        plan = self._plan(rows.n_features)
        runs: Sequence[Candidate] = state.runs  # type: ignore[assignment]
        of_each = [[run for run in runs if _is_of(recipe, run)] for recipe in plan.recipes]
        leaders = [plan.best(own) if own else None for own in of_each]
        best = plan.best([run for run in leaders if run is not None])
        if best.failure is not None:
            raise best.failure
        model = self._alone(best.mixture.n_components, best.mixture.covariance.structure.name)
        model._fitted = Fitted.of(best, 1 + best.n_passes, rows)
        table = [_row(recipe, run) for recipe, run in zip(plan.recipes, leaders, strict=True)]
        results = {name: np.array([row[name] for row in table]) for name in table[0]}
        told = {"estimator": model, "index": leaders.index(best), "results": results}
        return Searched.of(best, state.n_passes, rows, **told)


def _is_of(recipe: Recipe, run: Candidate) -> bool:
    """Whether a candidate is one of a recipe's."""
    mixture = run.mixture
    return mixture.n_components == recipe.k and mixture.covariance.structure == recipe.structure


def _row(recipe: Recipe, run: Candidate | None) -> dict[str, Any]:
    """What the table says of a candidate; NaN where it has failed, or is not fitted yet."""
    sound = run is not None and run.failure is None and run.total > 0
    score = run.standing if run is not None and sound else None
    return {
        "n_components": recipe.k,
        "covariance_type": recipe.structure.name,
        "log_likelihood": np.nan if score is None else score.mean,
        "bic": np.nan if score is None else score.bic,
        "aic": np.nan if score is None else score.aic,
        "icl": np.nan if score is None else score.icl,
        "held_out": np.nan if run is None or not sound else run.held,
        "n_iter": 0 if run is None else run.n_iter,
        "n_passes": 1 if run is None else 1 + run.n_passes,
        "converged": run is not None and run.converged,
        "dropped": run is not None and run.dropped,
        "smallest_weight": float(run.mixture.weights.min()) if run is not None and sound else np.nan,
    }
