"""What every fitted mixture answers, whichever way it learned: attributes, queries and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_feature_names, check_is_fitted

from daskgmm._typing import Array
from daskgmm.compute.engine import engine_for
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.errors import DataError
from daskgmm.fit.run import Run
from daskgmm.fit.score import Query, Score, Scorer
from daskgmm.fit.stepwise import Stepwise
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture


@dataclass(frozen=True, eq=False)
class Fitted:
    """All that a fit leaves behind, as one value: an estimator swaps it at once."""

    mixture: Mixture
    n_iter: int
    converged: bool
    lower_bound: float
    lower_bounds: tuple[float, ...]
    n_passes: int
    feature_names: Array | None = None
    online: Stepwise | None = None
    next_row: int = 0


def fitted(run: Run, passes: int, names: Array | None) -> Fitted:
    """What a run leaves behind."""
    return Fitted(run.mixture, run.n_iter, run.converged, run.lower_bound, run.trace, passes, names)


class BaseMixture(DensityMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Attributes, queries and scores of a fitted mixture."""

    block_size: int | str
    nan_policy: str
    missing_chunks: str
    random_state: Any
    _fitted: Fitted

    def __sklearn_is_fitted__(self) -> bool:
        return "_fitted" in vars(self)

    def _result(self, attribute: str) -> Fitted:
        """What the fit left; `AttributeError` before it, so that ``hasattr`` tells."""
        try:
            return vars(self)["_fitted"]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"This {type(self).__name__} is not fitted yet: it has no {attribute}.") from None

    @property
    def weights_(self) -> Array:
        """Mixing proportions, (k,)."""
        return self._result("weights_").mixture.weights

    @property
    def means_(self) -> Array:
        """Component means, (k, d)."""
        return self._result("means_").mixture.means

    @property
    def _covariance(self) -> Covariance:
        return self._result("covariances_").mixture.covariance

    @property
    def covariances_(self) -> Array:
        """Covariances: full (k, d, d), tied (d, d), diag (k, d), spherical (k,)."""
        return self._covariance.values

    @property
    def precisions_(self) -> Array:
        """Inverse covariances, in the shape of ``covariances_``."""
        return self._covariance.precisions

    @property
    def precisions_cholesky_(self) -> Array:
        """Upper Cholesky factors of the precisions, in the shape of ``covariances_``."""
        return self._covariance.factor

    @property
    def converged_(self) -> bool:
        """Whether the mean log-likelihood came to rest."""
        return self._result("converged_").converged

    @property
    def n_iter_(self) -> int:
        """Updates that the best run made."""
        return self._result("n_iter_").n_iter

    @property
    def lower_bound_(self) -> float:
        """Mean log-likelihood per unit of weight that the last E-step of the best run found."""
        return self._result("lower_bound_").lower_bound

    @property
    def lower_bounds_(self) -> list[float]:
        """Mean log-likelihood found by each E-step of the best run."""
        return list(self._result("lower_bounds_").lower_bounds)

    @property
    def n_passes_(self) -> int:
        """How often the fit went over the data, the survey included; rows kept in memory are read once."""
        return self._result("n_passes_").n_passes

    @property
    def n_features_in_(self) -> int:
        """Number of features seen by the fit."""
        return self._result("n_features_in_").mixture.n_features

    @property
    def feature_names_in_(self) -> Array:
        """Column names seen by the fit; only there for data frames whose names are all strings."""
        names = self._result("feature_names_in_").feature_names
        if names is None:
            raise AttributeError("The rows of the fit had no feature names.")
        return names

    def _rows(self, X: Any, sample_weight: Any = None, start: Any = None, answer_bytes: int = 0) -> Rows:
        return as_rows(
            X,
            sample_weight,
            start,
            block_size=self.block_size,
            missing_chunks=self.missing_chunks,
            nan_policy=self.nan_policy,
            answer_bytes=answer_bytes,
        )

    def _check_fitted(self) -> None:
        check_is_fitted(self)

    def _query_rows(self, X: Any, sample_weight: Any = None, answer_bytes: int = 0) -> Rows:
        """Rows to answer for: of a fitted model, with its features."""
        self._check_fitted()
        _check_feature_names(self, getattr(X, "_meta", X), reset=False)  # the empty head of a Dask frame
        rows = self._rows(X, sample_weight, answer_bytes=answer_bytes)
        self._check_width(rows)
        return rows

    def _check_width(self, rows: Rows) -> None:
        """Rows have the features of those before, if there were any."""
        if hasattr(self, "n_features_in_") and rows.n_features != self.n_features_in_:
            raise DataError(
                f"X has {rows.n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input."
            )

    def _answer(self, X: Any, answer: str, dtype: Any, missing: float, wide: bool = False) -> Any:
        """One answer per row, in kind: NumPy, a lazy Dask array, or a DataArray with its coordinates."""
        self._check_fitted()
        mixture = self._fitted.mixture
        columns = mixture.n_components if wide else None
        rows = self._query_rows(X, answer_bytes=8 * (columns or 1))
        lazy = rows.map(Query(mixture, answer, missing), dtype=dtype, columns=columns)
        values = lazy.compute(scheduler=engine_for(rows).get) if rows.in_memory else lazy
        return _like(X, values, answer) if hasattr(X, "isel") else values

    def predict(self, X: Any) -> Any:
        """The most probable component of each row.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)

        Returns
        -------
        labels : (n,) int64
            NumPy for input in memory; a lazy Dask array with the input's row chunks for chunked input, which
            computes nothing yet; a DataArray with the rows' coordinates for xarray. With
            ``nan_policy="omit"``, −1 for rows with NaN.
        """
        return self._answer(X, "labels", np.int64, -1)

    def predict_proba(self, X: Any) -> Any:
        """Posterior probability of each component, (n, k) float64; lazy where `predict` is."""
        return self._answer(X, "responsibilities", np.float64, np.nan, wide=True)

    def score_samples(self, X: Any) -> Any:
        """Log-density of each row in nats, (n,) float64; lazy where `predict` is."""
        return self._answer(X, "score_samples", np.float64, np.nan)

    def _scored(self, X: Any, sample_weight: Any, entropy: bool = False) -> Score:
        rows = self._query_rows(X, sample_weight)
        found = engine_for(rows).reduce(rows, Scorer(self._fitted.mixture, entropy))
        if not found.total_weight > 0:
            raise DataError("Sample weights must contain at least one non-zero number.")
        return found

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log-likelihood per unit of weight, in nats. Computes at once.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        y : ignored
        sample_weight : (n,), optional
        """
        return self._scored(X, sample_weight).mean

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike's information criterion on X, lower is better (Akaike 1974)."""
        return self._scored(X, sample_weight).aic(self._fitted.mixture.n_parameters)

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Bayesian information criterion on X, lower is better (Schwarz 1978); n is the sum of weights."""
        return self._scored(X, sample_weight).bic(self._fitted.mixture.n_parameters)

    def icl(self, X: Any, sample_weight: Any = None) -> float:
        """Integrated completed likelihood on X, lower is better: bic + 2·entropy of the responsibilities.

        Biernacki, Celeux & Govaert (2000), eq. 8, in the sign of `bic`; n is the sum of weights.
        """
        return self._scored(X, sample_weight, entropy=True).icl(self._fitted.mixture.n_parameters)

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


def _like(X: Any, values: Any, answer: str) -> Any:
    """``values`` with the row coordinates of a DataArray ``X``."""
    rows = X.isel({X.dims[1]: 0}, drop=True).rename(answer)
    if values.ndim == 2:
        rows = rows.expand_dims(component=values.shape[1], axis=1)
    return rows.copy(data=values)
