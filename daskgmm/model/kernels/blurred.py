"""Rows with errors of their own: a covariance, and its Cholesky factor, for each row and component.

With x = v + e, v of a component N(m, C) and e of N(0, S), x is N(m, T), T = C + S = LL'. What is expected of v is
b = m + W'z, with a covariance of C - W'W, where Lz = x - m and LW = C (Bovy, Hogg & Roweis 2011, section 3).
"""

from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import inlined
from daskgmm.model.kernels.layouts import (
    ACCUMULATE,
    LOG_JOINT,
    Blur,
    Blurred,
    BlurredAxes,
    Squares,
    Triangles,
)
from daskgmm.model.kernels.softmax import LN2, log
from daskgmm.model.kernels.tiles import NEGLIGIBLE, select

# The noise of a value that is missing. Beside it nothing counts, so that the row's density is that of its other
# values, but for the exponent and the constant of each, which are taken out again.
EXPONENT = 1000
UNKNOWN = 2.0**EXPONENT
HALF_LOG_2PI = float(0.5 * np.log(2 * np.pi))
# Of the lines of a tile.
DISTANCE, POWERS, MANTISSA, MISSING, SHARE, SPARE = (np.int64(i) for i in range(6))


def beside(x: Array, noise: Array, errors: int, partial: bool) -> Array:
    """Rows (n, d) and their noise, (n, d) or (n, d, d), as tiles are to hold them.

    Where rows may be ``partial``, NaN is a missing value.
    """
    n, d = x.shape
    out = np.empty((n, d + errors))
    out[:, :d] = x
    i, j = (np.arange(d), np.arange(d)) if errors == d else np.tril_indices(d)
    out[:, d:] = noise[:, i, j] if noise.ndim == 3 else noise
    if partial and (missing := np.isnan(out[:, :d])).any():
        out[:, :d][missing] = 0.0
        out[:, d:][missing[:, i] | missing[:, j]] = 0.0
        out[:, d:][:, i == j] += np.where(missing, UNKNOWN, 0.0)
    return out


@inlined
def _sum(line: Array, other: Array, n: int) -> float:
    """``Σ_t line[t]·other[t]`` over n columns."""
    total = 0.0
    for t in range(n):
        total += line[t] * other[t]
    return total


@inlined
def _less(line: Array, a: Array, b: Array, n: int) -> None:
    """``line -= a * b``."""
    for t in range(n):
        line[t] -= a[t] * b[t]


@inlined
def _count_missing(tile: Array, d: int, errors: int, missing: Array) -> None:
    """How many values each column misses."""
    for t in range(tile.shape[1]):
        missing[t] = 0.0
    for i in range(d):
        variance = tile[d + (i if errors == d else i * (i + 3) // 2)]
        for t in range(tile.shape[1]):
            missing[t] += 1.0 if variance[t] == UNKNOWN else 0.0


@inlined
def _pivot(line: Array, z: Array, inverse: Array, n: int, lines: Array) -> None:
    """Finish a feature: its pivot, which counts in the determinant, its standardised value and the distance."""
    powers, mantissa, distance = lines[POWERS], lines[MANTISSA], lines[DISTANCE]
    for t in range(n):
        pivot = np.float64(line[t])
        raw = pivot.view(np.int64)
        powers[t] += np.float64(np.int32(raw >> 52) - 1023)
        bits = np.int64((raw & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000)
        mantissa[t] *= bits.view(np.float64)
        inverse[t] = 1.0 / np.sqrt(pivot)  # NaN where there is no factor, and so is the density
        z[t] *= inverse[t]
        distance[t] += z[t] * z[t]


@inlined
def _restart(n: int, lines: Array) -> None:
    """A determinant of 1, at distance 0."""
    powers, mantissa, distance = lines[POWERS], lines[MANTISSA], lines[DISTANCE]
    for t in range(n):
        powers[t] = 0.0
        mantissa[t] = 1.0
        distance[t] = 0.0


@inlined
def _factorise(rows: Array, mean: Array, covariance: Array, errors: int, n: int, scratch: Any) -> None:
    """L, the inverses of its diagonal, and -z of n columns of one component, with the distance |z|²."""
    lower, inverse, white, d = scratch.lower, scratch.inverse, scratch.white, len(mean)
    _restart(n, scratch.lines)
    for i in range(d):
        own, z = i * (i + 1) // 2, white[i]
        for t in range(n):
            z[t] = mean[i] - rows[i, t]
        for g in range(i + 1):
            line, above = lower[own + g], g * (g + 1) // 2
            value = covariance[i, g]
            if errors == d and g < i:
                for t in range(n):
                    line[t] = value
            else:
                noise = rows[d + i] if errors == d else rows[d + own + g]
                for t in range(n):
                    line[t] = value + noise[t]
            for p in range(g):
                _less(line, lower[own + p], lower[above + p], n)
            if g < i:
                for t in range(n):
                    line[t] *= inverse[g, t]
                _less(z, line, white[g], n)
        _pivot(lower[own + i], z, inverse[i], n, scratch.lines)


@inlined
def _logits(model: Any, j: int, scratch: Any) -> None:
    """Log of weight times density of one component, from what its factors left in the lines."""
    lines, logits = scratch.lines, scratch.logits
    distance, powers, missing, spare = lines[DISTANCE], lines[POWERS], lines[MISSING], lines[SPARE]
    log(lines[MANTISSA], spare)
    for t in range(logits.shape[1]):
        log_det = LN2 * (powers[t] - EXPONENT * missing[t]) + spare[t]
        logits[j, t] = model.log_norm[j] + missing[t] * HALF_LOG_2PI - 0.5 * (distance[t] + log_det)


def _log_joint(model: Any, scratch: Any) -> float:
    n, d = scratch.tile.shape[1], model.means.shape[1]
    _count_missing(scratch.tile, d, model.errors, scratch.lines[MISSING])
    for j in range(len(model.means)):
        covariance = model.covariance[min(j, len(model.covariance) - 1)]
        _factorise(scratch.tile, model.means[j], covariance, model.errors, n, scratch)
        _logits(model, j, scratch)
    return 0.0


def _log_joint_axes(model: Any, scratch: Any) -> float:
    tile, white, inverse = scratch.tile, scratch.white, scratch.inverse
    n, d = tile.shape[1], model.means.shape[1]
    line = scratch.lines[SHARE]
    _count_missing(tile, d, model.errors, scratch.lines[MISSING])
    for j in range(len(model.means)):
        variances = model.covariance[min(j, len(model.covariance) - 1)]
        _restart(n, scratch.lines)
        for i in range(d):
            for t in range(n):
                line[t] = variances[i] + tile[d + i, t]
                white[i, t] = model.means[j, i] - tile[i, t]
            _pivot(line, white[i], inverse[i], n, scratch.lines)
        _logits(model, j, scratch)
    return 0.0


@inlined
def _hold(j: int, scratch: Any, weight: Array) -> int:
    """Add component j's share of a tile to its ``weight``, and hold the columns that matter to its sums; how many.

    A few more, which count nothing, make whole vectors.
    """
    resp, index, share, n = scratch.resp, scratch.listed, scratch.lines[SHARE], scratch.tile.shape[1]
    total = 0.0
    for t in range(n):
        total += resp[j, t]
    weight[j] += total
    count = select(resp, j, NEGLIGIBLE * total, index)
    if count == n:
        for t in range(n):
            index[t] = t
    m: int = min(count + -count % 8, n)
    for t in range(m):
        index[t] = index[t] if t < count else index[0]
        share[t] = resp[j, index[t]] if t < count else 0.0
    for i in range(len(scratch.tile)):
        for t in range(m):
            scratch.held[i, t] = scratch.tile[i, index[t]]
    return m


def _accumulate(model: Any, scratch: Any, sums: Any) -> None:
    """Shift and scatter of what is expected, and what that leaves open, about the means."""
    for j in range(len(model.means)):
        covariance = model.covariance[min(j, len(model.covariance) - 1)]
        n = _hold(j, scratch, sums.weight)
        _factorise(scratch.held, model.means[j], covariance, model.errors, n, scratch)
        _gain(covariance, n, scratch)
        _collect(covariance, n, scratch, sums.shift[j], sums.scatter[j])


@inlined
def _gain(covariance: Array, n: int, scratch: Any) -> None:
    """W, row by row."""
    gain, lower, inverse, d = scratch.gain, scratch.lower, scratch.inverse, len(covariance)
    for i in range(d):
        for c in range(d):
            own = gain[i * d + c]
            for t in range(n):
                own[t] = covariance[i, c]
            for p in range(i):
                _less(own, lower[i * (i + 1) // 2 + p], gain[p * d + c], n)
            for t in range(n):
                own[t] *= inverse[i, t]


@inlined
def _collect(covariance: Array, n: int, scratch: Any, shift: Array, scatter: Array) -> None:
    """Add what is expected, W'z, and its square with what is left, C - W'W."""
    gain, expected, share, line = scratch.gain, scratch.held, scratch.lines[SHARE], scratch.lines[SPARE]
    d = len(covariance)
    for c in range(d):  # what is expected takes the place of the row
        for t in range(n):
            expected[c, t] = 0.0
        for i in range(d):
            _less(expected[c], gain[i * d + c], scratch.white[i], n)
        shift[c] += _sum(share, expected[c], n)
    for a in range(d):
        for c in range(a + 1):
            for t in range(n):
                line[t] = covariance[a, c] + expected[a, t] * expected[c, t]
            for i in range(d):
                _less(line, gain[i * d + a], gain[i * d + c], n)
            scatter[a, c] += _sum(share, line, n)


def _accumulate_axes(model: Any, scratch: Any, sums: Any) -> None:
    """The same, feature by feature."""
    held, share, spare, d = scratch.held, scratch.lines[SHARE], scratch.lines[SPARE], model.means.shape[1]
    for j in range(len(model.means)):
        variances = model.covariance[min(j, len(model.covariance) - 1)]
        n = _hold(j, scratch, sums.weight)
        for i in range(d):
            expected, noise, value = held[i], held[d + i], variances[i]
            for t in range(n):
                gain = value / (value + noise[t])
                expected[t] = gain * (expected[t] - model.means[j, i])
                spare[t] = gain * noise[t] + expected[t] * expected[t]
            sums.shift[j, i] += _sum(share, expected, n)
            sums.scatter[j, i] += _sum(share, spare, n)


LOG_JOINT[Blurred] = _log_joint
LOG_JOINT[BlurredAxes] = _log_joint_axes
ACCUMULATE[Triangles, Blur] = _accumulate
ACCUMULATE[Squares, Blur] = _accumulate_axes
