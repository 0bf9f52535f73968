"""What all estimators that fit have in common: checkpoints, warm starts, whoever watches, and files."""

import pickle
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from daskgmm._typing import Batches, Data
from daskgmm.compute.block import array_digest, digest
from daskgmm.compute.engine import Engine
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows
from daskgmm.compute.sources.labels import distinct
from daskgmm.errors import ClusterLostError, DataError, printable, warn
from daskgmm.estimators.alone import one_at_a_time
from daskgmm.estimators.base import BaseMixture
from daskgmm.estimators.batches import fit_batches
from daskgmm.estimators.checks import (
    BEFOREHAND,
    check_decoding,
    check_mixture,
    check_names,
    check_standing,
    frozen_parts,
    read_structure,
)
from daskgmm.estimators.fitted import Fitted
from daskgmm.estimators.parameters import ARRAYS, ROWWISE, Single
from daskgmm.estimators.parts import PartedMixture
from daskgmm.estimators.persistence import load, save
from daskgmm.estimators.scikit import with_callbacks
from daskgmm.fit.accounting import Ledger, Meter
from daskgmm.fit.events import Event, Message, Progress, Reached, Stage, Verbose, teller
from daskgmm.fit.recipe import Recipe
from daskgmm.fit.run import Run
from daskgmm.fit.state import State
from daskgmm.model.background import Contaminated
from daskgmm.model.kernels.compiling import while_compiling
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.store import checkpoint, values

# Of watching or of reading; what they change in the rows is in their layout.
ELSEWHERE = {"checkpoint", "verbose", "verbose_interval", "block_size", "nan_policy", "storage_options", *ROWWISE}

# What all estimators have, in one sense.
SHARED = ("reg_covar", "random_state", "block_size", "nan_policy", "missing_chunks", "decode_cf")


class Watched(BaseMixture):
    """A mixture whose fit may be watched, stopped, and gone on with."""

    fit: Callable[..., Self]

    def fit_predict(
        self, X: Data, y: Any = None, sample_weight: Any = None, noise: Any = None, known: Any = None
    ) -> Any:
        """Fit, then `predict` the same rows: lazily, where `predict` is. An iterator is a `DataError`.

        Labels that are ``known`` are of the fit alone: what is predicted of their rows may differ.
        """
        if isinstance(X, Iterator):
            raise DataError(
                "X is an iterator, which can be gone through once: there is nothing left to predict after a fit. "
                "Fit, and predict the batches of a new one, each by itself."
            )
        return self.fit(X, sample_weight=sample_weight, noise=noise, known=known).predict(X, noise=noise)

    def _follow(
        self,
        X: Any,
        rows: Rows,
        algorithm: Callable[[Engine, Rows, State], Iterator[State]],
        begun: tuple[Run, ...],
        identity: Callable[[], dict[str, Any]] | None = None,
    ) -> State:
        """Go through the states of an algorithm, from these runs on, told to whoever watches; the last state.

        Those of a fit, which has an ``identity``, are kept in the checkpoint and told to scikit-learn's callbacks.
        The last one is fitted, where an interrupt strikes, too.
        """
        random = check_random_state(self.random_state)
        state = State(random.get_state(legacy=False), runs=begun)
        random.random_sample()  # whoever draws from the same source meanwhile, another fit for one, draws others
        drawn = pickle.dumps(random.get_state(legacy=False))
        meter, ledger = Meter(), Ledger()
        tell = teller(ledger, *([Verbose(self.verbose_interval)] if self.verbose else []))
        callbacks = _Callbacks(self, X, rows) if identity and hasattr(self, "_skl_callbacks") else None
        engine = replace(engine_for(rows), report=lambda done, total: tell(Progress(done, total)), spend=meter.add)
        ends = sorted({0, rows.n_blocks // 2, rows.n_blocks - 1}) if rows.n_blocks else []
        kept = checkpoint.opened(
            self.checkpoint if identity else None,
            State,
            identity or dict,
            rows.layout,
            lambda: engine.each(rows, digest, ends),
            lambda line: tell(Message(printable(line))),
            check_standing,
        )
        with while_compiling(lambda: tell(Stage("compiling"))), kept as record:
            state = record.state or state
            try:
                with closing(algorithm(engine, rows, state)) as states:  # type: ignore[type-var]
                    for state in states:
                        record.take(state)
                        events: list[Event] = [*meter.reached(state), Reached(state), Stage(state.stage)]
                        for event in events:
                            tell(event)
                        if callbacks is not None and callbacks.reached(state):
                            break
            except (KeyboardInterrupt, ClusterLostError):
                if identity and any(run.moved and run.failure is None for run in state.runs):
                    self._fitted = self._found(state, rows).at(ledger.to_dict())
                raise
        # Numbers that the user hands on, or everybody's, go on from here, unless others went on with them.
        if pickle.dumps(random.get_state(legacy=False)) == drawn:
            random.set_state(state.random)
        if identity:
            self._fitted = self._found(state, rows).at(ledger.to_dict())
            self.__dict__.pop("_unseeded", None)
        return state

    @abstractmethod
    def _found(self, state: State, rows: Rows) -> Fitted:
        """What a fit of these rows has found so far."""

    def _identity(self, last: Fitted | None) -> dict[str, Any]:
        """What makes this fit differ from another of the same rows: settings that change the result."""
        settings = {name: value for name, value in self.get_params().items() if name not in ELSEWHERE}
        if settings.get("n_factors") is None:  # as in older files
            settings.pop("n_factors", None)
        for name in settings.keys() & set(ARRAYS):
            settings[name] = None if settings[name] is None else array_digest(settings[name])
        # Other sources of random numbers are known by their state, which the checkpoint holds.
        seed = settings["random_state"]
        settings["random_state"] = int(seed) if isinstance(seed, Integral) else None
        if "warm_start" in settings:
            begun = None if last is None else values.digest((last.mixture, last.lower_bound, last.online))
            settings["warm_start"] = begun
        if settings.get("frozen") is not None:
            settings["frozen"] = frozen_parts(self)
        if isinstance(settings.get("prior"), NormalInverseWishart):
            settings["prior"] = values.digest(settings["prior"])
        plain = {
            name: v.tolist() if isinstance(v, (np.generic, np.ndarray)) else v for name, v in settings.items()
        }
        return {"estimator": type(self).__name__, **plain}


class Fitting(Watched, PartedMixture, Single):
    """One mixture that is fitted to rows, and may be saved and loaded."""

    max_iter: int

    @with_callbacks
    @one_at_a_time
    def fit(
        self, X: Data | Batches, y: Any = None, sample_weight: Any = None, noise: Any = None, known: Any = None
    ) -> Self:
        """Fit to stored rows: one pass for the survey, unless a run goes on, then up to ``max_iter``.

        Parameters
        ----------
        X : (n, d)
            Rows, of any kind that `GaussianMixture` names. `MiniBatchGaussianMixture` takes an iterator of
            batches, such as a generator, too: as if `partial_fit` got each of them in turn, which is then let go.
        y : ignored
        sample_weight : (n,), optional
            Weights >= 0; a row of weight 2 counts as two rows. An iterator of them for an iterator of batches.
        noise : (n, d) or (n, d, d), optional
            Error variances of the values of each row, or their covariance, of any kind that X may be. The mixture
            is then that of the values without errors: extreme deconvolution (Bovy, Hogg & Roweis 2011). The start
            is found on the rows as they are. Queries of such rows take their noise, too.
        known : (n,) of integers, optional
            Component of each row whose component is known, −1 (or a missing value) for others; of any kind that
            weights may be, and an iterator like them. Such a row belongs to its component alone, and the
            log-likelihood that EM increases has log(weight·N) of that for it. Components are numbered as the
            labels: those that have labelled rows start at the means of these, the others at rows without label,
            each drawn far from the centres before it (k-means++). There are no moves, and of ``init_params`` only
            "subsample" has a say. Queries know no labels.

        Returns
        -------
        self

        Raises
        ------
        DataError
            A ``ValueError`` that names the block and rows: NaN or infinity, bad weights, noise or starts, fewer
            rows than components, missing chunks. The estimator stays as it was.
        CollapseError
            A `DataError`: a covariance is not positive definite in any run.
        CheckpointError
            A `DataError`: the checkpoint is of another fit, damaged, or in use.
        FileNotFoundError
            If a path leads to nothing, or the checkpoint's folder does not exist.
        KeyboardInterrupt, ClusterLostError
            After the best parameters so far have become the fitted attributes.

        Warns
        -----
        ConvergenceWarning
            If the best run of batch EM did not converge within ``max_iter``.
        UserWarning
            If a component of online EM was placed anew.
        """
        self._validate_params()
        if isinstance(X, Iterator) and hasattr(self, "partial_fit"):
            return fit_batches(self, X, sample_weight=sample_weight, noise=noise, known=known)
        last = self._fitted if self.warm_start and hasattr(self, "_fitted") else None
        rows = self._stored(X, last, weight=sample_weight, noise=noise, known=known)
        if last is not None:
            check_names(last.feature_names, rows.feature_names, type(self).__name__)
            check_decoding(last.decoded, self, rows)
        recipe = self._recipe(rows.n_features)
        begun = self._begun(rows, recipe, last)
        self._follow(X, rows, partial(self._algorithm, recipe), begun, partial(self._identity, last))
        if self._unconverged and self._fitted.n_iter == self.max_iter > 0 and not self._fitted.converged:
            warn(self._unconverged, ConvergenceWarning)
        return self

    _unconverged: ClassVar[str] = ""  # what to say where all iterations were made and no rest was found
    _algorithm: ClassVar[Callable[..., Iterator[State]]]  # of a recipe, an engine, rows and a state

    @abstractmethod
    def _stored(self, X: Any, last: Fitted | None, **columns: Any) -> Rows:
        """The rows of a fit, with what goes with them; ``last`` is what it goes on from, here and below."""

    def _recipe(self, d: int, kind: type[Recipe] = Recipe, **more: Any) -> Any:
        """The settings, for rows of d features: what has the same name in a recipe, and more."""
        same = {f.name: getattr(self, f.name) for f in fields(kind) if hasattr(self, f.name)}
        structure = read_structure(self, d)
        return kind(structure=structure, k=self.n_components, **{**same, **self._beforehand(d), **more})

    def _beforehand(self, d: int) -> dict[str, Any]:
        """What is known before the rows, for d features: fields of a recipe; `ValueError` where it is not fit."""
        asked = {
            name: read
            for name, (read, parameters) in BEFOREHAND.items()
            if any(getattr(self, parameter, None) is not None for parameter in parameters)
        }
        return {name: read(self, d) for name, read in asked.items()}

    @abstractmethod
    def _begun(self, rows: Rows, recipe: Any, last: Fitted | None) -> tuple[Run, ...]:
        """The runs that a fit goes on with; none where a survey has to find their start."""

    def _check_shape(self, rows: Rows, what: str) -> None:
        """The last fit can only go on with components and features as they were."""
        last = self._fitted.mixture
        if getattr(self, "background", False) and not isinstance(last, Contaminated):
            raise DataError(f"{what} needs the background of the last fit, and that had none: fit anew.")
        wanted = (self.n_components, rows.n_features, read_structure(self))
        found = (*last.means.shape, last.covariance.structure)
        if wanted != found:
            raise DataError(
                f"{what} needs the shape of the last fit: (n_components, n_features, covariance_type) were "
                f"{(*found[:2], found[2].key)}, now {(*wanted[:2], wanted[2].key)}."
            )

    @classmethod
    def from_parameters(
        cls,
        weights: Any,
        means: Any,
        covariances: Any,
        covariance_type: str = "full",
        feature_names: Any = None,
        n_factors: int | None = None,
    ) -> Self:
        """A fitted estimator with these parameters; the online one counts them as the first 50·k rows of a stream.

        Parameters
        ----------
        weights : (k,) >= 0, summing to 1
            There is no background: ``weights_`` of a model that has one are to be divided by their sum.
        means : (k, d)
        covariances : in the shape of ``covariances_`` for ``covariance_type``
            Of "factors" also a tuple, ``(loadings_, noise_variances_)``; those of matrices are found anew.
        covariance_type : str
            As the estimator's.
        feature_names : (d,) of str, optional
            As ``feature_names_in_``.
        n_factors : int, optional
            As the estimator's.

        Raises
        ------
        ValueError
            If shapes differ, weights do not sum to 1, a covariance is not symmetric and positive definite,
            covariances do not have in common what their type says, or names are not different strings.
        """
        mixture = check_mixture(weights, means, covariances, covariance_type, n_factors)
        settings: dict[str, Any] = {"n_components": mixture.n_components, "covariance_type": covariance_type}
        settings["n_factors"] = mixture.covariance.structure.n_factors or None
        model = cls(**settings)
        names = None if feature_names is None else distinct(tuple(feature_names), "feature_names")
        if names is not None and len(names) != mixture.n_features:
            raise ValueError(f"feature_names must name {mixture.n_features} features, got {len(names)}.")
        model._fitted = model._from_mixture(mixture, names)
        return model

    def save(self, path: str | Path) -> None:
        """Write settings and parameters to one ``.npz`` file, whole or not at all.

        An online model takes its statistics and counts along, or the rows that are yet to seed it, so that one
        that is loaded learns on as this one would, bit for bit. Settings that are neither numbers, strings nor
        small arrays are left at their defaults: a RandomState, and labels or responsibilities to start from.

        Raises
        ------
        NotFittedError
            If there is nothing to save.
        ValueError
            If settings were changed since the fit to ones that it cannot have had, such as ``n_components``.
        OSError
            If the file cannot be written; one that was there stays.
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
        FileNotFoundError, PermissionError, IsADirectoryError
            If there is no such file, or none that may be read.
        ModelFileError
            A ``ValueError``: it is no model of this class, damaged, or of a version that this one does not read.
        """
        model: Self = load(path, cls)
        return model


def taken_over(kind: Any, model: Any) -> Any:
    """A fitted model as one of another kind, with its background and the settings that mean the same to both."""
    factors = getattr(model, "n_factors", None)
    covariances = (model.loadings_, model.noise_variances_) if factors else model.covariances_
    parts = (model.mixture_.members.weights, model.means_, covariances, model.covariance_type)
    own = kind.from_parameters(*parts, feature_names=getattr(model, "feature_names_in_", None))
    own.set_params(**{name: getattr(model, name) for name in SHARED})
    if model.background_weight_:
        own._fitted = own.set_params(background=True)._from_mixture(model.mixture_, own._fitted.feature_names)
    return own


class _Callbacks:
    """Calls the hooks of the callbacks that were set on an estimator with ``set_callbacks``.

    An iteration's hooks get a fitted copy of the estimator, which is made only if they ask for it; one that
    returns True ends the fit there.
    """

    def __init__(self, model: Any, X: Any, rows: Rows) -> None:
        self.model, self.rows, self.asked = model, rows, {"estimator": model, "X": X}
        self.root = model._init_callback_context(max_subtasks=None)
        self.root.call_on_fit_task_begin(**self.asked)
        self.task: Any = None
        self.n_iter = -1  # when it began

    def reached(self, state: State) -> bool:
        """Tell that the fit stands here; whether it is to end."""
        if not state.runs or state.mid_pass or (state.n_iter == self.n_iter and not state.done):
            return False
        self.n_iter = state.n_iter
        fitted = {"_fitted": self.model._found(state, self.rows)}
        ended = False
        if self.task is not None:
            ended = self.task.call_on_fit_task_end(**self.asked, reconstruction_attributes=fitted)
        if state.done or ended:
            self.root.call_on_fit_task_end(**self.asked, reconstruction_attributes=fitted)
            return ended
        self.task = self.root.subcontext(task_name=f"iteration {state.n_iter + 1}")
        self.task.call_on_fit_task_begin(**self.asked, reconstruction_attributes=fitted)
        return False
