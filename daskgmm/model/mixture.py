"""A Gaussian mixture: one immutable set of parameters, with its densities, expectation and sampling."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.special import entr

from daskgmm._typing import Array
from daskgmm.model import far, kernels
from daskgmm.model.blas import one_thread
from daskgmm.model.checks import holds, require
from daskgmm.model.covariance import Covariance
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import TINY, Structure

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
        for values in (self.weights, self.means, self.covariance.values, self.covariance.factor):
            values.setflags(write=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be computed again: parameters travel with every pass."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def check(self) -> None:
        """Raise `ValueError` unless the parameters are those of a mixture; a covariance has its own check."""
        k, d = self.means.shape
        require(min(k, d) > 0 and holds(self.means, (k, d)), "Means are no numbers (k, d).")
        require(holds(self.weights, (k,), 0.0) and sums_to_one(self.weights), "Weights are no proportions (k,).")
        structure = self.covariance.structure
        require(self.covariance.values.shape == structure.held(k, d), "Covariances are not those of the means.")

    @property
    def background_weight(self) -> float:
        """Proportion of rows that belong to no component."""
        return 0.0

    @property
    def members(self) -> "Mixture":
        """The mixture of the rows that belong to components."""
        return self

    def seen(self, features: Array, covariance: Covariance) -> "Mixture":
        """What it is of some features, which have this covariance."""
        return Mixture(self.weights, self.means[:, features], covariance)

    @property
    def n_components(self) -> int:
        """Number of components, k."""
        return len(self.weights)

    @property
    def n_features(self) -> int:
        """Number of features, d."""
        return int(self.means.shape[1])

    @property
    def n_parameters(self) -> int:
        """Number of free parameters: covariances, means and k − 1 weights."""
        k, d = self.means.shape
        return int(self.covariance.structure.n_parameters(k, d) + k * d + k - 1)

    @property
    def log_weights(self) -> Array:
        """What each component weighs in the density, (k,), as logarithms."""
        with np.errstate(divide="ignore"):  # an empty component has log-weight −inf, and density 0
            logs: Array = np.log(self.weights)
        return logs

    def model_for(
        self, x: Array, weight: Array | None, single: bool = True, layout: str = "pack"
    ) -> kernels.layouts.Model:
        """The parameters as the kernels read them, in the precision that these rows and weights allow."""
        single &= x.dtype.kind == "f" and x.dtype.itemsize == 4 and self.covariance.allows_single
        if single and weight is not None:
            single = bool(np.all((weight == 0) | ((weight > 1e-6) & (weight < 1e6))))
        dtype = "f4" if single else "f8"
        models: dict[str, kernels.layouts.Model] = vars(self).setdefault("_models", {})
        if (key := f"{layout} {dtype}") not in models:
            models[key] = getattr(self.covariance, layout)(self.means, self.log_weights, dtype)
        return models[key]

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step over rows ``x`` (n, d) of any real dtype: their statistics about the current means."""
        return Statistics.of(*self.sums(x, weight), x, weight)

    def sums(self, x: Array, weight: Array | None, layout: str = "pack") -> tuple[Array, Structure, Any]:
        """What the kernels add up, with the points that this is about (k, d), and the structure."""
        for single in (x.itemsize == 4 and self.covariance.tells_correlation, False):
            model = self.model_for(x, weight, single, layout)
            sums = kernels.expectation(x, weight, model)
            if model.means.itemsize == 8 or np.isfinite(sums.log_likelihood[0] + sums.scatter.sum()):
                break  # else some row is out of float32's range
        return model.means[:, : self.n_features].astype(np.float64), self.covariance.structure, sums

    def alone(self, component: int) -> "Mixture":
        """One component with its weight, so that its log-density of a row is log(weight·N)."""
        weight = np.maximum(self.weights[component], TINY)[None]  # of an empty one, too
        return Mixture(weight, self.means[component][None], self.covariance.take(np.array([component])))

    def entropy(self, found: Statistics) -> float:
        """Σ w·H of the responsibilities of the E-step that found these statistics, in nats.

        −Σ r·log r is log p(x) less the expected log-density of row and component together. Where values are
        missing, the statistics know what is expected of those.
        """
        return max(0.0, float(found.log_likelihood + found.unseen - self.joint(found)))

    def joint(self, found: Statistics) -> float:
        """Σ w·r·(log-density of row and component together), under the responsibilities of these statistics.

        It needs no more than those: its squared distances are tr(precision · scatter).
        """
        s, d = found.about(self.means), self.n_features
        with one_thread():
            values = self.covariance.precisions
        squares = d / values.shape[-1] * float((values * s.scatter).sum())
        log_norm = self.covariance.half_log_det(d) - 0.5 * d * np.log(2 * np.pi)
        shares = np.multiply(s.weight, self.log_weights, out=np.zeros_like(s.weight), where=s.weight > 0)
        return float((shares + s.weight * log_norm).sum() - 0.5 * squares)

    def score_samples(self, x: Array) -> Array:
        """Log-density of each row, (n,), in nats."""
        return self.answer(x, "score_samples")[0]

    def labels(self, x: Array) -> Array:
        """The most probable component of each row, (n,) int64; the first of equals."""
        return self.answer(x, "labels")[0]

    def responsibilities(self, x: Array) -> Array:
        """Posterior probability of each component, (n, k); rows sum to 1."""
        return self.answer(x, "responsibilities")[0]

    def posterior(self, x: Array) -> tuple[Array, Array]:
        """What `score_samples` and `responsibilities` say, in one go."""
        (_, density, resp), _ = self._answers(x, [False, True, True])
        return density, resp

    def entropies(self, x: Array) -> Array:
        """Entropy of each row's responsibilities, (n,), in nats."""
        return np.concatenate([self.uncertainty(self.responsibilities(x[part])) for part in pieces(len(x))])

    @staticmethod
    def uncertainty(resp: Array) -> Array:
        """Entropy (n,) of responsibilities (n, k), and of what they leave of 1."""
        found: Array = entr(resp).sum(axis=1)
        return found

    def distances(self, x: Array) -> Array:
        """Mahalanobis distance of each row from each component, (n, k), in standard deviations of that."""
        found = np.empty((len(x), self.n_components))
        with np.errstate(over="ignore", invalid="ignore"):  # of rows that are no numbers, or too far for any
            for part in pieces(len(x)):
                rows = np.asarray(x[part], np.float64)
                for j, mean in enumerate(self.means):
                    z = self.covariance.whiten(rows - mean, j)
                    found[part, j] = np.sqrt(np.square(z).sum(axis=1))
        return found

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """``labels``, ``score_samples`` or ``responsibilities``, and whether all values of all rows are finite.

        Rows that the kernels find to be too far, or no numbers, are looked at again: no others. Another question
        is ``distances``.
        """
        if question == "distances":
            return self.distances(x), bool(np.isfinite(x).all())
        out, sound = self._answers(x, [question == asked for asked in ANSWERS])
        return out[ANSWERS.index(question)], sound

    def _answers(self, x: Array, asked: list[bool]) -> tuple[list[Array], bool]:
        """Those of `ANSWERS` that are asked for, the others without rows; whether all values are finite."""
        n_labels, n_densities, n_resp = (len(x) * some for some in asked)
        out = [np.empty(n_labels, np.int64), np.empty(n_densities), np.empty((n_resp, self.n_components))]
        model = self.model_for(x, None)
        if kernels.posterior(x, model, *out):
            return out, True
        labels, density, resp = out
        if not len(density):
            density = np.empty(len(x))
            kernels.posterior(x, model, labels[:0], density, resp[:0])
        lost = np.flatnonzero(~(density > kernels.far(model)))
        finite = lost[np.isfinite(x[lost]).all(axis=1)]
        for first in range(0, len(finite), kernels.PIECE):
            rows = finite[first : first + kernels.PIECE]
            if model.means.itemsize == 8:
                found = list(far.answers(self, x[rows]))
            else:  # float64 reaches further
                found, _ = self._answers(x[rows].astype(np.float64), asked)
            for answer, part in zip(out, found, strict=True):
                if len(answer):
                    answer[rows] = part
        return out, len(finite) == len(lost)

    def sample(self, n: int, random: np.random.RandomState | np.random.Generator) -> tuple[Array, Array]:
        """``n`` rows (n, d) and their components (n,), grouped by component: ancestral sampling."""
        counts = random.multinomial(n, self.weights / self.weights.sum())  # given ones may be rounded
        parts = [
            self.means[j] + self.covariance.colour(random.standard_normal((count, self.n_features)), j)
            for j, count in enumerate(counts)
        ]
        return np.concatenate(parts), np.repeat(np.arange(self.n_components), counts)


def pieces(n: int) -> Iterator[slice]:
    """Parts of n rows, at least one: what is made of one at a time does not grow with the block."""
    for first in range(0, max(n, 1), kernels.PIECE):
        yield slice(first, first + kernels.PIECE)


def sums_to_one(weights: Array) -> bool:
    """Whether proportions do, as far as a user's may be rounded."""
    return bool(abs(1.0 - weights.sum()) <= 1e-6)
