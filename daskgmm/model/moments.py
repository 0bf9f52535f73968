"""Statistics of rows whose responsibilities are given: starts, and the survey as the one-component case."""

import numpy as np

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import DIAGONAL, Structure


def moments(
    structure: Structure,
    x: Array,
    weight: Array | None = None,
    start: Array | None = None,
    k: int = 1,
) -> Statistics:
    """Statistics of rows ``x`` under given responsibilities, about their own weighted means.

    ``start`` are labels (n,) below ``k``, or responsibilities (n, k); None puts every row into component 0, which
    makes the survey the one-component case. ``weight`` None counts each row once.

    Two passes over rows in memory, the first for the means: a scatter about a far-away point would lose
    ``eps * distance**2 / σ**2``.
    """
    seen = 0 if weight is None or not len(x) else int(np.argmax(weight > 0))
    # Any row serves as the first reference: the means that it gives are exact to eps times its distance.
    nearby = np.asarray(x[seen], dtype=np.float64) if len(x) else np.zeros(x.shape[1])
    if not np.isfinite(nearby).all():  # a row of zero weight, or one that the survey will refuse
        nearby = np.zeros_like(nearby)

    def resp(rows: slice) -> Array:
        given = None if start is None else start[rows]
        if given is not None and given.ndim == 2:
            return given
        hot = np.zeros((len(x[rows]), k))
        # Rows of zero weight may carry any label.
        hot[np.arange(len(hot)), 0 if given is None else np.clip(given, 0, k - 1)] = 1.0
        return hot

    alone, reference = start is None and k == 1, np.tile(nearby, (k, 1))
    for kind in (DIAGONAL, structure):
        form, w = kind.form, kind.form.width(x.shape[1])
        points, scatter = np.zeros((k, w)), np.zeros((1 if kind.shared else k, *(w,) * form.axes))
        points[:, : x.shape[1]] = reference
        sums = form.sums(np.zeros(1), np.zeros(k), np.zeros((k, w)), scatter)
        kernels.moments(x, weight, None if alone else resp, points, sums)
        found = Statistics.of(reference, kind, sums, x, weight)
        reference = found.means
    return found
