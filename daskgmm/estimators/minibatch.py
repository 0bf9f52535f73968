"""MiniBatchGaussianMixture: online EM with scikit-learn's interface."""

import os
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from typing import Any, Self

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions

from daskgmm._typing import InitParams
from daskgmm.compute.rows import Rows, bytes_of
from daskgmm.compute.window import Selection, finer
from daskgmm.errors import DataError
from daskgmm.estimators.alone import one_at_a_time
from daskgmm.estimators.checks import next_rows
from daskgmm.estimators.fitted import Attribute, Fitted, StreamAttribute, Unseeded, names_of
from daskgmm.estimators.fitting import Fitting
from daskgmm.estimators.parameters import (
    INIT_PARAMS,
    SMALL,
    Beforehand,
    at_least,
    estimator,
    like,
    parameter,
    real,
)
from daskgmm.fit.online import Passes, online
from daskgmm.fit.recent import ROWS_PER_COMPONENT
from daskgmm.fit.recipe import OnlineRecipe, Recipe, sample_size
from daskgmm.fit.run import Run
from daskgmm.fit.state import State
from daskgmm.fit.stepwise import StepRule, Stepwise, Watch
from daskgmm.fit.stream import Waiting, given, learn, resumable, resumed, start_rows
from daskgmm.model.mixture import Mixture

WINDOW_BLOCKS = 4  # blocks of full size that are in memory at once


@estimator
@dataclass(eq=False, repr=False, kw_only=True)
class MiniBatchGaussianMixture(Fitting):
    """Gaussian mixture that learns from mini-batches: in one pass over stored rows, or from a stream.

    Stepwise EM: the E-step of each batch moves the statistics, s ← (1 − γ)·s + γ·batch, and the parameters follow
    from s (Cappé & Moulines 2009; Liang & Klein 2009). Every query of `GaussianMixture` is here, too.

    {parameters}

    {attributes}

    Notes
    -----
    **Step sizes** count rows, so that ten batches of 10 rows and one of 100 move the statistics alike; a row of
    weight 2 counts as two. Where the first rows weigh less than 1 on average, that weight counts as one row. With
    t = (rows before) / ``batch_size``, b rows get γ = 1 − (1 − (t + ``learning_offset``)^−κ)^(b / ``batch_size``),
    or γ = 1 − 2^(−b / ``half_life``), and never less than in a plain average over the effective rows before.

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

    **What keeps it sound.** A component of fewer than 2·(d + 1) effective rows is filled up with rows spread as at
    its start: a prior that is gone once rows suffice (Fraley & Raftery 2007), so tight components stay tight.

    **Placing anew.** A component without rows stays until it does more good elsewhere. A sample of 50·k rows (16
    MiB at most), weighed as in the published statistics (Cormode et al. 2009), is looked at after as many rows,
    and 1/4 more than before or a ``half_life``. The two components whose merger costs least become one: ½·((w +
    v)·log det P − w·log det A − v·log det B) nats a row, with P of both (Runnalls 2007). Copies cost nothing,
    nor does one of less than one effective row in all. The spared one takes part of another, the best of eight
    splits around rows of low log-likelihood, by EM of the parts alone (Ueda et al. 2000). It stays, and a
    warning names it, if the half of the sample that had no say gains more, two standard errors at least.

    **Noise.** The start has the errors of its rows in it, which fade with it. No row is held out: all ``max_iter``
    passes are made. With noise, labels or a prior of each one's place, no component is placed anew.
    **Order.** `fit` visits blocks in a random order that is even over the data, several at a time, and draws each
    mini-batch from all of those, so rows may be stored sorted. `partial_fit` learns in the order it is given.

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

    batch_size: int | None = parameter(
        None,
        [at_least(1), None],
        """The unit of step sizes, in rows, and the rows of a mini-batch of ``fit``, at least: they grow to 1/20 of
        the rows seen. None takes 2·k·(d + 1). `partial_fit` takes batches of any size.""",
    )
    learning_decay: float = parameter(
        0.6,
        [real(0.5, 1.0, "right")],
        "How fast steps fall, κ in (0.5, 1], for rows that all come from one distribution.",
    )
    learning_offset: float = parameter(2.0, [real(1.0)], "Makes early steps smaller; at least 1.")
    half_life: float | None = parameter(
        None,
        [real(0.0, closed="neither"), None],
        """Rows after which a row counts half, for streams that drift: the steps stay as large as they are, and
        ``learning_decay`` has no meaning.""",
    )
    init_size: int | None = parameter(
        None,
        [at_least(1), None],
        """Rows that the start is found on, whatever they weigh. None takes the first 50·k for `partial_fit`, and a
        sample of 20,000 for `fit`, or of 20·k·(d + 1) if that is more. One given in full counts as that many.""",
    )
    max_iter: int = parameter(
        1, [at_least(1)], "Passes of `fit` over the rows, at most, after the one that draws the sample."
    )
    tol: float = parameter(
        1e-4,
        [real(0)],
        """With ``max_iter`` > 1, a pass that raises the mean log-likelihood of held-out rows by less is the last.
        A tenth of the sample is held out: neither the start nor the passes see those rows.""",
    )
    init_params: InitParams = parameter(
        "auto",
        [StrOptions(INIT_PARAMS)],
        'How to start on the sample, before EM on it; "auto" and "subsample" with moves, as in `GaussianMixture`.',
    )
    n_factors: int | None = like(Beforehand, "n_factors")
    prior: Any = like(Beforehand, "prior")
    frozen: Any = like(Beforehand, "frozen")
    background: bool = like(Beforehand, "background")
    warm_start: bool = parameter(
        False,
        ["boolean"],
        "Whether `fit` goes on from the last fit, without a sample; its statistics count as before.",
    )
    block_size: int | str = parameter(
        "64 MiB",
        [at_least(1), str],
        """Bytes per block, at most (a larger stored chunk stays whole). Dask arrays keep their own row chunks.
        `fit` holds some blocks in memory at once, four times these bytes in all, and up to three times as much of
        what is just being read and shuffled.""",
    )
    checkpoint: Any = parameter(
        None,
        [str, os.PathLike, None],
        """Path or fsspec URL of a file that holds where the fit stands after every pass. It is as that of
        `GaussianMixture`, but written in mid-pass, too, every 60 s (``daskgmm.checkpoint-interval`` in Dask's
        configuration). `partial_fit` writes none: `save` the model instead, which then goes on with the next
        batch.""",
    )
    verbose_interval: int = parameter(1, [at_least(1)], "Passes for each line that is printed.")

    converged_ = Attribute(
        lambda f: f.converged,
        "Whether the last pass of `fit` raised the score of held-out rows by less than ``tol``.",
    )
    n_iter_ = Attribute(lambda f: f.n_iter, "Passes of the last `fit`.")
    lower_bound_ = Attribute(
        lambda f: f.lower_bound, "Mean log-likelihood of the last batch (in `fit`: pass), before it was learnt."
    )
    lower_bounds_ = Attribute(lambda f: list(f.lower_bounds), "The same for each pass of `fit`.")
    n_passes_ = Attribute(lambda f: f.n_passes, "How often `fit` read the rows, the survey included.")
    online_ = Attribute(lambda f: _online(f), "The online fit as one immutable value: statistics and counts.")
    effective_sample_size_ = Attribute(
        lambda f: _online(f).effective_rows,
        """1 / Σ a², with a the weight of each row, at each visit, in statistics of total weight 1: as many rows
        of equal weight would be as uncertain. They are fewer than were learnt, as later ones weigh more. They are
        more where rows weigh more than 1, or were met several times and count as new ones each time (those of the
        start of `fit` are met in its first pass again).""",
    )
    moving_log_likelihood_ = Attribute(
        lambda f: (_online(f).watch or Watch(nan)).mean,
        "Mean log-likelihood of a row over the batches of late, each before it was learnt; NaN before the first.",
    )
    drift_ = Attribute(
        lambda f: (_online(f).watch or Watch(nan)).drift,
        """By how many standard errors, as batches scatter, the last one was less likely than those before it:
        within ±3 or so, and more where rows have become others. NaN for the first ten.""",
    )
    next_row_ = StreamAttribute(
        lambda f: f.next_row,
        lambda unseeded: unseeded.next_row,
        "How many rows of a store were learnt, wait, or were passed over: the number of the next.",
    )
    n_samples_seen_ = StreamAttribute(
        lambda f: int(_online(f).n_rows),
        lambda unseeded: len(unseeded.waiting.x),
        "Rows of positive weight learnt from, once for each pass; those waiting for the start included.",
    )
    n_batches_seen_ = StreamAttribute(
        lambda f: _online(f).n_batches,
        lambda unseeded: unseeded.waiting.n_batches,
        "Batches learnt from, or waiting for the start: calls of `partial_fit`, and mini-batches of `fit`.",
    )
    n_features_in_ = StreamAttribute(
        lambda f: f.mixture.n_features,
        lambda unseeded: int(unseeded.waiting.x.shape[1]),
        "Number of features, known from the first batch on.",
    )
    feature_names_in_ = StreamAttribute(
        names_of, names_of, "Names of the features, from the first batch on, where all are strings."
    )

    _algorithm = staticmethod(online)

    def _stored(self, X: Any, last: Fitted | None = None, **columns: Any) -> Rows:
        """In blocks of which many fit in a window."""
        return finer(self._rows(X, **columns), WINDOW_BLOCKS * bytes_of(self.block_size))

    def _recipe(self, d: int, kind: type[Recipe] = OnlineRecipe, **more: Any) -> Any:
        size = self.batch_size or 2 * self.n_components * (d + 1)
        rule = StepRule(size, self.learning_decay, self.learning_offset, self.half_life)
        window = WINDOW_BLOCKS * bytes_of(self.block_size)
        return super()._recipe(d, kind, rule=rule, window_bytes=window, **more)

    def _begun(self, rows: Rows, recipe: OnlineRecipe, last: Fitted | None) -> tuple[Run, ...]:
        if self.warm_start and last is None and "_unseeded" in vars(self):
            raise DataError(
                f"{self.n_samples_seen_} rows wait for the start of the model, and fit would drop them. "
                "partial_fit or extend goes on with them; warm_start=False begins anew."
            )
        count = sample_size(self.n_components, rows.n_features)
        run = self._resumed(rows, recipe) if last else given(recipe, min(count, rows.n_rows or count))
        return () if run is None else (Passes.begin(run, recipe),)

    def _found(self, state: State, rows: Rows) -> Fitted:
        (passes,) = state.runs
        assert isinstance(passes, Passes)
        # In the middle of the first pass nobody knows which rows were learnt: none counts as such.
        told = {"online": passes.run, "next_row": (rows.n_rows or 0) if passes.trace else 0}
        return Fitted.of(passes, state.n_passes, rows, **told)

    def _identity(self, last: Fitted | None) -> dict[str, Any]:
        told = {**super()._identity(last), "block_size": bytes_of(self.block_size)}
        if last is None and self.max_iter > 1 and any(told[name] is None for name in SMALL):
            told["held out"] = "a tenth of the sample"  # neither the start nor the passes see it
        return told

    @one_at_a_time
    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, noise: Any = None, known: Any = None
    ) -> Self:
        """Learn from one batch; the first ``init_size`` rows are kept until they can seed the model.

        Rows are learnt in the order in which they come: shuffle what is sorted, or `fit` it. Before the seeding,
        queries raise ``NotFittedError``. Threads learn one after the other; others may predict meanwhile, and see
        the model before the batch, or after it. No ``checkpoint`` is written: `save` is that, and what is loaded
        goes on with the next batch, bit for bit.

        Parameters
        ----------
        X : (b, d)
            Rows, of any number and kind that `fit` reads; chunked rows are one batch, too.
        y : ignored
        sample_weight, noise, known : optional
            As in `fit`. The first rows seed the model as they are, with their errors in them.

        Returns
        -------
        self

        Raises
        ------
        DataError
            As in `fit`. The model stays exactly as it was before the batch.

        Warns
        -----
        UserWarning
            If a component was placed anew, or its covariance is singular and stays as it was.
        """
        self._validate_params()
        fitted, unseeded = vars(self).get("_fitted"), vars(self).get("_unseeded")
        rows = self._rows(X, weight=sample_weight, noise=noise, known=known, few_rows=True)
        self._check_features(rows)
        recipe = self._recipe(rows.n_features)
        random = check_random_state(self.random_state)
        if fitted is None:
            names = None if rows.feature_names is None else tuple(rows.feature_names)
            before = unseeded or Unseeded(Waiting.for_rows(rows), names)
            after = learn(recipe, rows, before.waiting, random)
            seen = before.next_row + (rows.n_rows or 0)
            if isinstance(after, Waiting):
                self._unseeded = replace(before, waiting=after, next_row=seen)
                return self
            fitted = Fitted(after.published, feature_names=before.feature_names, next_row=before.next_row)
        else:
            after = learn(recipe, rows, self._resumed(rows, recipe), random)
        assert isinstance(after, Stepwise)
        row = fitted.next_row + (rows.n_rows or 0)
        told: dict[str, Any] = {"online": after, "lower_bound": after.bound, "converged": False, "next_row": row}
        self._fitted = fitted.after(rows, mixture=after.published, **told)
        self.__dict__.pop("_unseeded", None)
        return self

    @one_at_a_time
    def extend(
        self, X: Any, sample_weight: Any = None, rows: slice = slice(None), *, noise: Any = None, known: Any = None
    ) -> Self:
        """Learn from rows that were added to a store, each once, in the mini-batches of `fit`.

        Parameters
        ----------
        X : (n, d)
            All rows, those before included. The next join those that wait for the start of the model.
        sample_weight, noise, known : optional
            As in `fit`.
        rows : slice
            Numbers of the rows to learn from, not below ``next_row_``, which is the start where none is given.
            Rows before them, and rows that weigh nothing, count as learnt, too.

        Returns
        -------
        self

        Raises
        ------
        DataError
            As in `fit`; where rows would be learnt twice, or their number is unknown. The model stays.
        """
        self._validate_params()
        if "_unseeded" not in vars(self):
            self._check_fitted()
        held = self._stored(X, weight=sample_weight, noise=noise, known=known)
        self._check_features(held)
        recipe, learnt = replace(self._recipe(held.n_features), max_iter=1), self.next_row_
        first, last = next_rows(rows, learnt, held.n_rows)
        if "_fitted" in vars(self):
            before, run = self._fitted, self._resumed(held, recipe)
        else:
            random = check_random_state(self.random_state)
            started = resumable(recipe, held, self._unseeded.waiting, Selection(first, last), random)
            if isinstance(started, Waiting):
                self._unseeded = replace(self._unseeded, waiting=started, next_row=last)
                return self
            first, run = started
            before = Fitted(run.published, lower_bound=run.bound, feature_names=self._unseeded.feature_names)
        begun = (Passes.begin(run, recipe),)
        (passes,) = self._follow(X, held, partial(online, recipe, span=Selection(first, last)), begun).runs
        assert isinstance(passes, Passes)
        bound = passes.lower_bound if np.isfinite(passes.lower_bound) else before.lower_bound
        told: dict[str, Any] = {"online": passes.run, "next_row": last, "lower_bound": bound, "converged": False}
        self._fitted = before.after(held, mixture=passes.mixture, **told)
        self.__dict__.pop("_unseeded", None)
        return self

    @property
    def n_rows_to_start_(self) -> int:
        """First rows of positive weight that a stream needs before there is a model; 0 once there is one."""
        if "_fitted" in vars(self):
            return 0
        return max(0, start_rows(self._recipe(self.n_features_in_)) - self.n_samples_seen_)

    def _check_fitted(self) -> None:
        if "_fitted" not in vars(self) and "_unseeded" in vars(self):
            come, missing = self.n_samples_seen_, self.n_rows_to_start_
            raise NotFittedError(
                f"{come} of the first {come + missing} rows have come, which seed the model (init_size): give "
                "partial_fit or extend more."
            )
        super()._check_fitted()

    def _state(self) -> Any:
        state = vars(self)
        return state["_unseeded"] if "_unseeded" in state and "_fitted" not in state else super()._state()

    def _resumed(self, rows: Rows, recipe: OnlineRecipe) -> Stepwise:
        """The last run, to go on from with these settings."""
        self._check_shape(rows, "To go on")
        return resumed(recipe, _online(self._fitted))

    def _from_mixture(self, mixture: Mixture, names: tuple[str, ...] | None) -> Fitted:
        rule = self._recipe(mixture.n_features).rule
        run = Stepwise.implied(mixture, ROWS_PER_COMPONENT * mixture.n_components, 0.0, rule)
        return Fitted(mixture, feature_names=names, online=run)


def _online(fitted: Fitted) -> Stepwise:
    """The online fit behind a model."""
    assert fitted.online is not None
    return fitted.online
