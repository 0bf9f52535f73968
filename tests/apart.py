"""Rows of a mixture that is known, whose components lie apart: what online fits are measured on."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from daskgmm import MiniBatchGaussianMixture
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.structure import FULL, STRUCTURES
from daskgmm.model.update import maximise
from daskgmm.store.values import digest

K, D = 3, 2
MEANS = np.array([[0.0, 0], [6, 0], [0, 6]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
TRUTH = Mixture(WEIGHTS, MEANS, FULL.form.of(FULL, np.tile(np.eye(D), (K, 1, 1))))
# The truth as a start that is given in full.
GIVEN: dict[str, Any] = {
    "weights_init": WEIGHTS,
    "means_init": MEANS,
    "precisions_init": np.tile(np.eye(D), (K, 1, 1)),
}


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


def online(**settings: Any) -> MiniBatchGaussianMixture:
    """An online estimator with a seed."""
    return MiniBatchGaussianMixture(K, **({"random_state": 0} | settings))


def streamed(model: MiniBatchGaussianMixture, x: Any, sizes: Iterable[int]) -> MiniBatchGaussianMixture:
    """The model after all rows came in batches of these sizes; a size that repeats for ever ends with the rows."""
    first = 0
    for size in sizes:
        if first >= len(x):
            break
        model.partial_fit(x[first : first + size])
        first += size
    assert first >= len(x)
    return model


def attributes(model: Any) -> set[str]:
    """Names of the fitted attributes that are there."""
    return {name for name in dir(model) if name.endswith("_") and name[0] != "_" and hasattr(model, name)}


def assert_same(a: Any, b: Any, *but: str) -> None:
    """Every fitted attribute has the same bits, but for these; what fits cost are seconds."""
    assert attributes(a) == attributes(b)
    for name in attributes(a) - {"accounting_", *but}:
        one, other = getattr(a, name), getattr(b, name)
        if name in ("mixture_", "online_"):
            one, other = digest(one), digest(other)
        np.testing.assert_array_equal(one, other, err_msg=name)


def state(model: MiniBatchGaussianMixture) -> bytes:
    """All that an estimator is, whether seeded or waiting."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "model.npz"
        model.save(place)
        return place.read_bytes()
