"""EM for a mixture of rows that miss values, row by row in extended precision, from the definitions."""

from typing import Any

import numpy as np

from tests.structures import KINDS, L, _log_density, covariances, matrices


def _solve(a: Any, b: Any) -> Any:
    """``inv(a) @ b`` by elimination in the precision of its arguments; NumPy's own stops at float64."""
    a, b = a.copy(), b.copy()
    for i in range(len(a)):
        p = i + int(np.argmax(np.abs(a[i:, i])))
        a[[i, p]], b[[i, p]] = a[[p, i]], b[[p, i]]
        for j in range(i + 1, len(a)):
            factor = a[j, i] / a[i, i]
            a[j] -= factor * a[i]
            b[j] -= factor * b[i]
    x = np.zeros_like(b)
    for i in reversed(range(len(a))):
        x[i] = (b[i] - a[i, i + 1 :] @ x[i + 1 :]) / a[i, i]
    return x


def step(x: Any, w: Any, weights: Any, means: Any, values: Any, kind: str) -> tuple[Any, Any, Any, Any]:
    """Weights, means, covariances in scikit-learn's shape, and the log-likelihood of the parameters before."""
    k, d = means.shape
    full = np.array(matrices(values, kind, k, d), dtype=L)
    total, first, second, ll = np.zeros(k, L), np.zeros((k, d), L), np.zeros((k, d, d), L), L(0)
    for row, weight in zip(np.asarray(x, L), np.asarray(w, L), strict=True):
        o, m = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
        if not len(o) or not weight:
            continue
        logs = np.array(
            [
                np.log(weights[j]) + _log_density(row[None, o], means[j][o], full[j][np.ix_(o, o)])[0]
                for j in range(k)
            ]
        )
        density = logs.max() + np.log(np.exp(logs - logs.max()).sum())
        ll += weight * density
        for j in range(k):
            share = weight * np.exp(logs[j] - density)
            whole, left = row - means[j], np.zeros((d, d), L)
            if len(m):
                gain = _solve(full[j][np.ix_(o, o)], full[j][np.ix_(o, m)]).T
                whole[m] = gain @ whole[o]
                left[np.ix_(m, m)] = full[j][np.ix_(m, m)] - gain @ full[j][np.ix_(o, m)]
            total[j] += share
            first[j] += share * whole
            second[j] += share * (np.outer(whole, whole) + left)
    delta = first / total[:, None]
    scatter = second - total[:, None, None] * delta[:, :, None] * delta[:, None, :]
    return total / total.sum(), means + delta, covariances(scatter, total, kind), ll


def em(x: Any, w: Any, start: Any, kind: str, steps: int) -> tuple[Any, Any, Any, list[Any]]:
    """After so many steps, and the mean log-likelihood that each found."""
    weights, means, values = (np.asarray(part, L) for part in start)
    counted = np.asarray(w, L) * ~np.isnan(x).all(axis=1)
    trace = []
    for _ in range(steps):
        weights, means, values, ll = step(x, w, weights, means, values, kind)
        trace.append(ll / counted.sum())
    return weights, means, values, trace


assert set(KINDS) == {"full", "tied", "diag", "spherical"}
