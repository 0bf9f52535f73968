"""The first pass: counts, mean and covariance, a row sample, a given start, and whether all is finite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from threading import Lock

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
        return RowSample(
            self.size,
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.position, other.position]),
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.weight, other.weight]),
        ).below(np.inf)

    def below(self, bound: float) -> RowSample:
        """Only the rows that can still be in the sample: keys up to ``bound``, and no more than asked for."""
        kept = np.flatnonzero(self.keys <= bound)
        if len(kept) > self.size + 1:
            kept = kept[np.sort(np.argpartition(self.keys[kept], self.size)[: self.size + 1])]
        if len(kept) == len(self.keys):
            return self
        return RowSample(self.size, self.keys[kept], self.position[kept], self.rows[kept], self.weight[kept])

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


class Threshold:
    """The largest key that a row of the sample can have, as far as this process has seen.

    The ``size + 1`` smallest of any keys bound those of all keys, so rows above may be dropped at once: the
    sample stays the same, and what waits to be merged stays small.
    """

    def __init__(self, size: int) -> None:
        self.size, self.keys, self.lock = size, np.empty(0), Lock()

    def __reduce__(self) -> tuple[type[Threshold], tuple[int]]:
        return Threshold, (self.size,)

    def lower(self, keys: Array) -> float:
        """Take note of some finite keys; the bound that all seen so far give."""
        with self.lock:
            # Unique, so that a block computed twice, as after the loss of a worker, counts once.
            self.keys = np.unique(np.concatenate([self.keys, keys]))[: self.size + 1]
            return float(self.keys[-1]) if len(self.keys) > self.size else np.inf


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


@dataclass(frozen=True, eq=False)
class Surveyor:
    """Maps a block to its `Survey`.

    Parameters
    ----------
    structure : type of Covariance
    k : components of a given start.
    seed : of the sample.
    threshold : Threshold
        Of the sample, with its size.
    """

    structure: type[Covariance]
    k: int
    seed: int
    threshold: Threshold

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
        """The block's rows that may be in the sample; a piece at a time, to hold few keys at once."""
        n = len(block.x)
        pieces = [self._piece(block, first, min(n, first + PIECE)) for first in range(0, n, PIECE)]
        return reduce(add, pieces) if pieces else self._piece(block, 0, 0)

    def _piece(self, block: Block, first: int, last: int) -> RowSample:
        weight = np.ones(last - first) if block.weight is None else block.weight[first:last]
        if block.first_row is None:  # unknown chunk sizes: a stream for each block
            stream, offset = block.index + 1, first
            position = (np.int64(block.index) << 40) + np.arange(first, last)
        else:
            stream, offset = 0, block.first_row + first
            position = np.arange(offset, block.first_row + last, dtype=np.int64)
        seen = np.flatnonzero(weight)
        keys = exponentials(self.seed, stream, offset, last - first)[seen] / weight[seen]
        kept = keys <= self.threshold.lower(keys)
        rows = seen[kept]
        return RowSample(self.threshold.size, keys[kept], position[rows], block.x[first + rows], weight[rows])


def exponentials(seed: int, stream: int, first: int, count: int) -> Array:
    """Standard exponential numbers of rows ``first`` to ``first + count``, each a function of its number."""
    philox = np.random.Philox(key=[seed, stream], counter=first // 4)  # four numbers per count
    raw = philox.random_raw(first % 4 + count)[first % 4 :]
    uniform = (raw >> np.uint64(11)) * 2.0**-53  # unsigned until here: no minus sign before it
    exponential: Array = -np.log1p(-uniform)
    return exponential
