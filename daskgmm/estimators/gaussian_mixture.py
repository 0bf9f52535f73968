"""GaussianMixture: batch EM with scikit-learn's interface."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnGaussianMixture
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.compute.cache import kept
from daskgmm.compute.engine import Engine, engine_for
from daskgmm.compute.rows import Rows, feature_names
from daskgmm.errors import DataError
from daskgmm.estimators.base import Fitted, fitted
from daskgmm.estimators.fitting import INIT_PARAMS, Fitting
from daskgmm.estimators.parameters import check_mixture, read_start
from daskgmm.fit.checkpoint import Keeper, State
from daskgmm.fit.checks import check_counts
from daskgmm.fit.em import em
from daskgmm.fit.progress import Progress
from daskgmm.fit.run import Run, best
from daskgmm.fit.seeding import Start, seed, survey_size
from daskgmm.fit.survey import Survey, Surveyor, Threshold
from daskgmm.model.covariance import STRUCTURES
from daskgmm.model.mixture import Mixture


class GaussianMixture(Fitting):
    """Gaussian mixture fitted by EM passes over row blocks that are read, never held.

    Every parameter and attribute that scikit-learn's ``GaussianMixture`` has means the same here, with the
    additions below. Parameters are float64 whatever the dtype of the rows.

    Parameters
    ----------
    n_components : int
        Number of components, k.
    covariance_type : {"full", "tied", "diag", "spherical"}
    tol : float
        A run has converged when the mean log-likelihood per unit of weight changes by less.
    reg_covar : float
        Added to the diagonal of every covariance. With 0 an EM step never lowers the likelihood; with more it
        may, slightly: the update is then not the exact maximiser.
    max_iter : int
        EM iterations; 0 keeps the start.
    n_init : int
        Starts; the best by likelihood wins. They advance together, so that the rows are read once for all;
        those of "subsample" run on the sample only.
    init_params : {"auto", "kmeans", "k-means++", "random", "random_from_data", "subsample"}
        How to start, always from a row sample that the first pass draws: of 20,000 rows or 20·k·(d + 1), if that
        is more, within 256 MiB; all rows, if they are no more. "subsample" tries ``max(n_init, 5)`` starts, of
        k-means++ and of k-means in turn, with short EM runs on 10,000 rows or those 20·k·(d + 1), follows the
        best of each kind there to the end, and goes on with the better one: on a tenth of all rows, where that
        is more, but on no more than 60,000 within 64 MiB; and then on all.
        "auto" is "kmeans" for no more rows than such a sample has, else "subsample". "k-means++" and
        "random_from_data" assign each row to the nearest of the chosen ones.
    weights_init : (k,), means_init : (k, d), precisions_init : as ``covariances_``
        Parts of the start. With means but not the rest, rows go to the nearest mean.
    labels_init : (n,), responsibilities_init : (n, k)
        Start from one M-step under these instead of ``init_params``; any input kind, rows as in X.
    random_state : int, RandomState or None
    warm_start : bool
        Go on from the last fit's parameters, without a survey.
    acceleration : None
        Reserved.
    block_size : int or str
        Bytes per block, at most (a larger stored chunk stays whole). Dask arrays keep their own row chunks.
    nan_policy : {"raise", "omit"}
        "omit" leaves rows with NaN out.
    missing_chunks : {"raise", "fill"}
        What to do where a Zarr store lacks a chunk; Zarr itself reads it as the fill value, silently.
    checkpoint : path or fsspec URL, or None
        File that holds where the fit stands after every pass. `fit` goes on from a file of the same data and
        settings, with the result of a fit that was never stopped; from a finished one it returns without
        reading the rows. It is refused where shape, block plan or settings differ, or, in an unfinished fit, the
        values of the first, middle or last block. Where ``random_state`` is no integer, the file's own goes on.
        While another fit writes it, it is refused, too. On a URL a fit that was killed counts as writing for
        another 30 s (``daskgmm.checkpoint-lease`` in Dask's configuration): `fit` waits for so long, and goes on.
    verbose, verbose_interval : int
        Print a line every ``verbose_interval`` iterations.

    Attributes
    ----------
    weights_ : (k,)
    means_ : (k, d)
    covariances_, precisions_, precisions_cholesky_ : full (k, d, d), tied (d, d), diag (k, d), spherical (k,)
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
    lower_bounds_ : list of float
    n_passes_ : int
        How often the fit went over the rows, the survey included.
    n_features_in_ : int
    feature_names_in_ : (d,) of str

    Notes
    -----
    ``X`` is a NumPy array, a Dask array, a ``zarr.Array`` or a path or URL to one, an ``xarray.DataArray``
    (2-D), or a pandas, polars or Dask data frame. ``sample_weight`` may be any of these; rows of weight zero
    are never looked at. Input in memory runs on threads; chunked input on the active ``distributed.Client``, if
    there is one, else on threads. A Dask array that was persisted is used where it lies; one that was not is
    computed again in every pass, as far as its blocks do not fit in memory: blocks that fit in Dask's setting
    ``daskgmm.memory-limit`` (default: a quarter of the memory; on a client, all or none, half of its workers')
    stay there until the fit ends.

    A run whose covariance collapses (possible with ``reg_covar=0``) drops out; `CollapseError`, a
    ``ValueError``, names the component when no run is left.

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

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(STRUCTURES))],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "init_params": [StrOptions(INIT_PARAMS)],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "labels_init": "no_validation",
        "responsibilities_init": "no_validation",
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "acceleration": [None],
        "block_size": [Interval(Integral, 1, None, closed="left"), str],
        "nan_policy": [StrOptions({"raise", "omit"})],
        "missing_chunks": [StrOptions({"raise", "fill"})],
        "checkpoint": [str, os.PathLike, None],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "auto",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        labels_init: Any = None,
        responsibilities_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        acceleration: None = None,
        block_size: int | str = "64 MiB",
        nan_policy: str = "raise",
        missing_chunks: str = "raise",
        checkpoint: Any = None,
        verbose: int = 0,
        verbose_interval: int = 10,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.labels_init = labels_init
        self.responsibilities_init = responsibilities_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.acceleration = acceleration
        self.block_size = block_size
        self.nan_policy = nan_policy
        self.missing_chunks = missing_chunks
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit by EM; one pass over the rows for the survey, then one for each iteration.

        Parameters
        ----------
        X : (n, d)
            Rows, of any kind that the class names.
        y : ignored
        sample_weight : (n,), optional
            Weights >= 0; a row of weight 2 counts as two rows.

        Returns
        -------
        self

        Raises
        ------
        DataError
            A ``ValueError`` that names the block and rows: NaN or infinity, bad weights or starts, fewer rows
            than components, missing chunks. The estimator stays as it was.
        CollapseError
            A `DataError`: a covariance is not positive definite in any run.
        CheckpointError
            A `DataError`: the checkpoint is of another fit, damaged, or in use.
        FileNotFoundError
            If a path holds no Zarr array, or the checkpoint's folder does not exist.
        KeyboardInterrupt
            After the best parameters so far have become the fitted attributes.

        Warns
        -----
        ConvergenceWarning
            If the best run did not converge within ``max_iter``.
        """
        return self._fit(X, sample_weight, self._watcher())

    def _fit(self, X: Any, sample_weight: Any, progress: Progress) -> Self:
        """`fit`, watched by ``progress``. Nothing of the estimator changes before the last line."""
        self._validate_params()
        names = feature_names(X)
        rows = self._rows(X, sample_weight, None if self._resumes else self._given_start())
        self._check_kind(rows)
        start = read_start(self, rows.n_features)
        engine = engine_for(rows)
        with self._keeping(engine, rows, names, progress) as keeper:
            state = keeper.state or keeper.keep(self._begun(rows))
            # What one more pass reads need not stay: new memory costs as much as to read again.
            again = not state.runs or any(not run.done and run.max_iter - run.n_iter > 1 for run in state.runs)
            with kept(engine, rows, wanted=again) as kept_rows:
                if not state.runs:
                    state = self._started(kept_rows, engine, start, state, keeper, progress)
                state = self._advanced(kept_rows, engine, state, keeper, progress)
            rows.check_unchanged()  # also where passes saw only what was kept
        run = best(state.runs)
        if self.max_iter > 0 and not run.converged:
            warnings.warn(
                "Best performing initialization did not converge. Try different init parameters, or increase "
                "max_iter, tol, or check for degenerate data.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self._fitted = fitted(run, state.n_passes, names)
        return self

    def _begun(self, rows: Rows) -> State:
        """The state before the first pass."""
        if self._resumes:
            return State({}, runs=(self._resumed(rows),))
        return State(check_random_state(self.random_state).get_state(legacy=False))

    def _started(
        self, rows: Rows, engine: Engine, start: Start, state: State, keeper: Keeper[State], progress: Progress
    ) -> State:
        """Survey the rows, unless that is done, and seed the runs."""
        random = check_random_state(self.random_state)
        random.set_state(state.random)
        progress.stage("survey")
        # Drawn aside: where all rows are in the sample, the same seed gives scikit-learn's own start.
        sample_seed = int(copy.deepcopy(random).randint(2**31))
        survey = state.survey
        if survey is None:
            survey = self._survey(rows, engine, sample_seed, progress)
            keeper.keep(replace(state, survey=survey, n_passes=1))
        progress.stage("seeding")
        mixtures = seed(
            survey,
            STRUCTURES[self.covariance_type],
            self.n_components,
            self.init_params,
            start,
            self.n_init,
            random,
            self.tol,
            self.reg_covar,
        )
        # The sample has done its work: later files are small.
        return keeper.keep(State(state.random, n_passes=1, runs=tuple(self._run(m) for m in mixtures)))

    def _survey(self, rows: Rows, engine: Engine, sample_seed: int, progress: Progress) -> Survey:
        """The first pass."""
        k, d, structure = self.n_components, rows.n_features, STRUCTURES[self.covariance_type]
        surveyor = Surveyor(structure, k, sample_seed, Threshold(survey_size(self.init_params, k, d)))
        survey: Survey = engine.reduce(rows, surveyor, progress.blocks)
        rows.check_unchanged()
        check_counts(survey.overall, k, weighted=rows.weight is not None)
        return survey

    def _advanced(
        self, rows: Rows, engine: Engine, began: State, keeper: Keeper[State], progress: Progress
    ) -> State:
        """EM until all runs are done, kept after each iteration."""

        def after(runs: Sequence[Run], more: int) -> State:
            return replace(began, runs=tuple(runs), n_passes=began.n_passes + more)

        progress.stage("em", max(run.n_iter for run in began.runs))
        runs, more = em(engine, rows, began.runs, progress, lambda *found: keeper.keep(after(*found)))
        return after(runs, more)

    def _stopped(self, state: State, rows: Rows, names: Any) -> None:
        sound = [run for run in state.runs if run.failure is None and run.n_iter]
        if sound:
            self._fitted = fitted(best(sound), state.n_passes, names)

    def _given_start(self) -> Any:
        if self.labels_init is not None and self.responsibilities_init is not None:
            raise ValueError("Give labels_init or responsibilities_init, not both.")
        return self.labels_init if self.labels_init is not None else self.responsibilities_init

    def _check_kind(self, rows: Rows) -> None:
        """Labels are one-dimensional, responsibilities two-dimensional: never one taken for the other."""
        if rows.start is not None:
            name, ndim = ("responsibilities_init", 2) if self.labels_init is None else ("labels_init", 1)
            if len(rows.start.shape) != ndim:
                raise DataError(f"{name} should be {ndim}-dimensional, got shape {rows.start.shape}.")

    def _run(self, mixture: Mixture, previous: float = -np.inf) -> Run:
        return Run(mixture, self.tol, self.max_iter, self.reg_covar, previous=previous)

    def _resumed(self, rows: Rows) -> Run:
        """Go on from the last fit."""
        self._check_shape(rows, "warm_start")
        return self._run(self._fitted.mixture, self._fitted.lower_bound)

    @classmethod
    def from_parameters(cls, weights: Any, means: Any, covariances: Any, covariance_type: str = "full") -> Self:
        """A fitted estimator with these parameters.

        Parameters
        ----------
        weights : (k,) >= 0, summing to 1
        means : (k, d)
        covariances : in the shape of ``covariances_`` for ``covariance_type``
        covariance_type : {"full", "tied", "diag", "spherical"}

        Raises
        ------
        ValueError
            If shapes differ, weights do not sum to 1, or a covariance is not symmetric and positive definite.
        """
        mixture = check_mixture(weights, means, covariances, covariance_type)
        model = cls(mixture.n_components, covariance_type=covariance_type)
        model._fitted = Fitted(mixture, 0, False, -np.inf, (), 0)
        return model

    @classmethod
    def from_sklearn(cls, model: SklearnGaussianMixture) -> Self:
        """A fitted estimator with the settings and parameters of a fitted scikit-learn ``GaussianMixture``."""
        shared = cls().get_params()
        settings = {name: value for name, value in model.get_params().items() if name in shared}
        mixture = check_mixture(model.weights_, model.means_, model.covariances_, model.covariance_type)
        own = cls(**settings)
        own._fitted = Fitted(
            mixture,
            model.n_iter_,
            model.converged_,
            model.lower_bound_,
            tuple(getattr(model, "lower_bounds_", ())),
            0,
            getattr(model, "feature_names_in_", None),
        )
        return own

    def to_sklearn(self) -> SklearnGaussianMixture:
        """A fitted scikit-learn ``GaussianMixture`` with the same settings and parameters."""
        last = self._result("weights_")
        theirs = SklearnGaussianMixture()
        shared = theirs.get_params()
        settings = {name: value for name, value in self.get_params().items() if name in shared}
        if settings["init_params"] in ("auto", "subsample"):  # our own ways to start
            settings["init_params"] = shared["init_params"]
        settings["n_components"] = last.mixture.n_components
        settings["covariance_type"] = type(last.mixture.covariance).name
        theirs.set_params(**settings)
        fitted = (
            "weights_ means_ covariances_ precisions_ precisions_cholesky_ "
            "converged_ n_iter_ lower_bound_ lower_bounds_ n_features_in_"
        )
        for name in fitted.split():
            setattr(theirs, name, copy.copy(getattr(self, name)))
        if last.feature_names is not None:
            theirs.feature_names_in_ = last.feature_names
        return theirs
