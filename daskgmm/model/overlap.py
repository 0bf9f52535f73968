"""How near the components of a mixture lie to each other."""

import numpy as np

from daskgmm._typing import Array
from daskgmm.errors import CollapseError
from daskgmm.model.mixture import Mixture


def distances(mixture: Mixture) -> Array:
    """Bhattacharyya distances of all pairs of components, (k, k): −log ∫ √(p·q) dx, whatever they weigh.

    δᵀΣ⁻¹δ/8 + ½ log(det Σ / √(det A · det B)) for means that differ by δ and Σ = (A + B)/2 (Kailath 1967, eq. 61).
    Infinite where rounding leaves no such Σ.
    """
    (k, d), covariance = mixture.means.shape, mixture.covariance
    half = np.broadcast_to(covariance.half_log_det(d), k)  # of the precisions: −½ log det
    found = np.zeros((k, k))
    for i in range(k - 1):
        try:
            between = covariance.between(i)
        except CollapseError:
            found[i, i + 1 :] = np.inf
            continue
        delta = mixture.means[i + 1 :] - mixture.means[i]
        squares = np.array([np.square(between.whiten(row, j)).sum() for j, row in enumerate(delta)])
        apart = 0.5 * (half[i] + half[i + 1 :]) - between.half_log_det(d)
        found[i, i + 1 :] = np.maximum(squares / 8 + apart, 0)
    return found + found.T
