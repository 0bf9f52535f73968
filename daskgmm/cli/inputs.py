"""Open what a command reads; whatever is wrong with it is a `DataError`."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar, cast

import click
import numpy as np
from dask.utils import format_bytes

from daskgmm._typing import Array
from daskgmm.compute.sources import as_source
from daskgmm.compute.sources.base import Asked, Source
from daskgmm.compute.sources.paths import signed
from daskgmm.errors import DataError, ModelFileError
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.checks import check_standing
from daskgmm.estimators.expectation import Expectation
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.persistence import load
from daskgmm.fit.state import State
from daskgmm.store import checkpoint, files

FILE_URL = "file://"
CHUNK_VALUES = 2**20  # which a small array may have whatever its own size

Model = GaussianMixture | MiniBatchGaussianMixture | BayesianGaussianMixture
M = TypeVar("M", GaussianMixture, MiniBatchGaussianMixture, BayesianGaussianMixture, Model)


@dataclass(frozen=True)
class Places:
    """Where arrays lie: paths, and URLs with the options of the file systems behind them."""

    storage: Mapping[str, Any]
    variables: tuple[str, ...] | None = None  # of the data, where that is a group

    @classmethod
    def of(
        cls, storage: tuple[tuple[str, Any], ...], variables: tuple[str, ...] | None, *used: str | None
    ) -> "Places":
        """Refuse options that no URL would use."""
        if storage and not any(place and is_url(place) for place in used):
            raise click.UsageError("--storage-option is for URLs, and there is none.")
        return cls(dict(storage), variables)

    def options(self, place: str) -> dict[str, Any] | None:
        """Storage options for one place."""
        return dict(self.storage) if is_url(place) and self.storage else None

    @property
    def settings(self) -> dict[str, Any]:
        """The same as parameters of an estimator, which opens places itself."""
        return {"storage_options": dict(self.storage) or None, "variables": self.variables}

    def read_by(self, model: M, reading: Mapping[str, Any]) -> M:
        """A saved model that reads rows from here, as told, else as in its fit."""
        given = {name: value for name, value in reading.items() if value is not None}
        told: M = model.set_params(**given, **self.settings)
        return told

    def rows(self, place: str, model: Model | None = None) -> Source:
        """Rows of features, opened to see what they are; of a model's, if one is given."""
        names = getattr(model, "feature_names_in_", None)
        features = None if names is None else tuple(names)
        return self._look(place, "X", ensure_2d=True, variables=self.variables, features=features)

    def beside(self, x: Any, weights: str | None, known: str | None, noise: str | None) -> dict[str, str | None]:
        """What goes with rows x, as `fit` takes it. Noise has one of two shapes, of which `fit` knows more."""
        weight, labels = (self.rowwise(one, x.shape[:1]) for one in (weights, known))
        return {"sample_weight": weight, "known": labels, "noise": noise}

    def rowwise(self, place: str | None, shape: tuple[float, ...]) -> str | None:
        """The place itself, of values that go with the rows, an array of this shape."""
        if place is not None and (found := self._look(place, place).shape) != shape:
            raise DataError(f"{place} has shape {found}, expected {shape}: a value for each row.")
        return place

    def whole(self, place: str, shape: tuple[int, ...], decode_cf: bool = True) -> Array:
        """A small array of this shape. No more is read than is wanted."""
        source = self._look(place, place)
        if source.shape != shape:
            found = f"{source.dtype} of shape {source.shape}"
            raise click.UsageError(f"{place} holds {found}, and has to hold numbers, of shape {shape}.")
        if source.chunk_bytes > 8 * max(CHUNK_VALUES, math.prod(shape)):
            size = format_bytes(source.chunk_bytes)
            raise click.UsageError(f"{place} has chunks of {size}, too large to read {shape} from.")
        values = self._look(place, place, fill_missing=False, decode_cf=decode_cf)
        return np.array(values.reader(0, None))

    def _look(self, place: str, name: str, **more: Any) -> Source:
        """A place, opened as it lies there: that is all it takes to know its shape."""
        how = {"fill_missing": True, "ensure_2d": False, "decode_cf": False, **more}
        try:
            return as_source(place, Asked(name, storage_options=self.storage, **how))
        except DataError as error:
            told = str(error)
            raise DataError(told if place in told else f"{place}: {told}") from error


def is_url(place: str) -> bool:
    """Whether a place is not on a local file system."""
    return "://" in place and not place.startswith(FILE_URL)


def load_model(place: str) -> Model:
    """Read a saved model, of any kind; one that waits for its start may be learnt on, and shown."""
    try:
        found = load(place)
    except OSError as error:
        raise _unreadable(place, error) from error
    except ModelFileError as error:
        raise _no_model(place, str(error)) from error
    if isinstance(found, Expectation):
        raise DataError(f"{place} holds an Expectation, not a model: GaussianMixture.maximise takes it.")
    return cast(Model, found)


def load_fitted(place: str) -> Model:
    """Read a saved model that has parameters."""
    model = load_model(place)
    if waits(model):
        come, missing = model.n_samples_seen_, model.n_rows_to_start_
        raise DataError(
            f"{place} is no mixture yet: {come} of the first {come + missing} rows have come, which seed it. "
            "Learn more: daskgmm update"
        )
    return model


def waits(model: Model) -> TypeGuard[MiniBatchGaussianMixture]:
    """Whether a model has not started yet."""
    return not hasattr(model, "mixture_")


def load_either(place: str) -> Model | tuple[dict[str, Any], State]:
    """A saved model; or what the fit of a checkpoint is of, and where it stands."""
    try:
        kind = files.header_of(place).get("format")
    except (DataError, files.Damaged):
        kind = None
    except OSError as error:
        raise _unreadable(place, error) from error
    if kind == files.MODEL:
        return load_model(place)
    if kind == files.CHECKPOINT and (found := checkpoint.read(place, State, check_standing)) is not None:
        return found
    raise _no_model(place, f"{place} is not a model or a checkpoint that daskgmm saved, or it is damaged.")


def _unreadable(place: str, error: OSError) -> DataError:
    """Say why a model cannot be read."""
    if not isinstance(error, IsADirectoryError):
        return DataError(f"The model {place} cannot be read: {error.strerror or error}.")
    return _no_model(place, f"{place} is a folder. A model is a file, such as fit writes to its --out.")


def _no_model(place: str, why: str) -> DataError:
    """Say which data there is in the place of a model; ``why`` it is no model, where none is known."""
    kind = signed(place) if os.path.isfile(place) else None
    # A damaged model of another name is a zip file, too.
    if not os.path.isdir(place) and (kind is None or (kind == ".zip" and not place.endswith(kind))):
        return DataError(why)
    try:
        found = as_source(place, Asked("DATA", fill_missing=True, ensure_2d=False, decode_cf=False))
        told = f"{place} is data: {found.facts().kind}, {found.dtype} of shape {found.shape}."
    except FileNotFoundError:
        return DataError(why)
    except DataError as error:
        told = str(error)  # of a group, for instance, whose arrays it lists
    return DataError(
        f"{told}\nA model is a file such as fit writes to its --out. Of data, daskgmm check tells more."
    )
