"""Where a component of an online fit does more good: the rule by which one is placed anew.

The two components whose merger costs least become one (Runnalls 2007), and the spared one takes part of another.
Splits are tried around rows that were least expected, with EM of the two parts alone. The best stays if rows that
had no say in it gain more than the merger costs. This is the split and merge of Ueda, Nakano, Ghahramani & Hinton
(2000), judged on a sample of recent rows.
"""

from dataclasses import replace

import numpy as np
from scipy.special import expit

from daskgmm._typing import Array
from daskgmm.errors import CollapseError
from daskgmm.fit.recent import ROWS_PER_COMPONENT
from daskgmm.model.blas import one_thread
from daskgmm.model.changes import Pairs, put
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.update import Quiet

SEEDS, ITERATIONS = 8, 10  # splits that are tried, and steps of EM from each
CERTAIN = 2.0  # standard errors of the gain, which are left out of it


def placed_anew(mixture: Mixture, rows: float, x: Array, reg_covar: float) -> tuple[Mixture, int] | None:
    """The mixture with one component where it serves rows ``x`` better, and which; None where all are in place.

    ``rows`` is how many effective rows the mixture was learnt from.
    """
    if mixture.n_components < 2:
        return None
    with one_thread():
        try:
            merged, spared, cost = cheapest(mixture, rows)
            found, gain = split(merged, spared, x, reg_covar)
        except CollapseError:  # by rounding: nothing is certain
            return None
    return (found, spared) if gain > cost else None


def cheapest(mixture: Mixture, rows: float) -> tuple[Mixture, int, float]:
    """The mixture after the merger that costs least, the component that this leaves without weight, and the cost.

    A component of less than one row counts as one without weight. Each is seen with the one that is likeliest at
    its mean.
    """
    k, d = mixture.means.shape
    w = np.where(mixture.weights * rows < 1, 0.0, mixture.weights)
    half = np.broadcast_to(mixture.covariance.half_log_det(d), k)
    other = _nearest(mixture, w, half)
    pairs = Pairs.of(mixture, w, np.arange(k), other)
    i = int(np.argmin(pairs.loss))
    kept, spared = sorted((i, int(other[i])), key=lambda component: -mixture.weights[component])
    whole = mixture.weights[kept] + mixture.weights[spared]
    _, mean, value = pairs.pair(i)
    merged = put(mixture, {kept: (whole, mean, value), spared: (0.0, mixture.means[spared], value)})
    return merged, spared, float(pairs.loss[i])


def _nearest(mixture: Mixture, weights: Array, half_log_det: Array) -> Array:
    """For each component the other that is likeliest at its mean, with these weights; (k,)."""
    means, covariance, k = mixture.means, mixture.covariance, mixture.n_components
    with np.errstate(all="ignore"):
        z = np.stack([covariance.whiten(means - mean, j) for j, mean in enumerate(means)], axis=1)  # (k, k, d)
        level = np.log(weights) + half_log_det - 0.5 * np.square(z).sum(axis=2)
    level = np.nan_to_num(level, nan=-np.inf)
    np.fill_diagonal(level, -np.inf)
    nearest = level.argmax(axis=1)
    # All may be infinitely far: then it is the next.
    nearest = np.where(nearest == np.arange(k), (nearest + 1) % k, nearest)
    return np.asarray(nearest)


def split(mixture: Mixture, spared: int, x: Array, reg_covar: float) -> tuple[Mixture, float]:
    """The best split of a component into itself and the spared one, and what a row gains by it, as far as certain.

    Every other row has a say in the split; the others judge.
    """
    base, resp, typical = mixture.score_samples(x), mixture.responsibilities(x), _typical(mixture)
    update, tried = Quiet(reg_covar, typical.take(np.zeros(2, int))), []
    for inside in _starts(typical, x[::2], base[::2]):
        host = int(np.argmax(inside @ resp[::2]))
        with np.errstate(divide="ignore"):
            rest, weight = base + np.log1p(-resp[:, host]), np.log(mixture.weights[host])
        parts = np.column_stack([inside, (1 - inside) * resp[::2, host]])
        pair = _parted(parts, x[::2], rest[::2] - weight, update)
        gains = np.logaddexp(rest, weight + pair.score_samples(x)) - base
        tried.append((gains, host, pair))
    gains, host, pair = max(tried, key=lambda found: found[0][::2].mean())
    judged, share = gains[1::2], mixture.weights[host] * pair.weights
    values = pair.covariance.values
    if mixture.covariance.structure.shared:
        values = np.repeat((1 - share.sum()) * mixture.covariance.values + share.sum() * values, 2, axis=0)
    found = put(mixture, {j: (share[i], pair.means[i], values[i]) for i, j in enumerate((spared, host))})
    return found, float(judged.mean() - CERTAIN * judged.std() / np.sqrt(len(judged)))


def _typical(mixture: Mixture) -> Covariance:
    """One covariance, the mean of all."""
    structure, values = mixture.covariance.structure.loose, mixture.covariance.values
    if not structure.shared:
        values = np.average(values, axis=0, weights=mixture.weights)[None]
    return structure.form.of(structure, values, np.inf)


def _starts(typical: Covariance, x: Array, base: Array) -> list[Array]:
    """Which rows each split begins with: those around a row of the less likely half, one of each part of it."""
    size = min(len(x), ROWS_PER_COMPONENT // 4)
    ranked = np.argsort(base, kind="stable")[: -(-len(x) // 2)]
    found = []
    for row in ranked[np.arange(SEEDS) * len(ranked) // SEEDS]:
        distance = np.square(typical.whiten(x - x[row], 0)).sum(axis=1)
        inside = np.zeros(len(x))
        inside[np.argpartition(distance, size - 1)[:size]] = 1.0
        found.append(inside)
    return found


def _parted(parts: Array, x: Array, rest: Array, update: Quiet) -> Mixture:
    """Two components that begin with these responsibilities (n, 2), beside a log-density that stays."""
    assert update.anchor is not None
    found = moments(update.anchor.structure, x, None, parts, 2)
    pair = Mixture(np.full(2, 0.5), found.means, update.anchor)
    for _ in range(ITERATIONS):
        pair = update(pair, replace(found, n_rows=float(found.weight.sum())))
        found = pair.expectation(x, expit(pair.score_samples(x) - rest))
        if not found.weight.sum() >= 1:  # they find nothing of their own
            break
    return pair
