"""MiniBatchGaussianMixture: online EM with scikit-learn's interface."""

from __future__ import annotations

import os
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from dask.utils import parse_bytes
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names

from daskgmm._typing import Array
from daskgmm.compute.engine import Engine, engine_for
from daskgmm.compute.rows import Rows, as_rows, feature_names
from daskgmm.compute.window import Selection, finer
from daskgmm.estimators.base import Fitted
from daskgmm.estimators.fitting import INIT_PARAMS, Fitting
from daskgmm.estimators.parameters import check_mixture, read_start
from daskgmm.fit.checkpoint import Keeper
from daskgmm.fit.learning import Learner, Learning
from daskgmm.fit.online import BEGINNING, step
from daskgmm.fit.progress import Progress
from daskgmm.fit.seeding import sample_size
from daskgmm.fit.start import Head, HeadOf, Waiting, check_size, survey_of
from daskgmm.fit.stepwise import StepRule, Stepwise
from daskgmm.model.covariance import STRUCTURES

ROWS_PER_COMPONENT = 50  # kept to seed a stream
WINDOW_BLOCKS = 4  # blocks of full size that are in memory at once


class MiniBatchGaussianMixture(Fitting):
    """Gaussian mixture that learns from mini-batches: in one pass over stored rows, or from a stream.

    Stepwise EM: the E-step of each batch moves the statistics, s ← (1 − γ)·s + γ·batch, and the parameters follow
    from s (Cappé & Moulines 2009; Liang & Klein 2009). Every query of `GaussianMixture` is here, too.

    Parameters
    ----------
    n_components : int
        Number of components, k.
    covariance_type : {"full", "tied", "diag", "spherical"}
    batch_size : int or None
        The unit of step sizes, in rows, and the rows of a mini-batch of ``fit``, at least: they grow to 1/20 of
        the rows seen. None takes 2·k·(d + 1). `partial_fit` takes batches of any size.
    learning_decay : float
        κ in (0.5, 1]: how fast steps fall, for rows that all come from one distribution.
    learning_offset : float
        At least 1: makes early steps smaller.
    half_life : float or None
        Rows after which a row counts half, for streams that drift: the steps stay as large as they are, and
        ``learning_decay`` has no meaning.
    init_size : int or None
        Rows that the start is found on. None takes 50·k, the first, for `partial_fit`, and a sample of 20,000
        rows or 20·k·(d + 1), if that is more, for `fit`. A start given in full counts as that many rows.
    max_iter : int
        Passes of `fit` over the rows, after the one that draws the sample.
    tol : float
        With ``max_iter`` > 1, a tenth of the sample is held out: neither the start nor the passes see those
        rows, and a pass that raises their mean log-likelihood by less is the last.
    reg_covar : float
        Added to the diagonal of every covariance.
    init_params : {"auto", "kmeans", "k-means++", "random", "random_from_data", "subsample"}
        How to start on the sample, before EM on it. "auto" and "subsample" try k-means++ five times with short EM
        runs.
    weights_init : (k,), means_init : (k, d), precisions_init : as ``covariances_``
        Parts of the start.
    random_state : int, RandomState or None
    warm_start : bool
        `fit` goes on from the last fit, without a sample; its statistics count as before.
    block_size : int or str
        Bytes per block, at most (a larger stored chunk stays whole). Dask arrays keep their own row chunks.
        `fit` holds some blocks in memory at once, four times these bytes in all, and up to three times as much of
        what is just being read and shuffled.
    nan_policy : {"raise", "omit"}
        "omit" leaves rows with NaN out.
    missing_chunks : {"raise", "fill"}
        What to do where a Zarr store lacks a chunk; Zarr itself reads it as the fill value, silently.
    checkpoint : path or fsspec URL, or None
        File that holds where `fit` stands, as that of `GaussianMixture`: after the survey, the seeding and every
        pass, and in mid-pass every 60 s (``daskgmm.checkpoint-interval`` in Dask's configuration). `partial_fit`
        writes none: `save` the model instead, which then goes on with the next batch.
    verbose, verbose_interval : int
        Print a line every ``verbose_interval`` passes.

    Attributes
    ----------
    weights_ : (k,)
    means_ : (k, d)
    covariances_, precisions_, precisions_cholesky_ : full (k, d, d), tied (d, d), diag (k, d), spherical (k,)
    n_samples_seen_ : int
        Rows of positive weight learnt from, once for each pass.
    n_batches_seen_ : int
        Batches learnt from: calls of `partial_fit`, and mini-batches of `fit`.
    effective_sample_size_ : float
        1 / Σ a², with a the weight of each row in the statistics of total weight 1; of each visit, where rows are
        visited more than once.
    converged_ : bool
        Whether `fit` stopped before ``max_iter`` passes.
    n_iter_ : int
        Passes of the last `fit`.
    lower_bound_ : float
        Mean log-likelihood of the last batch (in `fit`: of the last pass) under the parameters before it was
        learnt.
    lower_bounds_ : list of float
        The same for each pass of `fit`.
    n_passes_ : int
        How often `fit` read the rows, the survey included.
    n_features_in_ : int
    feature_names_in_ : (d,) of str

    Notes
    -----
    **Step sizes** count rows, so that ten batches of 10 rows and one of 100 move the statistics alike; a row of
    twice the weight that the first rows have on average counts as two (of twice the weight 1, where the start was
    given). With t = (rows before) / ``batch_size``, b rows
    get γ = 1 − (1 − (t + ``learning_offset``)^−κ)^(b / ``batch_size``), or γ = 1 − 2^(−b / ``half_life``), and
    never less than in a plain average over the effective rows before.

    *Bias.* The start, and whatever was learnt with poor parameters, fades from the statistics as Π(1 − γ): as
    exp(−t^(1−κ) / (1 − κ)), for κ = 1 as 1 / t, and with a half-life as 2^(−rows / ``half_life``); from the
    average of falling steps (below) as 1 / t²; more slowly where components overlap, as EM itself does. A jump of
    a mean by δ leaves, h half-lives later, a difference of δ·2^−h, and a covariance that is too large by
    δδᵀ·2^−h·(1 − 2^−h).

    *Noise.* Statistics of steps γ over batches of b rows are as uncertain as those of b·(2 − γ)/γ rows: with p
    free parameters, the mean log-likelihood of new rows lies p·γ / (2·b·(2 − γ)) below its best. With a half-
    life that is the floor, p·ln 2 / (4·``half_life``) for small steps. With falling steps the statistics, never
    the parameters, are averaged in addition, each with a weight that grows with the rows before it, so that the
    last half has 75 % of it and the first tenth 1 % (Polyak & Juditsky 1992; Lacoste-Julien, Schmidt & Bach
    2012): where components are apart, the gap falls to 4/3 of p / (2n), that of maximum likelihood on n rows.

    **What keeps it sound.** Each component's covariance is that of its rows and d + 1 more, spread as all rows are
    about their own means, or where the start was given, as it has it: a prior that vanishes as the effective rows
    grow (Fraley & Raftery 2007). A component of less than one effective row, and of less than a tenth of an equal
    share, is dead: it takes half of the heaviest component, their means part by one standard deviation along the
    feature that varies most there, and a warning names it. A batch of zero weight moves nothing but counters. A
    batch that is refused leaves the model exactly as it was.

    **Order.** `fit` visits blocks in a random order that is even over the data, several at a time, and draws each
    mini-batch from all of those, so rows may be stored sorted. `partial_fit` learns in the order it is given.

    The start of a stream is found on 50·k rows; where that is poor, a larger ``init_size`` helps.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import MiniBatchGaussianMixture
    >>> random = np.random.default_rng(0)
    >>> model = MiniBatchGaussianMixture(2, random_state=0)
    >>> for _ in range(20):
    ...     model = model.partial_fit(random.normal(size=(50, 1)) + random.choice([1, 9], size=(50, 1)))
    >>> sorted(model.means_[:, 0].round())
    [np.float64(1.0), np.float64(9.0)]
    >>> model.n_samples_seen_, model.n_batches_seen_
    (1000, 20)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "covariance_type": [StrOptions(set(STRUCTURES))],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "learning_decay": [Interval(Real, 0.5, 1.0, closed="right")],
        "learning_offset": [Interval(Real, 1.0, None, closed="left")],
        "half_life": [Interval(Real, 0.0, None, closed="neither"), None],
        "init_size": [Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0.0, None, closed="left")],
        "reg_covar": [Interval(Real, 0.0, None, closed="left")],
        "init_params": [StrOptions(INIT_PARAMS)],
        "weights_init": ["array-like", None],
        "means_init": ["array-like", None],
        "precisions_init": ["array-like", None],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
        "block_size": [Interval(Integral, 1, None, closed="left"), str],
        "nan_policy": [StrOptions({"raise", "omit"})],
        "missing_chunks": [StrOptions({"raise", "fill"})],
        "checkpoint": [str, os.PathLike, None],
        "verbose": ["verbose"],
        "verbose_interval": [Interval(Integral, 1, None, closed="left")],
    }

    _waiting: Waiting | None = None

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        batch_size: int | None = None,
        learning_decay: float = 0.6,
        learning_offset: float = 2.0,
        half_life: float | None = None,
        init_size: int | None = None,
        max_iter: int = 1,
        tol: float = 1e-4,
        reg_covar: float = 1e-6,
        init_params: str = "auto",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        block_size: int | str = "64 MiB",
        nan_policy: str = "raise",
        missing_chunks: str = "raise",
        checkpoint: Any = None,
        verbose: int = 0,
        verbose_interval: int = 1,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.batch_size = batch_size
        self.learning_decay = learning_decay
        self.learning_offset = learning_offset
        self.half_life = half_life
        self.init_size = init_size
        self.max_iter = max_iter
        self.tol = tol
        self.reg_covar = reg_covar
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.block_size = block_size
        self.nan_policy = nan_policy
        self.missing_chunks = missing_chunks
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def _run(self, attribute: str) -> Stepwise:
        run = self._result(attribute).online
        assert run is not None
        return run

    @property
    def _unseeded(self) -> Waiting | None:
        """The rows that wait for the start, if the model has none yet: an interrupt may leave both."""
        return None if "_fitted" in vars(self) else self._waiting

    @property
    def n_samples_seen_(self) -> int:
        """Rows of positive weight learnt from, once for each pass; those waiting for the start included."""
        waiting = self._unseeded
        return len(waiting.x) if waiting is not None else self._run("n_samples_seen_").n_rows

    @property
    def n_batches_seen_(self) -> int:
        """Batches learnt from, or waiting for the start."""
        waiting = self._unseeded
        return waiting.n_batches if waiting is not None else self._run("n_batches_seen_").n_batches

    @property
    def effective_sample_size_(self) -> float:
        """Effective number of rows in the statistics."""
        return self._run("effective_sample_size_").effective_rows

    @property
    def n_features_in_(self) -> int:
        """Number of features, known from the first batch on."""
        waiting = self._unseeded
        return super().n_features_in_ if waiting is None else int(waiting.x.shape[1])

    @property
    def feature_names_in_(self) -> Array:
        """Column names, from the first batch on; only there for data frames whose names are all strings."""
        waiting = self._unseeded
        if waiting is None or waiting.feature_names is None:
            return super().feature_names_in_
        return waiting.feature_names

    @property
    def _rows_of_start(self) -> int:
        """How many first rows of a stream seed the model."""
        return int(max(self.n_components, self.init_size or ROWS_PER_COMPONENT * self.n_components))

    def _check_fitted(self) -> None:
        if (waiting := self._unseeded) is not None:
            raise NotFittedError(
                f"{len(waiting.x)} of the first {self._rows_of_start} rows have come, which seed the model "
                "(init_size): give partial_fit more."
            )
        super()._check_fitted()

    def _state(self) -> Fitted | Waiting:
        return self._unseeded or super()._state()

    def _go_on(self, state: Fitted | Waiting) -> None:
        if isinstance(state, Waiting):
            self._waiting = state
        else:
            super()._go_on(state)

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from stored rows: one pass that draws the sample of the start, then ``max_iter`` passes or fewer.

        Parameters
        ----------
        X : (n, d)
            Rows, of any kind that `GaussianMixture` reads.
        y : ignored
        sample_weight : (n,), optional
            Weights >= 0; a row of weight 2 counts as two rows.

        Returns
        -------
        self

        Raises
        ------
        DataError
            A ``ValueError`` that names the block: NaN or infinity, bad weights, fewer rows than components,
            missing chunks. The estimator stays as it was.
        CheckpointError
            A `DataError`: the checkpoint is of another fit, damaged, or in use.
        FileNotFoundError
            If a path holds no Zarr array, or the checkpoint's folder does not exist.
        KeyboardInterrupt
            After what was learnt so far has become the fitted attributes.

        Warns
        -----
        UserWarning
            If a component died and was placed anew.
        """
        return self._fit(X, sample_weight, self._watcher())

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from one batch; the first ``init_size`` rows are kept until they can seed the model.

        Rows are learnt in the order in which they come: shuffle what is sorted, or `fit` it. Before the seeding,
        queries raise ``NotFittedError``. One thread at a time may learn; others may predict meanwhile, and see the
        model before the batch, or after it. No ``checkpoint`` is written: `save` is that, and what is loaded goes
        on with the next batch, bit for bit.

        Parameters
        ----------
        X : (b, d)
            Rows, of any number and kind that `fit` reads; chunked rows are one batch, too.
        y : ignored
        sample_weight : (b,), optional
            Weights >= 0; a row of weight 2 counts as two rows.

        Returns
        -------
        self

        Raises
        ------
        DataError
            As in `fit`. The model stays exactly as it was before the batch.
        CollapseError
            A `DataError`: with ``reg_covar=0``, the first rows span no covariance that is positive definite.

        Warns
        -----
        UserWarning
            If a component died and was placed anew.
        """
        self._validate_params()
        fitted, waiting = vars(self).get("_fitted"), self._waiting
        names = feature_names(X)
        if fitted is not None or waiting is not None:
            _check_feature_names(self, getattr(X, "_meta", X), reset=False)
        rows = self._rows(X, sample_weight)
        self._check_width(rows)
        engine = engine_for(rows)
        if fitted is None:
            after = self._wait(engine, rows, names)
            if isinstance(after, Waiting):
                self._waiting = after
                return self
        else:
            run = step(engine, rows, self._resumed(rows), self._learner(rows.n_features).rule, rows)
            seen = fitted.next_row + (rows.n_rows or 0)
            after = replace(
                fitted, mixture=run.published, online=run, lower_bound=run.bound, converged=False, next_row=seen
            )
        self._fitted = after
        self._waiting = None
        return self

    def _window_rows(self, X: Any, sample_weight: Any) -> Rows:
        """Rows in blocks of which many fit in a window."""
        return finer(self._rows(X, sample_weight), self._window_bytes)

    @property
    def _window_bytes(self) -> int:
        """Of rows that are in memory at once."""
        return int(WINDOW_BLOCKS * parse_bytes(self.block_size))

    def _learner(self, d: int) -> Learner:
        """The settings, for rows of d features."""
        size = self.batch_size or 2 * self.n_components * (d + 1)
        return Learner(
            STRUCTURES[self.covariance_type],
            self.n_components,
            self.init_params,
            read_start(self, d),
            self.init_size,
            StepRule(size, self.learning_decay, self.learning_offset, self.half_life),
            self.reg_covar,
            self.max_iter,
            self.tol,
            self._window_bytes,
        )

    def _resumed(self, rows: Rows) -> Stepwise:
        """The last run, to go on from."""
        self._check_shape(rows, "To go on")
        return replace(self._run("means_"), reg_covar=self.reg_covar)

    def _wait(self, engine: Engine, rows: Rows, names: Array | None) -> Fitted | Waiting:
        """Keep rows of a stream; seed the model once there are enough, and learn from the rest of the batch."""
        learner, k = self._learner(rows.n_features), self.n_components
        waiting = self._waiting or Waiting(np.empty((0, rows.n_features)), np.empty(0), names)
        if (run := learner.given(ROWS_PER_COMPONENT * k)) is not None:
            if len(waiting.x):  # the start was given since they came
                first = as_rows(waiting.x, waiting.weight)
                run = step(engine_for(first), first, run, learner.rule, first)
            seen = waiting.next_row + (rows.n_rows or 0)
            return _streamed(step(engine, rows, run, learner.rule, rows), waiting.feature_names, seen)
        size = self._rows_of_start
        head: Head = engine.reduce(rows, HeadOf(max(0, size - len(waiting.x))))
        check_size(head.x)
        waiting = waiting.with_batch(head.x, head.weight, rows.n_rows or 0)
        if len(waiting.x) < size:
            return waiting
        weight = None if (waiting.weight == 1).all() else waiting.weight
        survey = survey_of(waiting.x, weight, learner.structure, k)
        run = learner.begin(survey, check_random_state(self.random_state))
        run = replace(run, n_rows=len(waiting.x), n_batches=waiting.n_batches - 1)
        last: tuple[int, int] = tuple(head.places[-1].tolist()) if len(head.places) else BEGINNING
        run = step(engine, rows, run, learner.rule, rows, last)
        return _streamed(run, waiting.feature_names, waiting.next_row)

    def _fit(self, X: Any, sample_weight: Any, progress: Progress) -> Self:
        """`fit`, watched by ``progress``. Nothing of the estimator changes before the last lines."""
        self._validate_params()
        names = feature_names(X)
        rows = self._window_rows(X, sample_weight)
        learner, engine = self._learner(rows.n_features), engine_for(rows)
        count = sample_size(self.n_components, rows.n_features)
        run = self._resumed(rows) if self._resumes else learner.given(min(count, rows.n_rows or count))
        random = check_random_state(self.random_state)
        with self._keeping(engine, rows, names, progress, window_bytes=learner.window_bytes) as keeper:
            state = keeper.state or keeper.keep(Learning(random.get_state(legacy=False), run=run))
            state = learner.fit(engine, rows, state, keeper, random, progress)
        self._take(state, rows, names)
        return self

    def _stopped(self, state: Learning, rows: Rows, names: Array | None) -> None:
        if state.learnt:
            self._take(state, rows, names)

    def _take(self, state: Learning, rows: Rows, names: Array | None) -> None:
        """What was learnt becomes the fitted attributes; all rows count as learnt, as none is known not to be."""
        run, told = state.run, state.passes
        assert run is not None
        assert told is not None
        self._fitted = Fitted(
            run.published,
            told.n_iter,
            told.converged,
            told.lower_bound if told.trace else run.bound,  # interrupted in the first pass
            told.trace,
            state.n_passes,
            names,
            run,
            rows.n_rows or 0,
        )
        self._waiting = None

    def _extend(self, X: Any, sample_weight: Any, first: int, last: int, progress: Progress) -> Self:
        """Learn from stored rows ``first`` to ``last``, each once, in the mini-batches of `fit`.

        Those that weigh nothing count as learnt, too.
        """
        self._validate_params()
        rows = self._window_rows(X, sample_weight)
        self._check_width(rows)
        random = check_random_state(self.random_state)
        learner = replace(self._learner(rows.n_features), max_iter=1)
        state = Learning(random.get_state(legacy=False), run=self._resumed(rows))
        span = Selection(first, last)
        state = learner.visit(engine_for(rows), rows, state, Keeper(), random, progress, span)
        run, told = state.run, state.passes
        assert run is not None
        assert told is not None
        last_fit = replace(self._fitted, mixture=run.published, online=run, next_row=last, converged=False)
        bound = told.lower_bound if np.isfinite(told.lower_bound) else last_fit.lower_bound
        self._fitted = replace(last_fit, lower_bound=bound)
        return self

    @classmethod
    def from_parameters(cls, weights: Any, means: Any, covariances: Any, covariance_type: str = "full") -> Self:
        """A fitted estimator with these parameters, such as those of a `GaussianMixture`, to go on from.

        They count as the 50·k rows that a stream begins with: `partial_fit` moves them from there, and `fit` with
        ``warm_start=True``.

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
        run = Stepwise.implied(mixture, ROWS_PER_COMPONENT * mixture.n_components, 0.0)
        model._fitted = Fitted(mixture, 0, False, -np.inf, (), 0, online=run)
        return model


def _streamed(run: Stepwise, names: Array | None, next_row: int) -> Fitted:
    """What a stream leaves behind."""
    return Fitted(run.published, 0, False, run.bound, (), 0, names, run, next_row)
