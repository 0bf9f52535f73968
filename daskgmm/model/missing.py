"""Rows of which values are missing at random: NaN stands for them.

The E-step puts each component's regression on what is there into the place of what is missing, and adds what that
leaves open (Ghahramani & Jordan 1994; McLachlan & Krishnan 2008, section 5.4). Where features are not correlated
within components, a missing value is left out by itself. Rows that miss the same have the answers of a marginal
mixture.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.model import kernels
from daskgmm.model.background import Contaminated
from daskgmm.model.blas import one_thread
from daskgmm.model.kernels import layouts
from daskgmm.model.mixture import Mixture, pieces
from daskgmm.model.parts import Parts
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import FULL

# What the regressions of all patterns may take that stay for the next block.
KEPT_BYTES = 64 * 2**20
LEAST = 1e-2  # smallest eigenvalue of correlations that come from pairs of values, each of other rows


def misses(x: Array) -> bool:
    """Whether a value is missing; without a mask of the size of ``x``."""
    return x.dtype.kind == "f" and bool(x.size) and bool(np.isnan(x.min()))


def grouped(x: Array) -> Iterator[tuple[Array, Array]]:
    """Numbers of rows that have values in the same features, and of those; rows that have something.

    In an order that the values alone decide, and no more rows at once than a kernel reads as they lie.
    """
    there = ~np.isnan(x)
    rows = np.flatnonzero(there.any(axis=1))
    codes = np.packbits(there[rows], axis=1, bitorder="little")
    keys = np.zeros((len(rows), -(-codes.shape[1] // 8) * 8), np.uint8)
    keys[:, : codes.shape[1]] = codes
    words = keys.view(np.uint64)
    words = words[:, 0] if words.shape[1] == 1 else words.view([("", np.uint64)] * words.shape[1])[:, 0]
    _, inverse, counts = np.unique(words, return_inverse=True, return_counts=True)
    small = inverse.astype(np.uint16) if len(counts) <= 2**16 else inverse  # sorted by their digits
    order, last = rows[np.argsort(small, kind="stable")], np.cumsum(counts)
    for begin, end in zip(last - counts, last, strict=True):
        seen = np.flatnonzero(there[order[begin]])
        for first in range(begin, end, kernels.WHOLE):
            yield order[first : min(end, first + kernels.WHOLE)], seen


@dataclass(frozen=True, eq=False)
class Incomplete:
    """A mixture as rows see it that may miss values; for rows that miss none, the mixture itself."""

    mixture: Mixture

    def parts(self, seen: Array) -> Parts:
        """What the mixture says of some features, and of the others given those; kept with the mixture."""
        kept: dict[bytes, Parts] = vars(self.mixture).setdefault("_patterns", {})
        if (found := kept.get(key := seen.tobytes())) is None:
            found = Parts.of(self.mixture, seen)
            if (len(kept) + 1) * found.nbytes <= KEPT_BYTES:
                kept[key] = found
        return found

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step over rows ``x`` (n, d): what is expected of their statistics, given what is there.

        Rows that have no value at all must not weigh: `Block.with_gaps` sees to that.
        """
        if not misses(x):
            return self.mixture.expectation(x, weight)
        if isinstance(self.mixture, Contaminated):
            components = Incomplete(self.mixture.members)
            density = components.answer(x, "score_samples")[0] + np.log(self.mixture.weights.sum())
            density = np.where(np.isinf(x).any(axis=1), np.nan, density)  # what is infinite is no background
            levels = self.mixture.levels(x)
            return self.mixture.left_to_components(components.expectation, x, weight, density, levels)
        reference, structure, sums = self.mixture.sums(x, weight, "gapped")
        if self.mixture.covariance.separate:
            sums = self._by_value(reference, sums)
        return replace(Statistics.of(reference, structure, sums, x, weight), unseen=float(sums.unseen[0]))

    def _by_value(self, reference: Array, sums: Any) -> layouts.Fills:
        """With what is missing as each component has it, where values tell nothing of others."""
        covariance, means = self.mixture.covariance, self.mixture.means
        left, apart = np.broadcast_to(covariance.diagonals(covariance.values), means.shape), means - reference
        lost = np.maximum(sums.weight[:, None] - sums.there, 0.0)
        own = lost * (left + apart**2)
        scatter = sums.scatter + (own.sum(axis=0, keepdims=True) if covariance.structure.shared else own)
        unseen = -0.5 * (lost * (np.log(2 * np.pi * left) + 1)).sum(keepdims=True)[0]
        return layouts.Fills(sums.log_likelihood, sums.weight, sums.shift + lost * apart, scatter, unseen)

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """What the marginal mixture of each row answers, and whether no value is infinite.

        A row without any value has the density of nothing, 1, the mixture's proportions, and no distance.
        """
        if not misses(x):
            return self.mixture.answer(x, question)
        out, sound = self._of_nothing(len(x), question), True
        with one_thread():
            for rows, seen in grouped(x):
                asked = self.mixture if len(seen) == x.shape[1] else self.parts(seen).marginal
                out[rows], finite = asked.answer(_cut(x, rows, seen), question)
                sound &= finite
        return out, sound

    def _of_nothing(self, n: int, question: str) -> Array:
        """Answers for n rows without any value."""
        weights, outside = self.mixture.weights, self.mixture.background_weight
        label = -1 if outside > weights.max() else np.argmax(weights)
        answers = {"labels": label, "responsibilities": weights, "distances": np.zeros(len(weights))}
        value = np.asarray(answers.get(question, 0.0))
        return np.tile(value, (n, *(1,) * value.ndim))

    def entropies(self, x: Array) -> Array:
        """Entropy of each row's responsibilities, (n,), in nats."""
        found = (self.answer(x[part], "responsibilities")[0] for part in pieces(len(x)))
        return np.concatenate([self.mixture.uncertainty(resp) for resp in found])

    def impute(self, x: Array, random: np.random.Generator | None = None) -> tuple[Array, bool]:
        """Rows (n, d) float64 with what they miss, and whether no value is infinite.

        Missing values are their conditional means, or with ``random`` a draw from their conditional distribution.
        """
        out = np.array(x, np.float64)
        if not misses(x):
            return out, bool(np.isfinite(out).all())
        sound = True
        with one_thread():
            for rows, seen in grouped(x):
                known = _cut(out, rows, seen)
                if len(seen) == x.shape[1]:
                    sound &= bool(np.isfinite(known).all())
                    continue
                parts = self.parts(seen)
                values, finite = parts.answer(known, "mean") if random is None else parts.draw(known, random)
                out[rows[:, None], parts.unseen] = values
                sound &= finite
        empty = np.flatnonzero(np.isnan(out).all(axis=1))
        if random is None:
            out[empty] = self.mixture.members.weights @ self.mixture.means
        elif len(empty):
            out[empty] = random.permutation(self.mixture.members.sample(len(empty), random)[0])
        return out, sound


@dataclass(frozen=True, eq=False)
class Regressions:
    """What a mixture says of some features given those of some others that a row has."""

    mixture: Mixture
    parts: Parts  # of rows that have all of them

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """As `Parts.answer`. Of a row that has none of them it says nothing: NaN."""
        if not misses(x):
            return self.parts.answer(x, question)
        out, sound = np.full((len(x), len(self.parts.unseen)), np.nan), True
        with one_thread():
            for rows, seen in grouped(x):
                parts = Parts.of(self.mixture, self.parts.seen[seen], self.parts.unseen)
                out[rows], finite = parts.answer(_cut(x, rows, seen), question)
                sound &= finite
        return out, sound


def _cut(x: Array, rows: Array, seen: Array) -> Array:
    """Some features of some rows, next to each other."""
    return np.take(x[rows], seen, axis=1)


def completed(x: Array, weight: Array | None, mean: Array) -> Array:
    """Rows (n, d) with what they miss at its conditional mean under one Gaussian of available-case moments.

    These are means and variances of the rows that have a feature, and correlations of those that have both, drawn
    towards 0 as far as they have to be. A feature that no row has is at ``mean`` (d,).
    """
    if not misses(x):
        return x
    there, w = ~np.isnan(x), np.ones(len(x)) if weight is None else weight
    pairs = (there * w[:, None]).T @ there.astype(np.float64)
    count = np.diag(pairs)
    share = np.divide(w[:, None], count, out=np.zeros(x.shape), where=there & (count > 0))
    mean = np.where(count > 0, mean + (share * np.where(there, x - mean, 0.0)).sum(axis=0), mean)
    apart = np.where(there, x - mean, 0.0)
    variance = (share * np.square(apart)).sum(axis=0)
    unit = np.sqrt(np.where(variance > 0, variance, 1.0))
    z = apart / unit
    products = (z * w[:, None]).T @ z
    correlation = np.divide(products, pairs, out=np.zeros_like(products), where=pairs > 0).clip(-1, 1)
    np.fill_diagonal(correlation, 1.0)
    least = np.linalg.eigvalsh(correlation)[0]
    if least < LEAST:
        share = (LEAST - least) / (1 - least)
        correlation = (1 - share) * correlation + share * np.eye(len(mean))
    covariance = FULL.form.of(FULL, (correlation * np.outer(unit, unit))[None], np.inf)
    return Incomplete(Mixture(np.ones(1), mean[None], covariance)).impute(x)[0]
