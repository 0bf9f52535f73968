"""One ``.npz`` file for a fitted mixture: a JSON header and plain arrays, never pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.estimators.base import Fitted
from daskgmm.fit.archive import write
from daskgmm.fit.start import Waiting
from daskgmm.fit.stepwise import Spread, Stepwise
from daskgmm.model.covariance import STRUCTURES, Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics

FORMAT, VERSION = "daskgmm", 1
SUMS = ("reference", "weight", "shift", "scatter")  # of Statistics
STARTS = ("weights_init", "means_init", "precisions_init")


def save(model: Any, fitted: Fitted | Waiting, path: str | Path) -> None:
    """Write aside, then rename: a file at ``path`` is always whole."""
    settings = model.get_params(deep=False)
    header, arrays = _parts_of_waiting(fitted) if isinstance(fitted, Waiting) else _parts(fitted)
    header |= {
        "format": FORMAT,
        "version": VERSION,
        "estimator": type(model).__name__,
        "settings": {name: _plain(v) for name, v in settings.items() if _is_plain(v)},
        "feature_names": None if fitted.feature_names is None else list(fitted.feature_names),
    }
    arrays |= {name: np.asarray(settings[name], np.float64) for name in STARTS if settings.get(name) is not None}
    write(path, header, arrays)


def _parts_of_waiting(waiting: Waiting) -> tuple[dict[str, Any], dict[str, Array]]:
    """Of a stream that has not seeded its model yet."""
    counts = {"n_batches": waiting.n_batches, "next_row": waiting.next_row}
    return {"waiting": counts}, {"waiting_x": waiting.x, "waiting_weight": waiting.weight}


def _parts(fitted: Fitted) -> tuple[dict[str, Any], dict[str, Array]]:
    """Numbers and arrays of a fitted mixture."""
    header: dict[str, Any] = {
        "covariance_type": type(fitted.mixture.covariance).name,
        "n_iter": fitted.n_iter,
        "converged": bool(fitted.converged),
        "lower_bound": float(fitted.lower_bound),
        "n_passes": fitted.n_passes,
    }
    arrays = {
        "weights": fitted.mixture.weights,
        "means": fitted.mixture.means,
        "covariances": fitted.mixture.covariance.values,
        "precisions_cholesky": fitted.mixture.covariance.factor,
        "lower_bounds": np.asarray(fitted.lower_bounds, dtype=np.float64),
    }
    if fitted.online is not None:
        header["online"] = _counts(fitted.online) | {"next_row": fitted.next_row}
        arrays |= _online_arrays(fitted.online)
    return header, arrays


def kind(path: str | Path) -> str | None:
    """Name of the estimator in a file; None where that cannot be told, which `load` explains."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            name = json.loads(str(archive["header"]))["estimator"]
    except Exception:  # whatever a damaged archive may raise
        return None
    return name if isinstance(name, str) else None


def load(estimator: str, path: str | Path) -> tuple[dict[str, Any], Fitted | Waiting]:
    """Settings and state of a file that `save` wrote for this kind of estimator."""
    with open(path, "rb") as file:  # no such file, no permission: the system's own words
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
            header = json.loads(str(arrays.pop("header")))
            _check_header(header, estimator, path)
            state = _waiting(header, arrays) if "waiting" in header else _fitted(header, arrays)
            return _settings(header, arrays), state
        except _Refused:
            raise
        except Exception as error:  # whatever a damaged archive may raise
            raise ValueError(f"{path} is not a model that daskgmm saved, or it is damaged.") from error


class _Refused(ValueError):
    """A sound file of another version or estimator."""


def _check_header(header: dict[str, Any], estimator: str, path: str | Path) -> None:
    if header["format"] != FORMAT:
        raise KeyError(header["format"])
    if header["version"] > VERSION:
        raise _Refused(
            f"{path} has format version {header['version']}, this daskgmm reads up to {VERSION}. Update it."
        )
    if header["estimator"] != estimator:
        raise _Refused(f"{path} holds a {header['estimator']}, not a {estimator}.")


def _settings(header: dict[str, Any], arrays: dict[str, Array]) -> dict[str, Any]:
    settings: dict[str, Any] = header["settings"]
    return settings | {name: arrays[name] for name in STARTS if name in arrays}


def _names(header: dict[str, Any]) -> Array | None:
    names = header["feature_names"]
    return None if names is None else np.array(names, dtype=object)


def _waiting(header: dict[str, Any], arrays: dict[str, Array]) -> Waiting:
    x, weight = arrays["waiting_x"], arrays["waiting_weight"]
    if x.ndim != 2 or weight.shape != (len(x),):
        raise ValueError("The arrays disagree in shape.")
    return Waiting(x, weight, _names(header), **header["waiting"])


def _fitted(header: dict[str, Any], arrays: dict[str, Array]) -> Fitted:
    structure, (k, d) = STRUCTURES[header["covariance_type"]], arrays["means"].shape
    covariance = structure(arrays["covariances"], arrays["precisions_cholesky"])
    shapes = {covariance.values.shape, covariance.factor.shape, structure.shape(k, d)}
    if arrays["weights"].shape != (k,) or len(shapes) > 1:
        raise ValueError("The arrays disagree in shape.")
    return Fitted(
        Mixture(arrays["weights"], arrays["means"], covariance),
        header["n_iter"],
        header["converged"],
        header["lower_bound"],
        tuple(arrays["lower_bounds"].tolist()),
        header["n_passes"],
        _names(header),
        *_online(header, arrays, structure),
    )


def _counts(run: Stepwise) -> dict[str, Any]:
    """All numbers of an online run."""
    names = ("clock", "reg_covar", "n_rows", "n_batches", "bound", "unit")
    spread = [run.spread.now, run.spread.mixed, run.spread.average]
    return {name: _plain(getattr(run, name)) for name in names} | {"spread": spread}


def _online_arrays(run: Stepwise) -> dict[str, Array]:
    """All arrays of an online run."""
    mixture = run.mixture
    arrays = {
        "online_weights": mixture.weights,
        "online_means": mixture.means,
        "online_covariances": mixture.covariance.values,
        "online_precisions_cholesky": mixture.covariance.factor,
    }
    if run.anchor is not None:
        arrays |= {"anchor_covariances": run.anchor.values, "anchor_precisions_cholesky": run.anchor.factor}
    for title, s in (("statistics", run.statistics), ("average", run.average)):
        arrays |= {f"{title}_{name}": getattr(s, name) for name in SUMS}
        arrays[f"{title}_totals"] = np.array([s.log_likelihood, s.total_weight])
    return arrays


def _online(
    header: dict[str, Any], arrays: dict[str, Array], structure: type[Covariance]
) -> tuple[Stepwise | None, int]:
    """The online run in a file, if there is one, and the next row."""
    if "online" not in header:
        return None, 0
    counts = dict(header["online"])
    next_row, spread = counts.pop("next_row"), Spread(*counts.pop("spread"))
    mixture = Mixture(
        arrays["online_weights"],
        arrays["online_means"],
        structure(arrays["online_covariances"], arrays["online_precisions_cholesky"]),
    )
    both = []
    for title in ("statistics", "average"):
        reference, weight, shift, scatter = (arrays[f"{title}_{name}"] for name in SUMS)
        totals = arrays[f"{title}_totals"].tolist()
        both.append(Statistics(structure, reference, weight, shift, scatter, totals[0], totals[1], 0))
    k, d = arrays["means"].shape
    covariance = mixture.covariance
    anchor = None
    if "anchor_covariances" in arrays:
        anchor = structure(arrays["anchor_covariances"], arrays["anchor_precisions_cholesky"])
    found = [
        {mixture.weights.shape, *(s.weight.shape for s in both)},
        {mixture.means.shape, *(s.reference.shape for s in both), *(s.shift.shape for s in both)},
        {*(part.shape for c in (covariance, anchor or covariance) for part in (c.values, c.factor))}
        | {s.scatter.shape for s in both},
    ]
    if found != [{(k,)}, {(k, d)}, {structure.shape(k, d)}]:
        raise ValueError("The arrays disagree in shape.")
    return Stepwise(mixture, both[0], both[1], spread, anchor=anchor, **counts), next_row


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
