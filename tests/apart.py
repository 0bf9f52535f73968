"""Rows of a mixture that is known, whose components lie apart: what online fits are measured on."""

from typing import Any

import numpy as np

from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.structure import FULL, STRUCTURES
from daskgmm.model.update import maximise

K, D = 3, 2
MEANS = np.array([[0.0, 0], [6, 0], [0, 6]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
TRUTH = Mixture(WEIGHTS, MEANS, FULL.form.of(FULL, np.tile(np.eye(D), (K, 1, 1))))
# The truth as a start that is given in full.
GIVEN = {"weights_init": WEIGHTS, "means_init": MEANS, "precisions_init": np.tile(np.eye(D), (K, 1, 1))}


def rows_of(seed: int, n: int) -> Any:
    """Rows of `TRUTH`."""
    random = np.random.default_rng(seed)
    return MEANS[random.choice(K, n, p=WEIGHTS)] + random.normal(size=(n, D))


def near(kind: str) -> Mixture:
    """A mixture of a kind close to the truth: the M-step from 500 rows, each in the component it is nearest to."""
    x = rows_of(99, 500)
    labels = np.argmin(((x[:, None] - MEANS) ** 2).sum(axis=2), axis=1)
    s = moments(STRUCTURES[kind], x, None, labels, K)
    return maximise(s, MEANS, s.scatter, 0.0)


def in_order(means: Any) -> Any:
    """Numbers of the components in the order of `MEANS`."""
    return np.argsort(means @ [1.0, 2.0])
