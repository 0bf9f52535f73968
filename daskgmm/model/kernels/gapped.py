"""Components with diagonal factors, and rows that miss values: each value counts by itself, or not."""

from typing import Any

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import inlined
from daskgmm.model.kernels.layouts import ACCUMULATE, LOG_JOINT, Gapped, Gaps
from daskgmm.model.kernels.tiles import normalise


@inlined
def _part(tile: Array, there: Array) -> None:
    """Mark the values that are there with 1, others with 0, and put 0 in the place of those."""
    zero, one = tile.dtype.type(0), tile.dtype.type(1)
    for i in range(len(tile)):
        for t in range(tile.shape[1]):
            value = tile[i, t]
            there[i, t] = one if value == value else zero
            tile[i, t] = value if value == value else zero


def _log_joint(model: Any, scratch: Any) -> float:
    tile, there, logits = scratch.tile, scratch.centred, scratch.logits
    (d, n), last = tile.shape, len(model.factor) - 1
    _part(tile, there)
    for j in range(len(logits)):
        means, offset, out = model.means[j], model.offset[j], logits[j]
        factor, norm = model.factor[min(j, last)], model.norm[min(j, last)]
        for t in range(n):
            out[t] = 0.0
        for i in range(0, d - 1, 2):
            m0, a0, b0, c0 = means[i], factor[i], offset[i], norm[i]
            m1, a1, b1, c1 = means[i + 1], factor[i + 1], offset[i + 1], norm[i + 1]
            for t in range(n):
                y0, y1 = a0 * (tile[i, t] - m0) - b0, a1 * (tile[i + 1, t] - m1) - b1
                out[t] += there[i, t] * (y0 * y0 - c0) + there[i + 1, t] * (y1 * y1 - c1)
        for i in range(d // 2 * 2, d):
            for t in range(n):
                y = factor[i] * (tile[i, t] - means[i]) - offset[i]
                out[t] += there[i, t] * (y * y - norm[i])
    return normalise(model.log_norm, logits)


def _accumulate(model: Any, scratch: Any, sums: Any) -> None:
    tile, there, last = scratch.tile, scratch.centred, len(sums.scatter) - 1
    zero = tile.dtype.type(0)
    for j in range(len(scratch.resp)):
        share, means, total = scratch.resp[j], model.means[j], 0.0
        weight, shift, scatter = sums.there[j], sums.shift[j], sums.scatter[min(j, last)]
        for t in range(tile.shape[1]):
            total += share[t]
        sums.weight[j] += total
        for i in range(len(tile)):
            w, s, q = zero, zero, zero
            for t in range(tile.shape[1]):
                g, y = share[t] * there[i, t], tile[i, t] - means[i]
                w, s, q = w + g, s + g * y, q + g * y * y
            weight[i], shift[i], scatter[i] = weight[i] + w, shift[i] + s, scatter[i] + q


LOG_JOINT[Gapped] = _log_joint
ACCUMULATE[Gaps] = _accumulate
