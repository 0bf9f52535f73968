"""Cholesky factors of covariances and precisions, and when a matrix counts as singular."""

import numpy as np
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpotrf, dtrtri  # what cholesky and solve_triangular call, a tenth of their cost

from daskgmm._typing import Array
from daskgmm.errors import CollapseError

EPS = float(np.finfo(np.float64).eps)


def collapsed(component: int) -> CollapseError:
    """Scikit-learn's sentence, with the component that it leaves out."""
    return CollapseError(
        "Fitting the mixture model failed because some components have ill-defined empirical covariance "
        "(for instance caused by singleton or collapsed samples). Try to decrease the number of components, "
        f"increase reg_covar, or scale the input data. The covariance of component {component} is not "
        "positive definite.",
        component,
    )


def check_positive(values: Array) -> None:
    """Refuse variances (k, ...) that are not positive."""
    if not np.all(values > 0):
        raise collapsed(int(np.argwhere(~(values > 0))[0, 0]))


def precision_factor(covariance: Array, component: int, resolved: bool) -> Array:
    """Upper triangular U with ``U @ U.T`` the inverse of ``covariance`` (d, d).

    With ``resolved``, a matrix that is singular within the rounding of a scatter counts as collapsed.
    """
    lower = _lower_cholesky(covariance, component)
    if resolved and _is_singular(covariance, lower):
        raise collapsed(component)
    inverse, _ = dtrtri(lower, lower=True)
    return np.ascontiguousarray(inverse.T)


def factor_of_precision(precision: Array, component: int) -> tuple[Array, Array]:
    """The covariance and the upper factor U of a given precision ``U @ U.T``."""
    upper = _lower_cholesky(precision[::-1, ::-1], component)[::-1, ::-1]
    root, _ = dtrtri(upper)
    return root.T @ root, np.ascontiguousarray(upper)


def _lower_cholesky(matrix: Array, component: int) -> Array:
    lower, failed = dpotrf(matrix, lower=True)
    if failed or not np.isfinite(lower).all():
        raise collapsed(component)
    return np.asarray(lower)


def _is_singular(matrix: Array, lower: Array) -> bool:
    """Whether the correlation matrix has an eigenvalue within rounding of zero.

    A pivot of a singular matrix is rounding, of a size that depends on the other pivots. The smallest eigenvalue
    of the correlation matrix is off by a few d·eps only, and so is the scatter that it came from.
    """
    scale = np.sqrt(np.diag(matrix))
    if np.all(np.diag(lower) > 1e-5 * scale):
        return False
    smallest = eigvalsh(matrix / np.outer(scale, scale), subset_by_index=[0, 0])[0]
    return bool(smallest <= 32 * len(matrix) * EPS)
