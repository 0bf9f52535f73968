"""What every fitted mixture answers, whichever way it learned: attributes, queries and scores."""

from dataclasses import replace
from html import escape
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from daskgmm._typing import Array, Data
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.errors import DataError, warn
from daskgmm.estimators.answers import SKETCH_ROWS, drawn, in_kind
from daskgmm.estimators.checks import check_decoding, check_names, label_type, share_type
from daskgmm.estimators.fitted import Attribute, Fitted, Unseeded, loadings, names_of, shown
from daskgmm.estimators.parameters import Parameters
from daskgmm.estimators.scikit import Scikit, query
from daskgmm.estimators.summary import Summary
from daskgmm.fit.accounting import Meter
from daskgmm.fit.events import teller
from daskgmm.fit.score import Score, unfit
from daskgmm.fit.tasks import Query, Rate


class _Html(str):
    """HTML as scikit-learn asks for it."""

    def _repr_html_inner(self) -> str:
        return str(self)


class BaseMixture(Parameters, Scikit):
    """Attributes, queries and scores of a fitted mixture."""

    _fitted: Fitted  # both are there only once they have a value
    _unseeded: Unseeded

    weights_ = Attribute(lambda f: f.mixture.weights, "Mixing proportions, (k,).")
    background_weight_ = Attribute(
        lambda f: f.mixture.background_weight,
        "Proportion of the background, which ``weights_`` leave of 1; 0 where there is none.",
    )
    means_ = Attribute(lambda f: f.mixture.means, "Component means, (k, d).")
    covariances_ = Attribute(
        lambda f: shown(f, f.mixture.covariance.values),
        """Covariances: full (k, d, d), tied (d, d), diag (k, d), spherical (k,), tied_diag (d,), tied_spherical
        (1,); of other types (k, d) along the features, else (k, d, d).""",
    )
    precisions_ = Attribute(
        lambda f: shown(f, f.mixture.covariance.precisions),
        "Inverse covariances, in the shape of ``covariances_``.",
    )
    precisions_cholesky_ = Attribute(
        lambda f: shown(f, f.mixture.covariance.factor),
        "Upper Cholesky factors of the precisions, in the shape of ``covariances_``.",
    )
    loadings_ = Attribute(
        lambda f: loadings(f).loadings,
        'Of ``covariance_type="factors"``: loadings of the factors, (k, d, n_factors).',
    )
    noise_variances_ = Attribute(
        lambda f: loadings(f).noise, 'Of ``covariance_type="factors"``: what each feature has beside them, (k, d).'
    )
    mixture_ = Attribute(lambda f: f.mixture, "The parameters as one immutable value.")
    converged_ = Attribute(lambda f: f.converged, "Whether the mean log-likelihood came to rest.")
    n_iter_ = Attribute(lambda f: f.n_iter, "Updates that the best run made.")
    lower_bound_ = Attribute(
        lambda f: f.lower_bound,
        "Mean log-likelihood per unit of weight that the last E-step of the best run found.",
    )
    lower_bounds_ = Attribute(
        lambda f: list(f.lower_bounds), "Mean log-likelihood found by each E-step of the best run."
    )
    remaining_ = Attribute(
        lambda f: np.nan if f.remaining is None else f.remaining,
        """Estimate of what more iterations would add to ``lower_bound_``, in nats per unit of weight; NaN where
        there were too few to tell, and for online EM.""",
    )
    n_passes_ = Attribute(
        lambda f: f.n_passes,
        "How often the fit went over the data, the survey included; rows kept in memory are read once.",
    )
    decoded_ = Attribute(
        lambda f: f.decoded,
        "How the values of the fit followed from a store's numbers; None where they are these.",
    )
    accounting_ = Attribute(
        lambda f: f.accounting,
        """What the last `fit` cost, by purpose ("survey", "seeding", "iterations" and "total"), a dict of each:
        ``passes``; ``bytes`` of rows that tasks got, ``bytes_kept`` of these from memory, ``bytes_read`` for them,
        as they are stored, but decompressed; ``seconds`` on the clock, and ``seconds_reading`` and
        ``seconds_computing`` of all threads together. What a Dask graph does by itself is in none of these two.
        Empty for a model that was loaded, or has learnt from a stream since.""",
    )
    n_features_in_: Attribute[int] = Attribute(
        lambda f: f.mixture.n_features, "Number of features seen by the fit."
    )
    feature_names_in_: Attribute[Array] = Attribute(
        names_of, "Names of features seen by the fit; only there where all are strings."
    )

    def __sklearn_is_fitted__(self) -> bool:
        return "_fitted" in vars(self)

    def _rows(self, X: Any, **more: Any) -> Rows:
        """Any input as rows, read as the parameters say."""
        known: Fitted | Unseeded | None = vars(self).get("_fitted") or vars(self).get("_unseeded")
        return as_rows(
            X,
            block_size=self.block_size,
            missing_chunks=self.missing_chunks,
            storage_options=self.storage_options,
            decode_cf=self.decode_cf,
            feature_dim=self.feature_dim,
            **{
                "variables": self.variables,
                "nan_policy": self.nan_policy,
                # Their names, by which they are found, or how many there are, as far as that is known.
                "features": None if known is None else known.feature_names or known.n_features,
                **more,
            },
        )

    def _check_features(self, rows: Rows) -> None:
        """Rows have the features of those before, if there were any: of the same names, and as many."""
        if not hasattr(self, "n_features_in_"):
            return
        check_names(getattr(self, "feature_names_in_", None), rows.feature_names, type(self).__name__)
        if rows.n_features != self.n_features_in_:
            raise DataError(
                f"X has {rows.n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )
        check_decoding(getattr(self, "decoded_", None), self, rows)

    def _check_fitted(self) -> None:
        check_is_fitted(self)

    def _query_rows(self, X: Any, **more: Any) -> Rows:
        """Rows to answer for: of a fitted model, with its features."""
        self._check_fitted()
        rows = self._rows(X, **more)
        self._check_features(rows)
        return rows

    def _answer(self, X: Any, answer: str, dtype: Any, missing: float, wide: bool = False, **how: Any) -> Any:
        """One answer per row, in kind: NumPy, a lazy Dask array, or a DataArray with its coordinates."""
        self._check_fitted()
        mixture = self._fitted.mixture
        columns = mixture.n_components if wide else None
        rows = self._query_rows(X, answer_bytes=8 * (columns or 1), **how)
        return in_kind(rows, Query(mixture, answer, missing, dtype), columns)

    @query
    def predict(self, X: Any, *, noise: Any = None, dtype: Any = np.int64) -> Any:
        """The most probable component of each row.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        noise : (n, d) or (n, d, d), optional
            Error variances or covariances of the rows, as in ``fit``; here and in the queries below.
        dtype : a signed integer type, or "smallest"
            Of the labels. The smallest type that holds them is int8 for up to 128 components.

        Returns
        -------
        labels : (n,) of ``dtype``
            NumPy for input in memory; a lazy Dask array with the input's row chunks for chunked input, which
            computes nothing yet; for xarray a DataArray with the rows' dimensions and coordinates. With
            ``nan_policy="omit"``, −1 for rows with NaN, with
            "missing" for rows without any value; so for places that a MultiIndex of rows lacks. With a
            ``background``, −1 for rows that are likelier of that than of each component.
        """
        if dtype is not np.int64:
            self._check_fitted()
            dtype = label_type(dtype, self._fitted.mixture.n_components)
        return self._answer(X, "labels", dtype, -1, noise=noise)

    @query
    def predict_proba(self, X: Any, *, noise: Any = None, dtype: Any = np.float64) -> Any:
        """Posterior probability of each component, (n, k) float64, or ``dtype`` float32; lazy where `predict` is.

        Rows sum to 1, less the probability of the ``background``, if there is one.
        """
        return self._answer(X, "responsibilities", share_type(dtype), np.nan, wide=True, noise=noise)

    @query
    def score_samples(self, X: Any, *, noise: Any = None) -> Any:
        """Log-density of each row in nats, (n,) float64, errors included; lazy where `predict` is."""
        return self._answer(X, "score_samples", np.float64, np.nan, noise=noise)

    @query
    def mahalanobis(self, X: Any, *, noise: Any = None) -> Any:
        """Mahalanobis distance of each row from each component, (n, k) float64; lazy where `predict` is.

        In standard deviations of that component, not squared: for d features, 95 % of its own rows lie within
        √χ²(0.95, d). ``mahalanobis(X).min(axis=1)`` is how far a row is from the nearest. With ``noise``, the
        standard deviations have its errors in them.
        """
        return self._answer(X, "distances", np.float64, np.nan, wide=True, noise=noise)

    def threshold(self, X: Data, quantile: float = 0.01, sample_weight: Any = None, noise: Any = None) -> float:
        """The log-density below which this share of the rows lies, in one pass: for `is_outlier`.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        quantile : float in [0, 1]
            Of the total weight of the rows.
        sample_weight, noise : optional

        Returns
        -------
        float
            In nats; one of the rows' own. It follows from a sample of 131,072 rows, the same each time. Of no more
            rows, the share is exact. Of more, it lies within 2·√(quantile·(1 − quantile) / 131,072) of what is
            asked, with 95 % probability: for .01 that is ±.0005.
        """
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile must be in [0, 1], got {quantile!r}.")
        rows = self._query_rows(X, weight=sample_weight, noise=noise)
        density, weight = drawn(rows, SKETCH_ROWS, self._fitted.mixture)
        return float(np.quantile(density[:, 0], quantile, weights=weight, method="inverted_cdf"))

    @query
    def is_outlier(self, X: Any, threshold: float, *, noise: Any = None) -> Any:
        """Whether the log-density of each row is below a threshold, (n,) bool; lazy where `predict` is.

        ``model.is_outlier(X, model.threshold(X, 0.001))`` finds the thousandth of the rows that is least likely.
        Rows that ``nan_policy="omit"`` leaves out are none.
        """
        found = self.score_samples(X, noise=noise) < threshold
        return found.rename("is_outlier") if hasattr(found, "rename") else found  # of xarray

    def sample_rows(self, X: Data, n_rows: int = 20_000, sample_weight: Any = None) -> tuple[Array, Array]:
        """Draw rows of X, without replacement and the heavier the likelier, in one pass; the same each time.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        n_rows : int
            At least 1; all rows, where they are no more.
        sample_weight : (n,), optional

        Returns
        -------
        rows : (m, d) float64
            In the order of the data.
        weights : (m,)
            What each of them stands for among all rows, 1 on average.
        """
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows!r}.")
        rows = self._rows(X, weight=sample_weight)
        self._check_features(rows)
        return drawn(rows, n_rows)

    def evaluate(self, X: Data, sample_weight: Any = None, *, noise: Any = None, entropy: bool = False) -> Score:
        """All scores of X in one pass: log-likelihood, total weight, and the criteria that follow from them.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        sample_weight, noise : optional
            As in `fit`.
        entropy : bool
            Whether to add up the entropy of the responsibilities, too, which ``icl`` needs.

        Returns
        -------
        Score
            With ``mean``, ``log_likelihood``, ``total_weight``, ``aic``, ``bic`` and ``icl``.
        """
        rows = self._query_rows(X, weight=sample_weight, noise=noise)
        meter = Meter()
        engine = replace(engine_for(rows), spend=meter.add)
        found: Score = engine.reduce(rows, Rate(self._fitted.mixture, entropy))
        teller()(meter.spent("score", 1))
        if (error := unfit(found.total_weight)) is not None:
            raise error
        return found

    def score(self, X: Data, y: Any = None, sample_weight: Any = None, noise: Any = None) -> float:
        """Mean log-likelihood per unit of weight, in nats. Computes at once.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        y : ignored
        sample_weight, noise : optional
        """
        return self.evaluate(X, sample_weight, noise=noise).mean

    def aic(self, X: Data, sample_weight: Any = None, noise: Any = None) -> float:
        """Akaike's information criterion on X, lower is better (Akaike 1974). Warns as `bic` does."""
        return self._judged(X, sample_weight, noise).aic

    def bic(self, X: Data, sample_weight: Any = None, noise: Any = None) -> float:
        """Bayesian information criterion on X, lower is better (Schwarz 1978); n is the sum of weights.

        Warns
        -----
        ConvergenceWarning
            If more iterations would add more to the log-likelihood than a tenth of what one parameter costs,
            ½·log(n), as far as ``remaining_`` can tell: criteria would then compare how far fits went.
        """
        return self._judged(X, sample_weight, noise).bic

    def icl(self, X: Data, sample_weight: Any = None, noise: Any = None) -> float:
        """Integrated completed likelihood on X, lower is better: bic + 2·entropy of the responsibilities.

        Biernacki, Celeux & Govaert (2000), eq. 8, in the sign of `bic`; n is the sum of weights. Warns as that.
        """
        return self._judged(X, sample_weight, noise, entropy=True).icl

    def _judged(self, X: Data, sample_weight: Any, noise: Any, entropy: bool = False) -> Score:
        """Scores of a fit to be compared with others, with a warning if it stopped too early for that."""
        found = self.evaluate(X, sample_weight, noise=noise, entropy=entropy)
        if told := found.unfinished(self.remaining_):
            warn(told, ConvergenceWarning)
        return found

    def summary(self) -> Summary:
        """The mixture at a glance: a row for each component, the heaviest first. Reads no data.

        Returns
        -------
        Summary
            ``print`` shows it as a table of 80 columns, a notebook in HTML; ``to_pandas()`` has all of it.

        Examples
        --------
        >>> from daskgmm import GaussianMixture
        >>> means = [[2.04, 54.5], [4.29, 80.0]]
        >>> parts = [0.36, 0.64], means, [[0.069, 34.0], [0.17, 36.0]]
        >>> print(GaussianMixture.from_parameters(*parts, "diag", ["minutes", "wait"]).summary())
        model GaussianMixture; components 2; features 2; covariances diag
        <BLANKLINE>
        #  weight  rows  overlap  with      minutes        wait
        1   64.0%     -    5e-04     0  4.29 ± 0.41  80.0 ± 6.0
        0   36.0%     -    5e-04     1  2.04 ± 0.26  54.5 ± 5.8
        """
        self._check_fitted()
        return Summary.of(self._fitted, type(self).__name__)

    def _html_repr(self) -> str:
        """What notebooks show: the summary, and scikit-learn's own before there is a fit."""
        if not self.__sklearn_is_fitted__():
            return super()._html_repr()
        settings = f"<details><summary>settings</summary><code>{escape(repr(self))}</code></details>"
        return f"<div>{self.summary()._repr_html_()}{settings}</div>"

    def _get_fitted_attr_html(self, doc_link: str = "") -> "_Html":
        """What scikit-learn shows of a fitted step of a pipeline, below its parameters."""
        return _Html(self.summary()._repr_html_())

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw rows from the mixture, as scikit-learn's: a component, then a row of it.

        Parameters
        ----------
        n_samples : int
            At least 1.

        Returns
        -------
        X : (n_samples, d) float64
            Grouped by component.
        y : (n_samples,) int64
            The component of each row.
        """
        self._check_fitted()
        if n_samples < 1:
            raise ValueError(
                f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample."
            )
        return self._fitted.mixture.sample(n_samples, check_random_state(self.random_state))
