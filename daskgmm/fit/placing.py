"""Where a component of an online fit does more good: the rule by which one is placed anew.

The two components whose merger costs least become one (Runnalls 2007), and the spared one takes part of another.
Splits are tried around rows that were least expected, with EM of the two parts alone. The best stays if rows that
had no say in it gain more than the merger costs. One that is certain to gain less after a step of EM is given up:
where the model fits, all are. This is the split and merge of Ueda, Nakano, Ghahramani & Hinton (2000), judged on a
sample of recent rows.
"""

from dataclasses import replace

import numpy as np
from scipy.special import expit

from daskgmm._typing import Array
from daskgmm.errors import CollapseError
from daskgmm.fit.recent import ROWS_PER_COMPONENT
from daskgmm.fit.splits import PIECE_BYTES, Crowd, Halves, whitened
from daskgmm.model.blas import one_thread
from daskgmm.model.changes import Pairs, put
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.structure import FULL, TIED
from daskgmm.model.update import Quiet

SEEDS, ITERATIONS = 8, 10  # splits that are tried, and steps of EM from each
CERTAIN = 2.0  # standard errors of the gain that are left out of it, and added to it before a split is given up
NEAR = 1e4  # standard deviations: within so many, float32 tells log-densities to a tenth of a nat and less


def placed_anew(mixture: Mixture, rows: float, x: Array, reg_covar: float) -> tuple[Mixture, int] | None:
    """The mixture with one component where it serves rows ``x`` better, and which; None where all are in place.

    ``rows`` is how many effective rows the mixture was learnt from.
    """
    if mixture.n_components < 2:
        return None
    with one_thread():
        try:
            merged, spared, cost = cheapest(mixture, rows)
            found = split(merged, spared, x, cost, reg_covar)
        except CollapseError:  # by rounding: nothing is certain
            return None
    return None if found is None else (found, spared)


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
    means, k = mixture.means, mixture.n_components
    with np.errstate(all="ignore"):
        z = whitened(mixture.covariance, means - means[:, None])  # (k, k, d), the first axis for whose factor
        level = np.log(weights) + half_log_det - 0.5 * np.square(z).sum(axis=2).T
    level = np.nan_to_num(level, nan=-np.inf)
    np.fill_diagonal(level, -np.inf)
    nearest = level.argmax(axis=1)
    # All may be infinitely far: then it is the next.
    nearest = np.where(nearest == np.arange(k), (nearest + 1) % k, nearest)
    return np.asarray(nearest)


def split(mixture: Mixture, spared: int, x: Array, cost: float, reg_covar: float) -> Mixture | None:
    """A component split into itself and the spared one, as is best; None unless that is certain to gain more.

    Every other row has a say in the split; the others judge.
    """
    (base, resp), typical = mixture.posterior(x), _typical(mixture)
    z = whitened(typical, x[None] - x[0])[0]
    inside = _starts(z[::2], base[::2])
    hosts = np.argmax(inside @ resp[::2], axis=1)
    outside = (1 - inside) * resp[::2, hosts].T
    with np.errstate(divide="ignore"):  # log-densities, each in units of the host's weight
        whole, own = base - np.log(mixture.weights[hosts])[:, None], np.log(resp[:, hosts].T)
        rest = whole + np.log1p(-resp[:, hosts].T)
    share = inside.sum(axis=1) / (inside + outside).sum(axis=1)
    level = typical.half_log_det(x.shape[1])[0] - 0.5 * x.shape[1] * np.log(2 * np.pi)
    first = _first(typical, z, inside) + level + np.log(share)[:, None]
    beside = (whole + own)[:, 1::2] + np.log1p(-share)[:, None]
    gains = np.logaddexp(rest[:, 1::2], np.logaddexp(first, beside)) - whole[:, 1::2]
    update, tried = Quiet(reg_covar, typical.take(np.zeros(2, int))), []
    for i in np.flatnonzero(~(_judged(gains, CERTAIN) <= cost)):  # NaN tells nothing
        parts = np.column_stack([inside[i], outside[i]])
        pair = _parted(parts, x[::2], rest[i, ::2], update)
        tried.append((np.logaddexp(rest[i], pair.score_samples(x)) - whole[i], hosts[i], pair))
    if not tried:
        return None
    gain, host, pair = max(tried, key=lambda found: found[0][::2].mean())
    if not _judged(gain[1::2], -CERTAIN) > cost:
        return None
    share, values = mixture.weights[host] * pair.weights, pair.covariance.values
    if mixture.covariance.structure.shared:
        values = np.repeat((1 - share.sum()) * mixture.covariance.values + share.sum() * values, 2, axis=0)
    return put(mixture, {j: (share[i], pair.means[i], values[i]) for i, j in enumerate((spared, host))})


def _judged(gains: Array, errors: float) -> Array:
    """Mean gain of the last axis, and so many standard errors."""
    return np.asarray(gains.mean(axis=-1) + errors * gains.std(axis=-1) / np.sqrt(gains.shape[-1]))


def _typical(mixture: Mixture) -> Covariance:
    """One covariance, the mean of all."""
    structure, values = mixture.covariance.structure.loose, mixture.covariance.values
    if not structure.shared:
        values = np.average(values, axis=0, weights=mixture.weights)[None]
    return structure.form.of(structure, values, np.inf)


def _starts(z: Array, base: Array) -> Array:
    """Which rows (s, m) each split begins with: those around one of the less likely half, of each part of it."""
    m, size = len(z), min(len(z), ROWS_PER_COMPONENT // 4)
    ranked = np.argsort(base, kind="stable")[: -(-m // 2)]
    inside = np.zeros((SEEDS, m))
    for own, row in zip(inside, ranked[np.arange(SEEDS) * len(ranked) // SEEDS], strict=True):
        own[np.argpartition(np.square(z - z[row]).sum(axis=1), size - 1)[:size]] = 1.0
    return inside


def _first(typical: Covariance, z: Array, inside: Array) -> Array:
    """Log-density (s, m) of rows that judge, under the component that each start's rows make by themselves.

    Some at a time, by twos as halves, and in float32 where that is close enough; without what whitening took away.
    """
    structure = FULL if typical.structure is TIED else typical.structure.plain
    z = z.astype(np.float32) if np.abs(z).max() < NEAR else z
    (n, d), starts, found = z.shape, inside.astype(z.dtype).reshape(-1, 2, inside.shape[1]), []
    at_once = max(1, PIECE_BYTES // (8 * d * (n + d)))
    for first in range(0, len(starts), at_once):
        some = starts[first : first + at_once]
        c, one = len(some), np.ones((len(some), 1), z.dtype)
        seen, judges = (np.broadcast_to(rows, (c, *rows.shape)) for rows in (z[::2], z[1::2]))
        halves = Halves.of(structure, Crowd(np.arange(c), np.arange(0, n, 2), one, seen, seen[:, 0], one), some)
        found.append(halves.logits(judges) - np.log(halves.share)[..., None])
    return np.concatenate(found).reshape(len(inside), -1)


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
