"""What every layout does with a tile: rows come in as columns, some are picked, the largest are found."""

from collections.abc import Callable
from typing import Any

from numba.extending import overload

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import INLINED, LINE, inlined, prefetch, transpose
from daskgmm.model.kernels.layouts import Listing

# Shares this much smaller than a component's sum over a tile add nothing that float64 could hold.
NEGLIGIBLE = 2.0**-110


@inlined
def load(x: Array, weight: Array, first: int, tile: Array) -> int:
    """Copy rows from ``first`` on into ``tile`` (width, n), features as rows.

    Zeros where the weight is zero, beyond the last row, and beyond the features of ``x``.
    """
    n = tile.shape[1]
    rows: int = min(n, x.shape[0] - first)
    d = x.shape[1]
    if d < 4:  # a loop over so few costs more than their copies
        for j in range(d):
            for t in range(rows):
                tile[j, t] = x[first + t, j]
    else:
        for t in range(0, rows - 3, 4):
            for j in range(0, d - 3, 4):
                # Most of the next tile arrives while this one is worked on; beyond the end, nothing happens.
                ahead = (first + t + n) * d + 4 * j
                for place in range(ahead, ahead + 16, LINE // x.itemsize):
                    prefetch(x, place)
                transpose(x, (first + t) * d + j, d, tile, j, t)
            for j in range(d // 4 * 4, d):
                for step in range(4):
                    tile[j, t + step] = x[first + t + step, j]
        for t in range(rows // 4 * 4, rows):
            for j in range(d):
                tile[j, t] = x[first + t, j]
    for t in range(rows):
        if weight[first + t] == 0.0:
            for j in range(len(tile)):
                tile[j, t] = 0.0
    for j in range(len(tile)):
        for t in range(rows if j < d else 0, n):
            tile[j, t] = 0.0
    return rows


@inlined
def centre(tile: Array, means: Array, j: int, d: int, centred: Array) -> None:
    """``centred = tile - means[j]`` of the first d features."""
    for i in range(d):
        for t in range(tile.shape[1]):
            centred[i, t] = tile[i, t] - means[j, i]


@inlined
def select(resp: Array, j: int, cut: float, index: Array) -> int:
    """List where ``resp[j]`` exceeds ``cut``, return how many; all, unlisted, where that is a third and more."""
    n: int = resp.shape[1]
    count = 0
    for t in range(n):
        count += 0 if resp[j, t] <= cut else 1  # NaN counts
    if 3 * count >= n:
        return n
    count = 0
    for t in range(n):
        index[count] = t
        count += 0 if resp[j, t] <= cut else 1
    return count


@inlined
def gather(tile: Array, means: Array, j: int, index: Array, n: int, centred: Array) -> int:
    """``centred = tile - means[j]`` for n listed columns, and copies of the first to whole vectors; how many."""
    m: int = min(n + -n % 16, tile.shape[1])
    for t in range(n, m):
        index[t] = index[0]
    for i in range(len(tile)):
        for t in range(m):
            centred[i, t] = tile[i, index[t]] - means[j, i]
    return m


@inlined
def likeliest(logits: Array, peak: Array, label: Array) -> None:
    """The largest of each column, and the row where it is; the first of equals."""
    n = logits.shape[1]
    for t in range(n):
        peak[t] = logits[0, t]
        label[t] = 0
    for j in range(1, len(logits)):
        for t in range(n):
            label[t] = j if logits[j, t] > peak[t] else label[t]
            peak[t] = logits[j, t] if logits[j, t] > peak[t] else peak[t]


@inlined
def normalise(log_norm: Array, logits: Array) -> float:
    """Squared distances become ``log(weight times density) - base``; returns ``base``."""
    base: float = log_norm[0]  # in float64, so that what stays in the products' precision is small
    for j in range(1, len(log_norm)):
        base = max(base, log_norm[j])
    for j in range(len(log_norm)):
        norm, scale = logits.dtype.type(log_norm[j] - base), logits.dtype.type(-0.5)
        for t in range(logits.shape[1]):
            logits[j, t] = norm + scale * logits[j, t]
    return base


def concentrate(model: Any, scratch: Any, j: Any, weight: Any) -> int:
    """Add component j's share of a tile to its ``weight``; the number of columns that matter to its sums.

    Where features are many and that is less than all, those come first in ``resp[j]`` and, about its mean, in
    ``centred``; nothing is centred otherwise.
    """
    raise NotImplementedError


@inlined
def _sum(line: Array) -> float:
    total = 0.0
    for t in range(len(line)):
        total += line[t]
    return total


def _all_columns(model: Any, scratch: Any, j: Any, weight: Any) -> int:
    weight[j] += _sum(scratch.resp[j])
    n: int = scratch.resp.shape[1]
    return n


def _listed_columns(model: Any, scratch: Any, j: Any, weight: Any) -> int:
    resp, index = scratch.resp, scratch.listed
    n: int = resp.shape[1]
    total = _sum(resp[j])
    weight[j] += total
    count = select(resp, j, resp.dtype.type(NEGLIGIBLE * total), index)
    if count == 0 or count == n:
        return count
    m: int = gather(scratch.tile, model.means, j, index, count, scratch.centred)
    for t in range(count):  # index[t] >= t
        resp[j, t] = resp[j, index[t]]
    for t in range(count, m):
        resp[j, t] = 0.0
    return m


@overload(concentrate, jit_options=INLINED)
def _concentrate_of(model: Any, scratch: Any, j: Any, weight: Any) -> Callable[..., int]:
    return _listed_columns if scratch.instance_class is Listing else _all_columns
