"""The fused E-step over the rows of one block. Arrays in, sums out: nothing here knows Dask or covariance types.

Contract
--------
- Three entry points: `expectation`, `moments` and `posterior`. What they do to a tile depends on the layout of the
  parameters (`Triangular`, `Wide`, `Shared`, `Axes`, `Gapped`) and of the sums (`Triangles`, `Pooled`, `Squares`,
  `Gaps`); each has its file. Rows that miss values of correlated features go in another order, for which `Filled`
  and `Fills` have an `expectation` of their own. Only what is called is compiled, for the layouts that are used.
- ``x`` is ``(n, d)`` of any real dtype; what is not C-contiguous, or not of the dtype of the work, is converted
  piece by piece.
  Rows are handled in tiles, features as rows, so that every inner loop runs along contiguous values: 352 of them,
  or 704 in float32, make loop overhead small, and one tile of one component stays in the first- or second-level
  cache. The next tile's rows are fetched meanwhile. No ``(n, k)`` or ``(n, d, d)`` array exists.
- Triangular products take four rows by four columns at a time. So the width of means, factors and sums is a
  multiple of four there: `width`, zeros beyond the features of ``x``. Fewer than four features are taken one by
  one.
- Rows of zero weight are never looked at: NaN there is allowed.
- Where features are many, what cannot matter is left out: a component whose density at a row is below ``2**-110``
  of another's may get none there, and a share below ``2**-110`` of the component's sum over the tile none in its
  sums. That is less than ``eps`` of any sum while rows lie within 1e8 standard deviations of their component.
- Distances and scatters use ``x - mean`` of their own component, never an expanded square, so neither loses digits
  to the distance between components. Where all components share a triangular factor and lie near each other
  (`Shared`), what does not depend on the component is done once. Rows are multiplied by the factor, measured from
  the first mean, and the products subtracted. With those at most ``near`` long, and ``z`` what is left, that is
  off by at most ``(d + 2) * eps(dtype) * (near + |z|)`` times the largest ``Σ_j |f_ij|·σ_j``, 1 without
  correlation. With `Pooled` sums the scatter is that of rows about an average of the means, and that of the means
  about it.
- Means, factors, offsets and products have the dtype of the work: float64, or float32 where the caller has shown
  that to be safe. Log-densities of rows and sums over tiles are float64. A sum over ``n`` rows has a relative
  error of at most ``c * eps(dtype) + n / c * eps(float64)`` of the sum of magnitudes, for c rows in a tile. What
  float32 cannot hold of a mean is in the offset, so that no digit of the means is lost.
- NaN is a missing value where parameters are `Gapped` or `Filled`, in `expectation` alone. It counts nowhere.
- Rows with errors of their own come with these beside them, as `blurred.beside` puts them, in float64. Their tiles
  are smaller, as a factor of each column lies beside them. What is left out is as above.
- ``exp`` and ``log`` are written out so that they vectorise. The relative error of ``exp`` is at most
  ``(|argument| + 4) * eps(dtype)``, what the rounding of its argument costs already; ``log`` is exact to ``4 *
  eps`` times its result plus one.
- Floating-point contraction and reassociation are allowed, assumptions about NaN and infinity are not: bad values
  come out as bad values. Reassociation is fixed when an entry point is compiled, and helpers are compiled into it,
  so equal blocks give equal bits.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.kernels import blurred, diagonal, filled, gapped, shared, triangular
from daskgmm.model.kernels import layouts as layouts
from daskgmm.model.kernels.compiling import TILE, allocated, compiled, lent
from daskgmm.model.kernels.layouts import (
    Axes,
    Blurred,
    BlurredAxes,
    Filled,
    Fills,
    Gapped,
    Gaps,
    Points,
    Pooled,
    Scratch,
    Shared,
    Squares,
    Triangles,
    accumulate,
    log_joint,
    scratch_for,
)
from daskgmm.model.kernels.softmax import scale, softmax
from daskgmm.model.kernels.tiles import likeliest, load

LAYOUTS = (blurred, diagonal, gapped, shared, triangular)  # imported for what they register

# Rows that are read as they lie at once, and rows that are converted (or given k logits) at once: no temporary
# grows with the block. Both are whole tiles: how the rows lie in memory changes no bit.
WHOLE, PIECE = 186 * TILE, 12 * TILE
# Log-densities whose rounding, eps of them, is .01 nats and more: answers for such rows are found anew.
FAR, FAR_SINGLE = -4e13, -1e5
_ONES = np.ones(WHOLE)
# Components: too many for sums over their pairs. So are 2·d² of few features: half as many take .93 (d = 4) and
# .79 (d = 8) of the time of scatters by themselves, twice as many 1.2 and 1.6; 512 take .63, 1024 1.06 (d = 32).
MANY = 1024


def expectation(x: Array, weight: Array | None, model: layouts.Model) -> layouts.Sums:
    """Weighted log-likelihood and expected sufficient statistics of ``x`` about the means of ``model``."""
    k, d = model.means.shape
    shape = (k, *model.covariance.shape[1:]) if isinstance(model, Blurred | BlurredAxes) else model.factor.shape
    zeros = np.zeros(1), np.zeros(k), np.zeros((k, d)), np.zeros(shape)
    sums: layouts.Sums = Squares(*zeros) if isinstance(model, Axes | BlurredAxes) else Triangles(*zeros)
    if isinstance(model, Gapped):
        sums = Gaps(*zeros, np.zeros((k, d)))
    if isinstance(model, Shared) and k <= min(2 * d * d, MANY):  # else, a scatter for each component costs less
        sums = Pooled(*zeros, np.zeros((k, k)))
    add: Any = _expectation
    if isinstance(model, Filled):
        sums, add = Fills(*zeros, np.zeros(1)), filled.expectation
    with scratch_for(model) as scratch:
        for _, rows, w in _pieces(x, weight, model, WHOLE):
            add(rows, w, model, sums, scratch)
    if isinstance(sums, Pooled):
        shared.spread(model.means, sums)
    return sums


def moments(
    x: Array, weight: Array | None, resp: Callable[[slice], Array] | None, means: Array, sums: layouts.Sums
) -> None:
    """Add the sufficient statistics of ``x`` about ``means`` (k, width) under given responsibilities.

    ``resp`` maps some rows to theirs, (rows, k); None stands for one component that all belong to.
    """
    model = Points(means)
    with scratch_for(model) as scratch:
        for part, rows, w in _pieces(x, weight, model, WHOLE if resp is None else PIECE):
            given = _ONES[: len(rows), None] if resp is None else resp(part)
            if given.shape != (len(rows), len(means)):
                raise ValueError("resp must have a row for each of x and a column for each component.")
            _moments(rows, w, _frozen(given), model, sums, scratch)


def posterior(x: Array, model: layouts.Model, labels: Array, density: Array, resp: Array) -> bool:
    """Fill what is asked for: ``labels`` (n,), ``density`` (n,) and ``resp`` (n, k); others have length 0.

    Returns whether the log-density of every row exceeds `far`: that of a row with NaN or infinity does not.
    """
    if any(len(out) not in (0, len(x)) for out in (labels, density, resp)):
        raise ValueError("What is asked for must have a place for each row.")
    sound = True
    with scratch_for(model) as scratch:
        for part, rows, w in _pieces(x, None, model, WHOLE):
            sound &= _posterior(rows, w, model, labels[part], density[part], resp[part], scratch)
    return sound


def far(model: layouts.Model) -> float:
    """The log-density up to which a row is too far for work in the precision of this model."""
    return FAR if model.means.itemsize == 8 else FAR_SINGLE


def _pieces(x: Array, weight: Array | None, model: Any, step: int) -> Iterator[tuple[slice, Array, Array]]:
    """Rows and weights as compiled code reads them, with their place in ``x``; checks shapes, as it does not."""
    width = model.means.shape[1] + getattr(model, "errors", 0)
    if x.ndim != 2 or x.shape[1] > width or (weight is not None and weight.shape != (len(x),)):
        raise ValueError(f"x of shape {x.shape} fits neither means of shape {model.means.shape} nor its weights.")
    dtype = model.means.dtype
    if x.dtype != dtype or not x.flags.c_contiguous:
        step = min(step, PIECE)
    for first in range(0, len(x), step):
        part = slice(first, first + step)
        rows = _frozen(x[part], dtype)
        yield part, rows, _frozen(_ONES[: len(rows)] if weight is None else weight[part])


def _frozen(a: Array, dtype: Any = np.float64) -> Array:
    """A contiguous view that cannot be written: one type for the compiler, whoever owns the array."""
    view = np.ascontiguousarray(a, dtype=dtype).view()
    view.flags.writeable = False
    return view


@compiled
def _expectation(x: Array, weight: Array, model: Any, sums: Any, scratch: Scratch) -> None:
    """Add the weighted log-likelihood and the expected sufficient statistics of ``x``."""
    scratch, model, sums = allocated(scratch), lent(model), lent(sums)
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
def _moments(x: Array, weight: Array, resp: Array, model: Any, sums: Any, scratch: Scratch) -> None:
    """Add the sufficient statistics of ``x`` under given responsibilities ``resp`` (n, k)."""
    scratch, model, sums = allocated(scratch), lent(model), lent(sums)
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
def _posterior(
    x: Array, weight: Array, model: Any, labels: Array, density: Array, resp: Array, scratch: Scratch
) -> bool:
    """Fill what is asked for: ``labels`` (n,), ``density`` (n,) and ``resp`` (n, k); others have length 0.

    Returns whether the log-density of every row exceeds `far`: that of a row with NaN or infinity does not.
    """
    scratch, model = allocated(scratch), lent(model)
    n, line = scratch.tile.shape[1], scratch.density
    for t in range(n):
        scratch.weight[t] = 1.0
    far = FAR if scratch.logits.itemsize == 8 else FAR_SINGLE
    lost = 0  # stays so, but for what is far, or no number
    for first in range(0, len(x), n):
        rows = load(x, weight, first, scratch.tile)
        base = log_joint(model, scratch)
        if len(labels):
            likeliest(scratch.logits, scratch.peak, scratch.nearest)
            for t in range(rows):
                labels[first + t] = scratch.nearest[t]
                lost += 0 if base + scratch.peak[t] > far else 1
        if len(density) or len(resp):
            softmax(base, scratch)
            for t in range(rows):
                lost += 0 if line[t] > far else 1
        if len(density):
            for t in range(rows):
                density[first + t] = line[t]
        if len(resp):
            scale(scratch.resp, scratch.weight, scratch.total)
            for t in range(rows):
                for j in range(len(scratch.resp)):
                    resp[first + t, j] = scratch.resp[j, t]
    return lost == 0
