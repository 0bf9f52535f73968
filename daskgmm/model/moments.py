"""Statistics of rows whose responsibilities are given: starts, and the survey as the one-component case."""

from __future__ import annotations

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

    Parameters
    ----------
    structure : Structure
    x : (n, d) rows of any real dtype.
    weight : (n,) row weights >= 0; None counts each row once.
    start : (n,) labels below ``k``, or (n, k) responsibilities; None puts every row into component 0, which
        makes the survey the one-component case.
    k : number of components.

    Notes
    -----
    Two passes over rows in memory, the first for the means: a scatter about a far-away point would lose
    ``eps * distance**2 / σ**2``.
    """
    seen = 0 if weight is None or not len(x) else int(np.argmax(weight > 0))
    # Any row serves as the first reference: the means that it gives are exact to eps times its distance.
    nearby = np.asarray(x[seen], dtype=np.float64) if len(x) else np.zeros(x.shape[1])
    if not np.isfinite(nearby).all():  # a row of zero weight, or one that the survey will refuse
        nearby = np.zeros_like(nearby)
    rough = _about(np.tile(nearby, (k, 1)), DIAGONAL, x, weight, start)
    return _about(rough.means, structure, x, weight, start)


def _about(
    reference: Array, structure: Structure, x: Array, weight: Array | None, start: Array | None
) -> Statistics:
    """Statistics about given points, for responsibilities or labels ``start``."""
    k, d = reference.shape
    sums = structure.zeros(k, d)
    points = np.zeros(sums.shift.shape)
    points[:, :d] = reference

    def resp(rows: slice) -> Array:
        part = np.zeros(len(x[rows]), int) if start is None else start[rows]
        return _one_hot(part, k) if part.ndim == 1 else part

    alone = start is None and k == 1
    kernels.moments(x, weight, None if alone else resp, points, sums)
    return Statistics.of(reference, structure, sums, x, weight)


def _one_hot(labels: Array, k: int) -> Array:
    hot = np.zeros((len(labels), k))
    # Rows of zero weight may carry any label.
    hot[np.arange(len(labels)), np.clip(labels, 0, k - 1)] = 1.0
    return hot
