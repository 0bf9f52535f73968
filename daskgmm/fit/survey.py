"""What the first pass finds: counts, moments, a row sample, a given start; of a stream, the first rows."""

from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.errors import DataError
from daskgmm.model.available import gathered
from daskgmm.model.checks import holds, require
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure
from daskgmm.store.values import LATER, storable

PIECE = 65536  # rows whose keys are drawn at once, so that no temporary grows with the block
TINY = 5e-324  # the smallest number above 0
SLACK = 1.25  # of its size: keys that a `Threshold` lets come together before it sorts them


@storable
@dataclass(frozen=True, eq=False)
class RowSample:
    """A weighted sample without replacement: the rows of the ``size`` smallest keys E/w, E exponential.

    Law: ``a + b`` equals the sample of the concatenated rows, exactly. Keys come from a counter-based generator
    at the row's own number, so the sample depends neither on workers nor, where row numbers are known, on
    blocks (bottom-k sampling with exponential ranks: Cohen & Kaplan 2007; Efraimidis & Spirakis 2006).
    """

    size: int  # rows wanted; one more is kept, whose key is the threshold of the others
    keys: Array  # (m,) of each row
    position: Array  # (m,) its number
    rows: Array  # (m, d) as stored
    weight: Array  # (m,) the rows' own
    known: Array | None = field(default=None, metadata=LATER)  # (m,) their components, −1 where not known

    def check(self) -> None:
        """Raise `ValueError` unless these are rows of a sample."""
        m, _ = self.rows.shape
        require(0 < m <= self.size + 1 and self.rows.dtype.kind in "biuf", "There are no rows, or too many.")
        require(not np.isinf(self.rows).any(), "The rows are no numbers.")  # NaN is a missing value
        require(holds(self.weight, (m,), TINY), "The rows weigh nothing.")
        keys, position = self.keys, self.position
        require(keys.shape == (m,) and keys.dtype == np.float64 and bool((keys >= 0).all()), "Keys are below 0.")
        require(position.shape == (m,) and position.dtype == np.int64, "The rows have no numbers.")
        require(bool((position >= 0).all()) and len(np.unique(position)) == m, "The rows have no numbers.")
        require(labels_of(self.known, m), "The rows have no labels.")

    @classmethod
    def of(cls, block: Block, seed: int, threshold: "Threshold") -> "RowSample":
        """The block's rows that may be in the sample; their keys a piece at a time, to hold few at once."""
        n, weight = len(block.x), block.weight
        pieces = [
            _keys(block, first, min(n, first + PIECE), seed, threshold) for first in range(0, max(n, 1), PIECE)
        ]
        rows, keys = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        kept = keys <= threshold.bound
        rows, keys = rows[kept], keys[kept]
        own = np.ones(len(rows)) if weight is None else weight[rows]
        known = block.columns["known"][rows] if "known" in block.columns else None
        position = rows + block.first_number
        return cls(threshold.size, keys, position, block.x[rows], own, known).first(threshold.size)

    def __add__(self, other: "RowSample") -> "RowSample":
        keys = np.concatenate([self.keys, other.keys])
        # Rows that go are not copied.
        bound = np.partition(keys, self.size)[self.size] if len(keys) > self.size else np.inf
        ours, theirs = (part.first(self.size, bound) for part in (self, other))
        return RowSample(
            self.size,
            np.concatenate([ours.keys, theirs.keys]),
            np.concatenate([ours.position, theirs.position]),
            np.concatenate([ours.rows, theirs.rows]),
            np.concatenate([ours.weight, theirs.weight]),
            joined(ours.known, theirs.known, len(ours.keys), len(theirs.keys)),
        ).first(self.size)

    def first(self, size: int, bound: float = np.inf) -> "RowSample":
        """A smaller sample of the same rows, as samples are nested, of those whose keys are at most ``bound``."""
        size = min(size, self.size)
        kept = np.flatnonzero(self.keys <= bound)
        if len(kept) > size + 1:
            kept = kept[np.sort(np.argpartition(self.keys[kept], size)[: size + 1])]
        if len(kept) == len(self.keys):
            return replace(self, size=size)
        return self._taken(size, kept)

    def _taken(self, size: int, kept: Array) -> "RowSample":
        """Some of the rows."""
        known = None if self.known is None else self.known[kept]
        return RowSample(size, self.keys[kept], self.position[kept], self.rows[kept], self.weight[kept], known)

    def __len__(self) -> int:
        """How many rows it has, besides the one whose key is the threshold."""
        return min(self.size, len(self.keys))

    @property
    def chosen(self) -> Array:
        """Which rows the sample has, in the order of the data: all but the one whose key is the threshold."""
        order = np.argsort(self.position)
        return order[order != np.argmax(self.keys)] if len(order) > self.size else order

    def hold_out(self, every: int) -> tuple["RowSample", "RowSample"]:
        """Two samples of the same rows: without every so-manieth of them, and of those alone."""
        held = np.zeros(len(self.keys), bool)
        held[self.chosen[every - 1 :: every]] = True
        return self.split(held)

    def split(self, held: Array) -> tuple["RowSample", "RowSample"]:
        """Two samples: without the rows that a mask picks, and of those alone."""
        threshold = np.zeros(len(self.keys), bool)
        if len(self.keys) > self.size:
            threshold[np.argmax(self.keys)] = True  # it belongs to both
        return self._part(~held, threshold), self._part(held, threshold)

    def _part(self, rows: Array, threshold: Array) -> "RowSample":
        mask = rows | threshold
        return self._taken(int(mask.sum() - threshold.sum()), mask)

    def points(self) -> tuple[Array, Array | None]:
        """Rows (m, d) float64 in the order of the data, and weights (m,) that stand for all rows.

        Each kept row carries w / P(kept) (Horvitz & Thompson 1952), scaled to mean 1; None where all are equal.
        """
        order = self.chosen
        chance = np.ones(len(order))
        if len(self.keys) > self.size:
            chance = -np.expm1(-self.keys.max() * self.weight[order])
        weight = self.weight[order] / chance
        rows = self.rows[order].astype(np.float64)
        return rows, None if np.ptp(weight) == 0 else weight / weight.mean()


@dataclass(eq=False)
class Threshold:
    """The largest key that a row of the sample can have, as far as this process has seen.

    The ``size + 1`` smallest of any keys bound those of all keys, so rows above may be dropped at once: the
    sample stays the same, and what waits to be merged stays small.
    """

    size: int
    keys: Array = field(default_factory=lambda: np.empty(0))
    bound: float = np.inf
    lock: Lock = field(default_factory=Lock)

    def __reduce__(self) -> tuple[type["Threshold"], tuple[int]]:
        return Threshold, (self.size,)

    def lower(self, keys: Array) -> float:
        """Take note of some finite keys; the bound that all seen so far give."""
        with self.lock:
            self.keys = np.concatenate([self.keys, keys])
            if len(self.keys) > SLACK * self.size:
                # Unique, so that a block computed twice, as after the loss of a worker, counts once.
                self.keys = np.unique(self.keys)[: self.size + 1]
                if len(self.keys) > self.size:
                    self.bound = float(self.keys[-1])
            return self.bound


@storable
@dataclass(frozen=True, eq=False)
class Survey:
    """What the first pass finds."""

    overall: Statistics  # of all rows as one component: rows, total weight, mean, covariance
    sample: RowSample
    start: Statistics | None  # under the labels or responsibilities that the user gave
    empty: int = field(default=0, metadata=LATER)  # rows without any value, where values may be missing
    # Of the rows whose component is known, as that component's.
    known: Statistics | None = field(default=None, metadata=LATER)
    box: Array | None = field(default=None, metadata=LATER)  # (2, d) least and largest values, if asked for

    def check(self) -> None:
        """Raise `ValueError` unless the parts belong together."""
        d, structure = self.sample.rows.shape[1], self.overall.structure
        require(self.overall.reference.shape == (1, d), "The moments are not those of the sample.")
        start = self.start
        require(
            start is None or (start.reference.shape[1] == d and start.structure is structure),
            "The start is not that of the sample.",
        )
        known = self.known
        require(known is None or known.reference.shape[1] == d, "The labels are not those of the sample.")
        require(self.box is None or holds(self.box, (2, d)), "The box is not that of the sample.")

    @property
    def labelled(self) -> Array | None:
        """Which components have known rows, (k,); None where none has."""
        return None if self.known is None or not self.known.weight.any() else self.known.weight > 0

    def under(self, structure: Structure, k: int, size: int) -> "Survey":
        """What a survey of the same rows finds under another structure, for fewer components, in fewer rows."""
        known = None if self.known is None else self.known.under(structure).first(k)
        return replace(self, overall=self.overall.under(structure), sample=self.sample.first(size), known=known)

    def whole(self, structure: Structure, k: int) -> "Survey":
        """Of rows that miss values: with moments of k components in place of those of single features.

        Raises
        ------
        DataError
            If no row has a value of some feature.
        """
        none = np.flatnonzero(self.overall.weight[:-1] == 0)
        if len(none) and self.overall.n_rows:
            raise DataError(f"No row has a value of feature(s) {', '.join(map(str, none[:5]))}: leave them out.")
        overall = gathered(self.overall, structure, 1)
        start = None if self.start is None else gathered(self.start, structure, k, overall)
        known = self.known
        if known is not None:
            known = gathered(known, structure, k, overall) if known.weight.any() else None
        return replace(self, overall=overall, start=start, known=known)

    def __add__(self, other: "Survey") -> "Survey":
        start, known = (
            None if ours is None or theirs is None else ours + theirs
            for ours, theirs in ((self.start, other.start), (self.known, other.known))
        )
        empty = self.empty + other.empty
        box = None
        if self.box is not None and other.box is not None:
            box = np.stack([np.minimum(self.box[0], other.box[0]), np.maximum(self.box[1], other.box[1])])
        return Survey(self.overall + other.overall, self.sample + other.sample, start, empty, known, box)


def box_of(block: Block) -> Array:
    """Least and largest values (2, d) in rows that weigh something, of those that are not missing."""
    x = block.x if block.x.dtype.kind in "iuf" else block.x.astype(np.uint8)
    limits: Any = np.finfo(x.dtype) if x.dtype.kind == "f" else np.iinfo(x.dtype)
    seen: Any = True if block.weight is None else block.weight[:, None] > 0
    low = np.fmin.reduce(x, axis=0, initial=limits.max, where=seen)
    return np.stack([low, np.fmax.reduce(x, axis=0, initial=limits.min, where=seen)]).astype(np.float64)


def check_box(box: Array) -> None:
    """Refuse a box in which nothing can be uniform."""
    if len(flat := np.flatnonzero(~(box[1] > box[0]))):
        raise DataError(
            f"Feature(s) {', '.join(map(str, flat[:5]))} do not vary: a background has no box. Leave them out."
        )


@dataclass(frozen=True, eq=False)
class First:
    """The first rows of positive weight. ``a + b`` equals the first of the concatenated rows."""

    size: int  # rows wanted
    x: Array  # (m, d) float64
    weight: Array  # (m,)
    places: Array  # (m, 2) block of each row, and its place there
    known: Array | None = None  # (m,) components, −1 where not known

    @classmethod
    def of(cls, block: Block, size: int) -> "First":
        """Those of one block."""
        weight = np.ones(len(block.x)) if block.weight is None else block.weight
        first = np.flatnonzero(weight)[:size]
        places = np.column_stack([np.full(len(first), block.index), first])
        known = block.columns["known"][first] if "known" in block.columns else None
        return cls(size, np.asarray(block.x[first], np.float64), weight[first], places, known)

    def __add__(self, other: "First") -> "First":
        room = max(0, self.size - len(self.x))
        return First(
            self.size,
            np.concatenate([self.x, other.x[:room]]),
            np.concatenate([self.weight, other.weight[:room]]),
            np.concatenate([self.places, other.places[:room]]),
            joined(self.known, other.known, len(self.x), min(room, len(other.x))),
        )


def joined(first: Array | None, then: Array | None, n: int, m: int) -> Array | None:
    """Labels of n rows and those of the first m that come after, where either has some."""
    if first is None and then is None:
        return None
    both = (np.full(size, -1) if labels is None else labels for labels, size in ((first, n), (then, m)))
    return np.concatenate([labels[:size] for labels, size in zip(both, (n, m), strict=True)])


def labels_of(known: Array | None, m: int) -> bool:
    """Whether these may be the labels of m rows."""
    return known is None or (known.shape == (m,) and known.dtype == np.int64 and bool((known >= -1).all()))


def _keys(block: Block, first: int, last: int, seed: int, threshold: Threshold) -> tuple[Array, Array]:
    """Rows from ``first`` to ``last`` that may be in the sample, numbered in the block, and their keys."""
    stream, offset = (block.index + 1, 0) if block.first_row is None else (0, block.first_row)
    uniform = uniforms(seed, stream, offset + first, last - first)
    weight = np.ones(last - first) if block.weight is None else block.weight[first:last]
    seen = np.flatnonzero(weight)
    uniform, weight = uniform[seen], weight[seen]
    # -log(1 - U) >= U: most rows are out before a logarithm is taken.
    with np.errstate(over="ignore"):
        near = uniform <= threshold.bound * weight
        keys = -np.log1p(-uniform[near]) / weight[near]
    kept = keys <= threshold.lower(keys)
    return first + seen[near][kept], keys[kept]


def uniforms(seed: int, stream: int, first: int, count: int) -> Array:
    """Numbers in [0, 1) of rows ``first`` to ``first + count``, each a function of the row's number."""
    philox = np.random.Philox(key=[seed, stream], counter=first // 4)  # four numbers per count
    raw = philox.random_raw(first % 4 + count)[first % 4 :]
    uniform: Array = (raw >> np.uint64(11)) * 2.0**-53
    return uniform
