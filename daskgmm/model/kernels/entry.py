"""The compiled entry points: loops over the tiles of a block, for any layout."""

from __future__ import annotations

from typing import Any

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import allocated, compiled
from daskgmm.model.kernels.layouts import Scratch, accumulate, log_joint
from daskgmm.model.kernels.softmax import scale, softmax
from daskgmm.model.kernels.tiles import likeliest, load


@compiled
def expectation(x: Array, weight: Array, model: Any, sums: Any, scratch: Scratch) -> None:
    """Add the weighted log-likelihood and the expected sufficient statistics of ``x``."""
    scratch = allocated(scratch)
    n, row_weight, density = scratch.tile.shape[1], scratch.weight, scratch.density
    summed = sums.log_likelihood[0]
    for first in range(0, len(x), n):
        rows = load(x, weight, first, scratch.tile)
        base = log_joint(model, scratch)
        softmax(base, scratch)
        for t in range(rows):
            row_weight[t] = weight[first + t]
        for t in range(rows, n):
            row_weight[t] = 0.0
        # Selected, not multiplied: what was not looked at may have any density.
        for t in range(n):
            summed += row_weight[t] * density[t] if row_weight[t] != 0.0 else 0.0
        scale(scratch.resp, row_weight, scratch.total)
        accumulate(model, scratch, sums)
    sums.log_likelihood[0] = summed


@compiled
def moments(x: Array, weight: Array, resp: Array, model: Any, sums: Any, scratch: Scratch) -> None:
    """Add the sufficient statistics of ``x`` under given responsibilities ``resp`` (n, k)."""
    scratch = allocated(scratch)
    n, share = scratch.tile.shape[1], scratch.resp
    for first in range(0, len(x), n):
        rows = load(x, weight, first, scratch.tile)
        for j in range(len(share)):
            for t in range(rows):
                seen = weight[first + t] != 0.0
                share[j, t] = weight[first + t] * resp[first + t, j] if seen else 0.0
            for t in range(rows, n):
                share[j, t] = 0.0
        accumulate(model, scratch, sums)


@compiled
def posterior(
    x: Array, weight: Array, model: Any, labels: Array, density: Array, resp: Array, scratch: Scratch
) -> bool:
    """Fill what is asked for: ``labels`` (n,), ``density`` (n,) and ``resp`` (n, k); others have length 0.

    Returns whether the density of every row is a number above 0: that of a row with NaN or infinity is not.
    """
    scratch = allocated(scratch)
    n, line = scratch.tile.shape[1], scratch.density
    for t in range(n):
        scratch.weight[t] = 1.0
    lost = 0.0  # stays so, but for what is no number
    for first in range(0, len(x), n):
        rows = load(x, weight, first, scratch.tile)
        base = log_joint(model, scratch)
        if len(labels):
            likeliest(scratch.logits, scratch.peak, scratch.nearest)
            for t in range(rows):
                labels[first + t] = scratch.nearest[t]
                lost += 0.0 * scratch.peak[t]
        if len(density) or len(resp):
            softmax(base, scratch)
            for t in range(rows):
                lost += 0.0 * line[t]
        if len(density):
            for t in range(rows):
                density[first + t] = line[t]
        if len(resp):
            scale(scratch.resp, scratch.weight, scratch.total)
            for t in range(rows):
                for j in range(len(scratch.resp)):
                    resp[first + t, j] = scratch.resp[j, t]
    return lost == 0.0
