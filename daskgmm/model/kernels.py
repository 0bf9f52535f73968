"""The fused E-step over the rows of one block: the only file tuned for speed.

Contract
--------
Arrays in, sums out; nothing here knows Dask, estimators or covariance names. Two layouts exist, told apart
by rank: a *triangular* factor ``(s, d, d)`` (full and tied) and a *diagonal* one ``(s, d)`` (diag and
spherical), where ``s`` is ``k``, or 1 where all components share one.

- ``x`` is C-contiguous ``(n, d)``, float32 or float64. Rows are handled in tiles of ``TILE``, features as
  rows, so that one tile of one component stays in the first-level cache and every inner loop runs along
  contiguous rows. No ``(n, k)`` or ``(n, d, d)`` array exists.
- Rows of zero weight are never looked at: NaN there is allowed.
- All arithmetic and all sums are float64. Distances and scatters use ``x - mean`` of their own component,
  never an expanded square, so neither loses digits to the distance between components. A sum over ``n`` rows
  is taken per tile and then across tiles: its relative error is at most ``(TILE + n / TILE) * eps`` of the
  sum of magnitudes.
- Floating-point contraction and reassociation are allowed, assumptions about NaN and infinity are not: bad
  values come out as bad values. Reassociation is fixed at compile time, so equal blocks give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numba
import numpy as np

from daskgmm._typing import Array

F = TypeVar("F", bound=Callable[..., Any])

TILE = 128


def compiled(function: F) -> F:
    """Compile without the GIL, kept on disk where the machine lets us write."""
    flags = {"contract", "reassoc", "arcp", "nsz"}
    njit = partial(numba.njit, nogil=True, error_model="numpy", fastmath=flags)
    try:
        return cast(F, njit(cache=True)(function))
    except RuntimeError:  # no writable place for the cache: compile anew in this process
        return cast(F, njit()(function))


@compiled
def _load(x: Array, weight: Array, first: int, tile: Array) -> int:
    """Copy up to ``TILE`` rows from ``first`` into ``tile`` (d, TILE); zeros where the weight is zero."""
    rows: int = min(tile.shape[1], x.shape[0] - first)
    for t in range(rows):
        seen = weight[first + t] != 0.0
        for j in range(x.shape[1]):
            tile[j, t] = x[first + t, j] if seen else 0.0
    tile[:, rows:] = 0.0
    return rows


@compiled
def _centre(tile: Array, mean: Array, centred: Array) -> None:
    for j in range(tile.shape[0]):
        for t in range(tile.shape[1]):
            centred[j, t] = tile[j, t] - mean[j]


@compiled
def _distance(centred: Array, factor: Array, line: Array, out: Array) -> None:
    """``out[t] = |factor @ centred[:, t]|**2``."""
    d, n = centred.shape
    out[:] = 0.0
    if factor.ndim == 2:
        for i in range(d):
            line[:] = 0.0
            j = 0
            while j + 4 <= i + 1:
                a, b, c, e = factor[i, j], factor[i, j + 1], factor[i, j + 2], factor[i, j + 3]
                for t in range(n):
                    line[t] += (
                        a * centred[j, t] + b * centred[j + 1, t] + c * centred[j + 2, t] + e * centred[j + 3, t]
                    )
                j += 4
            while j <= i:
                a = factor[i, j]
                for t in range(n):
                    line[t] += a * centred[j, t]
                j += 1
            for t in range(n):
                out[t] += line[t] * line[t]
    else:
        for j in range(d):
            a = factor[j]
            for t in range(n):
                z = a * centred[j, t]
                out[t] += z * z


@compiled
def _scatter(centred: Array, share: Array, line: Array, scatter: Array) -> None:
    """Add ``sum_t share[t] centred[:, t] centred[:, t]'`` to ``scatter``: lower triangle, or diagonal."""
    d, n = centred.shape
    for i in range(d):
        for t in range(n):
            line[t] = share[t] * centred[i, t]
        if scatter.ndim == 2:
            j = 0
            while j + 4 <= i + 1:
                a = b = c = e = 0.0
                for t in range(n):
                    a += line[t] * centred[j, t]
                    b += line[t] * centred[j + 1, t]
                    c += line[t] * centred[j + 2, t]
                    e += line[t] * centred[j + 3, t]
                scatter[i, j] += a
                scatter[i, j + 1] += b
                scatter[i, j + 2] += c
                scatter[i, j + 3] += e
                j += 4
            while j <= i:
                a = 0.0
                for t in range(n):
                    a += line[t] * centred[j, t]
                scatter[i, j] += a
                j += 1
        else:
            a = 0.0
            for t in range(n):
                a += line[t] * centred[i, t]
            scatter[i] += a


@compiled
def _accumulate(
    tile: Array,
    share: Array,
    reference: Array,
    centred: Array,
    line: Array,
    total: Array,
    shift: Array,
    scatter: Array,
) -> None:
    """Add one tile's sums, given ``share[j, t]`` = weight times responsibility."""
    k, n = share.shape
    for j in range(k):
        _centre(tile, reference[j], centred)
        weight = 0.0
        for t in range(n):
            weight += share[j, t]
        total[j] += weight
        for i in range(tile.shape[0]):
            a = 0.0
            for t in range(n):
                a += share[j, t] * centred[i, t]
            shift[j, i] += a
        _scatter(centred, share[j], line, scatter[min(j, len(scatter) - 1)])


@compiled
def _log_joint(
    tile: Array, means: Array, factor: Array, log_norm: Array, centred: Array, line: Array, logits: Array
) -> None:
    """``logits[j, t] = log(weight_j N(x_t; component j))``."""
    for j in range(len(means)):
        _centre(tile, means[j], centred)
        _distance(centred, factor[min(j, len(factor) - 1)], line, logits[j])
        for t in range(logits.shape[1]):
            logits[j, t] = log_norm[j] - 0.5 * logits[j, t]


@compiled
def _softmax(logits: Array, density: Array) -> None:
    """Turn joint log-densities into responsibilities in place; ``density`` gets their log-sum-exp."""
    k, n = logits.shape
    for t in range(n):
        peak = logits[0, t]
        for j in range(1, k):
            peak = max(peak, logits[j, t])
        total = 0.0
        for j in range(k):
            logits[j, t] = np.exp(logits[j, t] - peak)
            total += logits[j, t]
        for j in range(k):
            logits[j, t] /= total
        density[t] = peak + np.log(total)


@compiled
def expectation(
    x: Array,
    weight: Array,
    means: Array,
    factor: Array,
    log_norm: Array,
    total: Array,
    shift: Array,
    scatter: Array,
) -> float:
    """Add the expected sufficient statistics of ``x``; return the weighted log-likelihood.

    Parameters
    ----------
    x : (n, d) float32 or float64, C-contiguous
    weight : (n,) row weights, >= 0
    means : (k, d) also the reference that ``shift`` and ``scatter`` are taken about
    factor : (s, d, d) lower triangular, or (s, d): the transposed Cholesky factor of the precision
    log_norm : (k,) log weight plus log normalising constant
    total, shift, scatter : (k,), (k, d), like ``factor``: added to in place; lower triangles only
    """
    k, d = means.shape
    tile = np.empty((d, TILE))
    centred = np.empty((d, TILE))
    logits = np.empty((k, TILE))
    line = np.empty(TILE)
    density = np.empty(TILE)
    log_likelihood = 0.0
    for first in range(0, len(x), TILE):
        rows = _load(x, weight, first, tile)
        _log_joint(tile, means, factor, log_norm, centred, line, logits)
        _softmax(logits, density)
        for t in range(rows):
            # Selected, not multiplied: the density of a row that was not looked at may be anything.
            if weight[first + t] != 0.0:
                log_likelihood += weight[first + t] * density[t]
        for j in range(k):
            for t in range(rows):
                seen = weight[first + t] != 0.0
                logits[j, t] = weight[first + t] * logits[j, t] if seen else 0.0
            logits[j, rows:] = 0.0
        _accumulate(tile, logits, means, centred, line, total, shift, scatter)
    return log_likelihood


@compiled
def moments(
    x: Array, weight: Array, resp: Array, reference: Array, total: Array, shift: Array, scatter: Array
) -> None:
    """Add the sufficient statistics of ``x`` under given responsibilities ``resp`` (n, k)."""
    k, d = reference.shape
    tile = np.empty((d, TILE))
    centred = np.empty((d, TILE))
    share = np.empty((k, TILE))
    line = np.empty(TILE)
    for first in range(0, len(x), TILE):
        rows = _load(x, weight, first, tile)
        for j in range(k):
            for t in range(rows):
                seen = weight[first + t] != 0.0
                share[j, t] = weight[first + t] * resp[first + t, j] if seen else 0.0
            share[j, rows:] = 0.0
        _accumulate(tile, share, reference, centred, line, total, shift, scatter)


@compiled
def log_joint(x: Array, weight: Array, means: Array, factor: Array, log_norm: Array, out: Array) -> None:
    """Write ``log(weight_j N(x_i; component j))`` into ``out`` (n, k)."""
    k, d = means.shape
    tile = np.empty((d, TILE))
    centred = np.empty((d, TILE))
    logits = np.empty((k, TILE))
    line = np.empty(TILE)
    for first in range(0, len(x), TILE):
        rows = _load(x, weight, first, tile)
        _log_joint(tile, means, factor, log_norm, centred, line, logits)
        for t in range(rows):
            for j in range(k):
                out[first + t, j] = logits[j, t]


@compiled
def mirror(scatter: Array) -> None:
    """Copy the lower triangles of ``scatter`` (s, d, d) to the upper ones, in place."""
    for part in scatter:
        for i in range(len(part)):
            for j in range(i):
                part[j, i] = part[i, j]
