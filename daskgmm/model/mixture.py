"""Mixture: one frozen set of parameters, with its densities, expectation, maximisation and sampling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.special import entr

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.covariance import Covariance, Diagonal
from daskgmm.model.factors import EPS, collapsed
from daskgmm.model.statistics import Statistics

# Rows handed to a kernel at once where it reads them as they lie, and rows converted (or given k logits) at
# once where it does not: neither temporary grows with the block.
# Both are whole tiles of the kernels: how the rows lie in memory changes no bit.
KERNEL_ROWS, TILE_ROWS = 186 * kernels.TILE, 12 * kernels.TILE
_ONES = np.ones(KERNEL_ROWS)
# Standard deviations from the first mean up to which components that share a factor share work on a row, too.
NEAR, NEAR_SINGLE = 1e3, 1e1
MANY = 1024  # components: too many for sums over their pairs

ANSWERS = ("labels", "score_samples", "responsibilities")  # what a mixture says of each row


def _tiles(x: Array, weight: Array | None, step: int = KERNEL_ROWS) -> Iterator[tuple[Array, Array]]:
    """Rows and weights as the kernels read them: C-contiguous, float32 or else float64."""
    single = x.dtype.kind == "f" and x.dtype.itemsize == 4
    dtype = np.dtype(np.float32 if single else np.float64)
    if x.dtype != dtype or not x.flags.c_contiguous:
        step = TILE_ROWS
    for first in range(0, len(x), step):
        rows = slice(first, first + step)
        tile = _frozen(x[rows], dtype)
        yield tile, _frozen(_ONES[: len(tile)] if weight is None else weight[rows])


def _frozen(a: Array, dtype: Any = np.float64) -> Array:
    """A contiguous view that cannot be written: one type for the compiler, whoever owns the array."""
    view = np.ascontiguousarray(a, dtype=dtype).view()
    view.flags.writeable = False
    return view


def _one_hot(labels: Array, k: int) -> Array:
    hot = np.zeros((len(labels), k))
    # Rows of zero weight may carry any label.
    hot[np.arange(len(labels)), np.clip(labels, 0, k - 1)] = 1.0
    return hot


def moments(
    structure: type[Covariance],
    x: Array,
    weight: Array | None = None,
    start: Array | None = None,
    k: int = 1,
) -> Statistics:
    """Statistics of rows ``x`` under given responsibilities, about their own weighted means.

    Parameters
    ----------
    structure : type of Covariance
    x : (n, d) rows of any real dtype.
    weight : (n,) row weights >= 0; None counts each row once.
    start : (n,) labels below ``k``, or (n, k) responsibilities; None puts every row into component 0, which
        makes the survey the one-component case.
    k : number of components.

    Notes
    -----
    Two passes over rows in memory, the first for the means: a scatter about a far-away point would lose
    ``eps * distance**2 / σ**2``.
    """
    seen = 0 if weight is None or not len(x) else int(np.argmax(weight > 0))
    # Any row serves as the first reference: the means that it gives are exact to eps times its distance.
    nearby = np.asarray(x[seen], dtype=np.float64) if len(x) else np.zeros(x.shape[1])
    if not np.isfinite(nearby).all():  # a row of zero weight, or one that the survey will refuse
        nearby = np.zeros_like(nearby)
    rough = _summed(Diagonal, x, weight, start, np.tile(nearby, (k, 1)))
    return _summed(structure, x, weight, start, rough.means)


def _summed(
    structure: type[Covariance],
    x: Array,
    weight: Array | None,
    start: Array | None,
    reference: Array,
) -> Statistics:
    """Statistics about given points, for responsibilities or labels ``start``."""
    k, d = reference.shape
    sums = _sums(structure, k, d)
    packed = _packed_means(reference, structure)
    first = 0
    alone = start is None and k == 1
    for tile, w in _tiles(x, weight, KERNEL_ROWS if alone else TILE_ROWS):
        if alone:
            resp = _ONES[: len(tile), None]
        else:
            part = np.zeros(len(tile), int) if start is None else start[first : first + len(tile)]
            resp = _one_hot(part, k) if part.ndim == 1 else part
        kernels.moments(tile, w, _frozen(resp), packed, *sums[1:])
        first += len(tile)
    return _statistics(structure, reference, sums, x, weight)


def _sums(structure: type[Covariance], k: int, d: int) -> tuple[Array, Array, Array, Array]:
    """Zeros for the kernels to add to: log-likelihood, total, shift and scatter."""
    scatter = np.zeros(structure.kernel_shape(k, d))
    return np.zeros(1), np.zeros(k), np.zeros((k, scatter.shape[-1])), scatter


def _statistics(
    structure: type[Covariance],
    reference: Array,
    sums: tuple[Array, Array, Array, Array],
    x: Array,
    weight: Array | None,
) -> Statistics:
    """What the kernels added up, without their padding."""
    d = reference.shape[1]
    log_likelihood, total, shift, scatter = sums
    return Statistics(
        structure,
        reference,
        total,
        shift[:, :d],
        structure.from_kernel(scatter, d),
        float(log_likelihood[0]),
        *_counts(x, weight),
    )


def _packed_means(means: Array, structure: type[Covariance]) -> Array:
    """Means as wide as the kernels' scatter."""
    k, d = means.shape
    packed = np.zeros((k, structure.kernel_shape(k, d)[-1]))
    packed[:, :d] = means
    return packed


def _counts(x: Array, weight: Array | None) -> tuple[float, int]:
    """Total weight, and how many rows have any."""
    if weight is None:
        return float(len(x)), len(x)
    return float(weight.sum()), int(np.count_nonzero(weight))


def _times(factor: Array, vectors: Array) -> Array:
    """Each component's factor times its vector, (k, width); without BLAS, whose bits depend on its threads."""
    if factor.ndim == 2:
        return factor * vectors
    k, width = vectors.shape
    product: Array = np.einsum("kij,kj->ki", np.broadcast_to(factor, (k, width, width)), vectors)
    return product


class _Packed(NamedTuple):
    """Parameters as the kernels read them, in the precision of the work."""

    means: Array
    factor: Array
    offset: Array
    products: Array
    log_norm: Array

    @classmethod
    def of(cls, means: Array, factor: Array, offset: Array, log_norm: Array, near: float) -> _Packed:
        """With products, where several components share a triangular factor and lie within ``near``."""
        k, width = means.shape
        products = np.zeros((0, width))
        if factor.ndim == 3 and len(factor) < k and width >= 4:
            found = _times(factor, means - means[0]) + offset
            products = found if (np.square(found).sum(axis=1) <= near * near).all() else products
        return cls(means, factor, offset, products, log_norm)


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
        k, d = self.n_components, self.n_features
        return self.covariance.n_parameters(k, d) + k * d + k - 1

    def __post_init__(self) -> None:
        self.weights.setflags(write=False)
        self.means.setflags(write=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be computed again: parameters travel with every pass."""
        return {name: getattr(self, name) for name in ("weights", "means", "covariance")}

    @cached_property
    def _double(self) -> _Packed:
        """What the kernels read, for work in float64."""
        k, d = self.means.shape
        with np.errstate(divide="ignore"):  # an empty component has log-weight −inf, and density 0
            log_norm = np.log(self.weights) - 0.5 * d * np.log(2 * np.pi)
        log_norm = log_norm + self.covariance.half_log_det(d)
        means = _packed_means(self.means, type(self.covariance))
        return _Packed.of(means, self.covariance.kernel_factor(k, d), np.zeros_like(means), log_norm, NEAR)

    @cached_property
    def _single(self) -> _Packed | None:
        """The same for work in float32; None where it could cost more than some 1e-5 per feature.

        A standardised value z_i = Σ_j f_ij·(x_j − m_j) is off by (d + 2)·eps·Σ_j |f_ij|·|x_j − m_j|: correlated
        features cancel in it. That sum is about the `amplification` of the covariance, 1 without correlation.
        """
        k, d = self.n_components, self.n_features
        variances = self.covariance.variances(self.covariance.values, k, d)
        in_range = variances.min() > 1e-24 and variances.max() < 1e24  # squares and their sums stay normal
        if not in_range or self.covariance.amplification(k, d) > 32:
            return None
        means, factor, _, _, log_norm = self._double
        # Rows are measured from means that float32 holds; what these leave out comes back in the offset.
        near = means.astype(np.float32)
        offset = _times(factor, means - near)
        single = factor.astype(np.float32).astype(np.float64)  # as rows are multiplied by it
        packed = _Packed.of(near.astype(np.float64), single, offset, log_norm, NEAR_SINGLE)
        return _Packed._make(part.astype(np.float32) for part in packed)._replace(log_norm=log_norm)

    def _packed(self, x: Array, weight: Array | None) -> _Packed:
        """The packed parameters, in the precision that these rows and weights allow."""
        if x.dtype.kind != "f" or x.dtype.itemsize != 4 or self._single is None:
            return self._double
        if weight is not None and not np.all((weight == 0) | ((weight > 1e-6) & (weight < 1e6))):
            return self._double
        return self._single

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step over rows ``x`` (n, d) of any real dtype: their statistics about the current means."""
        packed = self._packed(x, weight)
        found = self._expected(x, weight, packed)
        if packed is not self._double and not np.isfinite(found.log_likelihood + found.scatter.sum()):
            return self._expected(x, weight, self._double)  # some row is out of float32's range
        return found

    def _expected(self, x: Array, weight: Array | None, packed: _Packed) -> Statistics:
        structure = type(self.covariance)
        sums = _sums(structure, *self.means.shape)
        k, width = packed.products.shape
        pooled = k <= min(2 * width * width, MANY)  # else, a scatter for each component costs less
        both = np.zeros((k, k) if pooled else (0, 0))
        for tile, w in _tiles(x, weight):
            kernels.expectation(tile, w, *packed, *sums, both)
        if len(both):
            kernels.spread(packed.means, both, *sums[2:])
        reference = packed.means[:, : self.n_features].astype(np.float64)
        return _statistics(structure, reference, sums, x, weight)

    def maximise(self, statistics: Statistics, reg_covar: float = 0.0) -> Mixture:
        """M-step: the parameters that maximise the expected log-likelihood, then ``reg_covar`` added.

        An empty component keeps its mean and covariance at weight 0.

        Raises
        ------
        CollapseError
            If a covariance is not positive definite, or its variance is below what float64 resolves at its mean.
        """
        s = statistics
        alive = s.weight > np.finfo(np.float64).tiny
        means = np.where(alive[:, None], s.means, self.means)
        structure = type(self.covariance)
        k, d = means.shape
        values = structure.per_weight(s.about(means).scatter, s.weight)
        values = self.covariance.regularised(values, alive, reg_covar)
        # Rows about a mean m are known to eps·|m|: a smaller spread than a few of those is rounding.
        floor = (4 * EPS * means) ** 2
        sunk = ~(structure.variances(values, k, d) > floor).all(axis=1) & alive
        if sunk.any():
            raise collapsed(int(np.argmax(sunk)))
        return Mixture(s.weight / s.weight.sum(), means, structure.of(values, resolved=reg_covar == 0))

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
        parts = (x[first : first + TILE_ROWS] for first in range(0, len(x), TILE_ROWS))
        return np.concatenate([np.empty(0), *(entr(self.responsibilities(part)).sum(axis=1) for part in parts)])

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """``labels``, ``score_samples`` or ``responsibilities``, and whether the density of every row is above 0.

        That of a row with NaN or infinity never is: what finds those, without a look at the rows of its own.
        """
        labels, density, resp = (len(x) * (question == asked) for asked in ANSWERS)
        out = np.empty(labels, dtype=np.int64), np.empty(density), np.empty((resp, self.n_components))
        first, packed, sound = 0, self._packed(x, None), True
        for tile, w in _tiles(x, None):
            rows = slice(first, first + len(tile))
            sound &= kernels.posterior(tile, w, *packed, *(part[rows] for part in out))
            first += len(tile)
        return out[ANSWERS.index(question)], sound

    def sample(self, n: int, random: np.random.RandomState) -> tuple[Array, Array]:
        """``n`` rows (n, d) and their components (n,), grouped by component: ancestral sampling."""
        counts = random.multinomial(n, self.weights / self.weights.sum())  # given ones may be rounded
        parts = [
            self.means[j] + self.covariance.colour(random.standard_normal((count, self.n_features)), j)
            for j, count in enumerate(counts)
        ]
        return np.concatenate(parts), np.repeat(np.arange(self.n_components), counts)
