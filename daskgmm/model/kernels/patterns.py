"""Rows that miss the same values, next to each other."""

from typing import Any, NamedTuple

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import compiled, inlined


class Order(NamedTuple):
    """Rows that weigh and have something, in an order that the values alone decide."""

    rows: Array  # (n,) their numbers
    pattern: Array  # (n,) what each row misses, numbered as it comes first; of other rows −1
    total: int  # how many of ``rows`` count


class Runs(NamedTuple):
    """What follows for runs of a tile: columns that miss the same. There are no more than columns."""

    edges: Array  # (n + 1,) where they begin
    there: Array  # (n,) how many features are there
    place: Array  # (n,) where their C begins
    features: Array  # (n, d) numbers of features, those first that are there
    norms: Array  # (n, k) what log-densities have beyond those of complete rows
    kept: Array  # (rows, lanes) lower triangles of C, one after the other
    table: Array  # (d·d + 2, lanes) a factor, with its determinant
    logs: Array  # (lanes,) half the log-determinant

    @staticmethod
    def of(model: Any, n: int) -> "Runs":
        """With room for C of two features in five of each column, or of all in one."""
        (k, d), (groups, _, lanes) = model.apart.shape, model.covariance.shape
        kept = groups * max(2 * n * d // 5, d * (d + 1) // 2)
        counts = (
            np.zeros(n + 1, np.int64),
            np.empty(n, np.int64),
            np.empty(n, np.int64),
            np.empty((n, d), np.int64),
        )
        tables = np.empty((kept, lanes)), np.empty((d * d + 2, lanes)), np.empty(lanes)
        return Runs(*counts, np.empty((n, k)), *tables)


def sorted_rows(x: Array, weight: Array) -> Order:
    """Sort rows (n, d) by what they miss."""
    n, d = x.shape
    codes = np.empty((n, -(-d // 64)), np.uint64)
    slots = np.full(2 << (2 * n).bit_length(), -1)
    rows, pattern, ends = np.empty((3, n), np.int64)
    return Order(rows, pattern, _sort(x, weight, codes, slots, rows, pattern, ends))


@inlined
def _code(x: Array, t: int, codes: Array) -> Any:
    """What a row has, a bit for each feature, and a hash of that: 0 where it has nothing."""
    d, mixed, some = x.shape[1], np.uint64(0), np.uint64(0)
    for word in range(codes.shape[1]):
        code = np.uint64(0)
        for i in range(64 * word, min(d, 64 * word + 64)):
            value = x[t, i]
            code = (code << np.uint64(1)) | (np.uint64(1) if value == value else np.uint64(0))
        codes[t, word] = code
        some |= code
        mixed = (mixed ^ code) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(32)
    return np.int64(mixed >> np.uint64(1)) | 1 if some else 0


@inlined
def _same(codes: Array, t: int, other: int) -> bool:
    same = True
    for word in range(codes.shape[1]):
        same &= codes[t, word] == codes[other, word]
    return same


@compiled
def _sort(x: Array, weight: Array, codes: Array, slots: Array, rows: Array, pattern: Array, ends: Array) -> int:
    """Fill ``rows`` and ``pattern``; how many rows there are. ``slots`` are a table of hashes, all −1."""
    found, mask = 0, len(slots) - 1
    for t in range(len(x)):
        hashed = _code(x, t, codes) if weight[t] != 0.0 else 0
        pattern[t] = -1
        if hashed == 0:
            continue
        slot = hashed >> 1 & mask
        while slots[slot] >= 0 and not _same(codes, t, rows[slots[slot]]):
            slot = (slot + 1) & mask
        if slots[slot] < 0:  # the first row of a pattern stands for it, in the place of its number
            slots[slot], rows[found], ends[found] = found, t, 0
            found += 1
        pattern[t] = slots[slot]
        ends[pattern[t]] += 1
    total = 0
    for p in range(found):
        count = ends[p]
        ends[p] = total
        total += count
    for t in range(len(x)):
        p = pattern[t]
        if p >= 0:
            rows[ends[p]] = t
            ends[p] += 1
    return total


@inlined
def take(x: Array, order: Order, first: int, count: int, tile: Array) -> None:
    """Rows from ``first`` on in their order as columns; zeros beyond them."""
    d = x.shape[1]
    for t in range(count):
        row = order.rows[first + t]
        for i in range(d):
            tile[i, t] = x[row, i]
    for i in range(len(tile)):
        for t in range(count if i < d else 0, tile.shape[1]):
            tile[i, t] = 0.0


@inlined
def part(tile: Array, t: int, features: Array) -> int:
    """Number the features, those first that a column has; how many these are."""
    there, d = 0, len(features)
    for i in range(d):
        features[there] = i
        there += 1 if tile[i, t] == tile[i, t] else 0
    place = there
    for i in range(d):
        if tile[i, t] != tile[i, t]:
            features[place] = i
            place += 1
    return there
