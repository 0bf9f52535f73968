"""The four kinds of covariance in one table, and a mixture's every step from the definitions.

Each component has a dense matrix here, and nothing is shared with the package. Work is done in extended precision
where the platform has it. A kind is named as ``covariance_type`` is; parameters go as weights (k,), means (k, d)
and values: the covariances as the package holds them, (s, ...), or in scikit-learn's shape.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES

L = np.longdouble
EPS = float(np.finfo(np.float64).eps)


class Kind(NamedTuple):
    """What one kind of covariance is, in terms of k dense matrices."""

    matrices: Callable[[Any, int, int], Any]  # (k, d, d) of values
    pick: Callable[[Any], Any]  # of k scatter matrices what statistics keep, in the shape that they keep it
    shape: Callable[[int, int], tuple[int, ...]]  # of values, as scikit-learn has them
    n_parameters: Callable[[int, int], int]  # in the covariances
    shared: bool = False


KINDS: dict[Any, Kind] = {
    "full": Kind(
        lambda v, k, d: v.reshape(k, d, d),
        lambda m: m,
        lambda k, d: (k, d, d),
        lambda k, d: k * d * (d + 1) // 2,
    ),
    "tied": Kind(
        lambda v, k, d: np.broadcast_to(v.reshape(d, d), (k, d, d)),
        lambda m: m.sum(axis=0, keepdims=True),
        lambda k, d: (d, d),
        lambda k, d: d * (d + 1) // 2,
        shared=True,
    ),
    "diag": Kind(
        lambda v, k, d: v.reshape(k, d, 1) * np.eye(d),
        lambda m: np.diagonal(m, axis1=1, axis2=2),
        lambda k, d: (k, d),
        lambda k, d: k * d,
    ),
    "spherical": Kind(
        lambda v, k, d: v.reshape(k, 1, 1) * np.eye(d),
        lambda m: np.trace(m, axis1=1, axis2=2)[:, None] / m.shape[-1],
        lambda k, d: (k,),
        lambda k, d: k,
    ),
}

# Those that no other library of Python has; their tests are in tests/model/test_families.py.
SHARED_AXES: dict[Any, Kind] = {
    "tied_diag": Kind(
        lambda v, k, d: np.broadcast_to(v.reshape(d, 1) * np.eye(d), (k, d, d)),
        lambda m: np.diagonal(m, axis1=1, axis2=2).sum(axis=0, keepdims=True),
        lambda k, d: (d,),
        lambda k, d: d,
        shared=True,
    ),
    "tied_spherical": Kind(
        lambda v, k, d: np.broadcast_to(v.reshape(1, 1) * np.eye(d), (k, d, d)),
        lambda m: np.trace(m.sum(axis=0)).reshape(1, 1) / m.shape[-1],
        lambda k, d: (1,),
        lambda k, d: 1,
        shared=True,
    ),
}
EVERY = KINDS | SHARED_AXES


def matrices(values: Any, kind: str, k: int, d: int) -> Any:
    """Covariances of any kind as k matrices."""
    return EVERY[kind].matrices(np.asarray(values), k, d)


def covariances(scatter: Any, weight: Any, kind: str) -> Any:
    """The covariances that maximise the likelihood, in scikit-learn's shape, from k scatter matrices."""
    this, (k, d) = EVERY[kind], scatter.shape[:2]
    over = weight.sum() if this.shared else weight.reshape(-1, *(1,) * (this.pick(scatter).ndim - 1))
    return (this.pick(scatter) / over).reshape(this.shape(k, d))


def n_parameters(kind: str, k: int, d: int) -> int:
    """Free parameters of a mixture: covariances, means, and weights that sum to 1."""
    return EVERY[kind].n_parameters(k, d) + k * d + k - 1


def parameters(mixture: Mixture) -> tuple[Any, Any, Any]:
    """Weights, means and values."""
    return mixture.weights, mixture.means, mixture.covariance.values


def _cholesky(a: Any) -> Any:
    """Lower Cholesky factor in the precision of ``a``; NumPy's own stops at float64."""
    lower = np.zeros_like(a)
    for j in range(len(a)):
        lower[j, j] = np.sqrt(a[j, j] - lower[j, :j] @ lower[j, :j])
        for i in range(j + 1, len(a)):
            lower[i, j] = (a[i, j] - lower[i, :j] @ lower[j, :j]) / lower[j, j]
    return lower


def _log_density(x: Any, mean: Any, covariance: Any) -> Any:
    lower = _cholesky(covariance)
    z = np.zeros_like(x)
    for j in range(x.shape[1]):
        z[:, j] = (x[:, j] - mean[j] - z[:, :j] @ lower[j, :j]) / lower[j, j]
    log_det = 2 * np.log(np.diag(lower)).sum()
    two_pi = 2 * np.arctan2(L(0), L(-1))
    return -(x.shape[1] * np.log(two_pi) + log_det + (z**2).sum(axis=1)) / 2


def joint(x: Any, weights: Any, means: Any, values: Any, kind: str) -> Any:
    """``log(weights[k] N(x[i]; k))``, (n, k)."""
    x, means, weights, values = (np.asarray(a, dtype=L) for a in (x, means, weights, values))
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    pairs = zip(means, matrices(values, kind, *means.shape), strict=True)
    return np.stack([_log_density(x, m, c) for m, c in pairs], axis=1) + logs


def expectation(x: Any, weights: Any, means: Any, values: Any, kind: str) -> tuple[Any, Any]:
    """Log-densities (n,) and responsibilities (n, k)."""
    logits = joint(x, weights, means, values, kind)
    peak = logits.max(axis=1, keepdims=True)
    log_density = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return log_density[:, 0], np.exp(logits - log_density)


def sums(x: Any, share: Any, points: Any) -> tuple[Any, Any, Any]:
    """Weight (k,), shift (k, d) and scatter matrices (k, d, d) about given points; ``share`` (n, k) is what each
    row counts in each component: its weight times its responsibility.
    """
    x, share, points = (np.asarray(a, dtype=L) for a in (x, share, points))
    centred = x[None] - points[:, None]
    shared = share.T[:, :, None] * centred
    return share.sum(axis=0), shared.sum(axis=1), np.swapaxes(shared, 1, 2) @ centred


def statistics(x: Any, share: Any, points: Any, kind: str) -> tuple[Any, Any, Any]:
    """The same with the scatter as `Statistics` of this kind have it."""
    weight, shift, scatter = sums(x, share, points)
    return weight, shift, EVERY[kind].pick(scatter)


def maximise(x: Any, share: Any, kind: str, reg_covar: float = 0.0) -> tuple[Any, Any, Any]:
    """Weights, means and covariances in scikit-learn's shape: the M-step."""
    share = np.asarray(share, dtype=L)
    total = share.sum(axis=0)
    means = share.T @ np.asarray(x, dtype=L) / total[:, None]
    ridge = total[:, None, None] * L(reg_covar) * np.eye(means.shape[1])
    values = covariances(sums(x, share, means)[2] + ridge, total, kind)
    return total / total.sum(), means, values


def em(
    x: Any, start: Any, kind: str, steps: int, row_weight: Any = 1.0, reg_covar: float = 0.0
) -> tuple[Any, Any, Any, list[Any]]:
    """Weights, means, covariances, and the mean log-likelihood that each E-step found."""
    w = np.broadcast_to(np.asarray(row_weight, dtype=L), len(x))
    trace = []
    weights, means, values = start
    for _ in range(steps):
        log_density, resp = expectation(x, weights, means, values, kind)
        trace.append(w @ log_density / w.sum())
        weights, means, values = maximise(x, w[:, None] * resp, kind, reg_covar)
    return weights, means, values, trace


def draw_covariances(kind: str, k: int, d: int, seed: int = 0, scale: float = 1.0) -> Any:
    """Covariances of moderate condition, in scikit-learn's shape."""
    a = np.random.default_rng([seed, k, d]).normal(size=(k, d, d))
    dense = scale * (a @ np.swapaxes(a, 1, 2) / d + 0.5 * np.eye(d))
    return covariances(dense, np.ones(k), kind)


def draw_mixture(kind: str, k: int = 3, d: int = 2, seed: int = 0, offset: float = 0.0) -> Mixture:
    """A mixture whose components overlap, about ``offset``."""
    random, structure = np.random.default_rng(seed), STRUCTURES[kind]
    values = structure.stored(draw_covariances(kind, k, d, seed), k, d)
    means = offset + random.normal(scale=2, size=(k, d))
    return Mixture(random.dirichlet(np.full(k, 3.0)), means, structure.form.of(structure, values))


def draw_rows(mixture: Mixture, n: int = 200, seed: int = 1) -> Any:
    """Rows that lie about all components alike."""
    centre = np.round(mixture.means.mean(axis=0))
    return centre + np.random.default_rng(seed).normal(scale=2, size=(n, mixture.n_features))
