"""What a fitted mixture says of some of its features, of its components together, and of another mixture."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from sklearn.utils import check_random_state

from daskgmm._typing import Array
from daskgmm.compute.engines import engine_for
from daskgmm.errors import DataError
from daskgmm.estimators.answers import in_kind
from daskgmm.estimators.base import BaseMixture
from daskgmm.estimators.checks import feature_numbers, read_structure
from daskgmm.estimators.fitted import Fitted
from daskgmm.estimators.parameters import ARRAYS, ROWWISE
from daskgmm.fit.recipe import START_ROWS
from daskgmm.fit.survey import Threshold
from daskgmm.fit.tasks import Draw, Impute, Query
from daskgmm.model import kernels, merging
from daskgmm.model.blas import one_thread
from daskgmm.model.missing import Incomplete, Regressions
from daskgmm.model.mixture import Mixture
from daskgmm.model.parts import Parts

# Settings that belong to the rows of a fit, not to a part of the mixture.
OF_THE_FIT = (*ARRAYS, *ROWWISE, "prior", "frozen", "checkpoint", "warm_start", "variables", "feature_dim")


class Divergence(NamedTuple):
    """A Kullback-Leibler divergence in nats, and the standard error of its estimate."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Merged:
    """Clusters of components (Baudry et al. 2010). The density of the mixture stays as it is.

    Attributes
    ----------
    n_clusters : int
    labels : (k,)
        The cluster of each component.
    hierarchy : (k, k)
        The same for 1, 2, ..., k clusters.
    entropies : (k,)
        Of the responsibilities of so many clusters, in nats per unit of weight.
    """

    labels: Array
    hierarchy: Array
    entropies: Array
    model: "PartedMixture"

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.labels.max()) + 1

    def predict(self, X: Any) -> Any:
        """The most probable cluster of each row, (n,) int64, in kind as the mixture's ``predict``.

        −1 for rows that are likelier of a ``background``, and for those that ``nan_policy`` leaves out.
        """
        return self._answer(X, "labels", np.int64, -1)

    def predict_proba(self, X: Any) -> Any:
        """Posterior probability of each cluster, (n, n_clusters) float64; lazy where `predict` is."""
        return self._answer(X, "responsibilities", np.float64, np.nan, self.n_clusters)

    def _answer(self, X: Any, answer: str, dtype: Any, missing: float, columns: int | None = None) -> Any:
        mixture = self.model.mixture_
        seen = Incomplete(mixture) if self.model.nan_policy == "missing" else mixture
        clusters = merging.Clusters(seen, self.labels)
        rows = self.model._query_rows(X, answer_bytes=8 * len(self.labels))
        return in_kind(rows, Query(clusters, answer, missing, dtype), columns)


class PartedMixture(BaseMixture):
    """A fitted mixture, its parts and its comparisons."""

    def marginal(self, features: Any) -> Self:
        """The mixture of some features alone: a fitted estimator of the same class and settings.

        Its ``covariance_type`` is "full" or "diag" where components have something, but not all, in common.

        Parameters
        ----------
        features : str, int, or a sequence of these
            Names or numbers, in the order that the features are to have; names where the fit saw some.

        Raises
        ------
        ValueError
            If a feature is unknown, or comes twice.
        """
        seen = self._numbers(features)
        part: Self = self._of(self._parts(seen).marginal, seen)
        return part

    def conditional(self, given: Mapping[Any, float]) -> Self:
        """The mixture of the other features where some have given values: a fitted estimator, as of `marginal`.

        Components count as they do for such a row; each mean moves with its own regression (Anderson 2003, theorem
        2.5.1). `regress` does so for many rows.

        Parameters
        ----------
        given : dict of feature to value
            By name or number; not of all features.

        Raises
        ------
        ValueError
            If a feature is unknown, comes twice or has no finite value, or no feature is left.

        Examples
        --------
        >>> from daskgmm import GaussianMixture
        >>> model = GaussianMixture.from_parameters([1.0], [[0.0, 1.0]], [[[1.0, 0.5], [0.5, 1.0]]])
        >>> rest = model.conditional({0: 2.0})
        >>> rest.means_, rest.covariances_
        (array([[2.]]), array([[[0.75]]]))
        """
        seen, x = self._numbers(list(given)), np.array(list(given.values()), np.float64)
        if not np.isfinite(x).all():
            raise ValueError(f"Given values must be finite, got {given}.")
        parts = self._parts(seen, self._others(seen))
        rest: Self = self._of(parts.conditional(x), parts.unseen)
        return rest

    def regress(self, X: Any, given: Any = None, of: Any = None, *, return_std: bool = False) -> Any:
        """The mean of some features given others in each row, and how far they spread about it.

        E[y|x] = Σ_k r_k(x)·(m_k + B_k·(x − μ_k)), with r_k the responsibilities of the marginal mixture of x,
        and the variance by the law of total variance (Ghahramani & Jordan 1994, eq. 8).

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, o)
            Rows with the given features alone. Of a store or frame with names there may be more, if the fit chose
            ``variables``. With ``nan_policy="missing"``, each row's own are those that it has.
        given : sequence of str or int
            Names or numbers of the columns of X; not needed where these have names.
        of : str, int or sequence of these, optional
            The features to tell; all others, if left out.
        return_std : bool
            Whether to return standard deviations, too: the square root of Var[y|x].

        Returns
        -------
        mean : (n, m) float64, or (n,) for a single ``of``
            In kind as `predict`: lazy for chunked input. NaN for rows that ``nan_policy`` leaves out.
        std : the same, with ``return_std``
        """
        self._check_fitted()
        names = getattr(self, "feature_names_in_", None)
        numbers = None if given is None else self._numbers(given)
        known: Any = None
        if numbers is not None:
            known = len(numbers) if names is None else tuple(names[numbers])
        # Where the fit chose variables, a query needs those alone that are given.
        chosen = known if self.variables is not None and names is not None else None
        rows = self._rows(X, features=known, variables=chosen)
        if numbers is None:
            if rows.feature_names is None:
                raise ValueError("X has no names of features: say with `given` which features its columns are.")
            numbers = self._numbers(list(rows.feature_names))
        if rows.n_features != len(numbers):
            raise DataError(f"X has {rows.n_features} columns, and {len(numbers)} features are given.")
        found, wanted = rows.feature_names, None if names is None else [*names[numbers]]
        if found is not None and wanted is not None and [*found] != wanted:
            raise DataError(f"The columns of X are {[*found]}, and given are {wanted}.")
        targets = self._others(numbers) if of is None else self._numbers(of)
        if {*numbers} & {*targets}:
            raise ValueError("What is given needs no regression: `of` has features of `given`.")
        parts = self._parts(numbers, targets)
        asked = Regressions(self.mixture_, parts) if self.nan_policy == "missing" else parts
        told = tuple(str(j) if names is None else names[j] for j in parts.unseen)
        single = of is not None and (isinstance(of, str) or np.ndim(of) == 0)
        answers = [
            in_kind(rows, Query(asked, question, np.nan, np.float64), len(told), told)
            for question in ("mean", "std")[: 1 + return_std]
        ]
        answers = [values[..., 0] for values in answers] if single else answers
        return tuple(answers) if return_std else answers[0]

    def impute(self, X: Any, random_state: Any = None, *, noise: Any = None) -> Any:
        """Rows with what they miss: NaN, and what is masked or null, whatever ``nan_policy`` is.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        random_state : int or RandomState, optional
            If left out, a missing value becomes its conditional mean given those that its row has; else it is
            drawn from its conditional distribution, as multiple imputation asks for. An int gives the same draws
            for the same blocks each time.
        noise : (n, d) or (n, d, d), optional
            Errors of the values that are there, as in ``fit``. What is filled in are true values, without errors.

        Returns
        -------
        X : (n, d) float64
            In kind as `predict`: lazy for chunked input. Values that are there stay as they are.
        """
        self._check_fitted()
        seed = None if random_state is None else int(check_random_state(random_state).randint(2**31))
        d = self.n_features_in_
        rows = self._query_rows(X, nan_policy="missing", answer_bytes=8 * d, noise=noise)
        names = tuple(map(str, getattr(self, "feature_names_in_", range(d))))
        return in_kind(rows, Impute(self.mixture_, "imputed", np.nan, np.float64, seed), d, names)

    def merged(self, X: Any, n_clusters: int | None = None, sample_weight: Any = None) -> Merged:
        """Join components to clusters, so that the entropy of the responsibilities falls most at each step.

        Baudry, Raftery, Celeux, Lo & Gottardo (2010), Combining mixture components for clustering. One pass draws
        a sample of 20,000 rows, on which entropies are computed: on all rows, where they are no more.

        Parameters
        ----------
        X : any input of ``fit``, of shape (n, d)
        n_clusters : int, optional
            If left out, where two lines fit the entropies of 1 to k clusters best: the authors' elbow.
        sample_weight : (n,), optional
        """
        rows = self._query_rows(X, weight=sample_weight)
        k, mixture = self.mixture_.n_components, self.mixture_
        if n_clusters is not None and not 1 <= n_clusters <= k:
            raise ValueError(f"n_clusters must lie in 1 ... {k}, got {n_clusters}.")
        seed = int(copy.deepcopy(check_random_state(self.random_state)).randint(2**31))
        sample = engine_for(rows).reduce(rows, Draw(Threshold(START_ROWS), seed=seed))
        if not len(sample.keys):
            raise DataError("There are no rows that weigh anything.")
        x, weight = sample.points()
        found, entropies = merging.hierarchy(Incomplete(mixture).answer(x, "responsibilities")[0], weight)
        labels = found[(n_clusters or merging.elbow(entropies)) - 1]
        return Merged(labels, found, entropies, copy.copy(self))

    def kl_divergence(self, other: Any, n_samples: int = 100_000) -> Divergence:
        """Kullback-Leibler divergence of another mixture from this one, by sampling from this one.

        The mean of log p(x) − log q(x) over rows x of p, this mixture; there is no closed form.

        Parameters
        ----------
        other : a fitted estimator
            With as many features: what has ``score_samples``.
        n_samples : int
            At least 2. Drawn with ``random_state``.

        Returns
        -------
        value, error : float
            In nats. The standard error falls as 1 / sqrt(n_samples).
        """
        self._check_fitted()
        if n_samples < 2:
            raise ValueError(f"n_samples must be at least 2, got {n_samples}.")
        theirs = getattr(other, "mixture_", other)
        random, mixture, ratios = check_random_state(self.random_state), self.mixture_, []
        for first in range(0, n_samples, kernels.PIECE):
            x, _ = mixture.sample(min(kernels.PIECE, n_samples - first), random)
            ratios.append(mixture.score_samples(x) - theirs.score_samples(x))
        ratio = np.concatenate(ratios)
        return Divergence(float(ratio.mean()), float(ratio.std(ddof=1) / np.sqrt(n_samples)))

    def _parts(self, seen: Array, unseen: Array | None = None) -> Parts:
        with one_thread():
            return Parts.of(self.mixture_, seen, unseen)

    def _numbers(self, features: Any) -> Array:
        """Numbers of features that are given by name or number; `ValueError` for none that there is."""
        self._check_fitted()
        names, n = list(getattr(self, "feature_names_in_", ())), self.n_features_in_
        numbers = feature_numbers(features, names, n)
        if numbers is None or len({*numbers}) < len(numbers):
            raise ValueError(f"Features must be different ones of {names or f'0 ... {n - 1}'}, got {features!r}.")
        return np.array(numbers, np.intp)

    def _others(self, numbers: Array) -> Array:
        """Numbers of all other features; `ValueError` where none is left."""
        others = np.delete(np.arange(self.n_features_in_), numbers)
        if not len(others):
            raise ValueError("All features are given: none is left.")
        return others

    def _of(self, mixture: Mixture, features: Array, kind: Any = None) -> Any:
        """A fitted estimator of some features, with the settings of this one; of this class, or of another."""
        kind = kind or type(self)
        known = set(kind._get_param_names()) - {*OF_THE_FIT}
        settings = {name: value for name, value in self.get_params(deep=False).items() if name in known}
        if read_structure(self) != mixture.covariance.structure:
            settings["covariance_type"] = mixture.covariance.structure.name
            settings.pop("n_factors", None)
        model = kind(**settings)
        names = getattr(self, "feature_names_in_", None)
        model._fitted = model._from_mixture(mixture, None if names is None else tuple(names[features]))
        return model

    def _from_mixture(self, mixture: Mixture, names: tuple[str, ...] | None) -> Fitted:
        """What a fit would leave that found this mixture."""
        return Fitted(mixture, feature_names=names)
