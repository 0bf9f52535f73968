"""A mixture with other components: some changed, two merged into one, or one in two."""

from dataclasses import dataclass, replace

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.mixture import Mixture

# Of components by their numbers: weight, mean and covariance as it is held.
Changes = dict[int, tuple[float, Array, Array]]


def put(mixture: Mixture, changes: Changes) -> Mixture:
    """The mixture with other weights, means and covariances of some components; one that all share is the last."""
    structure = mixture.covariance.structure
    weights, means, values = mixture.weights.copy(), mixture.means.copy(), mixture.covariance.values.copy()
    for component, (weight, mean, value) in changes.items():
        weights[component], means[component] = weight, mean
        values[0 if structure.shared else component] = value
    covariance = structure.covariance(values, weights, near=mixture.covariance)
    return replace(mixture, weights=weights, means=means, covariance=covariance)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of components, each as one that keeps weight, mean and covariance of both."""

    weights: Array  # (m,)
    means: Array  # (m, d)
    values: Array  # (m, ...) covariances as held; of one that all share, what it becomes
    loss: Array  # (m,) of log-likelihood for each row of all, at most

    @classmethod
    def of(cls, mixture: Mixture, weights: Array, i: Array, j: Array) -> "Pairs":
        """Of components ``i`` (m,) and ``j`` (m,), with ``weights`` (k,) in place of the mixture's.

        A merger costs at most ½·((w + v)·log|P| − w·log|A| − v·log|B|) nats a row, with weights w and v,
        covariances A and B, and P that of both together (Runnalls 2007): nothing for copies, or without weight.
        """
        (k, d), covariance = mixture.means.shape, mixture.covariance
        structure = covariance.structure.loose
        form = structure.form
        half, values = covariance.half_log_det(d), covariance.values
        if structure.shared:
            half, values = (np.repeat(a, k, axis=0) for a in (half, values))
        both, delta = weights[i] + weights[j], mixture.means[i] - mixture.means[j]
        share = np.divide(weights[i], both, out=np.full(len(i), 0.5), where=both > 0)
        apart = form.outer(share * (1 - share), np.zeros_like(delta), delta, False)
        apart = apart.mean(axis=1, keepdims=True) if structure.isotropic else apart
        if structure.shared:  # all rows have the covariance, not those of the pair alone
            values, own, scale = values[i] + both[form.beside] * apart, half[i], np.ones(len(i))
        else:
            values = share[form.beside] * values[i] + (1 - share)[form.beside] * values[j] + apart
            own, scale = weights[i] * half[i] + weights[j] * half[j], both
        loss = own - scale * form.of(structure, values, np.inf).half_log_det(d)
        return cls(both, mixture.means[j] + share[:, None] * delta, values, loss)

    def pair(self, number: int) -> tuple[float, Array, Array]:
        """One of them, for `put`."""
        return float(self.weights[number]), self.means[number], self.values[number]


def merge(mixture: Mixture, i: int, j: int) -> Mixture:
    """A component less: one in place of ``i`` keeps weight, mean and covariance of both, and ``j`` is gone."""
    merged = put(mixture, {i: Pairs.of(mixture, mixture.weights, np.array([i]), np.array([j])).pair(0)})
    kept = np.delete(np.arange(mixture.n_components), j)
    return Mixture(merged.weights[kept], merged.means[kept], merged.covariance.take(kept))


def split(mixture: Mixture, component: int, halves: Mixture) -> Mixture:
    """A component more: the first half in place of ``component``, the second one at the end."""
    k = mixture.n_components
    covariance = mixture.covariance.take(np.append(np.arange(k), component))
    means = np.append(mixture.means, halves.means[1:], axis=0)
    return put(Mixture(np.append(mixture.weights, 0.0), means, covariance), halved(mixture, component, halves, k))


def halved(mixture: Mixture, component: int, halves: Mixture, other: int) -> Changes:
    """The first half in place of ``component``, the second in place of another; a shared covariance stays."""
    shared, values = mixture.covariance.structure.shared, halves.covariance.values
    values = np.repeat(mixture.covariance.values, 2, axis=0) if shared else values
    share = mixture.weights[component] * halves.weights
    return {j: (float(share[h]), halves.means[h], values[h]) for h, j in enumerate((component, other))}
