"""Read a model file without knowing which estimator it holds."""

from __future__ import annotations

from pathlib import Path

from daskgmm.estimators.gaussian_mixture import GaussianMixture
from daskgmm.estimators.minibatch import MiniBatchGaussianMixture
from daskgmm.estimators.persistence import read

ESTIMATORS: dict[str, type[GaussianMixture] | type[MiniBatchGaussianMixture]] = {
    kind.__name__: kind for kind in (GaussianMixture, MiniBatchGaussianMixture)
}


def load(path: str | Path) -> GaussianMixture | MiniBatchGaussianMixture:
    """Read a model of either kind that ``save`` wrote, bit for bit.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no model that this version reads.
    """
    name, settings, state = read(path)
    if name not in ESTIMATORS:
        raise ValueError(f"{path} holds a {name}, which this daskgmm does not know. Update it.")
    model = ESTIMATORS[name](**settings)
    model._go_on(state)
    return model
