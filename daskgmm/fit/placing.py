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
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.update import Steady

SEEDS, ITERATIONS = 8, 10  # splits that are tried, and steps of EM from each
CERTAIN = 2.0  # standard errors of the gain, which are left out of it


class Quiet(Steady):
    """What is only tried gives no warnings."""

    def excuse(self, error: CollapseError) -> bool:
        return True


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

    It costs at most ½·((w + v)·log|P| − w·log|A| − v·log|B|) nats a row, with weights w and v, covariances A and
    B, and P that of both together (Runnalls 2007): nothing for copies, or for a component without weight, which
    one of less than one row counts as. Each component is seen with the one that is likeliest at its mean.
    """
    (k, d), covariance = mixture.means.shape, mixture.covariance
    w = np.where(mixture.weights * rows < 1, 0.0, mixture.weights)
    structure, form = covariance.structure, covariance.structure.form
    half, values = covariance.half_log_det(d), covariance.values
    if structure.shared:
        half, values = (np.repeat(a, k, axis=0) for a in (half, values))
    other = _nearest(mixture, w, half)
    both, delta = w + w[other], mixture.means - mixture.means[other]
    share = np.divide(w, both, out=np.full(k, 0.5), where=both > 0)
    apart = form.outer(share * (1 - share), np.zeros_like(delta), delta, False)
    apart = apart.mean(axis=1, keepdims=True) if structure.isotropic else apart
    if structure.shared:  # all rows have the covariance, not those of the pair alone
        values, own, both = values + both[form.beside] * apart, half, np.ones(k)
    else:
        values = share[form.beside] * values + (1 - share)[form.beside] * values[other] + apart
        own = w * half + w[other] * half[other]
    cost = own - both * form.of(structure, values, np.inf).half_log_det(d)
    i = int(np.argmin(cost))
    kept, spared = sorted((i, int(other[i])), key=lambda component: -mixture.weights[component])
    mean = mixture.means[other[i]] + share[i] * delta[i]
    whole = mixture.weights[kept] + mixture.weights[spared]
    pair = {kept: (whole, mean, values[i]), spared: (0.0, mixture.means[spared], values[i])}
    return _with(mixture, pair), spared, float(cost[i])


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


def _with(mixture: Mixture, changed: dict[int, tuple[float, Array, Array]]) -> Mixture:
    """The mixture with other weights, means and covariances of some components; one that all share is the last."""
    structure = mixture.covariance.structure
    weights, means, values = mixture.weights.copy(), mixture.means.copy(), mixture.covariance.values.copy()
    for component, (weight, mean, value) in changed.items():
        weights[component], means[component] = weight, mean
        values[0 if structure.shared else component] = value
    return Mixture(weights, means, structure.form.of(structure, values, np.inf))


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
    found = _with(mixture, {j: (share[i], pair.means[i], values[i]) for i, j in enumerate((spared, host))})
    return found, float(judged.mean() - CERTAIN * judged.std() / np.sqrt(len(judged)))


def _typical(mixture: Mixture) -> Covariance:
    """One covariance, the mean of all."""
    structure, values = mixture.covariance.structure, mixture.covariance.values
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
