"""All that a fit leaves behind, as one value, and the attributes that are views of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any, Generic, Never, Self, TypeAlias, TypeVar, cast, overload

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.rows import Rows
from daskgmm.fit.run import Run
from daskgmm.fit.score import Score
from daskgmm.fit.stepwise import Stepwise
from daskgmm.fit.stream import Waiting
from daskgmm.model.checks import at_least, require
from daskgmm.model.loadings import Loadings
from daskgmm.model.mixture import Mixture
from daskgmm.model.posterior import Posterior, Variational
from daskgmm.store.values import LATER, storable

T = TypeVar("T")
Accounting: TypeAlias = dict[str, dict[str, float]]
"""Passes, bytes and seconds by what they were for."""


@storable
@dataclass(frozen=True, eq=False)
class Fitted:
    """All that a fit leaves behind. An estimator swaps it at once: another thread may predict meanwhile."""

    mixture: Mixture
    n_iter: int = 0
    converged: bool = False
    lower_bound: float = -np.inf
    lower_bounds: tuple[float, ...] = ()
    n_passes: int = 0
    feature_names: tuple[str, ...] | None = None
    online: Stepwise | None = None
    next_row: int = 0
    decoded: str | None = field(default=None, metadata=LATER)  # how the rows followed from what a store held
    rated: Score | None = field(default=None, metadata=LATER)  # what the last E-step over all rows found
    accounting: Accounting = field(default_factory=dict, init=False)  # what it cost, which no file tells
    remaining: float | None = field(default=None, metadata=LATER)  # gain of more iterations, where it can be told
    belief: Variational | None = field(default=None, metadata=LATER)  # the prior, where the mixture is a posterior
    beside: tuple[str, ...] = field(default=(), metadata=LATER)  # what went with any rows, such as "noise"

    def check(self) -> None:
        """Raise `ValueError` unless the parts belong together."""
        shape, structure, run = self.mixture.means.shape, self.mixture.covariance.structure, self.online
        require(at_least(0, self.n_iter, self.n_passes, self.next_row), "Counts are below 0.")
        require(self.feature_names is None or len(self.feature_names) == shape[1], "Each feature has one name.")
        sound = isinstance(self.mixture, Posterior) and self.belief is not None and self.belief.fits(self.mixture)
        require(sound or not (isinstance(self.mixture, Posterior) or self.belief), "The prior is another's.")
        require(
            run is None or (run.mixture.means.shape == shape and run.mixture.covariance.structure is structure),
            "The stream is not that of the mixture.",
        )

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return self.mixture.n_features

    @property
    def score(self) -> Score:
        """What the last E-step of batch EM found; NaN where there was none."""
        return replace(self.rated or Score(nan, nan, nan), n_parameters=self.mixture.n_parameters)

    @property
    def log_likelihood(self) -> float:
        """Mean of the same E-step; where there was none, the last of what was watched."""
        return self.lower_bound if self.rated is None else self.rated.mean

    @property
    def rested(self) -> bool | None:
        """Whether it came to rest; None where nothing can tell: after no iteration, or one pass of online EM."""
        return self.converged if self.converged or self.n_iter > (self.online is not None) else None

    def at(self, cost: Accounting) -> Self:
        """The same, for what it cost."""
        found = copy.copy(self)
        vars(found)["accounting"] = cost
        return found

    def after(self, rows: Rows, **more: Any) -> Self:
        """What there is once these rows have been learnt, too."""
        beside = tuple(sorted({*self.beside, *rows.beside}))
        return replace(self, decoded=rows.x.decoded or None, beside=beside, **more)

    @classmethod
    def of(cls, run: Run, n_passes: int, rows: Rows, **more: Any) -> Self:
        """What a run leaves behind that learnt from these rows."""
        names = None if rows.feature_names is None else tuple(rows.feature_names)
        remaining = run.remaining if run.remaining < np.inf else None
        more |= {"rated": run.rated, "remaining": remaining}
        found = cls(run.mixture, run.n_iter, run.converged, run.lower_bound, run.trace, n_passes, names, **more)
        return found.after(rows)


@storable
@dataclass(frozen=True, eq=False)
class Unseeded:
    """A stream whose model is not seeded yet."""

    waiting: Waiting
    feature_names: tuple[str, ...] | None = None
    next_row: int = 0

    def check(self) -> None:
        """Raise `ValueError` unless the parts belong together."""
        names = self.feature_names
        require(names is None or len(names) == self.waiting.x.shape[1], "Each feature has one name.")
        require(at_least(0, self.next_row), "Rows are counted from 0.")

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return int(self.waiting.x.shape[1])


class Attribute(Generic[T]):
    """A fitted attribute: a view of `Fitted`, which cannot be set; ``hasattr`` tells whether there is a fit."""

    def __init__(self, read: Callable[[Fitted], T], text: str) -> None:
        self.read, self.__doc__ = read, text

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, model: None, owner: type) -> "Attribute[T]": ...

    @overload
    def __get__(self, model: Any, owner: type) -> T: ...

    def __get__(self, model: Any, owner: type) -> Any:
        if model is None:
            return self
        if (fitted := vars(model).get("_fitted")) is not None:
            return self.read(fitted)
        return self._before(model, owner)

    def _before(self, model: Any, owner: type) -> Any:
        """What there is before a fit."""
        raise AttributeError(f"This {owner.__name__} is not fitted yet: it has no {self.name}.")

    def __set__(self, model: Any, value: Never) -> None:
        raise AttributeError(f"{self.name} is a view of the fitted mixture, and cannot be set.")


class Absent:
    """What an estimator does not have, though others do; ``hasattr`` says so, too."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type) -> Never:
        raise AttributeError(f"{owner.__name__} has no {self.name}: {self.why}")


class StreamAttribute(Attribute[T]):
    """One that is known from the first batch of a stream on, before the model is seeded."""

    def __init__(self, read: Callable[[Fitted], T], before: Callable[[Unseeded], T], text: str) -> None:
        super().__init__(read, text)
        self.before = before

    def _before(self, model: Any, owner: type) -> Any:
        unseeded = vars(model).get("_unseeded")
        return super()._before(model, owner) if unseeded is None else self.before(unseeded)


def names_of(state: Fitted | Unseeded) -> Array:
    """Column names seen by the fit; `AttributeError` where there were none."""
    if state.feature_names is None:
        raise AttributeError("The rows of the fit had no feature names.")
    return np.array(state.feature_names, dtype=object)


def shown(fitted: Fitted, values: Array) -> Array:
    """Covariances, precisions or factors in scikit-learn's shape."""
    return fitted.mixture.covariance.structure.shown(values, *fitted.mixture.means.shape)


def loadings(fitted: Fitted) -> Loadings:
    """Covariances of few factors; `AttributeError` for others."""
    if not fitted.mixture.covariance.structure.n_factors:
        raise AttributeError("The covariances have no factors.")
    return cast(Loadings, fitted.mixture.covariance)
