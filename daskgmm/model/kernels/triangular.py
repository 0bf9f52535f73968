"""Components with triangular factors: products of four rows by four columns, 16 multiplications for 8 loads."""

from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import inlined
from daskgmm.model.kernels.layouts import ACCUMULATE, LOG_JOINT, Narrow, Triangles, Triangular, Wide
from daskgmm.model.kernels.softmax import LN2
from daskgmm.model.kernels.tiles import centre, concentrate, gather, likeliest, normalise

LOG_NEGLIGIBLE = -110 * LN2
FIRST: Any = np.int64(0)  # no literal, for which Numba would compile a copy


@inlined
def product(f: Array, i: int, j: int, c: Array, n: int, out: Array, o: int) -> None:
    """Add ``f[i : i + 4, j : j + 4] @ c[j : j + 4, :n]`` to the four rows of ``out`` from ``o`` on."""
    c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
    l0, l1, l2, l3 = out[o], out[o + 1], out[o + 2], out[o + 3]
    a0, a1, a2, a3 = f[i, j], f[i, j + 1], f[i, j + 2], f[i, j + 3]
    b0, b1, b2, b3 = f[i + 1, j], f[i + 1, j + 1], f[i + 1, j + 2], f[i + 1, j + 3]
    p0, p1, p2, p3 = f[i + 2, j], f[i + 2, j + 1], f[i + 2, j + 2], f[i + 2, j + 3]
    q0, q1, q2, q3 = f[i + 3, j], f[i + 3, j + 1], f[i + 3, j + 2], f[i + 3, j + 3]
    for t in range(n):
        x0, x1, x2, x3 = c0[t], c1[t], c2[t], c3[t]
        l0[t] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
        l1[t] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
        l2[t] += p0 * x0 + p1 * x1 + p2 * x2 + p3 * x3
        l3[t] += q0 * x0 + q1 * x1 + q2 * x2 + q3 * x3


@inlined
def _corner(f: Array, i: int, c: Array, n: int, lines: Array, out: Array) -> None:
    """Finish four lines with the triangle on the diagonal, and add their squares to ``out``."""
    c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
    l0, l1, l2, l3 = lines[0], lines[1], lines[2], lines[3]
    a0 = f[i, i]
    b0, b1 = f[i + 1, i], f[i + 1, i + 1]
    p0, p1, p2 = f[i + 2, i], f[i + 2, i + 1], f[i + 2, i + 2]
    q0, q1, q2, q3 = f[i + 3, i], f[i + 3, i + 1], f[i + 3, i + 2], f[i + 3, i + 3]
    for t in range(n):
        x0, x1, x2, x3 = c0[t], c1[t], c2[t], c3[t]
        z0 = l0[t] + a0 * x0
        z1 = l1[t] + b0 * x0 + b1 * x1
        z2 = l2[t] + p0 * x0 + p1 * x1 + p2 * x2
        z3 = l3[t] + q0 * x0 + q1 * x1 + q2 * x2 + q3 * x3
        out[t] += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3


@inlined
def distance(
    centred: Array, f: Array, offset: Array, start: int, stop: int, n: int, lines: Array, out: Array
) -> None:
    """``out[t] = |f[start:stop] @ centred[:, t] - offset[start:stop]|**2`` for the first n columns."""
    for t in range(n):
        out[t] = 0.0
    for i in range(start, stop, 4):
        for step in range(4):
            for t in range(n):
                lines[step, t] = -offset[i + step]
        for j in range(0, i, 4):
            product(f, i, j, centred, n, lines, FIRST)
        _corner(f, i, centred, n, lines, out)


def _log_joint(model: Any, scratch: Any) -> float:
    return _from_distances(model, model.means.shape[1], scratch)


@inlined
def _from_distances(model: Any, stop: int, scratch: Any) -> float:
    """Logits from the first ``stop`` features alone, and their base."""
    logits, n = scratch.logits, scratch.logits.shape[1]
    for j in range(len(logits)):
        centre(scratch.tile, model.means, j, stop, scratch.centred)
        factor = model.factor[min(j, len(model.factor) - 1)]
        distance(scratch.centred, factor, model.offset[j], FIRST, stop, n, scratch.lines, logits[j])
    return normalise(model.log_norm, logits)


def _log_joint_narrow(model: Any, scratch: Any) -> float:
    """The same, feature by feature."""
    centred, line, d = scratch.centred, scratch.lines[0], model.means.shape[1]
    logits, n = scratch.logits, scratch.logits.shape[1]
    for j in range(len(logits)):
        centre(scratch.tile, model.means, j, d, centred)
        f, offset, out = model.factor[min(j, len(model.factor) - 1)], model.offset[j], logits[j]
        for t in range(n):
            out[t] = 0.0
        for i in range(d):
            for t in range(n):
                line[t] = -offset[i]
            for g in range(i):
                for t in range(n):
                    line[t] += f[i, g] * centred[g, t]
            for t in range(n):
                z = line[t] + f[i, i] * centred[i, t]
                out[t] += z * z
    return normalise(model.log_norm, logits)


def _log_joint_wide(model: Any, scratch: Any) -> float:
    """A squared distance only grows with the features. So half of them (a quarter of the work) come first, and
    the rest where the density that they leave possible still counts: first for the likeliest component of each
    row, then for those that may come near it.
    """
    logits, peak, rest = scratch.logits, scratch.peak, scratch.rest
    nearest, index = scratch.nearest, scratch.listed
    k, d = model.means.shape
    half = d // 8 * 4
    base = _from_distances(model, half, scratch)
    likeliest(logits, peak, nearest)
    for first in (True, False):
        for j in range(k):
            n = _listed(logits, peak, nearest, j, first, index)
            if n == 0:
                continue
            m = gather(scratch.tile, model.means, j, index, n, scratch.centred)
            factor = model.factor[min(j, len(model.factor) - 1)]
            distance(scratch.centred, factor, model.offset[j], half, d, m, scratch.lines, rest)
            for t in range(n):
                logits[j, index[t]] -= 0.5 * rest[t]
            if first:
                for t in range(n):
                    peak[index[t]] = logits[j, index[t]] + LOG_NEGLIGIBLE
    return base


@inlined
def _listed(logits: Array, peak: Array, nearest: Array, j: int, first: bool, index: Array) -> int:
    """List the columns where component j is the likeliest, or those others where it may come near; how many."""
    n = 0
    for t in range(len(peak)):
        index[n] = t
        if first:
            n += 1 if nearest[t] == j else 0
        else:
            n += 0 if nearest[t] == j or logits[j, t] <= peak[t] else 1
    return n


@inlined
def outer(lines: Array, o: int, c: Array, j: int, n: int, s: Array, i: int) -> None:
    """Add sums over n columns of four lines from ``o`` on times four rows of ``c`` to ``s[i :, j : j + 4]``."""
    c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
    l0, l1, l2, l3 = lines[o], lines[o + 1], lines[o + 2], lines[o + 3]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = lines.dtype.type(0)
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = lines.dtype.type(0)
    for t in range(n):
        x0, x1, x2, x3 = c0[t], c1[t], c2[t], c3[t]
        y0, y1, y2, y3 = l0[t], l1[t], l2[t], l3[t]
        a0, a1, a2, a3 = a0 + y0 * x0, a1 + y0 * x1, a2 + y0 * x2, a3 + y0 * x3
        b0, b1, b2, b3 = b0 + y1 * x0, b1 + y1 * x1, b2 + y1 * x2, b3 + y1 * x3
        p0, p1, p2, p3 = p0 + y2 * x0, p1 + y2 * x1, p2 + y2 * x2, p3 + y2 * x3
        q0, q1, q2, q3 = q0 + y3 * x0, q1 + y3 * x1, q2 + y3 * x2, q3 + y3 * x3
    sums = ((a0, a1, a2, a3), (b0, b1, b2, b3), (p0, p1, p2, p3), (q0, q1, q2, q3))
    for step in range(4):
        s[i + step, j] += sums[step][0]
        s[i + step, j + 1] += sums[step][1]
        s[i + step, j + 2] += sums[step][2]
        s[i + step, j + 3] += sums[step][3]


@inlined
def dot(a: Array, i: int, b: Array, j: int, n: int) -> Any:
    """``Σ_t a[i, t]·b[j, t]``."""
    total = a.dtype.type(0)
    for t in range(n):
        total += a[i, t] * b[j, t]
    return total


@inlined
def _weigh(share: Array, rows: Array, i: int, n: int, lines: Array, o: int) -> Any:
    """``lines[o] = share * rows[i]``, and its sum."""
    total = lines.dtype.type(0)
    for t in range(n):
        lines[o, t] = share[t] * rows[i, t]
        total += lines[o, t]
    return total


@inlined
def scatter(centred: Array, share: Array, n: int, lines: Array, shift: Array, out: Array) -> None:
    """Over n columns, add ``Σ share·centred`` to ``shift`` and ``Σ share·centred·centred'`` to ``out``: its lower
    triangle (what falls above within blocks of four is right, too).
    """
    d = len(centred)
    for i in range(0, d, 4):
        for step in range(4):
            shift[i + step] += _weigh(share, centred, i + step, n, lines, step)
        for j in range(0, i + 1, 4):
            outer(lines, FIRST, centred, j, n, out, i)


def _accumulate(model: Any, scratch: Any, sums: Any) -> None:
    """What adds nothing to a component's sums is left out, where features are many."""
    resp, d = scratch.resp, len(scratch.tile)
    for j in range(len(resp)):
        n = concentrate(model, scratch, j, sums.weight)
        if n == 0:
            continue
        if n == resp.shape[1]:
            centre(scratch.tile, model.means, j, d, scratch.centred)
        out = sums.scatter[min(j, len(sums.scatter) - 1)]
        scatter(scratch.centred, resp[j], n, scratch.lines, sums.shift[j], out)


def _accumulate_narrow(model: Any, scratch: Any, sums: Any) -> None:
    """The same, feature by feature."""
    centred, lines, d = scratch.centred, scratch.lines, len(scratch.tile)
    for j in range(len(scratch.resp)):
        n = concentrate(model, scratch, j, sums.weight)
        centre(scratch.tile, model.means, j, d, centred)
        out = sums.scatter[min(j, len(sums.scatter) - 1)]
        for i in range(d):
            sums.shift[j, i] += _weigh(scratch.resp[j], centred, i, n, lines, i)
            for g in range(i + 1):
                out[i, g] += dot(lines, i, centred, g, n)


LOG_JOINT[Triangular] = _log_joint
LOG_JOINT[Triangular, Narrow] = _log_joint_narrow
LOG_JOINT[Wide] = _log_joint_wide
ACCUMULATE[Triangles] = _accumulate
ACCUMULATE[Triangles, Narrow] = _accumulate_narrow
