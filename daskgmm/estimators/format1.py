"""Model files of format 1, as daskgmm wrote them before 0.2: flat names for all arrays and numbers."""

from typing import Any, TypeAlias

from daskgmm._typing import Array
from daskgmm.estimators.fitted import Fitted, Unseeded
from daskgmm.estimators.parameters import SMALL
from daskgmm.fit.stepwise import Spread, StepRule, Stepwise
from daskgmm.fit.stream import Waiting
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import STRUCTURES, Structure
from daskgmm.model.update import Steady
from daskgmm.store.values import floats, pack

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, Array]


def translated(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Header and arrays as later formats have them; any exception where the file is damaged."""
    settings, fitted = _parts(header, arrays)
    taken: Arrays = {}
    return {**header, "value": pack({"settings": settings, "fitted": fitted}, taken, "value")}, taken


def _parts(header: Header, arrays: Arrays) -> tuple[dict[str, Any], Fitted | Unseeded]:
    settings = header["settings"] | {name: arrays[name] for name in SMALL if name in arrays}
    if "waiting" not in header:
        return settings, _fitted(header, arrays)
    told = header["waiting"]
    waiting = Waiting(arrays["waiting_x"], arrays["waiting_weight"], told["n_batches"])
    return settings, Unseeded(waiting, _names(header), told["next_row"])


def _names(header: Header) -> tuple[str, ...] | None:
    names = header["feature_names"]
    if not isinstance(names, (list, type(None))):
        raise TypeError("Names are no list.")
    return None if names is None else tuple(names)


def _fitted(header: Header, arrays: Arrays) -> Fitted:
    structure = STRUCTURES[header["covariance_type"]]
    fitted = Fitted(
        _mixture(structure, arrays, ""),
        header["n_iter"],
        header["converged"],
        header["lower_bound"],
        floats(arrays["lower_bounds"]),
        header["n_passes"],
        _names(header),
        _online(header, arrays, structure) if "online" in header else None,
        header.get("online", {}).get("next_row", 0),
    )
    return fitted


def _mixture(structure: Structure, arrays: Arrays, prefix: str) -> Mixture:
    means, weights = arrays[f"{prefix}means"], arrays[f"{prefix}weights"]
    k, d = means.shape
    names = (f"{prefix}covariances", f"{prefix}precisions_cholesky")
    if weights.shape != (k,) or any(arrays[name].shape != structure.shape(k, d) for name in names):
        raise ValueError("The arrays disagree in shape.")
    values, factor = (structure.stored(arrays[name], k, d) for name in names)
    return Mixture(weights, means, structure.form(structure, values, factor))


def _online(header: Header, arrays: Arrays, structure: Structure) -> Stepwise:
    """The online run in a file."""
    told, settings = dict(header["online"]), header["settings"]
    mixture = _mixture(structure, arrays, "online_")
    k, d = mixture.means.shape
    both = []
    for title in ("statistics", "average"):
        reference, weight, shift, scatter = (
            arrays[f"{title}_{name}"] for name in ("reference", "weight", "shift", "scatter")
        )
        totals = floats(arrays[f"{title}_totals"])
        both.append(
            Statistics(
                structure, reference, weight, shift, structure.stored(scatter, k, d), totals[0], totals[1], 0
            )
        )
    anchor = None
    if "anchor_covariances" in arrays:
        names = ("anchor_covariances", "anchor_precisions_cholesky")
        anchor = structure.form(structure, *(structure.stored(arrays[name], k, d) for name in names))
    size = settings["batch_size"] or 2 * k * (d + 1)
    rule = StepRule(size, settings["learning_decay"], settings["learning_offset"], settings["half_life"])
    return Stepwise(
        mixture,
        both[0],
        both[1],
        Spread(*told["spread"]),
        told["clock"],
        Steady(told["reg_covar"], anchor),
        rule,
        told["n_rows"],
        told["n_batches"],
        told["bound"],
        unit=told["unit"],
    )
