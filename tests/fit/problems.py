"""Rows with a start to fit them from, for laws of EM that hold from any start."""

from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import strategies as st

from daskgmm import GaussianMixture, watching
from daskgmm.errors import CollapseError
from daskgmm.fit.run import EM
from tests.listeners import Heard
from tests.strategies import kinds, seeds
from tests.structures import covariances


class Problem:
    """Rows about k centres, and a start at some of them."""

    def __init__(self, kind: str, seed: int, n: int, d: int, k: int, offset: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        centres = random.normal(scale=3, size=(k, d))
        self.x = offset + centres[random.integers(k, size=n)] + random.normal(size=(n, d))
        self.random, self.offset = random, offset
        self.settings: dict[str, Any] = {
            "n_components": k,
            "covariance_type": kind,
            "weights_init": np.full(k, 1 / k),
            "means_init": self.x[random.choice(n, k, replace=False)],
            "precisions_init": covariances(np.tile(np.eye(d) / 4, (k, 1, 1)), np.ones(k), kind),
            "tol": 0.0,
            "reg_covar": 0.0,
            "max_iter": 10,
            "acceleration": None,
            "block_size": 64 * 8 * d,
        }

    def fitted(self, x: Any = None, weight: Any = None, known: Any = None, **settings: Any) -> EM:
        """The run of a fit, which may have collapsed before its last iteration."""
        heard = Heard()
        with watching(heard), suppress(CollapseError):
            model = GaussianMixture(**(self.settings | settings))
            model.fit(self.x if x is None else x, sample_weight=weight, known=known)
        (run,) = heard.states[-1].runs
        assert isinstance(run, EM)
        return run


problems = st.builds(Problem, kinds, seeds, st.integers(60, 300), st.integers(1, 4), st.integers(1, 4))
distant = st.builds(
    Problem,
    kinds,
    seeds,
    st.integers(60, 300),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 1e8]),
)
