"""Available-case moments: of each feature by itself, over the rows that have it."""

from dataclasses import replace

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.moments import moments
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import DIAGONAL, Structure


def available(x: Array, weight: Array | None = None, start: Array | None = None, k: int = 1) -> Statistics:
    """Sums over rows, which may miss values, for each of d features and k components: (d + 1)·k of one feature.

    They add up as all statistics do. The last k are of a feature that is 0 in each row: what components weigh.
    """
    w = np.ones(len(x)) if weight is None else weight
    found = []
    for column in (*x.T, np.zeros(len(x))):
        own = np.where(np.isnan(column), 0.0, w) if column.dtype.kind == "f" else w
        found.append(moments(DIAGONAL, column[:, None], own, start, k))
    reference, weight, shift, scatter = (
        np.concatenate([getattr(s, name) for s in found]) for name in ("reference", "weight", "shift", "scatter")
    )
    return replace(found[-1], reference=reference, weight=weight, shift=shift, scatter=scatter)


def gathered(s: Statistics, structure: Structure, k: int, overall: Statistics | None = None) -> Statistics:
    """Those sums as statistics of k components without correlation, about their available-case means.

    Where a component has no value of a feature, that has the mean and variance of ``overall``.
    """
    s = s.about(s.means)
    weight, d = s.weight.reshape(-1, k), len(s.weight) // k - 1
    means = s.reference.reshape(-1, k)[:d].T
    with np.errstate(invalid="ignore", divide="ignore"):
        variances = (s.scatter.reshape(-1, k) / weight)[:d].T
    if overall is not None:
        seen = weight[:d].T > 0
        means = np.where(seen, means, overall.means)
        variances = np.where(seen, variances, structure.form.diagonals(overall.scatter) / overall.weight)
    values = variances.reshape(k, d, *(1,) * (structure.form.axes - 1)) * structure.form.unit(d)
    total = weight[d]
    if structure.shared:
        values = np.average(values, axis=0, weights=total)[None]
    values = values.mean(axis=1, keepdims=True) if structure.isotropic else values
    scatter = structure.spread(values, total)
    return replace(s, structure=structure, reference=means, weight=total, shift=np.zeros((k, d)), scatter=scatter)
