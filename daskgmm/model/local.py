"""A mixture as a point in a flat space, and inner products of changes there.

The coordinates are log-weights, means and those of the covariances: any numbers are a mixture. Inner products are
those of the Fisher information of a row whose component is known. In them EM's step is the gradient of the mean
log-likelihood, where it is small (Xu & Jordan 1996; Salakhutdinov, Roweis & Ghahramani 2003).
"""

import numpy as np
from scipy.special import softmax

from daskgmm._typing import Array
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import TINY


def coordinates(mixture: Mixture) -> Array:
    """Of a mixture, (p,)."""
    logs = np.log(np.maximum(mixture.weights, TINY))  # of an empty component, too
    return np.concatenate([logs, mixture.means.ravel(), mixture.covariance.coordinates.ravel()])


def at(place: Array, like: Mixture) -> Mixture:
    """The mixture of these coordinates; `CollapseError` where float64 holds no such covariance."""
    structure, d = like.covariance.structure, like.n_features
    loose = structure.loose
    (logs,), (means,), (rest,) = _parts(place[None], like)
    weights = softmax(logs)
    return Mixture(
        weights, means.copy(), structure.imposed(loose.form.at(loose, rest, d), weights, like.covariance)
    )


def _parts(places: Array, like: Mixture) -> tuple[Array, Array, Array]:
    """Log-weights (m, k), means (m, k, d) and coordinates of covariances, (m, s, c)."""
    (k, d), m, s = like.means.shape, len(places), len(like.covariance.factor)
    logs, means, rest = np.split(places, [k, k + k * d], axis=1)
    return logs, means.reshape(m, k, d), rest.reshape(m, s, -1)


def _felt(changes: Array, mixture: Mixture) -> tuple[Array, Array, Array]:
    """Changes (m, p) of log-weights, means and covariances as a component's rows feel them: (m, k or s, ...)."""
    logs, means, rest = _parts(changes, mixture)
    logs = logs - (logs @ mixture.weights)[:, None]
    covariance = mixture.covariance
    moved = np.stack([covariance.whiten(means[:, j], j) for j in range(mixture.n_components)], axis=1)
    return logs[..., None], moved, covariance.whitened(rest, mixture.n_features)


def products(changes: Array, mixture: Mixture) -> Array:
    """Inner products (m, m) of changes (m, p) at a mixture."""
    share = np.sqrt(mixture.weights)[:, None]
    shares = share, share, 1.0 if mixture.covariance.structure.shared else share
    felt = [part * own for part, own in zip(_felt(changes, mixture), shares, strict=True)]
    flat = np.concatenate([part.reshape(len(part), -1) for part in felt], axis=1)
    found: Array = flat @ flat.T
    return found


def largest(change: Array, mixture: Mixture) -> float:
    """How much rows of a component feel a change (p,), of the component that feels it most."""
    return max(float(np.sqrt(np.square(part).sum(axis=-1).max())) for part in _felt(change[None], mixture))
