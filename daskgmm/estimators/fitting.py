"""What all estimators that fit have in common: checkpoints, warm starts, and files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.errors import DataError
from daskgmm.estimators.base import BaseMixture, Fitted
from daskgmm.estimators.persistence import load, save
from daskgmm.fit.checkpoint import Keeper, array_digest, digests, keeping, layout, value_digest
from daskgmm.fit.progress import Progress, Silent, Verbose
from daskgmm.fit.start import Waiting
from daskgmm.model.covariance import STRUCTURES

SMALL = ("weights_init", "means_init", "precisions_init")
ROWWISE = ("labels_init", "responsibilities_init")
INIT_PARAMS = {"auto", "kmeans", "k-means++", "random", "random_from_data", "subsample"}
# Of watching or of reading; what they change in the rows is in their layout.
ELSEWHERE = {"checkpoint", "verbose", "verbose_interval", "block_size", "nan_policy", *ROWWISE}


class Fitting(BaseMixture):
    """A mixture that is fitted to rows, and may be stopped, saved and loaded."""

    n_components: int
    covariance_type: str
    warm_start: bool
    checkpoint: Any
    verbose: int
    verbose_interval: int

    @abstractmethod
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to rows."""

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, then `predict` the same rows: lazily, where `predict` is."""
        return self.fit(X, sample_weight=sample_weight).predict(X)

    @property
    def _resumes(self) -> bool:
        return self.warm_start and hasattr(self, "_fitted")

    def _watcher(self) -> Progress:
        return Verbose(self.verbose_interval) if self.verbose else Silent()

    def _check_shape(self, rows: Rows, what: str) -> None:
        """The last fit can only go on with components and features as they were."""
        last = self._fitted.mixture
        wanted = (self.n_components, rows.n_features, STRUCTURES[self.covariance_type])
        found = (*last.means.shape, type(last.covariance))
        if wanted != found:
            raise DataError(
                f"{what} needs the shape of the last fit: (n_components, n_features, covariance_type) were "
                f"{(*found[:2], found[2].name)}, now {(*wanted[:2], wanted[2].name)}."
            )

    @contextmanager
    def _keeping(
        self, engine: Engine, rows: Rows, names: Array | None, progress: Progress, **more: Any
    ) -> Iterator[Keeper[Any]]:
        """Where to keep the states of a fit; `_stopped` gets the last of one that is interrupted."""
        settings, plan = ({}, {}) if self.checkpoint is None else (self._identity() | more, layout(rows))
        with keeping(self.checkpoint, settings, plan, lambda: digests(engine, rows), progress.tell) as keeper:
            try:
                yield keeper
            except KeyboardInterrupt:
                if keeper.state is not None:
                    self._stopped(keeper.state, rows, names)
                raise

    @abstractmethod
    def _stopped(self, state: Any, rows: Rows, names: Array | None) -> None:
        """Take the best parameters so far, if there are any, as fitted."""

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
            settings["warm_start"] = value_digest((last.mixture, last.lower_bound, last.online))
        plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in settings.items()}
        return {"estimator": type(self).__name__, **plain}

    def save(self, path: str | Path) -> None:
        """Write settings and parameters to one ``.npz`` file, whole or not at all.

        An online model takes its statistics and counts along, or the rows that are yet to seed it, so that one
        that is loaded learns on as this one would, bit for bit. Settings that are neither numbers, strings nor
        small arrays are left at their defaults: a RandomState, and labels or responsibilities to start from.
        """
        save(self, self._state(), path)

    def _state(self) -> Fitted | Waiting:
        """What a file holds beside the settings."""
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

    def _go_on(self, state: Fitted | Waiting) -> None:
        assert isinstance(state, Fitted)  # of the classes, only an online one ever waits
        self._fitted = state
