"""Models in files: the settings of an estimator, and what its fit left."""

import os
from functools import partial
from typing import Any

import numpy as np

from daskgmm.errors import DataError, ModelFileError
from daskgmm.estimators import format1
from daskgmm.estimators.checks import check_saved, frozen_parts
from daskgmm.estimators.expectation import Expectation
from daskgmm.estimators.fitted import Fitted, Unseeded
from daskgmm.estimators.parameters import ARRAYS, ESTIMATORS
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.store import files
from daskgmm.store.places import Place, locate

VERSION = files.MODEL_VERSION


def save(model: Any, state: Fitted | Unseeded, path: Place) -> None:
    """Write a file that `load` takes; `ValueError` for settings that were changed, and are not of that fit."""
    check_saved(model, state)
    settings = {name: value for name, value in model.get_params(deep=False).items() if _is_plain(value)}
    if hasattr(model, "frozen"):
        settings["frozen"] = frozen_parts(model)
    arrays = {name: getattr(model, name, None) for name in set(ARRAYS) - settings.keys()}
    settings |= {name: np.asarray(array, np.float64) for name, array in arrays.items() if array is not None}
    header = {"format": files.MODEL, "version": VERSION, "estimator": type(model).__name__}
    files.save(path, header, {"settings": settings, "fitted": state})


def load(path: Place, kind: type[Any] | None = None) -> Any:
    """Read a model that ``save`` wrote, of this class or of any of ours, bit for bit; or an `Expectation`.

    Parameters
    ----------
    path : str or PathLike
        Of a file, or an fsspec URL. The file need not be trusted: what is not as ``save`` writes it is refused.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        If there is no such file, or none that may be read.
    ModelFileError
        A ``ValueError``: it is no such model, or damaged, or of a version that this one does not read.
    """
    found, settings, state = read(path)
    if isinstance(state, Expectation) and kind is None:
        return state
    known = ESTIMATORS if kind is None else {kind.__name__: kind}
    if found not in known or isinstance(state, Expectation):
        raise ModelFileError(f"{os.fspath(path)} holds a {found}, not a {' or '.join(known)}.")
    try:
        model = known[found](**settings)
        check_saved(model, state)
    except (TypeError, ValueError) as error:  # settings that are not there, or not such
        raise _damaged(path) from error
    vars(model)["_fitted" if isinstance(state, Fitted) else "_unseeded"] = state
    return model


def read(path: Place) -> tuple[str, dict[str, Any], Fitted | Unseeded | Expectation]:
    """Name of the estimator in a file, its settings and its state; errors are those of `load`."""
    locate(path, refusal=ModelFileError)
    try:
        header, arrays = files.read(path, partial(_judge, path))
        if header["version"] == 1:
            header, arrays = format1.translated(header, arrays)
        value = files.value_of(header, arrays, dict[str, Any])
        found, settings, state = header["estimator"], value["settings"], value["fitted"]
        kinds = Expectation if found == Expectation.__name__ else (Fitted, Unseeded)
        if not (isinstance(found, str) and isinstance(settings, dict) and isinstance(state, kinds)):
            raise TypeError(f"{type(state)} is not what a fit leaves.")
        special = {**dict.fromkeys(ARRAYS, np.ndarray), "frozen": dict}
        if not all(_is_plain(v) or isinstance(v, special.get(name, ())) for name, v in settings.items()):
            raise TypeError("Settings are plain, or starts.")
        return found, settings, state
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file may raise
        raise _damaged(path) from error


def _judge(path: Place, header: files.Header) -> bool:
    """Refuse what is no model, or one of a version to come; whether the file has digests."""
    if header["format"] == files.CHECKPOINT:
        raise ModelFileError(
            f"{os.fspath(path)} is a checkpoint, not a model: end its fit, and give the model that it saves."
        )
    version = header["version"]
    if header["format"] != files.MODEL or type(version) is not int or version < 1:
        raise files.Damaged("It is not a model.")
    if version > VERSION:
        raise ModelFileError(
            f"{os.fspath(path)} has format version {version}, this daskgmm reads up to {VERSION}. Update it."
        )
    return version > 1


def _damaged(path: Place) -> ModelFileError:
    return ModelFileError(
        f"{os.fspath(path)} is not a model that daskgmm saved, or it is damaged. Take another copy, or fit again."
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, np.generic, NormalInverseWishart))
