"""GaussianMixture: batch EM with scikit-learn's interface."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
from sklearn.mixture import GaussianMixture as SklearnGaussianMixture
from sklearn.utils._param_validation import StrOptions

from daskgmm._typing import Data, InitParams
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.errors import DataError
from daskgmm.estimators.checks import check_mixture, check_names, read_structure
from daskgmm.estimators.expectation import Expectation
from daskgmm.estimators.fitted import Attribute, Fitted
from daskgmm.estimators.fitting import Fitting
from daskgmm.estimators.parameters import (
    INIT_PARAMS,
    Beforehand,
    Known,
    at_least,
    estimator,
    like,
    parameter,
    real,
)
from daskgmm.fit.accelerated import BEST, METHODS, Accelerated
from daskgmm.fit.batch import batch
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.run import AUTO, EM, Run, best
from daskgmm.fit.score import unfit
from daskgmm.fit.state import State
from daskgmm.fit.stepwise import implied
from daskgmm.fit.tasks import Expect
from daskgmm.model.frozen import Frozen
from daskgmm.model.statistics import Statistics

# What scikit-learn's mixture finds.
FITTED = (
    "weights_ means_ covariances_ precisions_ precisions_cholesky_ "
    "converged_ n_iter_ lower_bound_ lower_bounds_ n_features_in_"
)


@estimator
@dataclass(eq=False, repr=False, kw_only=True)
class GaussianMixture(Fitting):
    """Gaussian mixture fitted by EM: passes over row blocks of data that need not fit in memory.

    Every parameter and attribute that scikit-learn's ``GaussianMixture`` has means the same here, with the
    additions below. Parameters are float64 whatever the dtype of the rows.

    {parameters}

    {attributes}

    Notes
    -----
    ``X`` is a NumPy array, a Dask array, a ``zarr.Array``, an ``h5py.Dataset`` or a ``netCDF4.Variable``, the
    path or URL of such (``file.h5::/name``), of a ``.npy`` or a Parquet file, an ``xarray.DataArray`` (of two
    dimensions, rows first, or of more with ``feature_dim``) or ``Dataset`` (its variables are the features), or
    a pandas, polars, Arrow or Dask table; of a group, ``variables`` are the features. ``sample_weight`` may be any
    of these; rows of weight zero are never looked at. Input in memory runs on threads; chunked input on the
    active ``distributed.Client``, if there is one, else on threads. A Dask array that was persisted is used
    where it lies; one that was not is computed again in every pass, as far as its blocks do not fit in memory:
    blocks that fit in Dask's setting ``daskgmm.memory-limit`` (default: a quarter of the memory; on a client,
    all or none, half of its workers') stay there until the fit ends.

    A run whose covariance collapses drops out; `CollapseError`, a ``ValueError``, names component and feature when
    no run is left. That happens with ``reg_covar=0``, or where it is less than the rounding of a covariance: some
    1e-16 of the variance of features that follow from each other.

    Rounding changes means by some 1e-16 of their size, and covariances by as much of the product of two standard
    deviations and of the squares of how far means have moved; so it changes a density by 1e-16 of the condition of
    the covariance, and that changes the next iteration. Rows in float32 are worked on in float32 where features
    correlate little: then 1e-7 stands for 1e-16.

    With ``reg_covar`` > 0 EM is not exactly monotone, here as in scikit-learn.

    Dempster, Laird & Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm; McLachlan & Peel
    (2000), Finite mixture models, ch. 3.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture
    >>> x = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = GaussianMixture(2, random_state=0).fit(x)
    >>> sorted(model.means_[:, 0].round())
    [np.float64(1.0), np.float64(10.0)]
    """

    tol: float | str = parameter(
        1e-3,
        [real(0), StrOptions({AUTO})],
        """A run has converged when the mean log-likelihood per unit of weight changes by less. "auto" goes on
        until what remains to be gained, as far as ``remaining_`` can tell, is less than a tenth of what one
        parameter costs in `bic`: criteria of such fits may be compared. Mostly it needs a larger ``max_iter``.""",
    )
    max_iter: int = parameter(100, [at_least(0)], "Iterations of a run, at most; 0 keeps the start.")
    n_init: int = parameter(
        1,
        [at_least(1)],
        """Starts, of which the best by likelihood wins; one with a component of fewer than d + 1 rows comes last.
        They advance together: the rows are read once for all. "subsample" follows so many on its sample, and at
        most three on all rows: the best two, and that of a fit with ``n_init=1``, which none ends below.""",
    )
    init_params: InitParams = parameter(
        "auto",
        [StrOptions(INIT_PARAMS)],
        """How to start, always from a row sample that the first pass draws: of 20,000 rows or 20·k·(d + 1), if
        that is more, within 256 MiB; all rows, if they are no more. "subsample" begins with the better of a
        k-means++ and a k-means start after ten EM steps, on 10,000 rows or those 20·k·(d + 1). Then come rounds of
        moves: components whose rows gain most by two in their place are split, while the pairs that lose least are
        merged, or a component goes; what is better after ten EM steps stays (Ueda, Nakano, Ghahramani & Hinton
        2000; Runnalls 2007). Two rounds in a row without use end that, or twenty in all. Where a move gained, or
        the start did not come to rest, others are made like it, up to eight in all. The best two go on with EM,
        and three rounds more, on half of all rows, where that is more, but on no more than 60,000 within 64 MiB.
        With ``n_init``, each further start is made once, and the best third go on like that. Then come all rows.
        Where means are given, there are no moves. "auto" is "kmeans" for no more rows than such a sample has, else
        "subsample". "k-means++" and "random_from_data" assign each row to the nearest of the chosen ones.""",
    )
    n_factors: int | None = like(Beforehand, "n_factors")
    prior: Known = like(Beforehand, "prior")
    frozen: Any = like(Beforehand, "frozen")
    background: bool = like(Beforehand, "background")
    labels_init: Any = parameter(
        None,
        "no_validation",
        "Labels (n,) to start from, by one M-step instead of ``init_params``; any input kind, rows as in X.",
    )
    responsibilities_init: Any = parameter(
        None, "no_validation", "Responsibilities (n, k) to start from, likewise."
    )
    acceleration: str | None = parameter(
        "auto",
        [StrOptions({"auto", *METHODS}), None],
        """How to find the next point to look at, at one pass each. None: by the EM step. "lbfgs" extrapolates
        from the last points, with the EM step in place of a gradient, and falls back on it where points are
        worse; ``lower_bounds_`` lists those that were not. "squarem" extrapolates every other step. "auto" is
        "lbfgs", and None with ``tol=0``, which asks for a number of iterations of EM, and with "factors".""",
    )

    bic_ = Attribute(
        lambda f: f.score.bic,
        """`bic` of the rows of the fit, without a pass: of the parameters that its last E-step saw, before the
        last update. NaN where no fit made an iteration.""",
    )
    aic_ = Attribute(lambda f: f.score.aic, "The same for `aic`.")
    total_weight_ = Attribute(
        lambda f: f.score.total_weight, "Rows of the fit, or the sum of their weights; NaN like ``bic_``."
    )

    _algorithm = staticmethod(batch)
    _unconverged = (
        "Best performing initialization did not converge. Try different init parameters, or increase max_iter, "
        "tol, or check for degenerate data."
    )

    def _recipe(self, d: int, kind: type[Recipe] = Recipe, **more: Any) -> Any:
        method = self.acceleration
        if method == "auto":
            method = BEST if self.tol != 0 and read_structure(self).extrapolated else None
        if self.frozen is not None or self.background:  # of a point that is extrapolated, nothing stays to the bit
            method = None
        run = EM if method is None else partial(Accelerated, method=method)
        return super()._recipe(d, kind, run=run, **more)

    def _stored(self, X: Any, last: Fitted | None, **columns: Any) -> Rows:
        starts = {"labels": self.labels_init, "responsibilities": self.responsibilities_init}
        if last is not None:
            starts = {}
        elif all(value is not None for value in starts.values()):
            raise ValueError("Give labels_init or responsibilities_init, not both.")
        return self._rows(X, **columns, **starts)

    def _begun(self, rows: Rows, recipe: Recipe, last: Fitted | None) -> tuple[Run, ...]:
        if last is None:
            return ()
        self._check_shape(rows, "warm_start")
        update = recipe.on(implied(last.mixture).pooled()).m_step()
        begun = last.mixture if self.background else last.mixture.members
        if isinstance(update, Frozen):
            begun = update.put(recipe.start.onto(begun), begun)
        return (recipe.run(begun, update, self.tol, self.max_iter, previous=last.lower_bound),)

    def _found(self, state: State, rows: Rows) -> Fitted:
        return Fitted.of(best(state.runs), state.n_passes, rows)

    def expectation(self, X: Data, sample_weight: Any = None, noise: Any = None, known: Any = None) -> Expectation:
        """The E-step over rows, in one pass: what `maximise` makes parameters of, as a value to keep.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        sample_weight, noise, known : optional
            As in `fit`.
        """
        rows = self._query_rows(X, weight=sample_weight, noise=noise, known=known)
        found: Statistics = engine_for(rows).reduce(rows, Expect(self._fitted.mixture))
        if (error := unfit(found.total_weight)) is not None:
            raise error
        return Expectation(found, self._fitted.feature_names)

    def maximise(self, expectation: Expectation) -> Self:
        """Take over the parameters that maximise the likelihood expected: one M-step. Reads no rows.

        It is exact at fixed responsibilities: each row counts for the components as the model saw it that its
        `expectation` came from. Where that is this model, as it stands, this is the EM iteration over all rows, to
        rounding. Else the rows are shared out as parameters were then. To add days, or take days away, and to put
        a new expectation of a day in the place of its old one, is incremental EM (Neal & Hinton 1998).

        Parameters
        ----------
        expectation : Expectation
            Of this model, or of one with the same components, covariances and features; a sum or difference.

        Returns
        -------
        self
            ``lower_bound_`` is what the expectations found, each under its model.

        Raises
        ------
        DataError
            If it is of a model of another shape, or of fewer rows than components.
        CollapseError
            If a covariance is not positive definite.
        """
        self._check_fitted()
        last, s = self._fitted, expectation.statistics
        if not s.matches(last.mixture.means, last.mixture.covariance.structure):
            raise DataError("The expectation is of a model with other components, covariances or features.")
        check_names(last.feature_names, expectation.feature_names, type(self).__name__)
        update = self._recipe(last.n_features).on(s.pooled()).m_step()
        run = EM(last.mixture, update, 0.0, 1).advance(s)
        if run.failure is not None:
            raise run.failure
        told: dict[str, Any] = {"n_iter": last.n_iter + 1, "converged": False, "remaining": None}
        told |= {"lower_bound": run.lower_bound, "lower_bounds": (*last.lower_bounds, run.lower_bound)}
        self._fitted = replace(last, mixture=run.mixture, rated=run.rated, **told)
        return self

    @classmethod
    def from_sklearn(cls, model: SklearnGaussianMixture) -> Self:
        """A fitted estimator with the settings and parameters of a fitted scikit-learn ``GaussianMixture``."""
        shared = cls().get_params()
        settings = {name: value for name, value in model.get_params().items() if name in shared}
        mixture = check_mixture(model.weights_, model.means_, model.covariances_, model.covariance_type)
        names = getattr(model, "feature_names_in_", None)
        own = cls(**settings)
        own._fitted = Fitted(
            mixture,
            model.n_iter_,
            model.converged_,
            model.lower_bound_,
            tuple(getattr(model, "lower_bounds_", ())),
            feature_names=None if names is None else tuple(names),
        )
        return own

    def to_sklearn(self) -> SklearnGaussianMixture:
        """A fitted scikit-learn ``GaussianMixture`` with the same settings and parameters.

        A covariance type that it does not have becomes "full", "diag" or "spherical".
        """
        if self.mixture_.background_weight:
            raise ValueError("scikit-learn's mixture has no background.")
        theirs: SklearnGaussianMixture = handed_over(self, SklearnGaussianMixture(), FITTED)
        return theirs


def handed_over(model: Any, theirs: Any, fitted: str) -> Any:
    """An estimator of scikit-learn's with the settings of a fitted one of ours, and these attributes."""
    last, shared = model.mixture_, theirs.get_params()
    settings = {name: value for name, value in model.get_params().items() if name in shared}
    if settings["init_params"] in ("auto", "subsample"):  # our own ways to start
        settings["init_params"] = shared["init_params"]
    if settings["tol"] == AUTO:
        settings["tol"] = shared["tol"]
    settings["n_components"] = last.n_components
    structure, plain = last.covariance.structure, last.covariance.structure.plain
    settings["covariance_type"] = plain.name
    theirs.set_params(**settings)
    for name in fitted.split():
        setattr(theirs, name, copy.copy(getattr(model, name)))
    if structure.shared != plain.shared:  # one for all, where they have one for each
        held = {"covariances_": "values", "precisions_": "precisions", "precisions_cholesky_": "factor"}
        k, d = last.means.shape
        for name, own in held.items():
            values = np.broadcast_to(getattr(last.covariance, own), plain.held(k, d))
            setattr(theirs, name, plain.shown(values.copy(), k, d))
    if hasattr(model, "feature_names_in_"):
        theirs.feature_names_in_ = np.array(model.feature_names_in_)
    return theirs
