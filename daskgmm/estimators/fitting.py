"""What all estimators that fit have in common: checkpoints, warm starts, whoever watches, and files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state

from daskgmm.compute.block import array_digest, digest
from daskgmm.compute.engine import Engine
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.errors import DataError
from daskgmm.estimators.base import BaseMixture
from daskgmm.estimators.callbacks import Callbacks
from daskgmm.estimators.checks import check_mixture
from daskgmm.estimators.fitted import Fitted
from daskgmm.estimators.parameters import ROWWISE, SMALL
from daskgmm.estimators.persistence import load, save
from daskgmm.fit.events import Blocks, Message, Reached, Stage, Verbose, teller, watching
from daskgmm.fit.state import State
from daskgmm.model.kernels.compiling import while_compiling
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES
from daskgmm.store import checkpoint, values

# Of watching or of reading; what they change in the rows is in their layout.
ELSEWHERE = {"checkpoint", "verbose", "verbose_interval", "block_size", "nan_policy", *ROWWISE}


class Fitting(BaseMixture):
    """A mixture that is fitted to rows, and may be watched, stopped, saved and loaded."""

    @abstractmethod
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to rows."""

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, then `predict` the same rows: lazily, where `predict` is."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    @property
    def _resumes(self) -> bool:
        return self.warm_start and hasattr(self, "_fitted")

    def _check_shape(self, rows: Rows, what: str) -> None:
        """The last fit can only go on with components and features as they were."""
        last = self._fitted.mixture
        wanted = (self.n_components, rows.n_features, STRUCTURES[self.covariance_type])
        found = (*last.means.shape, last.structure)
        if wanted != found:
            raise DataError(
                f"{what} needs the shape of the last fit: (n_components, n_features, covariance_type) were "
                f"{(*found[:2], found[2].name)}, now {(*wanted[:2], wanted[2].name)}."
            )

    def _follow(
        self,
        rows: Rows,
        begun: State,
        states: Callable[[Engine, State], Iterator[State]],
        take: Callable[[State], None],
        callbacks: Callbacks,
        **more: Any,
    ) -> State:
        """Go through the states of a fit: kept in the checkpoint, told to whoever watches; ``take`` gets the last.

        That of an interrupted fit, too. ``more`` is what makes this fit differ from others, beside its parameters.
        """
        with watching(*([Verbose(self.verbose_interval)] if self.verbose else [])):
            tell = teller()
        engine = engine_for(rows).watched(lambda done, total: tell(Blocks(done, total)))
        state = begun
        with (
            while_compiling(lambda: tell(Stage("compiling"))),
            checkpoint.opened(
                self.checkpoint,
                State,
                lambda: self._identity() | more,
                rows.layout,
                lambda: engine.each(rows, digest, _ends(rows)),
                lambda line: tell(Message(line)),
            ) as record,
        ):
            try:
                with closing(states(engine, record.state or begun)) as stream:  # type: ignore[type-var]
                    for state in stream:
                        record.take(state)
                        tell(Reached(state))
                        if callbacks.reached(state):
                            break
            except KeyboardInterrupt:
                if record.state is not None and any(run.moved for run in record.state.runs):
                    self._took(record.state, take)
                raise
        self._took(state, take)
        callbacks.ended(state)
        return state

    def _took(self, state: State, take: Callable[[State], None]) -> None:
        """Take what a fit found, and the random numbers that come next."""
        if state.random:  # numbers that the user hands on, or everybody's, go on from here
            check_random_state(self.random_state).set_state(state.random)
        take(state)

    def _identity(self) -> dict[str, Any]:
        """What makes this fit differ from another of the same rows: settings that change the result."""
        settings = {name: value for name, value in self.get_params().items() if name not in ELSEWHERE}
        for name in SMALL:
            settings[name] = None if settings[name] is None else array_digest(settings[name])
        # Other sources of random numbers are known by their state, which the checkpoint holds.
        seed = settings["random_state"]
        settings["random_state"] = int(seed) if isinstance(seed, Integral) else None
        settings["warm_start"] = None
        if self._resumes:
            last = self._fitted
            settings["warm_start"] = values.digest((last.mixture, last.lower_bound, last.online))
        plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in settings.items()}
        return {"estimator": type(self).__name__, **plain}

    @classmethod
    def from_parameters(
        cls,
        weights: Any,
        means: Any,
        covariances: Any,
        covariance_type: str = "full",
        feature_names: Any = None,
    ) -> Self:
        """A fitted estimator with these parameters; the online one counts them as the first 50·k rows of a stream.

        Parameters
        ----------
        weights : (k,) >= 0, summing to 1
        means : (k, d)
        covariances : in the shape of ``covariances_`` for ``covariance_type``
        covariance_type : {"full", "tied", "diag", "spherical"}
        feature_names : (d,) of str, optional
            As ``feature_names_in_``.

        Raises
        ------
        ValueError
            If shapes differ, weights do not sum to 1, or a covariance is not symmetric and positive definite.
        """
        mixture = check_mixture(weights, means, covariances, covariance_type)
        model = cls(mixture.n_components, covariance_type=covariance_type)
        model._fitted = model._from_mixture(mixture, None if feature_names is None else tuple(feature_names))
        return model

    def _from_mixture(self, mixture: Mixture, names: tuple[str, ...] | None) -> Fitted:
        return Fitted(mixture, feature_names=names)

    def save(self, path: str | Path) -> None:
        """Write settings and parameters to one ``.npz`` file, whole or not at all.

        An online model takes its statistics and counts along, or the rows that are yet to seed it, so that one
        that is loaded learns on as this one would, bit for bit. Settings that are neither numbers, strings nor
        small arrays are left at their defaults: a RandomState, and labels or responsibilities to start from.
        """
        save(self, self._state(), path)

    def _state(self) -> Any:
        self._check_fitted()
        return self._fitted

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote, bit for bit.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is no model that this version reads.
        """
        settings, state = load(cls.__name__, path)
        model = cls(**settings)
        model._go_on(state)
        return model

    def _go_on(self, state: Any) -> None:
        """Take what a file holds."""
        self._fitted = state


def _ends(rows: Rows) -> list[int]:
    """Numbers of the first, the middle and the last block."""
    return sorted({0, rows.n_blocks // 2, rows.n_blocks - 1}) if rows.n_blocks else []
