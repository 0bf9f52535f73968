"""Open what a command reads; whatever is wrong with it is a `DataError`."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import click
import numpy as np
import zarr

from daskgmm._typing import Array
from daskgmm.compute.sources.paths import open_array
from daskgmm.errors import DataError
from daskgmm.estimators.checks import check_standing
from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.persistence import load
from daskgmm.fit.state import State
from daskgmm.store import checkpoint, files

FILE_URL = "file://"
LARGE = 2**20  # values of a chunk, which a small array may have whatever its own size

Model = GaussianMixture | MiniBatchGaussianMixture


@dataclass(frozen=True)
class Places:
    """Where arrays lie: paths, and URLs with the options of the file systems behind them."""

    storage: Mapping[str, Any]

    @classmethod
    def of(cls, storage: tuple[tuple[str, Any], ...], *used: str | None) -> "Places":
        """Refuse options that no URL would use."""
        if storage and not any(place and is_url(place) for place in used):
            raise click.UsageError("--storage-option is for URLs, and there is none.")
        return cls(dict(storage))

    def options(self, place: str) -> dict[str, Any] | None:
        """Storage options for one place."""
        return dict(self.storage) if is_url(place) and self.storage else None

    def open(self, place: str) -> zarr.Array[Any]:
        """Open a Zarr array."""
        array: zarr.Array[Any] = open_array(place, storage_options=self.options(place))
        return array

    def rowwise(self, place: str | None, shape: tuple[int, ...]) -> Any:
        """Values that go with the rows, not yet read: a ``.npy`` file or a Zarr array of this shape."""
        if place is None:
            return None
        values = _mapped(place) if place.endswith(".npy") else self.open(place)
        if values.shape != shape:
            raise DataError(f"{place} has shape {values.shape}, expected {shape}: a value for each row.")
        return values

    def whole(self, place: str, shape: tuple[int, ...]) -> Array:
        """A small array of this shape: a ``.npy`` file or a Zarr array. No more is read than is wanted."""
        values = _mapped(place) if place.endswith(".npy") else self.open(place)
        if values.shape != shape or np.dtype(values.dtype).kind not in "biuf":
            found = f"{values.dtype} of shape {values.shape}"
            raise click.UsageError(f"{place} holds {found}, and has to hold numbers, of shape {shape}.")
        stored: Any = getattr(values, "shards", None) or getattr(values, "chunks", shape)
        if math.prod(stored) > max(LARGE, math.prod(shape)):
            raise click.UsageError(f"{place} has chunks of shape {stored}, too large to read {shape} from.")
        try:
            return np.array(values[...])
        except Exception as error:  # whatever a file system or a damaged store may raise
            raise DataError(f"{place} cannot be read: {error}") from error


def is_url(place: str) -> bool:
    """Whether a place is not on a local file system."""
    return "://" in place and not place.startswith(FILE_URL)


def join(place: str, array: str | None) -> str:
    """The place of a named array in a group."""
    return place if array is None else f"{place.rstrip('/')}/{array.strip('/')}"


def load_model(place: str) -> Model:
    """Read a saved model, of either kind; one that waits for its start may be learnt on, and shown."""
    try:
        return cast(Model, load(place))
    except OSError as error:
        raise DataError(f"The model {place} cannot be read: {error.strerror or error}.") from error


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
        raise DataError(f"{place} cannot be read: {error.strerror or error}.") from error
    if kind == files.MODEL:
        return load_model(place)
    if kind == files.CHECKPOINT and (found := checkpoint.read(place, State, check_standing)) is not None:
        return found
    raise DataError(f"{place} is not a model or a checkpoint that daskgmm saved, or it is damaged.")


def _mapped(place: str) -> Array:
    """The array in a ``.npy`` file, of which nothing but the header is read."""
    if not os.path.exists(place):
        raise FileNotFoundError(f"There is no file {place}.")
    if not os.path.isfile(place):  # to open a pipe may take for ever
        raise DataError(f"{place} is no file.")
    try:
        values: Array = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{place} cannot be read as .npy: {error}") from error
    return values
