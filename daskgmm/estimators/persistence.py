"""Models in files: the settings of an estimator, and what its fit left."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from daskgmm.estimators import format1
from daskgmm.estimators.fitted import Fitted, Unseeded
from daskgmm.estimators.parameters import ESTIMATORS, SMALL
from daskgmm.store import files
from daskgmm.store.aside import clear

FORMAT, VERSION = "daskgmm", 2


def save(model: Any, state: Fitted | Unseeded, path: str | Path) -> None:
    """Write aside, then rename: a file at ``path`` is always whole."""
    settings = {name: value for name, value in model.get_params(deep=False).items() if _is_plain(value)}
    starts = {name: getattr(model, name, None) for name in SMALL}
    settings |= {name: np.asarray(start, np.float64) for name, start in starts.items() if start is not None}
    header = {"format": FORMAT, "version": VERSION, "estimator": type(model).__name__}
    clear(os.fspath(path))
    files.save(path, header, {"settings": settings, "fitted": state})


def load(path: str | Path, kind: type[Any] | None = None) -> Any:
    """Read a model that ``save`` wrote, of this class or of any of ours, bit for bit.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no such model, or of a version that this one does not read.
    """
    found, settings, state = read(path)
    known = ESTIMATORS if kind is None else {kind.__name__: kind}
    if found not in known:
        raise ValueError(f"{path} holds a {found}, not a {' or '.join(known)}.")
    model = known[found](**settings)
    vars(model)["_fitted" if isinstance(state, Fitted) else "_unseeded"] = state
    return model


def read(path: str | Path) -> tuple[str, dict[str, Any], Fitted | Unseeded]:
    """Name of the estimator in a file, its settings and its state; `ValueError` for any other file."""
    content = Path(path).read_bytes()  # no such file, no permission: the system's own words
    try:
        header, arrays = files.parse(content)
        if header["format"] != FORMAT:
            raise KeyError(header["format"])
        if header["version"] > VERSION:
            raise _Refused(
                f"{path} has format version {header['version']}, this daskgmm reads up to {VERSION}. Update it."
            )
        if header["version"] == 1:
            settings, fitted = format1.parts(header, arrays)
        else:
            value = files.value_of(header, arrays)
            settings, fitted = value["settings"], value["fitted"]
        if not isinstance(fitted, (Fitted, Unseeded)):
            raise TypeError(type(fitted))
        _check_shapes(fitted)
        return header["estimator"], settings, fitted
    except _Refused:
        raise
    except Exception as error:  # whatever a damaged archive may raise
        raise ValueError(f"{path} is not a model that daskgmm saved, or it is damaged.") from error


class _Refused(ValueError):
    """A sound file of another version."""


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _check_shapes(state: Fitted | Unseeded) -> None:
    """Refuse arrays that do not belong together."""
    if isinstance(state, Unseeded):
        x, weight = state.waiting.x, state.waiting.weight
        wrong = x.ndim != 2 or weight.shape != (len(x),)
    else:
        run, (k, d) = state.online, state.mixture.means.shape
        mixtures = [state.mixture] if run is None else [state.mixture, run.mixture]
        wrong = any(m.means.shape != (k, d) or m.weights.shape != (k,) for m in mixtures)
        anchor = None if run is None else run.update.anchor
        covariances = [m.covariance for m in mixtures] + ([] if anchor is None else [anchor])
        held = [(c.structure, v) for c in covariances for v in (c.values, c.factor)]
        for s in () if run is None else (run.statistics, run.average):
            wrong |= (s.reference.shape, s.shift.shape, s.weight.shape) != ((k, d), (k, d), (k,))
            held.append((s.structure, s.scatter))
        wrong |= any(v.shape != structure.stored(v, k, d).shape for structure, v in held)
    if wrong:
        raise ValueError("The arrays disagree in shape.")
