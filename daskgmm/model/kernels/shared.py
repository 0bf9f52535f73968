"""Components that share a triangular factor and lie near each other: what does not depend on them is done once."""

from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import compiled, inlined
from daskgmm.model.kernels.layouts import ACCUMULATE, LOG_JOINT, Pooled, Shared
from daskgmm.model.kernels.tiles import centre, normalise
from daskgmm.model.kernels.triangular import dot, outer, product, scatter


@inlined
def _whiten(centred: Array, factor: Array, out: Array) -> None:
    """``out = factor @ centred``."""
    n = centred.shape[1]
    for i in range(0, len(factor), 4):
        for step in range(4):
            for t in range(n):
                out[i + step, t] = 0.0
        for j in range(0, i + 1, 4):
            product(factor, i, j, centred, n, out, i)


@inlined
def _distance(rows: Array, points: Array, i: int, j: int, out: Array, other: Array) -> None:
    """``out[t] = |rows[:, t] - points[i]|**2``, and ``other`` the same of j; rows are a multiple of four."""
    p, q, n = points[i], points[j], rows.shape[1]
    for t in range(n):
        out[t] = 0.0
        other[t] = 0.0
    for f in range(0, len(rows), 4):
        x0, x1, x2, x3 = rows[f], rows[f + 1], rows[f + 2], rows[f + 3]
        p0, p1, p2, p3 = p[f], p[f + 1], p[f + 2], p[f + 3]
        q0, q1, q2, q3 = q[f], q[f + 1], q[f + 2], q[f + 3]
        for t in range(n):
            r0, r1, r2, r3 = x0[t], x1[t], x2[t], x3[t]
            y0, y1, y2, y3 = r0 - p0, r1 - p1, r2 - p2, r3 - p3
            z0, z1, z2, z3 = r0 - q0, r1 - q1, r2 - q2, r3 - q3
            out[t] += y0 * y0 + y1 * y1 + y2 * y2 + y3 * y3
            other[t] += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3


def _log_joint(model: Any, scratch: Any) -> float:
    """Rows times the factor, measured from the first mean; the products of the means are subtracted."""
    logits, k = scratch.logits, len(scratch.logits)
    centre(scratch.tile, model.means, 0, len(scratch.tile), scratch.centred)
    _whiten(scratch.centred, model.factor[0], scratch.whitened)
    for i in range(0, k, 2):
        j = min(i + 1, k - 1)
        other = logits[j] if j > i else scratch.unused
        _distance(scratch.whitened, model.products, i, j, logits[i], other)
    return normalise(model.log_norm, logits)


def _accumulate(model: Any, scratch: Any, sums: Any) -> None:
    """Sums for components that share their scatter; rows about the first mean are in ``centred``, as left there.

    With ``w = Σ share``, ``rho = share / w``, ``m̄ = Σ rho·mean`` of a row, ``y = x - m̄``:

        Σ_j share_j (x - m_j)(x - m_j)ᵀ = w·y·yᵀ + Σ_j<l share_j·rho_l (m_j - m_l)(m_j - m_l)ᵀ
                    share_j (x - m_j)   = share_j·y + Σ_l share_j·rho_l (m_l - m_j)

    This adds what has a ``y``, and ``Σ share_j·rho_l`` to the lower half of ``both`` (k, k); `spread` adds the
    rest, once. All terms of the scatter are positive: nothing cancels, and ``y`` is off by at most
    ``2 * (k + 1) * eps(dtype)`` times the distance from the first mean to the others and to the row.
    """
    share, rho, centred, whole = scratch.resp, scratch.rho, scratch.centred, scratch.total
    n, k, d = share.shape[1], len(share), len(centred)
    _shares(share, sums.weight, whole, scratch.rest, rho)
    few = k // 4 * 4
    _subtract_average(model.apart, few, rho, scratch.average, centred)
    for j in range(0, few, 4):
        for i in range(0, d, 4):
            outer(share, j, centred, i, n, sums.shift, j)
        for i in range(0, j + 1, 4):
            outer(share, j, rho, i, n, sums.both, j)
    for j in range(few, k):
        for i in range(d):
            sums.shift[j, i] += dot(share, j, centred, i, n)
        for i in range(j + 1):
            sums.both[j, i] += dot(share, j, rho, i, n)
    # The shift of the whole is that of none of its components.
    scatter(centred, whole, n, scratch.lines, np.empty(d), sums.scatter[0])


@inlined
def _shares(share: Array, total: Array, whole: Array, inverse: Array, rho: Array) -> None:
    """Add each component's weight to ``total``; ``whole = Σ share`` of a row, ``rho = share / whole``."""
    n = share.shape[1]
    for t in range(n):
        whole[t] = 0.0
    for j in range(len(share)):
        weight = 0.0
        for t in range(share.shape[1]):
            weight += share[j, t]
            whole[t] += share[j, t]
        total[j] += weight
    one, tiny = whole.dtype.type(1.0), whole.dtype.type(2.0**-1022 if whole.itemsize == 8 else 2.0**-126)
    for t in range(n):  # of less weight than has an inverse, no row changes a sum
        inverse[t] = whole.dtype.type(0.0) if whole[t] < tiny else one / whole[t]
    for j in range(len(share)):
        for t in range(n):
            rho[j, t] = share[j, t] * inverse[t]


@inlined
def _subtract_average(apart: Array, few: int, rho: Array, average: Array, centred: Array) -> None:
    """``centred -= average``, which is ``apart @ rho``; ``few`` components go in fours."""
    n = rho.shape[1]
    for i in range(0, len(centred), 4):
        for step in range(4):
            for t in range(n):
                average[i + step, t] = 0.0
        for j in range(0, few, 4):
            product(apart, i, j, rho, n, average, i)
        for j in range(few, len(rho)):
            for step in range(4):
                for t in range(n):
                    average[i + step, t] += apart[i + step, j] * rho[j, t]
        for step in range(4):
            for t in range(n):
                centred[i + step, t] -= average[i + step, t]


@compiled
def spread(means: Array, sums: Any) -> None:
    """Complete ``shift`` and ``scatter`` of `Pooled` sums with what tiles left to ``both``.

    The sum over pairs is ``Σ_j (m_j - m_0) v_jᵀ`` for ``v_j = Σ_l both_jl (m_j - m_l)``.
    """
    k, d = means.shape
    v = np.empty(d)
    for j in range(k):
        for f in range(d):
            v[f] = 0.0
        for i in range(k):
            pair = sums.both[max(i, j), min(i, j)]
            for f in range(d):
                v[f] += pair * (np.float64(means[j, f]) - np.float64(means[i, f]))
        for f in range(d):
            sums.shift[j, f] -= v[f]
            apart = np.float64(means[j, f]) - np.float64(means[0, f])
            for g in range(f + 1):
                sums.scatter[0, f, g] += apart * v[g]


LOG_JOINT[Shared] = _log_joint
ACCUMULATE[Pooled] = _accumulate
