"""A Gaussian mixture: one immutable set of parameters, with its densities, expectation and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import entr

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.covariance import Covariance
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure

ANSWERS = ("labels", "score_samples", "responsibilities")  # what a mixture says of each row


@dataclass(frozen=True, eq=False)
class Mixture:
    """A Gaussian mixture: ``p(x) = Σ_k weights[k] · N(x; means[k], covariance of k)``.

    Attributes
    ----------
    weights : (k,) mixing proportions, which sum to 1.
    means : (k, d)
    covariance : Covariance
    """

    weights: Array
    means: Array
    covariance: Covariance

    def __post_init__(self) -> None:
        self.weights.setflags(write=False)
        self.means.setflags(write=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be computed again: parameters travel with every pass."""
        return {name: getattr(self, name) for name in ("weights", "means", "covariance")}

    @property
    def n_components(self) -> int:
        """Number of components, k."""
        return len(self.weights)

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return int(self.means.shape[1])

    @property
    def structure(self) -> Structure:
        """What the covariances have in common."""
        return self.covariance.structure

    @property
    def n_parameters(self) -> int:
        """Number of free parameters: covariances, means and k − 1 weights."""
        k, d = self.means.shape
        return self.structure.n_parameters(k, d) + k * d + k - 1

    @cached_property
    def _double(self) -> kernels.Model:
        """What the kernels read, for work in float64."""
        return self._packed("f8")

    @cached_property
    def _single(self) -> kernels.Model:
        """The same for work in float32."""
        return self._packed("f4")

    def _packed(self, dtype: str) -> kernels.Model:
        with np.errstate(divide="ignore"):  # an empty component has log-weight −inf, and density 0
            log_weights = np.log(self.weights)
        return self.covariance.pack(self.means, log_weights, dtype)

    def model_for(self, x: Array, weight: Array | None) -> kernels.Model:
        """The parameters as the kernels read them, in the precision that these rows and weights allow."""
        if x.dtype.kind != "f" or x.dtype.itemsize != 4 or not self.covariance.allows_single:
            return self._double
        if weight is not None and not np.all((weight == 0) | ((weight > 1e-6) & (weight < 1e6))):
            return self._double
        return self._single

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step over rows ``x`` (n, d) of any real dtype: their statistics about the current means."""
        model = self.model_for(x, weight)
        found = self._expected(x, weight, model)
        if model is not self._double and not np.isfinite(found.log_likelihood + found.scatter.sum()):
            return self._expected(x, weight, self._double)  # some row is out of float32's range
        return found

    def _expected(self, x: Array, weight: Array | None, model: kernels.Model) -> Statistics:
        reference = model.means[:, : self.n_features].astype(np.float64)
        return Statistics.of(reference, self.structure, kernels.expectation(x, weight, model), x, weight)

    def score_samples(self, x: Array) -> Array:
        """Log-density of each row, (n,), in nats."""
        return self.answer(x, "score_samples")[0]

    def labels(self, x: Array) -> Array:
        """The most probable component of each row, (n,) int64; the first of equals."""
        return self.answer(x, "labels")[0]

    def responsibilities(self, x: Array) -> Array:
        """Posterior probability of each component, (n, k); rows sum to 1."""
        return self.answer(x, "responsibilities")[0]

    def entropies(self, x: Array) -> Array:
        """Entropy of each row's responsibilities, (n,), in nats."""
        parts = (x[first : first + kernels.PIECE] for first in range(0, len(x), kernels.PIECE))
        return np.concatenate([np.empty(0), *(entr(self.responsibilities(part)).sum(axis=1) for part in parts)])

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """``labels``, ``score_samples`` or ``responsibilities``, and whether the density of every row is above 0.

        That of a row with NaN or infinity never is: what finds those, without a look at the rows of its own.
        """
        labels, density, resp = (len(x) * (question == asked) for asked in ANSWERS)
        out = np.empty(labels, dtype=np.int64), np.empty(density), np.empty((resp, self.n_components))
        sound = kernels.posterior(x, self.model_for(x, None), *out)
        return out[ANSWERS.index(question)], sound

    def sample(self, n: int, random: np.random.RandomState) -> tuple[Array, Array]:
        """``n`` rows (n, d) and their components (n,), grouped by component: ancestral sampling."""
        counts = random.multinomial(n, self.weights / self.weights.sum())  # given ones may be rounded
        parts = [
            self.means[j] + self.covariance.colour(random.standard_normal((count, self.n_features)), j)
            for j, count in enumerate(counts)
        ]
        return np.concatenate(parts), np.repeat(np.arange(self.n_components), counts)
