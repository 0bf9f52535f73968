"""EM for a mixture of rows that are measured with errors, row by row in extended precision, as Bovy, Hogg & Roweis
(2011) have it; a missing value is left out of its row.
"""

from typing import Any

import numpy as np
from scipy.special import logsumexp

from tests.model.dense_missing import _solve
from tests.structures import L, _log_density, covariances, matrices


def step(
    x: Any, noise: Any, w: Any, weights: Any, means: Any, values: Any, kind: str
) -> tuple[Any, Any, Any, Any]:
    """Weights, means, covariances in scikit-learn's shape, and the log-likelihood of the parameters before."""
    k, d = means.shape
    full = np.array(matrices(values, kind, k, d), dtype=L)
    total, first, second, ll = np.zeros(k, L), np.zeros((k, d), L), np.zeros((k, d, d), L), L(0)
    for row, errors, weight in zip(np.asarray(x, L), np.asarray(noise, L), np.asarray(w, L), strict=True):
        o = np.flatnonzero(~np.isnan(row))
        if not len(o) or not weight:
            continue
        own = (np.diag(errors) if errors.ndim == 1 else errors)[np.ix_(o, o)]
        t = [full[j][np.ix_(o, o)] + own for j in range(k)]
        logs = [np.log(weights[j]) + _log_density(row[None, o], means[j][o], t[j])[0] for j in range(k)]
        density = max(logs) + np.log(sum(np.exp(each - max(logs)) for each in logs))
        ll += weight * density
        for j in range(k):
            share = weight * np.exp(logs[j] - density)
            gain = _solve(t[j], full[j][o]).T
            b = gain @ (row[o] - means[j][o])
            total[j] += share
            first[j] += share * b
            second[j] += share * (np.outer(b, b) + full[j] - gain @ full[j][o])
    delta = first / total[:, None]
    scatter = second - total[:, None, None] * delta[:, :, None] * delta[:, None, :]
    return total / total.sum(), means + delta, covariances(scatter, total, kind), ll


def em(x: Any, noise: Any, w: Any, start: Any, kind: str, steps: int) -> tuple[Any, Any, Any, list[Any]]:
    """After so many steps, and the mean log-likelihood that each found; all rows at once, in float64."""
    weights, means, values = (np.asarray(part, np.float64) for part in start)
    (k, d), trace = means.shape, []
    errors = noise if noise.ndim == 3 else noise[:, :, None] * np.eye(d)
    for _ in range(steps):
        full = np.array(matrices(values, kind, k, d))
        t = full + errors[:, None]  # (n, k, d, d)
        apart = x[:, None, :] - means
        gain = np.swapaxes(np.linalg.solve(t, np.broadcast_to(full, t.shape)), 2, 3)
        squares = (apart * np.linalg.solve(t, apart[..., None])[..., 0]).sum(axis=2)
        logs = np.log(weights) - 0.5 * (squares + np.linalg.slogdet(t)[1] + d * np.log(2 * np.pi))
        density = logsumexp(logs, axis=1)
        trace.append(np.average(density, weights=w))
        share = w[:, None] * np.exp(logs - density[:, None])
        b = (gain @ apart[..., None])[..., 0]
        total = share.sum(axis=0)
        delta = np.einsum("nk,nkd->kd", share, b) / total[:, None]
        left = np.einsum("nk,nkij->kij", share, full - gain @ full)
        scatter = left + np.einsum("nk,nki,nkj->kij", share, b - delta, b - delta)
        weights, means, values = total / total.sum(), means + delta, covariances(scatter, total, kind)
    return weights, means, values, trace
