"""Components with diagonal factors, two at a time: loading the rows is what limits."""

from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import inlined
from daskgmm.model.kernels.layouts import ACCUMULATE, LOG_JOINT, Axes, Squares
from daskgmm.model.kernels.tiles import concentrate, normalise


@inlined
def _distance(
    rows: Array, means: Array, factor: Array, offset: Array, i: int, j: int, out: Array, other: Array
) -> None:
    """``out[t] = |factor[i] * (rows[:, t] - means[i]) - offset[i]|**2``, and ``other`` the same of j."""
    d, n = len(rows), rows.shape[1]
    mi, mj, bi, bj = means[i], means[j], offset[i], offset[j]
    ai, aj = factor[min(i, len(factor) - 1)], factor[min(j, len(factor) - 1)]
    for t in range(n):
        out[t] = 0.0
        other[t] = 0.0
    for f in range(0, d - 3, 4):
        x0, x1, x2, x3 = rows[f], rows[f + 1], rows[f + 2], rows[f + 3]
        m0, m1, m2, m3 = mi[f], mi[f + 1], mi[f + 2], mi[f + 3]
        n0, n1, n2, n3 = mj[f], mj[f + 1], mj[f + 2], mj[f + 3]
        a0, a1, a2, a3 = ai[f], ai[f + 1], ai[f + 2], ai[f + 3]
        e0, e1, e2, e3 = aj[f], aj[f + 1], aj[f + 2], aj[f + 3]
        b0, b1, b2, b3 = bi[f], bi[f + 1], bi[f + 2], bi[f + 3]
        c0, c1, c2, c3 = bj[f], bj[f + 1], bj[f + 2], bj[f + 3]
        for t in range(n):
            r0, r1, r2, r3 = x0[t], x1[t], x2[t], x3[t]
            y0, y1 = a0 * (r0 - m0) - b0, a1 * (r1 - m1) - b1
            y2, y3 = a2 * (r2 - m2) - b2, a3 * (r3 - m3) - b3
            z0, z1 = e0 * (r0 - n0) - c0, e1 * (r1 - n1) - c1
            z2, z3 = e2 * (r2 - n2) - c2, e3 * (r3 - n3) - c3
            out[t] += y0 * y0 + y1 * y1 + y2 * y2 + y3 * y3
            other[t] += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3
    for f in range(d // 4 * 4, d):
        row = rows[f]
        for t in range(n):
            y, z = ai[f] * (row[t] - mi[f]) - bi[f], aj[f] * (row[t] - mj[f]) - bj[f]
            out[t] += y * y
            other[t] += z * z


def _log_joint(model: Any, scratch: Any) -> float:
    logits, k = scratch.logits, len(scratch.logits)
    for i in range(0, k, 2):
        j = min(i + 1, k - 1)
        other = logits[j] if j > i else scratch.unused
        _distance(scratch.tile, model.means, model.factor, model.offset, i, j, logits[i], other)
    return normalise(model.log_norm, logits)


@inlined
def _scatter(
    rows: Array,
    mean: Array,
    share: Array,
    shift: Array,
    scatter: Array,
    other_mean: Array,
    other_share: Array,
    other_shift: Array,
    other_scatter: Array,
    n: int,
) -> None:
    """Over n columns, add ``Σ share·(rows - mean)`` to ``shift`` and ``Σ share·(rows - mean)²`` to ``scatter``.

    And the same of another component; of one alone, the other's sums may go to any place.
    """
    d = len(rows)
    zero = share.dtype.type(0)
    for f in range(0, d - 3, 4):
        x0, x1, x2, x3 = rows[f], rows[f + 1], rows[f + 2], rows[f + 3]
        m0, m1, m2, m3 = mean[f], mean[f + 1], mean[f + 2], mean[f + 3]
        n0, n1, n2, n3 = other_mean[f], other_mean[f + 1], other_mean[f + 2], other_mean[f + 3]
        s0 = s1 = s2 = s3 = q0 = q1 = q2 = q3 = zero
        u0 = u1 = u2 = u3 = v0 = v1 = v2 = v3 = zero
        for t in range(n):
            r0, r1, r2, r3, g, h = x0[t], x1[t], x2[t], x3[t], share[t], other_share[t]
            y0, y1, y2, y3 = r0 - m0, r1 - m1, r2 - m2, r3 - m3
            z0, z1, z2, z3 = r0 - n0, r1 - n1, r2 - n2, r3 - n3
            g0, g1, g2, g3 = g * y0, g * y1, g * y2, g * y3
            h0, h1, h2, h3 = h * z0, h * z1, h * z2, h * z3
            s0, s1, s2, s3 = s0 + g0, s1 + g1, s2 + g2, s3 + g3
            u0, u1, u2, u3 = u0 + h0, u1 + h1, u2 + h2, u3 + h3
            q0, q1, q2, q3 = q0 + g0 * y0, q1 + g1 * y1, q2 + g2 * y2, q3 + g3 * y3
            v0, v1, v2, v3 = v0 + h0 * z0, v1 + h1 * z1, v2 + h2 * z2, v3 + h3 * z3
        sums, squares = (s0, s1, s2, s3), (q0, q1, q2, q3)
        other_sums, other_squares = (u0, u1, u2, u3), (v0, v1, v2, v3)
        for step in range(4):
            shift[f + step] += sums[step]
            scatter[f + step] += squares[step]
            other_shift[f + step] += other_sums[step]
            other_scatter[f + step] += other_squares[step]
    for f in range(d // 4 * 4, d):
        row = rows[f]
        s0 = q0 = u0 = v0 = zero
        for t in range(n):
            y, z = row[t] - mean[f], row[t] - other_mean[f]
            s0, q0 = s0 + share[t] * y, q0 + share[t] * y * y
            u0, v0 = u0 + other_share[t] * z, v0 + other_share[t] * z * z
        shift[f] += s0
        scatter[f] += q0
        other_shift[f] += u0
        other_scatter[f] += v0


def _accumulate(model: Any, scratch: Any, sums: Any) -> None:
    """What adds nothing to a component's sums is left out, where features are many; others go in pairs."""
    tile, resp, means = scratch.tile, scratch.resp, model.means
    last = len(sums.scatter) - 1
    waits = -1  # a component whose sums are taken with those of the next
    for j in range(len(resp)):
        n = concentrate(model, scratch, j, sums.weight)
        if n == 0:
            continue
        shift, out = sums.shift[j], sums.scatter[min(j, last)]
        if n < resp.shape[1]:
            zero, nowhere = np.zeros(len(tile), means.dtype), np.empty(len(tile))  # the other is never looked at
            _scatter(scratch.centred, zero, resp[j], shift, out, zero, resp[j], nowhere, nowhere, n)
        elif waits < 0:
            waits = j
        else:
            i, waits = waits, -1
            other = sums.scatter[min(i, last)]
            _scatter(tile, means[i], resp[i], sums.shift[i], other, means[j], resp[j], shift, out, n)
    if waits >= 0:
        i, mean, share, n = waits, means[waits], resp[waits], resp.shape[1]
        nowhere = np.empty(len(tile))
        _scatter(tile, mean, share, sums.shift[i], sums.scatter[min(i, last)], mean, share, nowhere, nowhere, n)


LOG_JOINT[Axes] = _log_joint
ACCUMULATE[Squares] = _accumulate
