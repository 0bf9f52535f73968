"""Rows that are measured with errors of known size: what they say of the mixture behind the errors.

Extreme deconvolution (Bovy, Hogg & Roweis 2011, Annals of Applied Statistics 5, 1657): row i is x = v + e, with v
from the mixture and e normal about 0 with covariance S_i. Its density is that of a mixture of N(m_k, C_k + S_i).
The E-step finds what is expected of v, so statistics, and the M-step on them, are those of a plain mixture.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.blas import one_thread
from daskgmm.model.kernels.blurred import beside
from daskgmm.model.matrices import Matrices
from daskgmm.model.mixture import ANSWERS, Mixture, pieces
from daskgmm.model.statistics import Statistics

ROUNDING = 1e-10  # by which a correlation matrix of errors may fall short of one


def indefinite(noise: Array, missing: Array) -> Array:
    """Which rows of errors (n, d, d) have no covariance: a matrix with an eigenvalue below 0 beyond rounding.

    Of values that are not ``missing`` (n, d), nor infinite.
    """
    if noise.ndim == 2:
        return np.zeros(len(noise), bool)
    noise = np.where(missing[:, :, None] | missing[:, None] | ~np.isfinite(noise), 0.0, noise)
    variances = np.diagonal(noise, axis1=1, axis2=2)
    scale = np.sqrt(np.where(variances > 0, variances, 1.0))
    unit = noise / (scale[:, :, None] * scale[:, None, :]) + ROUNDING * np.eye(noise.shape[1])
    try:
        np.linalg.cholesky(unit)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.eigvalsh(unit)[:, 0] < 0)
    return np.zeros(len(noise), bool)


@dataclass(frozen=True, eq=False)
class Noisy:
    """A mixture as rows with errors see it."""

    mixture: Mixture
    noise: Array  # of these rows: variances (n, d), or covariances (n, d, d)
    partial: bool = False  # whether NaN in a row is a missing value, of infinite error

    @property
    def model(self) -> Any:
        """The parameters as the kernels read them; kept with the mixture."""
        d = self.mixture.n_features
        errors = d if self.noise.ndim == 2 else d * (d + 1) // 2
        models: dict[str, Any] = vars(self.mixture).setdefault("_models", {})
        if (found := models.get(key := f"{errors} errors")) is None:
            mixture = self.mixture
            found = models[key] = mixture.covariance.blurred(mixture.means, mixture.log_weights, errors)
        return found

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step over rows ``x`` (n, d): what is expected of the statistics of their true values."""
        model, structure, d = self.model, self.mixture.covariance.structure, x.shape[1]
        found = [
            kernels.expectation(rows, None if weight is None else weight[part], model)
            for part, rows in self._parts(x)
        ]
        sums = reduce(lambda a, b: type(a)(*map(np.add, a, b)), found)
        lower = sums.scatter if sums.scatter.ndim == 3 else sums.scatter[:, :, None] * np.eye(d)
        scatter = structure.condensed(Matrices.completed(lower))
        total = float(len(x) if weight is None else weight.sum())
        n_rows = len(x) if weight is None else int(np.count_nonzero(weight))
        log_likelihood = float(sums.log_likelihood[0])
        return Statistics(
            structure, self.mixture.means, sums.weight, sums.shift, scatter, log_likelihood, total, n_rows
        )

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """One of `ANSWERS` or ``distances`` for each row, and whether all rows and their noise are sound."""
        if question == "distances":
            return self._distances(x)
        out, sound = self._answers(x, [question == asked for asked in ANSWERS])
        return out[ANSWERS.index(question)], sound

    def _answers(self, x: Array, asked: list[bool]) -> tuple[list[Array], bool]:
        """As a mixture's, and densities in any case: they tell what is sound."""
        n, k, model = len(x), self.mixture.n_components, self.model
        out = [np.empty(n * asked[0], np.int64), np.empty(n), np.empty((n * asked[2], k))]
        for part, rows in self._parts(x):
            kernels.posterior(rows, model, *(values[part] for values in out))
        return out, bool(np.isfinite(out[1]).all())

    def of(self, part: Any) -> Self:
        """The same for some of the rows."""
        return replace(self, noise=self.noise[part])

    def entropies(self, x: Array) -> Array:
        """Entropy of each row's responsibilities, (n,), in nats."""
        found = (self.of(part).answer(x[part], "responsibilities")[0] for part in pieces(len(x)))
        return np.concatenate([self.mixture.uncertainty(resp) for resp in found])

    def impute(self, x: Array, random: np.random.Generator | None = None) -> tuple[Array, bool]:
        """As `Incomplete.impute`: true values of what is missing, of which the others tell with their errors."""
        out, asked = np.array(x, np.float64), Noisy(self.mixture.members, self.noise, self.partial)
        if not asked._sound(x):
            return out, False
        with one_thread():
            for rows in _few(np.flatnonzero(np.isnan(out).any(axis=1)), x.shape[1]):
                found = asked.of(rows)._true(x[rows], random)
                out[rows] = np.where(np.isnan(out[rows]), found, out[rows])
        return out, True

    def _true(self, x: Array, random: np.random.Generator | None) -> Array:
        """True values of all features: expected ones (n, d), or with ``random`` drawn."""
        resp, _ = self.answer(x, "responsibilities")
        found, k = np.zeros(x.shape), resp.shape[1]
        if random is not None:
            chosen = (resp.cumsum(axis=1) < random.random(len(x))[:, None]).sum(axis=1).clip(max=k - 1)
            resp, normal = np.eye(k)[chosen], random.standard_normal(x.shape)
        for j, mean in enumerate(self.mixture.means):
            rows = np.flatnonzero(resp[:, j] > 0)
            apart, own, both = self.of(rows)._apart(x[rows], j)
            gain = np.linalg.solve(both, np.broadcast_to(own, both.shape))
            true = mean + np.einsum("ni,nij->nj", apart, gain)
            if random is not None:
                scale = np.sqrt(np.diagonal(own))
                left, axes = np.linalg.eigh((own - own @ gain) / np.outer(scale, scale))
                true += scale * np.einsum("nij,nj->ni", axes, np.sqrt(left.clip(0.0)) * normal[rows])
            found[rows] += resp[rows, j, None] * true
        return found

    def _distances(self, x: Array) -> tuple[Array, bool]:
        """As `Mixture.distances`, errors included; and whether all rows and their noise are sound."""
        found = np.zeros((len(x), self.mixture.n_components))
        if not self._sound(x):
            return found, False
        with one_thread():
            for rows in _few(np.arange(len(x)), x.shape[1]):
                for j in range(found.shape[1]):
                    apart, _, both = self.of(rows)._apart(x[rows], j)
                    squares = np.einsum("ni,ni->n", apart, np.linalg.solve(both, apart[..., None])[..., 0])
                    found[rows, j] = np.sqrt(squares.clip(0.0))
        return found, True

    def _sound(self, x: Array) -> bool:
        """Whether all rows and their noise are."""
        return self._answers(x, [False] * len(ANSWERS))[1]

    def _apart(self, x: Array, component: int) -> tuple[Array, Array, Array]:
        """x - m (n, d), C (d, d) and C + S (n, d, d) of one component; S is infinite where a value is missing."""
        model, d = self.model, x.shape[1]
        own = model.covariance[min(component, len(model.covariance) - 1)]
        own = np.diag(own) if own.ndim == 1 else own
        held, both = beside(x, self.noise, model.errors, self.partial), np.tile(own, (len(x), 1, 1))
        i, j = (np.arange(d), np.arange(d)) if model.errors == d else np.tril_indices(d)
        both[:, i, j] += held[:, d:]
        both[:, j, i] = both[:, i, j]
        return held[:, :d] - model.means[component], own, both

    def _parts(self, x: Array) -> Iterator[tuple[slice, Array]]:
        """Rows with their noise beside them, a part at a time, as copies are not to grow with the block."""
        for part in pieces(len(x)):
            yield part, beside(x[part], self.noise[part], self.model.errors, self.partial)


def _few(rows: Array, d: int) -> list[Array]:
    """Numbers of rows, no more at once than have matrices (d, d) of 8 MiB."""
    return np.array_split(rows, 1 + len(rows) * d * d // 2**20)
