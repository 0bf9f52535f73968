"""Rows so far from all components that squared distances overflow, or differ by no more than their rounding."""

from typing import TYPE_CHECKING

import numpy as np

from daskgmm._typing import Array

if TYPE_CHECKING:
    from daskgmm.model.mixture import Mixture


def answers(mixture: "Mixture", x: Array) -> tuple[Array, Array, Array]:
    """Labels (n,), log-densities (n,) and responsibilities (n, k) of finite rows ``x`` (n, d), however far.

    A row is scaled by a power of two, ``2**-e``, and so is what follows from it. Of components that share a
    factor the difference of squared distances is found by itself, as a product with the difference of the means:
    all that the two have in common would drown it.
    """
    means, covariance = mixture.means, mixture.covariance
    x = np.asarray(x, dtype=np.float64)  # integers and float32 rows have no such powers
    with np.errstate(all="ignore"):
        e = np.frexp(np.maximum(np.abs(x).max(axis=1), np.abs(means).max()))[1]
        y = np.ldexp(x, -e[:, None])
        groups, half, power, lead = _groups(mixture), [], [], np.empty((len(x), len(means)))
        for members in groups:
            r = members[0]
            for j in members:
                z = covariance.whiten(y - np.ldexp(means[j], -e[:, None]), r)
                if j == r:
                    first, h = z, np.frexp(np.abs(z).max(axis=1))[1]
                    half.append(0.5 * np.square(np.ldexp(z, -h[:, None])).sum(axis=1))
                    power.append(2 * (e + h))
                lead[:, j] = (0.5 * (first + z) * covariance.whiten(means[j] - means[r], r)).sum(axis=1)
        return _settled(mixture, groups, e, np.array(half), np.array(power), lead)


def _groups(mixture: "Mixture") -> list[Array]:
    """Components that have the same factor."""
    factor = mixture.covariance.factor
    kinds = np.unique(factor.reshape(len(factor), -1), axis=0, return_inverse=True)[1].ravel()
    kinds = np.broadcast_to(kinds, mixture.n_components)
    return [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]


def _settled(
    mixture: "Mixture", groups: list[Array], e: Array, half: Array, power: Array, lead: Array
) -> tuple[Array, Array, Array]:
    """The answers from ``half * 2**power`` (groups, n), half the squared distance to the first of each group, and
    ``lead * 2**e`` (n, k), by how much that of the first exceeds that of each component in its group.
    """
    (n, k), d = lead.shape, mixture.n_features
    log_weights = mixture.log_weights
    norm = np.broadcast_to(mixture.covariance.half_log_det(d), k) - 0.5 * d * np.log(2 * np.pi)
    top = np.maximum(power.max(axis=0), 0)  # log-densities are in units of ``2**top``: the largest distance fits
    joint, behind = np.empty((n, k)), np.empty((n, k))  # of the best of the group; by how much each is below it
    for g, members in enumerate(groups):
        best = members[_best(lead[:, members], log_weights[members], e)]
        leader, weight = lead[np.arange(n), best], log_weights[best]
        reached = np.ldexp(leader, e - top) + np.ldexp(norm[members[0]] + weight, -top)
        joint[:, members] = (reached - np.ldexp(half[g], power[g] - top))[:, None]
        nearer = np.ldexp(lead[:, members] - leader[:, None], e[:, None])
        behind[:, members] = nearer + (log_weights[members] - weight[:, None])
    labels, peak = np.where(behind == 0, joint, -np.inf).argmax(axis=1), joint.max(axis=1)
    behind += np.ldexp(joint - peak[:, None], top[:, None])
    resp = np.where(log_weights > -np.inf, np.exp(behind), 0.0)
    total = resp.sum(axis=1)
    return labels, np.ldexp(peak, top) + np.log(total), resp / total[:, None]


def _best(lead: Array, log_weights: Array, e: Array) -> Array:
    """Numbers (n,) of the most probable in a group: where distances leave it open, the weights decide."""
    level = lead + np.ldexp(log_weights, -e[:, None])
    best: Array = np.where(level == level.max(axis=1, keepdims=True), log_weights, -np.inf).argmax(axis=1)
    return best
