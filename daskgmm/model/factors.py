"""Cholesky factors of covariances and precisions, and when a matrix counts as singular."""

import numpy as np
from scipy.linalg import eigh

# What cholesky and solve_triangular call, a tenth of their cost.
from scipy.linalg.lapack import dpotrf, dtrtri

from daskgmm._typing import Array
from daskgmm.errors import CollapseError

EPS = float(np.finfo(np.float64).eps)
ILL_DEFINED = (
    "Fitting the mixture model failed because some components have ill-defined empirical covariance "
    "(for instance caused by singleton or collapsed samples). Try to decrease the number of components, "
    "increase reg_covar, or scale the input data. "
)


def collapsed(component: int, feature: int | None = None, enough: float | None = None) -> CollapseError:
    """Scikit-learn's sentence, and what it leaves out: the component, and the feature that is to blame.

    The feature does not vary, or follows from others: then a ``reg_covar`` of ``enough`` tells them apart.
    """
    told = f"{ILL_DEFINED}The covariance of component {component} is not positive definite"
    if feature is not None and enough is None:
        told += f": feature {feature} does not vary there beyond rounding. Leave it out, or give a reg_covar"
    elif feature is not None:
        told += f": feature {feature} follows from others there within rounding. Leave it out, or raise reg_covar "
        told += f"to {enough:.0e}"
    return CollapseError(f"{told}.", component)


def check_positive(values: Array) -> None:
    """Refuse variances (k, d), or (k, 1) of all features, that are not positive."""
    if not np.all(values > 0):
        component, feature = np.argwhere(~(values > 0))[0].tolist()
        raise collapsed(component, feature if values.shape[1] > 1 else None)


def lower_factors(covariances: Array) -> Array:
    """Lower triangular L (s, d, d) with ``L @ L.T`` the covariances; `CollapseError` names one that has none."""
    try:
        return np.linalg.cholesky(covariances)
    except np.linalg.LinAlgError:
        failed = [dpotrf(covariance, lower=True)[1] for covariance in covariances]
        raise collapsed(int(np.argmax(failed))) from None


def inverted(lower: Array) -> Array:
    """The transposed inverses of lower factors (s, d, d), which may have no row: the factors of precisions."""
    if not lower.size:
        return lower
    return np.array([dtrtri(factor, lower=True)[0].T for factor in lower])


def precision_factors(covariances: Array, ridge: float) -> Array:
    """Upper triangular U with ``U @ U.T`` the inverses of scatters with ``ridge`` on their diagonals, (s, d, d).

    Off by what a relative change of some d·eps of single values of a matrix does to it, whatever the units of
    features (Higham 2002, theorem 10.6). A covariance whose smallest eigenvalue is rounding counts as collapsed;
    where ``ridge`` is infinite, they are taken as they are.
    """
    found = [dpotrf(covariance, lower=True) for covariance in covariances]
    lower = np.array([factor for factor, _ in found])
    pivots, scale = (a.diagonal(axis1=1, axis2=2) for a in (lower, covariances))
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(lower).all(axis=(1, 2)) & (pivots > 1e-5 * np.sqrt(scale)).all(axis=1)
    for component in np.flatnonzero(~sound).tolist():
        covariance, failed = covariances[component], found[component][1]
        if not np.isfinite(lower[component]).all():
            raise collapsed(component)
        # A pivot that is not positive is that of the first feature which those before it determine.
        lost = failed - 1 if failed else _lost(covariance, ridge) if ridge < np.inf else None
        if lost is not None:
            raise collapsed(component, lost, _enough(covariance, lost))
    return inverted(lower)


def factor_of_precision(precision: Array, component: int) -> tuple[Array, Array]:
    """The covariance and the upper factor U of a given precision ``U @ U.T``."""
    lower, failed = dpotrf(precision[::-1, ::-1], lower=True)
    if failed or not np.isfinite(lower).all():
        raise collapsed(component)
    upper = np.ascontiguousarray(lower[::-1, ::-1])
    return covariance_of(upper, component), upper


def covariance_of(factor: Array, component: int) -> Array:
    """The covariance whose precision is ``factor @ factor.T``, of an upper triangular factor."""
    root, failed = dtrtri(factor)
    covariance: Array = root.T @ root
    if failed or not np.isfinite(covariance).all() or not np.all(np.diag(covariance) > 0):
        raise collapsed(component)
    return covariance


def _lost(matrix: Array, ridge: float) -> int | None:
    """The feature that follows from others within rounding, if any: of largest share in that eigenvector.

    A pivot of a singular matrix is rounding, of a size that depends on the other pivots. The smallest eigenvalue
    of the correlation matrix is off by a few d·eps only, and so is the scatter that it came from; mostly by
    sqrt(d)·eps, and what a ridge adds to it has to be more.
    """
    variances = np.diag(matrix)
    scale = np.sqrt(variances)
    (smallest,), vectors = eigh(matrix / np.outer(scale, scale), subset_by_index=[0, 0])
    square = np.square(vectors[:, 0])
    if smallest > 32 * len(matrix) * EPS or square @ (ridge / variances) > np.sqrt(len(matrix)) * EPS:
        return None
    return int(np.argmax(square))


def _enough(matrix: Array, feature: int) -> float | None:
    """What to add to the diagonal so that rounding is a thousandth of it; None where the feature does not vary."""
    variance = matrix[feature, feature]
    return float(1e3 * np.sqrt(len(matrix)) * EPS * variance) if variance > 0 else None
