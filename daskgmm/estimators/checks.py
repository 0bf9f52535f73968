"""Check parameters that users give, and make a start or a mixture of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_array

from daskgmm._typing import Array
from daskgmm.compute.rows import Rows, bytes_of
from daskgmm.compute.sources.plain import plain
from daskgmm.errors import CollapseError, DataError, warn
from daskgmm.estimators.fitted import Fitted, Unseeded
from daskgmm.estimators.parameters import ROWWISE, SMALL
from daskgmm.fit.online import Passes
from daskgmm.fit.recipe import Start
from daskgmm.fit.search import Candidate
from daskgmm.fit.state import State
from daskgmm.fit.variational import Inference
from daskgmm.model.covariance import Covariance
from daskgmm.model.frozen import PARTS
from daskgmm.model.loadings import Loadings
from daskgmm.model.mixture import Mixture, sums_to_one
from daskgmm.model.posterior import Variational
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import FACTORS, FULL, NAMES, Structure, structure_of


def check_settings(model: Any, d: int | None) -> None:
    """Raise for parameters that no fit takes; with ``d``, for a start that rows of d features refuse.

    Raises
    ------
    InvalidParameterError, ValueError
        The second for a start.
    """
    model._validate_params()
    frozen_parts(model)
    if d is not None:
        model._beforehand(d)


def check_names(before: Iterable[str] | None, names: Iterable[str] | None, model: str) -> None:
    """Features are called as in the fit, in its order; in scikit-learn's words, for all that has names.

    Raises
    ------
    DataError
        If both are named, and otherwise.

    Warns
    -----
    UserWarning
        If only one of them is.
    """
    if before is None or names is None:
        if names is not None:
            warn(f"X has feature names, but {model} was fitted without feature names")
        if before is not None:
            told = f"X does not have valid feature names, but {model} was fitted with feature names"
            warn(told)
        return
    if list(before) == list(names):
        return
    lines = ["The feature names should match those that were passed during fit."]
    for told, others in (
        ("unseen at fit time", set(names) - set(before)),
        ("seen at fit time, yet now missing", set(before) - set(names)),
    ):
        listed = sorted(others)
        lines += [f"Feature names {told}:", *(f"- {name}" for name in listed[:5])] if listed else []
        lines += ["- ..."] if len(listed) > 5 else []
    if len(lines) == 1:
        order = list(before)
        listed = [*order[:20], "..."] if len(order) > 20 else order
        lines += [
            "Feature names must be in the same order as they were in fit.",
            f"That was: {', '.join(listed)}.",
        ]
    raise DataError("\n".join(lines) + "\n")


def feature_numbers(features: Any, names: Sequence[str], n: int) -> list[int] | None:
    """Numbers of features that are given by name or number, one or several; None where they are not all of n."""
    several = np.iterable(features) and not isinstance(features, str)
    found = [names.index(f) if f in names else f for f in (features if several else [features])]
    known = all(isinstance(f, (int, np.integer)) and not isinstance(f, bool) and 0 <= f < n for f in found)
    return [int(f) for f in found] if found and known else None


def check_decoding(before: str | None, model: Any, rows: Rows) -> None:
    """Warn where rows are read as they are stored, and those of the fit were decoded."""
    if before and not model.decode_cf and (rows.x.waits or rows.table is not None):
        told = f"The values of the fit were decoded {before}, and with decode_cf=False (--raw) those of X are not."
        warn(told)


def label_type(dtype: Any, k: int) -> np.dtype[Any]:
    """The integer type of labels below ``k``, and of the −1 that stands for none; `ValueError` for another."""
    smallest = np.min_scalar_type(-k)
    wanted = smallest if isinstance(dtype, str) and dtype == "smallest" else np.dtype(dtype)
    if wanted.kind != "i" or wanted.itemsize < smallest.itemsize:
        raise ValueError(
            f"dtype must be 'smallest' or a signed integer type that holds -1 to {k - 1}, such as {smallest}; got "
            f"{dtype!r}."
        )
    return wanted


def share_type(dtype: Any) -> np.dtype[Any]:
    """The type of probabilities; `ValueError` for another."""
    given = dtype is not None and not (isinstance(dtype, str) and dtype == "smallest")
    wanted: np.dtype[Any] | None = np.dtype(dtype) if given else None  # None would be float64
    if wanted is None or wanted not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float64 or float32 for probabilities, got {dtype!r}.")
    return wanted


def array_shapes(k: int, d: int, covariance_type: str) -> dict[str, tuple[int, ...]]:
    """The shapes of parameters that are small arrays."""
    structure = structure_of(covariance_type, 1)
    return {
        "weights_init": (k,),
        "means_init": (k, d),
        "precisions_init": structure.shape(k, d),
        "mean_prior": (d,),
        "covariance_prior": structure.shape(1, d)[not structure.shared :],
    }


def read_structure(model: Any, d: int | None = None) -> Structure:
    """What an estimator says that covariances have in common; `ValueError` for too many factors of d features."""
    structure = structure_of(model.covariance_type, getattr(model, "n_factors", None))
    if d is not None and structure.n_factors >= d:
        raise DataError(f"n_factors must be below the number of features, {d}, got {structure.n_factors}.")
    return structure


def read_start(model: Any, d: int) -> Start:
    """The start in an estimator's ``weights_init``, ``means_init`` and ``precisions_init``."""
    k, structure = model.n_components, read_structure(model, d)
    weights = None if model.weights_init is None else _weights(model.weights_init, k)
    means = None if model.means_init is None else _array(model.means_init, (k, d), "means")
    if model.precisions_init is None:
        return Start(weights, means)
    given = _covariance(model.precisions_init, k, d, structure, "precisions")
    return Start(weights, means, structure.imposed(given, np.ones(k) if weights is None else weights))


def frozen_parts(model: Any) -> dict[str, tuple[int, ...]] | None:
    """The components of which an estimator's ``frozen`` names weights, means and covariances.

    Raises
    ------
    ValueError
        If there are no such parameters or components, or values that they may keep.
    """
    given, k = getattr(model, "frozen", None), model.n_components  # a search has none
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given)
    inits = dict(zip(PARTS, SMALL, strict=True))
    found: dict[str, tuple[int, ...]] = dict.fromkeys(PARTS, ())
    for name in names:
        if name not in PARTS:
            raise ValueError(f"frozen names parameters out of {', '.join(PARTS)}, got {name!r}.")
        numbers = given[name] if isinstance(given, Mapping) else range(k)
        listed = feature_numbers(numbers, (), k) if np.size(numbers) else []
        if listed is None:
            raise ValueError(f"frozen names components 0 ... {k - 1}, got {numbers!r} of {name}.")
        if listed and getattr(model, inits[name]) is None:
            raise ValueError(f"frozen names {name}, and {inits[name]} is None: give the values that are to stay.")
        found[name] = tuple(sorted({*listed}))
    if read_structure(model).related and 0 < len(found["covariances"]) < k:
        raise ValueError(
            "frozen names covariances of some components, and these have something in common with the others: "
            "name all or none."
        )
    return found if any(found.values()) else None


def read_frozen(model: Any, d: int) -> dict[str, Array] | None:
    """The same as masks (k,)."""
    parts, k = frozen_parts(model), np.arange(model.n_components)
    return None if parts is None else {name: np.isin(k, numbers) for name, numbers in parts.items()}


def read_prior(model: Any, d: int) -> NormalInverseWishart:
    """The prior that an estimator names; `ValueError` where it does not fit its components, or d features."""
    prior = model.prior if isinstance(model.prior, NormalInverseWishart) else NormalInverseWishart()
    structure = read_structure(model, d)
    unit = structure.form.unit(1 if structure.isotropic else d)[None]
    points = np.zeros((1, d))
    any_rows = Statistics(structure, points, np.ones(1), points, unit, 0.0, 1.0, 1)
    prior.on(structure, model.n_components, any_rows, 0.0)  # before a pass is spent
    return prior


# What is read for a recipe where one of these parameters is given.
BEFOREHAND: dict[str, tuple[Callable[[Any, int], Any], tuple[str, ...]]] = {
    "start": (read_start, SMALL),
    "prior": (read_prior, ("prior",)),
    "frozen": (read_frozen, ("frozen",)),
}


def read_belief(model: Any, d: int) -> Variational:
    """The prior of an estimator, None where rows have to tell; `ValueError`, in scikit-learn's words, as above."""
    kind, nu = model.covariance_type, model.degrees_of_freedom_prior
    structure = read_structure(model)
    mean, covariance = model.mean_prior, model.covariance_prior
    if nu is not None and not nu > d - 1:
        told = f"The parameter 'degrees_of_freedom_prior' should be greater than {d - 1}, but got {nu:.3f}."
        raise ValueError(told)
    if covariance is not None:
        one, shape = np.asarray(covariance), array_shapes(1, d, kind)["covariance_prior"]
        if one.shape != shape:
            told = f"The parameter '{kind} covariance_prior' should have the shape of {shape}, but got {one.shape}"
            raise ValueError(told)
        covariance = _covariance(
            one if structure.shared else one[None], 1, d, structure, "covariance_prior"
        ).values
    concentration, precision = model.weight_concentration_prior, model.mean_precision_prior
    return Variational(
        structure=structure,
        process=model.weight_concentration_prior_type == "dirichlet_process",
        concentration=1.0 / model.n_components if concentration is None else float(concentration),
        mean_precision=1.0 if precision is None else float(precision),
        degrees_of_freedom=float(d if nu is None else nu),
        mean=None if mean is None else _array(mean, (d,), "means"),
        covariance=covariance,
        reg_covar=model.reg_covar,
    )


def check_saved(model: Any, state: Fitted | Unseeded) -> None:
    """Raise `ValueError` for settings that no fit takes, or that are not those of the one that left this state."""
    online, learns = isinstance(state, Unseeded) or state.online is not None, hasattr(model, "partial_fit")
    if online != learns:
        raise ValueError(f"A {type(model).__name__} leaves no such state.")
    if isinstance(state, Fitted) and (state.belief is not None) != hasattr(model, "weight_concentration_prior"):
        raise ValueError(f"A {type(model).__name__} leaves no such state.")
    check_settings(model, state.n_features)
    if bytes_of(model.block_size) < 1:
        raise ValueError(f"block_size must be at least 1 byte, got {model.block_size!r}.")
    for name in ROWWISE:
        if isinstance(value := getattr(model, name, None), (bool, int, float)):
            raise ValueError(f"{name} must have a value for each row, got {value!r}.")
    if isinstance(state, Fitted):
        settings, mixture = (model.n_components, read_structure(model).key), state.mixture
        found = (mixture.n_components, mixture.covariance.structure.key)
        if settings != found:
            raise ValueError(
                f"(n_components, covariance_type) are {settings}, and were {found} in the fit: fit again, or set "
                "them back."
            )


def check_standing(identity: Mapping[str, Any], state: State) -> None:
    """Raise `ValueError` where a state is not of the fit that the identity in its checkpoint tells."""
    runs, found, several = state.runs, state.survey, "covariance_types" in identity
    sizes = identity["n_components"] if several else [identity["n_components"]]
    types = identity["covariance_types"] if several else [identity["covariance_type"]]
    kinds = [structure_of(name, identity.get("n_factors")) for name in types]
    n, (d,) = identity["rows"], identity["X's columns"]
    named = all(type(k) is int for k in sizes) and isinstance(identity["estimator"], str)
    if not (named and (n is None or type(n) is int)):
        raise ValueError("The checkpoint does not tell what it is of.")
    known = {((k, d), kind) for k in sizes for kind in kinds}
    if any((run.mixture.means.shape, run.mixture.covariance.structure) not in known for run in runs):
        raise ValueError("The runs have other components or features.")
    if any(isinstance(run, Candidate) != several for run in runs):
        raise ValueError("The runs are those of another estimator.")
    if any((run.max_iter, getattr(run, "tol", None)) != (identity["max_iter"], identity["tol"]) for run in runs):
        raise ValueError("The runs end elsewhere.")
    online = [isinstance(run, Passes) for run in runs]
    if online != [True] if runs and "half_life" in identity else any(online):
        raise ValueError("The runs are those of another estimator.")
    believing = "weight_concentration_prior" in identity
    if any(isinstance(run, Inference) != believing for run in runs):
        raise ValueError("The runs are those of another estimator.")
    surveyed = kinds[0] if len(kinds) == 1 else FULL
    if found is not None and (found.overall.structure is not surveyed or found.sample.rows.shape[1] != d):
        raise ValueError("The survey is of other rows.")
    if found is not None and found.start is not None and [len(found.start.weight)] != sizes:
        raise ValueError("The start has other components.")


def check_mixture(
    weights: Any, means: Any, covariances: Any, covariance_type: str, n_factors: int | None = None
) -> Mixture:
    """A mixture of given parameters, whose shapes and values must agree."""
    if covariance_type not in NAMES:
        raise ValueError(f"covariance_type must be one of {set(NAMES)}, got {covariance_type!r}.")
    means = check_array(plain(means), dtype=np.float64, input_name="means", copy=True)
    k, d = means.shape
    if covariance_type == FACTORS and isinstance(covariances, tuple):
        return Mixture(_weights(weights, k), means, _loadings(covariances, k, d))
    structure = structure_of(covariance_type, n_factors)
    covariance = _covariance(covariances, k, d, structure, "covariances")
    if not structure.holds(covariance.values):
        remedy = f"give covariance_type={structure.plain.name!r}"
        remedy += ", or loadings and noise variances" if structure.n_factors else ""
        raise ValueError(f"The covariances do not have in common what {covariance_type!r} says: {remedy}.")
    weights = _weights(weights, k)
    return Mixture(weights, means, structure.imposed(covariance, weights))


def next_rows(rows: slice, learnt: int, n_rows: int | None) -> tuple[int, int]:
    """The first row to learn from and the one after the last, where so many were learnt of a store."""
    if n_rows is None:
        raise DataError("To count what was learnt, X needs to know its number of rows: compute_chunk_sizes().")
    start = learnt if rows.start is None else rows.start
    first, last, step = slice(start, rows.stop, rows.step).indices(n_rows)
    if step != 1 or not learnt <= first <= last:
        raise DataError(
            f"Rows {first}:{last}:{step} are not next: {learnt} were learnt, each once, in turn. extend learns "
            "from a store that grows; partial_fit learns from any other."
        )
    return first, last


def _array(value: Any, shape: tuple[int, ...], name: str) -> Array:
    """``value`` as finite float64 of this shape, in scikit-learn's words."""
    checked: Array = check_array(
        plain(value), dtype=np.float64, ensure_2d=False, allow_nd=True, input_name=name, copy=True
    )
    if checked.shape != shape:
        raise ValueError(f"The parameter '{name}' should have the shape of {shape}, but got {checked.shape}")
    return checked


def _weights(value: Any, k: int) -> Array:
    weights = _array(value, (k,), "weights")
    if np.any(weights < 0) or np.any(weights > 1):
        raise ValueError(
            "The parameter 'weights' should be in the range [0, 1], but got max value "
            f"{weights.max():.5f}, min value {weights.min():.5f}"
        )
    if not sums_to_one(weights):
        raise ValueError(
            f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
        )
    return weights


def _loadings(given: tuple[Any, ...], k: int, d: int) -> Covariance:
    """Covariances of loadings and noise variances; `ValueError` for noise that is not positive."""
    if len(given) != 2:
        raise ValueError("The parameter 'covariances' should be loadings and noise variances, or matrices.")
    loadings, noise = given
    many = np.shape(loadings)[-1] if np.ndim(loadings) == 3 else 0
    parts = _array(loadings, (k, d, many), "loadings"), _array(noise, (k, d), "noise variances")
    if not np.all(parts[1] > 0):
        raise ValueError("'factors noise variances' should be positive")
    return Loadings.made(structure_of(FACTORS, many), *parts)


def _covariance(value: Any, k: int, d: int, asked: Structure, name: str) -> Covariance:
    structure, form = asked.loose, asked.loose.form
    values = structure.stored(_array(value, structure.shape(k, d), name), k, d)
    wrong = f"'{asked.name} {name}' should be {form.valid}"
    if not form.is_valid(values):
        raise ValueError(wrong)
    try:
        if name == "precisions":
            return form.from_precisions(structure, values)
        return form.of(structure, values, ridge=np.inf)
    except CollapseError as error:
        raise ValueError(f"{wrong}; component {error.component} is not") from error
