"""The first pass: counts, mean and covariance, a row sample, a given start, and whether all is finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.rows import Block
from daskgmm.fit.checks import check_finite, check_start
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import moments
from daskgmm.model.statistics import Statistics

PIECE = 65536  # rows whose keys are drawn at once, so that no temporary grows with the block


@dataclass(frozen=True, eq=False)
class RowSample:
    """A weighted sample without replacement: the rows of the ``size`` smallest keys E/w, E exponential.

    Law: ``a + b`` equals the sample of the concatenated rows, exactly. Keys come from a counter-based generator
    at the row's own number, so the sample depends neither on workers nor, where row numbers are known, on
    blocks (bottom-k sampling with exponential ranks: Cohen & Kaplan 2007; Efraimidis & Spirakis 2006).

    Attributes
    ----------
    size : int
        Rows wanted. One more is kept, whose key is the threshold of the others.
    keys, position : (m,) key and number of each row.
    rows : (m, d) as stored.
    weight : (m,) the rows' own weights.
    """

    size: int
    keys: Array
    position: Array
    rows: Array
    weight: Array

    def __add__(self, other: RowSample) -> RowSample:
        keys = np.concatenate([self.keys, other.keys])
        kept = slice(None)
        if len(keys) > self.size + 1:
            kept = np.sort(np.argpartition(keys, self.size)[: self.size + 1])
        join = [
            np.concatenate([a, b])[kept]
            for a, b in (
                (self.position, other.position),
                (self.rows, other.rows),
                (self.weight, other.weight),
            )
        ]
        return RowSample(self.size, keys[kept], *join)

    def points(self) -> tuple[Array, Array | None]:
        """Rows (m, d) float64 in the order of the data, and weights (m,) that stand for all rows.

        Each kept row carries w / P(kept) (Horvitz & Thompson 1952), scaled to mean 1; None where all are equal.
        """
        order = np.argsort(self.position)
        if len(order) > self.size:
            last = int(np.argmax(self.keys))
            order = order[order != last]
            chance = -np.expm1(-self.keys[last] * self.weight[order])
        else:
            chance = np.ones(len(order))
        weight = self.weight[order] / chance
        rows = self.rows[order].astype(np.float64)
        return rows, None if np.ptp(weight) == 0 else weight / weight.mean()


@dataclass(frozen=True, eq=False)
class Survey:
    """What the first pass finds.

    Attributes
    ----------
    overall : Statistics
        Of all rows as one component: rows, total weight, mean, covariance.
    sample : RowSample
    start : Statistics or None
        Under the labels or responsibilities that the user gave.
    """

    overall: Statistics
    sample: RowSample
    start: Statistics | None

    def __add__(self, other: Survey) -> Survey:
        start = None
        if self.start is not None and other.start is not None:
            start = self.start + other.start
        return Survey(self.overall + other.overall, self.sample + other.sample, start)


@dataclass(frozen=True)
class Surveyor:
    """Maps a block to its `Survey`.

    Parameters
    ----------
    structure : type of Covariance
    k : components of a given start.
    sample_size : rows to keep.
    seed : of the sample.
    n_rows : rows in all, where known: lets a block drop most rows that cannot end up in the sample.
    """

    structure: type[Covariance]
    k: int
    sample_size: int
    seed: int
    n_rows: int | None

    def __call__(self, block: Block) -> Survey:
        overall = moments(self.structure, block.x, block.weight)
        if not np.isfinite(overall.scatter).all():
            check_finite(block)
        start = None
        if block.start is not None:
            check_start(block, self.k)
            start = moments(self.structure, block.x, block.weight, block.start, self.k)
        return Survey(overall, self._sample(block), start)

    def _sample(self, block: Block) -> RowSample:
        n, d = block.x.shape
        sample = RowSample(
            self.sample_size,
            np.empty(0),
            np.empty(0, np.int64),
            np.empty((0, d), block.x.dtype),
            np.empty(0),
        )
        for first in range(0, n, PIECE):
            sample += self._piece(block, first, min(n, first + PIECE))
        return sample

    def _piece(self, block: Block, first: int, last: int) -> RowSample:
        weight = np.ones(last - first) if block.weight is None else block.weight[first:last]
        if block.first_row is None:  # unknown chunk sizes: a stream for each block
            stream, offset = block.index + 1, first
            position = (np.int64(block.index) << 40) + np.arange(first, last)
        else:
            stream, offset = 0, block.first_row + first
            position = np.arange(offset, block.first_row + last, dtype=np.int64)
        keys = np.full(last - first, np.inf)
        np.divide(
            exponentials(self.seed, stream, offset, last - first), weight, out=keys, where=weight > 0
        )
        kept = np.flatnonzero(keys <= self._bound(block))
        return RowSample(
            self.sample_size, keys[kept], position[kept], block.x[first + kept], weight[kept]
        )

    def _bound(self, block: Block) -> float:
        """A key that fewer than ``sample_size`` rows in all stay below with probability under 1e-15."""
        m = self.sample_size + 1
        share = (m + 9 * np.sqrt(m) + 50) / self.n_rows if self.n_rows else 1.0
        if block.weight is not None or share >= 1.0:
            return float(np.finfo(np.float64).max)  # rows of zero weight have an infinite key
        return float(-np.log1p(-share))


def exponentials(seed: int, stream: int, first: int, count: int) -> Array:
    """Standard exponential numbers of rows ``first`` to ``first + count``, each a function of its number."""
    philox = np.random.Philox(key=[seed, stream], counter=first // 4)  # four numbers per count
    raw = philox.random_raw(first % 4 + count)[first % 4 :]
    uniform = (raw >> np.uint64(11)) * 2.0**-53  # unsigned until here: no minus sign before it
    exponential: Array = -np.log1p(-uniform)
    return exponential
