"""An M-step that leaves some parameters as they are."""

from dataclasses import dataclass, replace

import numpy as np

from daskgmm._typing import Array
from daskgmm.model.checks import require
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Around

PARTS = ("weights", "means", "covariances")


@dataclass(frozen=True, eq=False)
class Frozen(Around):
    """Another M-step under constraints: parameters of some components stay as they are, to the bit.

    It maximises over the others. A covariance that follows is that about the mean that stays, and weights that
    follow share what is left to them as before.
    """

    weights: Array  # (k,) of bool: whether that of a component stays; so below
    means: Array  # (k,)
    covariances: Array  # (k,) all or none, where they share one

    def check(self) -> None:
        """Raise `ValueError` unless each component has its masks."""
        masks = (self.weights, self.means, self.covariances)
        require(all(m.dtype == bool and m.shape == masks[0].shape and m.ndim == 1 for m in masks), "No masks.")

    def fits(self, mixture: Mixture) -> bool:
        related, some = mixture.covariance.structure.related, len({*self.covariances.tolist()}) > 1
        return self.weights.shape == mixture.weights.shape and not (some and related) and self.update.fits(mixture)

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        fixed = self.means[:, None]
        s = statistics.about(np.where(fixed, mixture.means, statistics.reference))
        s = replace(s, shift=np.where(fixed, 0.0, s.shift))  # as if it were the rows' own mean
        if self.covariances.any():
            s = s.about(s.means)
            # Which no M-step changes, or sees collapse.
            own = s.structure.spread(mixture.covariance.values, s.weight)
            stays = self.covariances[: len(s.scatter)][s.structure.form.beside]
            s = replace(s, scatter=np.where(stays, own, s.scatter))
        return self.put(mixture, self.update(mixture, s))

    def put(self, given: Mixture, found: Mixture) -> Mixture:
        """``found`` with what stays of ``given``."""
        weights = found.weights
        if self.weights.any():
            room = max(0.0, 1 - given.weights[self.weights].sum())
            free = found.weights[~self.weights].sum() + found.background_weight
            share = found.weights * (room / free) if free > 0 else given.weights
            weights = np.where(self.weights, given.weights, share)
        means = np.where(self.means[:, None], given.means, found.means)
        covariance = given.covariance.where(self.covariances, found.covariance)
        return replace(found, weights=weights, means=means, covariance=covariance)
