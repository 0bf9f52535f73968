"""Check parameters that users give, and make a start or a mixture of them."""

from typing import Any

import numpy as np
from sklearn.utils import check_array

from daskgmm._typing import Array
from daskgmm.errors import CollapseError
from daskgmm.fit.recipe import Start
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES


def check_settings(model: Any, d: int | None) -> None:
    """Raise for parameters that no fit takes; with ``d``, for a start that rows of d features refuse.

    Raises
    ------
    InvalidParameterError, ValueError
        The second for a start.
    """
    model._validate_params()
    if d is not None:
        read_start(model, d)


def start_shapes(k: int, d: int, covariance_type: str) -> dict[str, tuple[int, ...]]:
    """The shapes of ``weights_init``, ``means_init`` and ``precisions_init``."""
    return {
        "weights_init": (k,),
        "means_init": (k, d),
        "precisions_init": STRUCTURES[covariance_type].shape(k, d),
    }


def read_start(model: Any, d: int) -> Start:
    """The start in an estimator's ``weights_init``, ``means_init`` and ``precisions_init``."""
    k, kind = model.n_components, model.covariance_type
    return Start(
        None if model.weights_init is None else _weights(model.weights_init, k),
        None if model.means_init is None else _array(model.means_init, (k, d), "means"),
        None if model.precisions_init is None else _covariance(model.precisions_init, k, d, kind, "precisions"),
    )


def check_mixture(weights: Any, means: Any, covariances: Any, covariance_type: str) -> Mixture:
    """A mixture of given parameters, whose shapes and values must agree."""
    if covariance_type not in STRUCTURES:
        raise ValueError(f"covariance_type must be one of {set(STRUCTURES)}, got {covariance_type!r}.")
    means = check_array(means, dtype=np.float64, input_name="means", copy=True)
    k, d = means.shape
    covariance = _covariance(covariances, k, d, covariance_type, "covariances")
    return Mixture(_weights(weights, k), means, covariance)


def _array(value: Any, shape: tuple[int, ...], name: str) -> Array:
    """``value`` as finite float64 of this shape, in scikit-learn's words."""
    checked: Array = check_array(
        value, dtype=np.float64, ensure_2d=False, allow_nd=True, input_name=name, copy=True
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
    if abs(1.0 - weights.sum()) > 1e-6:
        raise ValueError(
            f"The parameter 'weights' should be normalized, but got sum(weights) = {weights.sum():.5f}"
        )
    return weights


def _covariance(value: Any, k: int, d: int, covariance_type: str, name: str) -> Covariance:
    structure = STRUCTURES[covariance_type]
    form = structure.form
    values = structure.stored(_array(value, structure.shape(k, d), name), k, d)
    wrong = f"'{covariance_type} {name}' should be {form.valid}"
    if not form.is_valid(values):
        raise ValueError(wrong)
    try:
        if name == "precisions":
            return form.from_precisions(structure, values)
        return form.of(structure, values, resolved=False)
    except CollapseError as error:
        raise ValueError(f"{wrong}; component {error.component} is not") from error
