"""Components with triangular factors, and rows that miss values: these are filled in, and count as complete ones.

With L a Cholesky factor of Σ whose first rows and columns are those of what is there, y_o a row less a component's
mean, and L_oo·z = y_o, the squared distance is |z|². What is missing is at L_mo·z on average, with a covariance of
C = Σ_mm − L_mo·L_moᵀ. So with ŷ the row that this fills in, what is expected of y·yᵀ is ŷ·ŷᵀ, and C beside it
(Ghahramani & Jordan 1994). A factor is found of eight components at once, wherever rows of a tile begin to miss
others. Nothing is kept from tile to tile: to find a factor takes less than to read it from further away.
"""

from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import allocated, compiled, inlined, lent
from daskgmm.model.kernels.lanes import LANES, fill, subtract, whiten
from daskgmm.model.kernels.patterns import Order, part, sorted_rows, take
from daskgmm.model.kernels.softmax import LN2, scale, softmax
from daskgmm.model.kernels.tiles import centre
from daskgmm.model.kernels.triangular import FIRST, distance, scatter

HALF_LOG_2PI = float(0.5 * np.log(2 * np.pi))


def expectation(x: Array, weight: Array, model: Any, sums: Any, scratch: Any) -> None:
    """Add the weighted log-likelihood and what is expected of the sufficient statistics of ``x``."""
    d = model.apart.shape[1]
    if len(scratch[1].kept) < len(model.covariance) * d * (d + 1) // 2:  # no tile would get anywhere
        raise ValueError("There is no room for what a row may leave open.")
    _expectation(x, weight, sorted_rows(x, weight), model, sums, *scratch)


@inlined
def _factorise(covariance: Array, features: Array, there: int, table: Array, logs: Array) -> None:
    """A Cholesky factor as far as what is there goes, then C, all (d, d) rows of lanes; ``½·log det Σ_oo``.

    The diagonal of the factor holds its inverse.
    """
    d = len(features)
    mantissa, powers = table[d * d], table[d * d + 1]
    for s in range(LANES):
        mantissa[s], powers[s] = 1.0, 0.0
    for g in range(d):
        n = min(g, there)
        for i in range(g, d):
            subtract(table, i * d + g, covariance, features[i] * d + features[g], i * d, g * d, 1, n)
        if g < there:
            inverse = table[g * d + g]
            _invert(inverse, mantissa, powers)
            for i in range(g + 1, d):
                for s in range(LANES):
                    table[i * d + g, s] *= inverse[s]
    for s in range(LANES):
        logs[s] = 0.5 * (LN2 * powers[s] + np.log(mantissa[s]))


@inlined
def _invert(pivot: Array, mantissa: Array, powers: Array) -> None:
    """Finish a feature: its pivot counts in the determinant, and 1 over its root takes its place."""
    for s in range(LANES):
        value = np.float64(pivot[s])
        raw = value.view(np.int64)
        bits = np.int64((raw & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000)
        product = np.float64(mantissa[s] * bits.view(np.float64))  # below 4
        twice = 1.0 if product >= 2.0 else 0.0
        mantissa[s] = product * (1.0 - 0.5 * twice)
        powers[s] += np.float64(np.int32(raw >> 52) - 1023) + twice
        pivot[s] = 1.0 / np.sqrt(value)


@inlined
def _hold(there: int, d: int, table: Array, kept: Array, place: int) -> int:
    """Keep the lower triangle of C; where the next begins."""
    for i in range(there, d):
        for g in range(there, i + 1):
            for s in range(LANES):
                kept[place, s] = table[i * d + g, s]
            place += 1
    return place


@inlined
def _fill(apart: Array, run: Any, table: Array, lane: int, first: int, scratch: Any, squares: Array) -> None:
    """Squared distances of one component's rows, and what is expected of what they miss."""
    start, stop, there, features = run
    held, z, d = scratch.held, scratch.whitened, len(features)
    for i in range(d):
        row, beside = first + features[i], held.dtype.type(apart[features[i]])
        if i < there:
            whiten(held, row, z, i, table, i * d, lane, beside, squares, start, stop)
        else:
            fill(held, row, z, there, table, i * d, lane, beside, start, stop)


@inlined
def _cut(tile: Array, order: Order, first: int, rows: int, model: Any, runs: Any) -> int:
    """Runs of columns that miss the same, as many as there is room for; how many. Other columns are 0 then."""
    count, start, used, d = 0, 0, 0, runs.features.shape[1]
    while start < rows:
        there = part(tile, start, runs.features[count])
        need = len(model.covariance) * (d - there) * (d - there + 1) // 2
        if used + need > len(runs.kept):
            break
        runs.there[count], runs.place[count] = there, used
        used += need
        own = order.pattern[order.rows[first + start]]
        while start < rows and order.pattern[order.rows[first + start]] == own:
            start += 1
        count += 1
        runs.edges[count] = start
    for t in range(start, rows):
        for i in range(d):
            tile[i, t] = 0.0
    return count


@inlined
def _run(runs: Any, r: int) -> Any:
    """Where a run begins and ends, how many features are there, and all their numbers."""
    return runs.edges[r], runs.edges[r + 1], runs.there[r], runs.features[r]


@inlined
def _complete(model: Any, scratch: Any, runs: Any, count: int) -> None:
    """Rows about each mean, with what they miss filled in; their squared distances, and what goes with these."""
    held, table, logits = scratch.held, runs.table, scratch.logits
    (k, width), d, n = model.means.shape, runs.features.shape[1], scratch.tile.shape[1]
    for j in range(k):
        centre(scratch.tile, model.means, j, width, held[j * width : (j + 1) * width])
        for t in range(n):
            logits[j, t] = 0.0
    for r in range(count):
        if runs.there[r] == d:
            _measure(model, scratch, runs, r)
    for r in range(count):
        run, place = _run(runs, r), runs.place[r]
        there, features = run[2], run[3]
        for j in range(k if there < d else 0):
            lane = j % LANES if model.own else 0
            if lane == 0 and (model.own or j == 0):
                _factorise(model.covariance[j // LANES], features, there, table, runs.logs)
                place = _hold(there, d, table, runs.kept, place)
            runs.norms[r, j] = -there * HALF_LOG_2PI - runs.logs[lane]
            _fill(model.apart[j], run, table, lane, j * width, scratch, logits[j : j + 1])


@inlined
def _measure(model: Any, scratch: Any, runs: Any, r: int) -> None:
    """Squared distances of rows that miss nothing, by the factor that other complete rows have; 0 elsewhere."""
    width, n, d = model.means.shape[1], scratch.tile.shape[1], runs.features.shape[1]
    for j in range(len(model.means)):
        rows, factor, out = (
            scratch.held[j * width : (j + 1) * width],
            model.factor[j if model.own else 0],
            scratch.logits[j],
        )
        distance(rows, factor, model.offset[j], FIRST, width, n, scratch.lines, out)
        for t in range(n):
            out[t] = out[t] if runs.edges[r] <= t < runs.edges[r + 1] else 0.0
        runs.norms[r, j] = model.half_log_det[j] - d * HALF_LOG_2PI


@inlined
def _log_joint(model: Any, scratch: Any, runs: Any, count: int) -> None:
    """Squared distances become logits less the ``base`` of their run."""
    logits, k, half = scratch.logits, len(model.means), scratch.logits.dtype.type(-0.5)
    for t in range(len(scratch.base)):
        scratch.base[t] = 0.0
    for r in range(count):
        start, stop, _, _ = _run(runs, r)
        base = model.log_weights[0] + runs.norms[r, 0]
        for j in range(1, k):
            base = max(base, model.log_weights[j] + runs.norms[r, j])
        for t in range(start, stop):
            scratch.base[t] = base
        for j in range(k):
            norm = logits.dtype.type(model.log_weights[j] + runs.norms[r, j] - base)
            for t in range(start, stop):
                logits[j, t] = norm + half * logits[j, t]


@inlined
def _leave(model: Any, scratch: Any, sums: Any, runs: Any, count: int) -> None:
    """Add what the values that are there leave open of others: C times what the rows of a run weigh."""
    d, unseen = runs.features.shape[1], 0.0
    for r in range(count):
        start, stop, there, features = _run(runs, r)
        size = (d - there) * (d - there + 1) // 2
        for j in range(len(model.means) if size else 0):
            share = 0.0
            for t in range(start, stop):
                share += scratch.resp[j, t]
            log_norm = d * HALF_LOG_2PI - model.half_log_det[j] + runs.norms[r, j]  # half log det C and 2π's
            unseen -= share * (log_norm + 0.5 * (d - there))
            place = runs.place[r] + (j // LANES * size if model.own else 0)
            lane, out = j % LANES if model.own else 0, sums.scatter[j if model.own else 0]
            for i in range(there, d):
                for g in range(there, i + 1):
                    out[features[i], features[g]] += share * runs.kept[place, lane]
                    place += 1
    sums.unseen[0] += unseen


@inlined
def _accumulate(model: Any, scratch: Any, sums: Any) -> None:
    """Weights, shifts and scatters of rows that are complete now."""
    resp, width, n = scratch.resp, model.means.shape[1], scratch.tile.shape[1]
    for j in range(len(resp)):
        total = 0.0
        for t in range(n):
            total += resp[j, t]
        sums.weight[j] += total
        rows, out = scratch.held[j * width : (j + 1) * width], sums.scatter[j if model.own else 0]
        scatter(rows, resp[j], n, scratch.lines, sums.shift[j], out)


@compiled
def _expectation(x: Array, weight: Array, order: Order, model: Any, sums: Any, scratch: Any, runs: Any) -> None:
    """As `expectation`, of rows in their order."""
    scratch, model, sums, runs = allocated(scratch), lent(model), lent(sums), lent(runs)
    n, row_weight, density = scratch.tile.shape[1], scratch.weight, scratch.density
    summed, first = sums.log_likelihood[0], 0
    while first < order.total:
        rows = min(n, order.total - first)
        take(x, order, first, rows, scratch.tile)
        count = _cut(scratch.tile, order, first, rows, model, runs)
        rows = runs.edges[count]
        _complete(model, scratch, runs, count)
        _log_joint(model, scratch, runs, count)
        softmax(0.0, scratch)
        for t in range(n):
            row_weight[t] = weight[order.rows[first + t]] if t < rows else 0.0
            summed += row_weight[t] * (density[t] + scratch.base[t]) if row_weight[t] != 0.0 else 0.0
        scale(scratch.resp, row_weight, scratch.total)
        _leave(model, scratch, sums, runs, count)
        _accumulate(model, scratch, sums)
        first += rows
    sums.log_likelihood[0] = summed
