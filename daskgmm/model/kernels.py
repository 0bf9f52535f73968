"""The fused E-step over the rows of one block: the only file tuned for speed.

Contract
--------
Arrays in, sums out; nothing here knows Dask, estimators or covariance names. Two layouts exist, told apart
by rank: a *triangular* factor ``(s, d, d)`` (full and tied) and a *diagonal* one ``(s, d)`` (diag and
spherical), where ``s`` is ``k``, or 1 where all components share one.

- ``x`` is C-contiguous ``(n, d)``, float32 or float64. Rows are handled in tiles, features as rows, so that every
  inner loop runs along contiguous values: 352 of them, or 704 in float32, make loop overhead small, and one tile
  of one component stays in the first- or second-level cache. The next tile's rows are fetched meanwhile. No
  ``(n, k)`` or ``(n, d, d)`` array exists.
- Triangular products take four rows by four columns at a time: 16 multiplications for 8 loads. So the ``d`` of
  ``means``, ``factor`` and the sums is a multiple of four there: `width`, zeros beyond the features of ``x``.
  Fewer than four features are taken one by one.
- Rows of zero weight are never looked at: NaN there is allowed.
- Where features are many, what cannot matter is left out: a component whose density at a row is below ``2**-110``
  of another's may get none there, and a share below ``2**-110`` of the component's sum over the tile none in its
  sums. That is less than ``eps`` of any sum while rows lie within 1e8 standard deviations of their component.
- Distances and scatters use ``x - mean`` of their own component, never an expanded square, so neither loses
  digits to the distance between components. Where all components share a triangular factor and lie near each
  other, what does not depend on the component is done once; the caller says so by ``products``, those of the
  factor and what the means lie from the first. Rows are multiplied by the factor, measured from the first mean,
  and the products subtracted. With those at most ``near`` long, and ``z`` what is left, that is off by at most
  ``(d + 2) * eps(dtype) * (near + |z|)`` times the largest ``Σ_j |f_ij|·σ_j``, 1 without correlation. And with
  ``both``, the scatter is that of rows about an average of the means, and that of the means about it: see `_pool`.
- ``means``, ``factor``, ``offset`` and ``products`` have the dtype of the work: float64, or float32 where the
  caller has shown that to be safe. Log-densities of rows and sums over tiles are float64. A sum over ``n`` rows
  has a relative error of at most ``c * eps(dtype) + n / c * eps(float64)`` of the sum of magnitudes, for c rows
  in a tile. What float32 cannot hold of a mean is in the offset, so that no digit of the means is lost.
- ``_exp`` and ``_log`` are written out so that they vectorise. The relative error of ``_exp`` is at most
  ``(|argument| + 4) * eps(dtype)``, what the rounding of its argument costs already; ``_log`` is exact to
  ``4 * eps`` times its result plus one.
- Floating-point contraction and reassociation are allowed, assumptions about NaN and infinity are not: bad
  values come out as bad values. Reassociation is fixed when an entry point is compiled, and helpers are
  compiled into it, so equal blocks give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # comes with Numba
from numba.core import types
from numba.extending import intrinsic, overload

from daskgmm._typing import Array

F = TypeVar("F", bound=Callable[..., Any])

# Rows of a tile in float64, twice as many in float32: whole vectors, several at a time, as what is left over is
# done one by one. And no power of two: that would put all features of a row into the same few sets of the cache.
TILE = 352
LINE = 64  # bytes
LN2 = float(np.log(2.0))
# Shares this much smaller than a component's sum over a tile add nothing that float64 could hold.
NEGLIGIBLE = 2.0**-110
LOG_NEGLIGIBLE = -110 * LN2
# From here on it pays to list the rows that matter to a component; at twice as many, half the features first.
MANY_FEATURES = 24


_njit = partial(numba.njit, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "arcp", "nsz"})


def compiled(function: F) -> F:
    """Compile without the GIL, kept on disk where the machine lets us write."""
    try:
        return cast(F, _njit(cache=True)(function))
    except RuntimeError:  # no writable place for the cache: compile anew in this process
        return cast(F, _njit()(function))


def inlined(function: F) -> F:
    """Compile into every caller.

    A helper that is linked instead may be another copy, optimised in another way, in a process that compiles
    than in one that reads the disk: equal blocks would give different bits on two workers.
    """
    return cast(F, _njit(forceinline=True)(function))


def _columns(like: Array) -> int:
    """Columns of a tile of the type of ``like``. In compiled code a literal: loops of known length are faster."""
    return TILE * 8 // like.itemsize


@overload(_columns, jit_options={"forceinline": True})
def _literal_columns(like: Any) -> Callable[[Any], int]:
    columns: int = TILE * 64 // like.dtype.bitwidth

    def found(like: Any) -> int:
        return columns

    return found


def _prefetching(context: Any, x: Any, index: Any) -> Any:
    """Bring element ``index`` of a contiguous array near the processor, with its line of the cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(prefetch, [place, flag(0), flag(3), flag(1)])  # to read, into the first level, data
        return context.get_dummy_value()

    return types.void(x, index), generate


def _transposing(context: Any, x: Any, place: Any, step: Any, tile: Any, i: Any, t: Any) -> Any:
    """Copy four elements of ``x`` from ``place`` on, and from three places each ``step`` further, as columns.

    Of ``tile``, those from ``t`` on, in the four rows from ``i`` on.
    By whole vectors, which compiled loops would take apart: that halves the time for float32 rows.
    """
    if x.layout != "C" or tile.layout != "C" or x.dtype.bitwidth > tile.dtype.bitwidth:
        raise numba.TypingError("x must be C-contiguous, and no wider than the work.")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, place, step, _, i, t = arguments
        kinds = signature.args[0], signature.args[3]
        source = context.make_array(kinds[0])(context, builder, arguments[0])
        target = context.make_array(kinds[1])(context, builder, arguments[3])
        given, wanted = (ir.VectorType(context.get_data_type(kind.dtype), 4) for kind in kinds)
        size, wanted_size = (kind.dtype.bitwidth // 8 for kind in kinds)
        rows = []
        for _ in range(4):
            start = builder.bitcast(builder.gep(source.data, [place]), given.as_pointer())
            row = builder.load(start, align=size)
            rows.append(row if given == wanted else builder.fpext(row, wanted))
            place = builder.add(place, step)
        four = ir.VectorType(ir.IntType(32), 4)
        for bit in (1, 2):  # swap halves of pairs of rows that differ in one bit of their number
            low = ir.Constant(four, [4 + e - bit if e & bit else e for e in range(4)])
            high = ir.Constant(four, [4 + e if e & bit else e + bit for e in range(4)])
            for r in (0, 3 - bit):
                pair = rows[r], rows[r + bit]
                rows[r], rows[r + bit] = builder.shuffle_vector(*pair, low), builder.shuffle_vector(*pair, high)
        width = builder.extract_value(target.shape, 1)
        place = builder.add(builder.mul(i, width), t)
        for row in rows:
            start = builder.bitcast(builder.gep(target.data, [place]), wanted.as_pointer())
            builder.store(row, start, align=wanted_size)
            place = builder.add(place, width)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(x, whole, whole, tile, whole, whole), generate


_prefetch: Any = intrinsic(_prefetching)
_transpose: Any = intrinsic(_transposing)


def width(d: int, triangular: bool) -> int:
    """Features with the zeros that the layout asks for."""
    return d + -d % 4 if triangular and d >= 4 else d


@inlined
def _check(x: Array, weight: Array, means: Array, packed: Array) -> None:
    """Refuse shapes that would be read or written beyond their ends: compiled code does not look."""
    d = means.shape[1]
    if x.shape[1] > d or packed.shape[-1] != d or packed.shape[1] != d or len(weight) != len(x):
        raise ValueError("x, weight, means and the factor or scatter disagree in shape.")
    if packed.ndim == 3 and d > 4 and d % 4 != 0:
        raise ValueError("Triangular layouts need a multiple of four features; see width().")


@inlined
def _check_products(products: Array, means: Array, factor: Array) -> None:
    """Refuse products that would be read beyond their end, or stand for factors of their own."""
    if len(products) and (
        factor.ndim != 3 or len(factor) != 1 or products.shape != means.shape or means.shape[1] < 4
    ):
        raise ValueError(
            "products need one triangular factor of four features or more, and the shape of the means."
        )


@inlined
def _load(x: Array, weight: Array, first: int, tile: Array) -> int:
    """Copy rows from ``first`` on into ``tile`` (d, columns), features as rows; zeros where the weight is zero."""
    rows: int = min(tile.shape[1], x.shape[0] - first)
    d = x.shape[1]
    if d < 4:  # a loop over so few costs more than their copies
        for j in range(d):
            for t in range(rows):
                tile[j, t] = x[first + t, j]
    else:
        for t in range(0, rows - 3, 4):
            for j in range(0, d - 3, 4):
                # Most of the next tile arrives while this one is worked on; beyond the end, nothing happens.
                ahead = (first + t + tile.shape[1]) * d + 4 * j
                for place in range(ahead, ahead + 16, LINE // x.itemsize):
                    _prefetch(x, place)
                _transpose(x, (first + t) * d + j, d, tile, j, t)
            for j in range(d // 4 * 4, d):
                for step in range(4):
                    tile[j, t + step] = x[first + t + step, j]
        for t in range(rows // 4 * 4, rows):
            for j in range(d):
                tile[j, t] = x[first + t, j]
    for t in range(rows):
        if weight[first + t] == 0.0:
            tile[:, t] = 0.0
    if rows < tile.shape[1]:
        tile[:, rows:] = 0.0
    return rows


@inlined
def _centre(tile: Array, mean: Array, d: int, centred: Array) -> None:
    """``centred = tile - mean`` of the first d features."""
    for j in range(d):
        for t in range(tile.shape[1]):
            centred[j, t] = tile[j, t] - mean[j]


@inlined
def _product(f: Array, j: int, c: Array, n: int, lines: Array) -> None:
    """Add ``f[:, j : j + 4] @ c[j : j + 4, :n]`` to four lines."""
    c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
    l0, l1, l2, l3 = lines[0], lines[1], lines[2], lines[3]
    a0, a1, a2, a3 = f[0, j], f[0, j + 1], f[0, j + 2], f[0, j + 3]
    b0, b1, b2, b3 = f[1, j], f[1, j + 1], f[1, j + 2], f[1, j + 3]
    p0, p1, p2, p3 = f[2, j], f[2, j + 1], f[2, j + 2], f[2, j + 3]
    q0, q1, q2, q3 = f[3, j], f[3, j + 1], f[3, j + 2], f[3, j + 3]
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
    a0 = f[0, i]
    b0, b1 = f[1, i], f[1, i + 1]
    p0, p1, p2 = f[2, i], f[2, i + 1], f[2, i + 2]
    q0, q1, q2, q3 = f[3, i], f[3, i + 1], f[3, i + 2], f[3, i + 3]
    for t in range(n):
        x0, x1, x2, x3 = c0[t], c1[t], c2[t], c3[t]
        z0 = l0[t] + a0 * x0
        z1 = l1[t] + b0 * x0 + b1 * x1
        z2 = l2[t] + p0 * x0 + p1 * x1 + p2 * x2
        z3 = l3[t] + q0 * x0 + q1 * x1 + q2 * x2 + q3 * x3
        out[t] += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3


@inlined
def _distance(
    centred: Array, factor: Array, offset: Array, start: int, stop: int, n: int, lines: Array, out: Array
) -> None:
    """``out[t] = |factor[start:stop] @ centred[:, t] - offset[start:stop]|**2`` for the first n columns."""
    out[:n] = 0.0
    if len(factor) < 4:
        for i in range(start, stop):
            line = lines[0]
            line[:n] = -offset[i]
            for j in range(i):
                a = factor[i, j]
                for t in range(n):
                    line[t] += a * centred[j, t]
            a = factor[i, i]
            for t in range(n):
                z = line[t] + a * centred[i, t]
                out[t] += z * z
        return
    for i in range(start, stop, 4):
        for step in range(4):
            lines[step, :n] = -offset[i + step]
        for j in range(0, i, 4):
            _product(factor[i : i + 4], j, centred, n, lines)
        _corner(factor[i : i + 4], i, centred, n, lines, out)


@inlined
def _whiten(centred: Array, factor: Array, n: int, out: Array) -> None:
    """``out = factor @ centred`` for the first n columns."""
    for i in range(0, len(factor), 4):
        out[i : i + 4, :n] = 0.0
        for j in range(0, i + 1, 4):
            _product(factor[i : i + 4], j, centred, n, out[i : i + 4])


@inlined
def _distance_between(rows: Array, points: Array, i: int, j: int, out: Array, other: Array) -> None:
    """``out[t] = |rows[:, t] - points[i]|**2``, and ``other`` the same of j; rows are a multiple of four.

    Two components at a time here and below: loading the rows is what limits.
    """
    p, q = points[i], points[j]
    out[:], other[:] = 0.0, 0.0
    for f in range(0, len(rows), 4):
        x0, x1, x2, x3 = rows[f], rows[f + 1], rows[f + 2], rows[f + 3]
        p0, p1, p2, p3 = p[f], p[f + 1], p[f + 2], p[f + 3]
        q0, q1, q2, q3 = q[f], q[f + 1], q[f + 2], q[f + 3]
        for t in range(len(out)):
            r0, r1, r2, r3 = x0[t], x1[t], x2[t], x3[t]
            y0, y1, y2, y3 = r0 - p0, r1 - p1, r2 - p2, r3 - p3
            z0, z1, z2, z3 = r0 - q0, r1 - q1, r2 - q2, r3 - q3
            out[t] += y0 * y0 + y1 * y1 + y2 * y2 + y3 * y3
            other[t] += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3


@inlined
def _distance_diagonal(
    rows: Array, means: Array, factor: Array, offset: Array, i: int, j: int, out: Array, other: Array
) -> None:
    """``out[t] = |factor[i] * (rows[:, t] - means[i]) - offset[i]|**2``, and ``other`` the same of j."""
    d = len(rows)
    mi, mj, bi, bj = means[i], means[j], offset[i], offset[j]
    ai, aj = factor[min(i, len(factor) - 1)], factor[min(j, len(factor) - 1)]
    out[:], other[:] = 0.0, 0.0
    for f in range(0, d - 3, 4):
        x0, x1, x2, x3 = rows[f], rows[f + 1], rows[f + 2], rows[f + 3]
        m0, m1, m2, m3 = mi[f], mi[f + 1], mi[f + 2], mi[f + 3]
        n0, n1, n2, n3 = mj[f], mj[f + 1], mj[f + 2], mj[f + 3]
        a0, a1, a2, a3 = ai[f], ai[f + 1], ai[f + 2], ai[f + 3]
        e0, e1, e2, e3 = aj[f], aj[f + 1], aj[f + 2], aj[f + 3]
        b0, b1, b2, b3 = bi[f], bi[f + 1], bi[f + 2], bi[f + 3]
        c0, c1, c2, c3 = bj[f], bj[f + 1], bj[f + 2], bj[f + 3]
        for t in range(len(out)):
            r0, r1, r2, r3 = x0[t], x1[t], x2[t], x3[t]
            y0, y1 = a0 * (r0 - m0) - b0, a1 * (r1 - m1) - b1
            y2, y3 = a2 * (r2 - m2) - b2, a3 * (r3 - m3) - b3
            z0, z1 = e0 * (r0 - n0) - c0, e1 * (r1 - n1) - c1
            z2, z3 = e2 * (r2 - n2) - c2, e3 * (r3 - n3) - c3
            out[t] += y0 * y0 + y1 * y1 + y2 * y2 + y3 * y3
            other[t] += z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3
    for f in range(d // 4 * 4, d):
        row = rows[f]
        for t in range(len(out)):
            y, z = ai[f] * (row[t] - mi[f]) - bi[f], aj[f] * (row[t] - mj[f]) - bj[f]
            out[t] += y * y
            other[t] += z * z


@inlined
def _outer(lines: Array, c: Array, j: int, n: int, s: Array) -> None:
    """Add the sums over n columns of four lines times four rows of ``c`` to ``s[:, j : j + 4]``."""
    c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
    l0, l1, l2, l3 = lines[0], lines[1], lines[2], lines[3]
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
    for i in range(4):
        s[i, j] += sums[i][0]
        s[i, j + 1] += sums[i][1]
        s[i, j + 2] += sums[i][2]
        s[i, j + 3] += sums[i][3]


@inlined
def _dot(a: Array, b: Array, n: int) -> Any:
    total = a.dtype.type(0)
    for t in range(n):
        total += a[t] * b[t]
    return total


@inlined
def _weigh(share: Array, row: Array, n: int, line: Array) -> Any:
    """``line = share * row``, and its sum."""
    total = line.dtype.type(0)
    for t in range(n):
        line[t] = share[t] * row[t]
        total += line[t]
    return total


@inlined
def _scatter(centred: Array, share: Array, n: int, lines: Array, shift: Array, scatter: Array) -> None:
    """Over n columns, add ``Σ share·centred`` to ``shift`` and ``Σ share·centred·centred'`` to ``scatter``: its
    lower triangle (what falls above within blocks of four is right, too).
    """
    d = len(centred)
    if d < 4:
        for i in range(d):
            shift[i] += _weigh(share, centred[i], n, lines[0])
            for j in range(i + 1):
                scatter[i, j] += _dot(lines[0], centred[j], n)
        return
    for i in range(0, d, 4):
        for step in range(4):
            shift[i + step] += _weigh(share, centred[i + step], n, lines[step])
        for j in range(0, i + 1, 4):
            _outer(lines, centred, j, n, scatter[i : i + 4])


@inlined
def _scatter_diagonal(
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


@inlined
def _apart(means: Array) -> Array:
    """``means - means[0]``, transposed (d, k)."""
    k, d = means.shape
    apart = np.empty((d, k), means.dtype)
    for i in range(d):
        for j in range(k):
            apart[i, j] = means[j, i] - means[0, i]
    return apart


@inlined
def _pool(
    share: Array,
    apart: Array,
    centred: Array,
    average: Array,
    work: Array,
    rho: Array,
    lines: Array,
    total: Array,
    shift: Array,
    both: Array,
    scatter: Array,
) -> None:
    """Add one tile's sums for components that share their scatter, given rows ``centred`` about the first mean.

    With ``w = Σ share``, ``rho = share / w``, ``m̄ = Σ rho·mean`` of a row, ``y = x - m̄``:

        Σ_j share_j (x - m_j)(x - m_j)ᵀ = w·y·yᵀ + Σ_j<l share_j·rho_l (m_j - m_l)(m_j - m_l)ᵀ
                    share_j (x - m_j)   = share_j·y + Σ_l share_j·rho_l (m_l - m_j)

    This adds what has a ``y``, and ``Σ share_j·rho_l`` to the lower half of ``both`` (k, k); `spread` adds the
    rest, once. All terms of the scatter are positive: nothing cancels, and ``y`` is off by at most
    ``2 * (k + 1) * eps(dtype)`` times the distance from the first mean to the others and to the row.
    """
    k, n = share.shape
    d = len(centred)
    whole, inverse = work[0], work[1]
    whole[:] = 0.0
    for j in range(k):
        weight = 0.0
        for t in range(n):
            weight += share[j, t]
            whole[t] += share[j, t]
        total[j] += weight
    one, tiny = whole.dtype.type(1.0), whole.dtype.type(2.0**-1022 if whole.itemsize == 8 else 2.0**-126)
    for t in range(n):  # of less weight than has an inverse, no row changes a sum
        inverse[t] = whole.dtype.type(0.0) if whole[t] < tiny else one / whole[t]
    for j in range(k):
        for t in range(n):
            rho[j, t] = share[j, t] * inverse[t]
    few = k // 4 * 4
    average[:] = 0.0
    for i in range(0, d, 4):
        for j in range(0, few, 4):
            _product(apart[i : i + 4], j, rho, n, average[i : i + 4])
        for j in range(few, k):
            for step in range(4):
                a, line = apart[i + step, j], average[i + step]
                for t in range(n):
                    line[t] += a * rho[j, t]
        for step in range(4):
            for t in range(n):
                centred[i + step, t] -= average[i + step, t]
    for j in range(0, few, 4):
        for i in range(0, d, 4):
            _outer(share[j : j + 4], centred, i, n, shift[j : j + 4])
        for i in range(0, j + 1, 4):
            _outer(share[j : j + 4], rho, i, n, both[j : j + 4])
    for j in range(few, k):
        for i in range(d):
            shift[j, i] += _dot(share[j], centred[i], n)
        for i in range(j + 1):
            both[j, i] += _dot(share[j], rho[i], n)
    if scatter.ndim == 3:  # always, but other layouts are compiled, too
        _scatter(centred, whole, n, lines, np.empty(d), scatter[0])


@inlined
def _accumulate(
    tile: Array,
    share: Array,
    reference: Array,
    centred: Array,
    lines: Array,
    index: Array,
    total: Array,
    shift: Array,
    scatter: Array,
) -> None:
    """Add one tile's sums, given ``share[j, t]`` = weight times responsibility, which get lost."""
    nowhere = np.empty_like(reference[0])  # never looked at
    waits = -1  # a component whose diagonal sums are taken with those of the next
    for j in range(len(share)):
        weight = 0.0
        for t in range(share.shape[1]):
            weight += share[j, t]
        total[j] += weight
        n = share.shape[1]
        if len(tile) >= MANY_FEATURES:
            n = _select(share[j], share.dtype.type(NEGLIGIBLE * weight), index)
        if n == 0:
            continue
        m = n
        if n < share.shape[1]:
            m = _gather(tile, reference[j], index, n, centred)
            for t in range(n):  # index[t] >= t
                share[j, t] = share[j, index[t]]
            share[j, n:m] = 0.0
        out = scatter[min(j, len(scatter) - 1)]
        if scatter.ndim == 3:
            if n == share.shape[1]:
                _centre(tile, reference[j], len(tile), centred)
            _scatter(centred, share[j], m, lines, shift[j], out)
        elif n < share.shape[1]:
            zero = np.zeros_like(reference[j])
            _scatter_diagonal(centred, zero, share[j], shift[j], out, zero, share[j], nowhere, nowhere, m)
        elif waits < 0:
            waits = j
        else:
            i, other, waits = waits, scatter[min(waits, len(scatter) - 1)], -1
            _scatter_diagonal(
                tile, reference[i], share[i], shift[i], other, reference[j], share[j], shift[j], out, n
            )
    if scatter.ndim == 2 and waits >= 0:
        i, other = waits, scatter[min(waits, len(scatter) - 1)]
        _scatter_diagonal(
            tile, reference[i], share[i], shift[i], other, reference[i], share[i], nowhere, nowhere, share.shape[1]
        )


@inlined
def _select(share: Array, cut: float, index: Array) -> int:
    """List where ``share`` exceeds ``cut`` and return how many; all, unlisted, where that is a third and more."""
    count = 0
    for t in range(len(share)):
        count += 0 if share[t] <= cut else 1  # NaN counts
    if 3 * count >= len(share):
        return len(share)
    count = 0
    for t in range(len(share)):
        index[count] = t
        count += 0 if share[t] <= cut else 1
    return count


@inlined
def _gather(tile: Array, mean: Array, index: Array, n: int, centred: Array) -> int:
    """``centred = tile - mean`` for n listed columns, and copies of the first up to whole vectors; how many."""
    m: int = min(n + -n % 16, tile.shape[1])
    index[n:m] = index[0]
    for i in range(len(tile)):
        row, out, centre = tile[i], centred[i], mean[i]
        for t in range(m):
            out[t] = row[index[t]] - centre
    return m


@inlined
def _log_joint(
    tile: Array,
    means: Array,
    factor: Array,
    offset: Array,
    products: Array,
    log_norm: Array,
    centred: Array,
    lines: Array,
    work: Array,
    index: Array,
    nearest: Array,
    logits: Array,
) -> float:
    """``logits[j, t] + base = log(weight_j N(x_t; component j))``, or less where that is negligible beside
    another; returns ``base``.

    A squared distance only grows with the features. So where they are many, half of them (a quarter of the work)
    are looked at first, and the rest where the density that they leave possible still counts.
    """
    d = len(tile)
    half = d // 8 * 4 if factor.ndim == 3 and d >= 2 * MANY_FEATURES and len(means) > 1 else d
    n = tile.shape[1]
    base: float = log_norm.max()  # in float64, so that what stays in the products' precision is small
    if factor.ndim == 3 and len(products):  # then one component costs no more than half of its features did
        half = d
        _centre(tile, means[0], d, centred)
        _whiten(centred, factor[0], n, lines)
    k, alone = len(means), work[0]
    if factor.ndim == 2:
        for i in range(0, k, 2):
            j = min(i + 1, k - 1)
            _distance_diagonal(tile, means, factor, offset, i, j, logits[i], logits[j] if j > i else alone)
    elif len(products):
        for i in range(0, k, 2):
            j = min(i + 1, k - 1)
            _distance_between(lines, products, i, j, logits[i], logits[j] if j > i else alone)
    else:
        for j in range(k):
            _centre(tile, means[j], half, centred)
            _distance(centred, factor[min(j, len(factor) - 1)], offset[j], 0, half, n, lines, logits[j])
    for j in range(k):
        norm, scale = logits.dtype.type(log_norm[j] - base), logits.dtype.type(-0.5)
        for t in range(n):
            logits[j, t] = norm + scale * logits[j, t]
    if factor.ndim == 3 and half < d:
        _finish(tile, means, factor, offset, half, centred, lines, work, index, nearest, logits)
    return base


@inlined
def _finish(
    tile: Array,
    means: Array,
    factor: Array,
    offset: Array,
    half: int,
    centred: Array,
    lines: Array,
    work: Array,
    index: Array,
    nearest: Array,
    logits: Array,
) -> None:
    """Subtract what the features from ``half`` on add to the distances: first for the likeliest component of each
    row, then for those that may come near it.
    """
    k, d = means.shape
    peak, rest = work[0], work[1]
    _likeliest(logits, peak, nearest)
    for sweep in range(2):
        for j in range(k):
            n = 0
            if sweep == 0:
                for t in range(len(peak)):
                    index[n] = t
                    n += 1 if nearest[t] == j else 0
            else:
                for t in range(len(peak)):
                    index[n] = t
                    n += 0 if nearest[t] == j or logits[j, t] <= peak[t] else 1
            if n == 0:
                continue
            m = _gather(tile, means[j], index, n, centred)
            _distance(centred, factor[min(j, len(factor) - 1)], offset[j], half, d, m, lines, rest)
            for t in range(n):
                logits[j, index[t]] -= 0.5 * rest[t]
            if sweep == 0:
                for t in range(n):
                    peak[index[t]] = logits[j, index[t]] + LOG_NEGLIGIBLE


@inlined
def _likeliest(logits: Array, peak: Array, label: Array) -> None:
    """The largest of each column, and the row where it is; the first of equals."""
    peak[:] = logits[0]
    label[:] = 0
    for j in range(1, len(logits)):
        for t in range(len(peak)):
            label[t] = j if logits[j, t] > peak[t] else label[t]
            peak[t] = logits[j, t] if logits[j, t] > peak[t] else peak[t]


@inlined
def _exp(x: Array, peak: Array, out: Array, total: Array) -> None:
    """``out = exp(x - peak)`` for x <= peak, and added to ``total``: x - peak = m·log 2 + r, Taylor's polynomial
    of r, m into the exponent's bits.
    """
    real, wide = out.dtype.type, out.itemsize == 8
    lowest = real(-708.0 if wide else -87.0)  # below lies no normal number; NaN stays NaN
    for t in range(len(x)):
        u = x[t] - peak[t]
        v = lowest if u < lowest else u
        m = np.floor(v * real(1.0 / LN2) + real(0.5))
        r = v - m * real(LN2)
        p = real(1.0 / 5040.0)
        if wide:
            p = real(1.0 / 6227020800.0)
            p = p * r + real(1.0 / 479001600.0)
            p = p * r + real(1.0 / 39916800.0)
            p = p * r + real(1.0 / 3628800.0)
            p = p * r + real(1.0 / 362880.0)
            p = p * r + real(1.0 / 40320.0)
            p = p * r + real(1.0 / 5040.0)
        p = p * r + real(1.0 / 720.0)
        p = p * r + real(1.0 / 120.0)
        p = p * r + real(1.0 / 24.0)
        p = p * r + real(1.0 / 6.0)
        p = p * r + real(0.5)
        p = p * r + real(1.0)
        p = p * r + real(1.0)
        # Added to a number whose last bit counts 1, m is in the last bits; there go, with the bias, those of 2**m.
        if wide:
            raised = np.float64(m + (1.5 * 2.0**52 + 1023.0))
            bits = np.int64(raised.view(np.int64) << 52)
            power = real(bits.view(np.float64))
        else:
            raised_single = np.float32(m + np.float32(1.5 * 2.0**23 + 127.0))
            bits_single = np.int32(raised_single.view(np.int32) << 23)
            power = real(bits_single.view(np.float32))
        out[t] = real(0.0) if u < lowest else p * power
        total[t] += out[t]


@inlined
def _log(x: Array, out: Array) -> None:
    """``out = log(x)`` for x >= 1: exponent and mantissa apart, then the series of the inverse tanh."""
    for t in range(len(x)):
        value = np.float64(x[t])
        raw = value.view(np.int64)
        bits = np.int64((raw & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000)
        mantissa = bits.view(np.float64)
        e = np.float64(np.int32(raw >> 52) - 1023)
        s = (mantissa - 1.5) / (mantissa + 1.5)  # log m = log 1.5 + 2 atanh(s), |s| <= 0.2
        q = s * s
        p = 1.0 / 23.0
        p = p * q + 1.0 / 21.0
        p = p * q + 1.0 / 19.0
        p = p * q + 1.0 / 17.0
        p = p * q + 1.0 / 15.0
        p = p * q + 1.0 / 13.0
        p = p * q + 1.0 / 11.0
        p = p * q + 1.0 / 9.0
        p = p * q + 1.0 / 7.0
        p = p * q + 1.0 / 5.0
        p = p * q + 1.0 / 3.0
        p = p * q + 1.0
        out[t] = e * LN2 + (0.4054651081081644 + 2.0 * s * p) if value >= 1.0 else np.nan


@inlined
def _softmax(logits: Array, base: float, work: Array, density: Array, resp: Array) -> None:
    """Responsibilities (k, n), yet to be divided by their sum ``work[1]``, and ``density``, the log-sum-exp."""
    k, n = logits.shape
    peak, total = work[0], work[1]
    peak[:] = logits[0]
    for j in range(1, k):
        for t in range(n):
            peak[t] = logits[j, t] if logits[j, t] > peak[t] else peak[t]
    total[:] = 0.0
    zero, lowest = logits.dtype.type(0.0), logits.dtype.type(-np.inf)
    for t in range(n):  # a row that is infinitely far from all components: density 0, not NaN
        peak[t] = zero if peak[t] == lowest else peak[t]
    for j in range(k):
        _exp(logits[j], peak, resp[j], total)
    _log(total, density)
    for t in range(n):
        density[t] = -np.inf if total[t] == zero else density[t] + (base + peak[t])


@inlined
def _scale(resp: Array, numerator: Array, total: Array) -> None:
    """``resp *= numerator / total``, and 0 where that has no meaning: no weight, or no density."""
    n = len(total)
    for t in range(n):
        total[t] = numerator[t] / total[t] if numerator[t] != 0.0 and total[t] != 0.0 else 0.0
    for j in range(len(resp)):
        for t in range(n):
            resp[j, t] *= total[t]


@inlined
def _workspace(k: int, d: int, like: Array) -> tuple[Array, ...]:
    """For one tile: its rows, those less a mean, lines, logits, shares, two lines more, labels, a list of rows."""
    n = _columns(like)
    tile, centred = np.zeros((d, n), like.dtype), np.empty((d, n), like.dtype)
    lines, work = np.empty((max(d, 4), n), like.dtype), np.empty((2, n), like.dtype)
    logits, resp = np.empty((k, n), like.dtype), np.empty((k, n), like.dtype)
    return tile, centred, lines, logits, resp, work, np.empty(n, np.int64), np.empty(n, np.int64)


@compiled
def expectation(
    x: Array,
    weight: Array,
    means: Array,
    factor: Array,
    offset: Array,
    products: Array,
    log_norm: Array,
    log_likelihood: Array,
    total: Array,
    shift: Array,
    scatter: Array,
    both: Array,
) -> None:
    """Add the weighted log-likelihood and the expected sufficient statistics of ``x``.

    Parameters
    ----------
    x : (n, d) float32 or float64, C-contiguous
    weight : (n,) row weights, >= 0
    means : (k, width) also the reference that ``shift`` and ``scatter`` are taken about
    factor : (s, width, width) lower triangular, or (s, d): the transposed Cholesky factor of the precision
    offset : (k, width) factor times what the true means have beyond ``means``
    products : (k, width) one factor times ``means - means[0]``, plus ``offset``; or of length 0
    log_norm : (k,) log weight plus log normalising constant
    log_likelihood, total, shift, scatter : (1,), (k,), (k, width), like ``factor``: added to in place; only
        lower triangles count
    both : (k, k) for components with ``products`` to share their scatter, which `spread` completes; or (0, 0)
    """
    _check(x, weight, means, factor)
    _check(x, weight, shift, scatter)
    if len(scatter) != len(factor) or (len(both) and (len(both) != len(products) or both.shape[1] != len(both))):
        raise ValueError("scatter and factor, or both and products, disagree in shape.")
    _check_products(products, means, factor)
    k, d = means.shape
    columns = _columns(factor)
    tile, centred, lines, logits, resp, work, nearest, index = _workspace(k, d, factor)
    density = np.empty(columns)
    row_weight = np.zeros(columns)
    pooled = len(both) > 0
    apart = _apart(means) if pooled else np.empty((0, 0), means.dtype)
    four = np.empty((4, columns), factor.dtype)
    summed = log_likelihood[0]
    for first in range(0, len(x), columns):
        rows = _load(x, weight, first, tile)
        base = _log_joint(
            tile, means, factor, offset, products, log_norm, centred, lines, work, index, nearest, logits
        )
        _softmax(logits, base, work, density, resp)
        row_weight[:rows] = weight[first : first + rows]
        row_weight[rows:] = 0.0
        # Selected, not multiplied: what was not looked at may have any density.
        for t in range(columns):
            summed += row_weight[t] * density[t] if row_weight[t] != 0.0 else 0.0
        _scale(resp, row_weight, work[1])
        if pooled:  # _log_joint left the rows about the first mean in `centred`; their products are used up
            _pool(resp, apart, centred, lines, work, logits, four, total, shift, both, scatter)
        else:
            _accumulate(tile, resp, means, centred, lines, index, total, shift, scatter)
    log_likelihood[0] = summed


@compiled
def spread(means: Array, both: Array, shift: Array, scatter: Array) -> None:
    """Complete sums of `expectation` with what they left to ``both``: means (k, width), shift, scatter (1, ...).

    The sum over pairs is ``Σ_j (m_j - m_0) v_jᵀ`` for ``v_j = Σ_l both_jl (m_j - m_l)``.
    """
    k, d = means.shape
    v = np.empty(d)
    for j in range(k):
        v[:] = 0.0
        for i in range(k):
            pair = both[max(i, j), min(i, j)]
            for f in range(d):
                v[f] += pair * (np.float64(means[j, f]) - np.float64(means[i, f]))
        for f in range(d):
            shift[j, f] -= v[f]
            apart = np.float64(means[j, f]) - np.float64(means[0, f])
            for g in range(f + 1):
                scatter[0, f, g] += apart * v[g]


@compiled
def moments(
    x: Array,
    weight: Array,
    resp: Array,
    reference: Array,
    total: Array,
    shift: Array,
    scatter: Array,
) -> None:
    """Add the sufficient statistics of ``x`` under given responsibilities ``resp`` (n, k)."""
    _check(x, weight, reference, scatter)
    k, d = reference.shape
    if len(resp) != len(x) or resp.shape[1] != k:
        raise ValueError("resp must have a row for each of x and a column for each component.")
    tile = np.zeros((d, TILE))
    centred = np.empty((d, TILE))
    lines = np.empty((4, TILE))
    share = np.empty((k, TILE))
    index = np.empty(TILE, np.int64)
    for first in range(0, len(x), TILE):
        rows = _load(x, weight, first, tile)
        for j in range(k):
            for t in range(rows):
                seen = weight[first + t] != 0.0
                share[j, t] = weight[first + t] * resp[first + t, j] if seen else 0.0
            share[j, rows:] = 0.0
        _accumulate(tile, share, reference, centred, lines, index, total, shift, scatter)


@compiled
def posterior(
    x: Array,
    weight: Array,
    means: Array,
    factor: Array,
    offset: Array,
    products: Array,
    log_norm: Array,
    labels: Array,
    density: Array,
    resp: Array,
) -> bool:
    """Fill what is asked for: ``labels`` (n,), ``density`` (n,) and ``resp`` (n, k); others have length 0.

    Returns whether the density of every row is a number above 0: that of a row with NaN or infinity is not.
    """
    _check(x, weight, means, factor)
    _check_products(products, means, factor)
    k, d = means.shape
    columns = _columns(factor)
    tile, centred, lines, logits, found, work, nearest, index = _workspace(k, d, factor)
    line, ones = np.empty(columns), np.ones(columns)
    lost = 0.0  # stays so, but for what is no number
    for first in range(0, len(x), columns):
        rows = _load(x, weight, first, tile)
        base = _log_joint(
            tile, means, factor, offset, products, log_norm, centred, lines, work, index, nearest, logits
        )
        if len(labels):
            _likeliest(logits, work[0], nearest)
            labels[first : first + rows] = nearest[:rows]
            for t in range(rows):
                lost += 0.0 * work[0, t]
        if len(density) or len(resp):
            _softmax(logits, base, work, line, found)
            for t in range(rows):
                lost += 0.0 * line[t]
        if len(density):
            density[first : first + rows] = line[:rows]
        if len(resp):
            _scale(found, ones, work[1])
            for t in range(rows):
                for j in range(k):
                    resp[first + t, j] = found[j, t]
    return lost == 0.0


@compiled
def mirror(scatter: Array) -> None:
    """Copy the lower triangles of ``scatter`` (s, d, d) to the upper ones, in place."""
    for part in scatter:
        for i in range(len(part)):
            for j in range(i):
                part[j, i] = part[i, j]
