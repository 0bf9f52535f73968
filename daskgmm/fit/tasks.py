"""All that tasks do to a block. Rows of zero weight are never looked at; what is no number is told here."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cost import Bundle
from daskgmm.compute.window import Selection
from daskgmm.errors import DataError
from daskgmm.fit.recent import Recent
from daskgmm.fit.score import Score
from daskgmm.fit.survey import First, RowSample, Survey, Threshold, box_of
from daskgmm.model.available import available
from daskgmm.model.background import Contaminated, Hazy
from daskgmm.model.kernels import WHOLE
from daskgmm.model.missing import Incomplete
from daskgmm.model.mixture import Mixture
from daskgmm.model.moments import moments
from daskgmm.model.noisy import Noisy, indefinite
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure


class Answering(Protocol):
    """A mixture, or what answers in its place."""

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """Answers for rows, and whether all their values are finite."""


BEGINNING = (-1, -1)  # before every row of every block
TOO_LARGE = "Input X contains infinity or a value too large for dtype('float64')"


def seen(block: Block) -> Block:
    """Its rows of positive weight; a copy only where there are others."""
    return block if block.weight is None or block.weight.all() else block.take(block.weight > 0)


def all_finite(x: Array, partial: bool = False) -> bool:
    """Whether no value is NaN, unless it may be, or infinite, without a mask of the size of ``x``."""
    if x.dtype.kind != "f" or not x.size:
        return True
    if partial:
        return not any(np.isinf(extreme.reduce(x, axis=None)) for extreme in (np.fmin, np.fmax))
    return bool(np.isfinite(x.min()) and np.isfinite(x.max()))


def facing(mixture: Any, block: Block) -> Any:
    """The mixture as rows of the block see it: through their noise, or with what is missing."""
    if not isinstance(mixture, Mixture):
        return mixture
    if (noise := block.columns.get("noise")) is not None:
        kind: Any = Hazy if isinstance(mixture, Contaminated) else Noisy
        return kind(mixture, noise, block.partial)
    return Incomplete(mixture) if block.partial else mixture


def expectation(mixture: Mixture, block: Block) -> Statistics:
    """The E-step over a block. A row whose component is known belongs to that alone.

    It adds log(weight·N) of its component to the log-likelihood: what EM then increases (McLachlan & Peel 2000,
    section 2.19).
    """
    if not block.columns and not block.partial:
        return mixture.expectation(block.x, block.weight)
    if "known" not in block.columns:
        found: Statistics = facing(mixture, block).expectation(block.x, block.weight)
        return found
    labels, columns = block.columns["known"], {n: v for n, v in block.columns.items() if n != "known"}
    block, known = replace(block, columns=columns), labels >= 0
    if not known.any():
        return expectation(mixture, block)
    weight = np.ones(len(labels)) if block.weight is None else block.weight
    check_known(labels, weight, mixture.n_components, block)
    parts = dict[int, Statistics]()
    for j, rows in _by_label(labels, np.flatnonzero(weight > 0)):
        own = expectation(mixture if j < 0 else mixture.alone(j), block.take(rows))
        parts[j] = parts[j] + own if j in parts else own
    rest = parts.pop(-1, None)
    if not parts:
        return expectation(mixture, block) if rest is None else rest
    found = Statistics.gathered(parts, mixture.means)
    return found if rest is None else rest + found


def _by_label(labels: Array, rows: Array) -> Iterator[tuple[int, Array]]:
    """Labels from −1 on, each with the numbers of its rows, no more at once than a kernel reads as they lie."""
    known = rows[labels[rows] >= 0]
    own = labels[known].astype(np.int16 if labels.max() < 2**15 else np.int64)  # sorted by their digits
    order = known[np.argsort(own, kind="stable")]
    for group in (rows[labels[rows] < 0], *np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)):
        for first in range(0, len(group), WHOLE):
            yield int(labels[group[first]]), group[first : first + WHOLE]


def check_known(labels: Array, weight: Array, k: int, block: Block) -> None:
    """Refuse components that a mixture of k does not have, of rows that weigh something."""
    if (bad := (labels >= k) & (weight > 0)).any():
        raise DataError(f"known must lie in 0 ... {k - 1}, or be -1: {block.where(bad)} has others.")


def refuse(block: Block) -> NoReturn:
    """Raise the `DataError` that says why sums over the block are no numbers."""
    x: Array = block.x
    if x.dtype.kind == "f":
        bad = np.isinf(x).any(axis=1) if block.partial else ~np.isfinite(x).all(axis=1)
        if block.weight is not None:
            bad &= block.weight > 0
        if bad.any():
            nan = not block.partial and np.isnan(x[bad]).any()
            remedy = ' nan_policy="omit" or a weight of 0 leaves such rows out' if nan else ""
            remedy += ', nan_policy="missing" uses the values that they have.' if nan else ""
            told = f" Its values are decoded {block.decoded}." if block.decoded else ""
            raise DataError(f"Input X contains {'NaN' if nan else 'infinity'}: {block.where(bad)}.{told}{remedy}")
    refuse_indefinite(block)
    if block.weight is not None and block.weight.max(initial=0.0) > 1e300:
        raise DataError(f"sample_weight holds values too large to add up: block {block.index}. Scale them.")
    raise DataError(f"{TOO_LARGE}: block {block.index}. Scale the data.")


def refuse_indefinite(block: Block) -> None:
    """Raise where a row's noise is no covariance."""
    if (noise := block.columns.get("noise")) is None:
        return
    bad = indefinite(noise, np.isnan(block.x)) & (True if block.weight is None else block.weight > 0)
    if bad.any():
        raise DataError(f"noise is no covariance: it is to be positive semidefinite: {block.where(bad)}.")


@dataclass(frozen=True, eq=False)
class Expect:
    """Maps a block to the statistics of its rows under a mixture: the E-step."""

    mixture: Mixture

    def __call__(self, block: Block) -> Statistics:
        found = expectation(self.mixture, block)
        if not np.isfinite(found.log_likelihood):
            refuse(block)
        return found


@dataclass(frozen=True, eq=False)
class Learn:
    """Maps a block of a mini-batch to the statistics of its rows, a sample of them, and how many labels it has.

    Rows up to and with a place, the numbers of a block and of a row in it, are left out. What is no number comes
    out as none: the blocks of a mini-batch are not those that a user knows.
    """

    mixture: Mixture
    size: int  # of the sample
    seed: int
    after: tuple[int, int] = BEGINNING

    def __call__(self, block: Block) -> Bundle:
        number, row = self.after
        first = 0 if block.index > number else len(block.x) if block.index < number else row + 1
        block = block.take(slice(first, None)) if first else block
        found = expectation(self.mixture, block)  # before the sample, which then finds its rows in the cache
        # Rows with noise would look as if they were badly fitted: none is kept to look at.
        kept = block.take(slice(0)) if "noise" in block.columns else block
        recent = Recent.of(kept.x, kept.weight, self.size, self.seed, block.index + 1)
        if kept.partial and len(kept.x):
            recent = replace(recent, x=facing(self.mixture, kept).impute(recent.x)[0])
        labelled = [int((block.columns["known"] >= 0).sum())] if "known" in block.columns else []
        return Bundle((found, recent, *labelled))


@dataclass(frozen=True, eq=False)
class Examine:
    """Maps a block to its `Survey`."""

    structure: Structure
    k: int  # components of a given start
    seed: int  # of the sample
    threshold: Threshold  # of the sample, with its size
    omit_nan: bool = False  # whether a row that a given start misses is left out of it
    boxed: bool = False  # whether to look for the box that rows lie in

    def __call__(self, block: Block) -> Survey:
        add_up = available if block.partial else partial(moments, self.structure)
        overall = add_up(block.x, block.weight)
        if not np.isfinite(overall.scatter).all():
            refuse(block)
        if "noise" in block.columns:
            refuse_indefinite(block)
        start = None
        for name in ("labels", "responsibilities"):
            if (values := block.columns.get(name)) is None:
                continue
            held = _without_missing(block, name) if self.omit_nan else block
            values = held.columns[name]
            _check_start(name, values if held.weight is None else values[held.weight > 0], self.k, held)
            if name == "labels":
                values = np.nan_to_num(values).astype(np.intp, copy=False)
            start = add_up(block.x, held.weight, values, self.k)
        known = None
        if (labels := block.columns.get("known")) is not None:
            weight = np.where(labels >= 0, 1.0 if block.weight is None else block.weight, 0.0)
            check_known(labels, weight, self.k, block)
            known = add_up(block.x, weight, labels, self.k)
        box = box_of(block) if self.boxed else None
        empty = np.isnan(np.fmin.reduce(block.x, axis=1)).sum() if block.partial else 0
        return Survey(overall, RowSample.of(block, self.seed, self.threshold), start, int(empty), known, box)


def _without_missing(block: Block, name: str) -> Block:
    """The same with weight zero for each row that a given start has no value for."""
    given = block.columns[name]
    missing = np.isnan(given if given.ndim == 1 else given.min(axis=1))
    return replace(block, weight=np.where(missing, 0.0, 1.0 if block.weight is None else block.weight))


def _check_start(name: str, given: Array, k: int, block: Block) -> None:
    """Labels below ``k``, or responsibilities (n, k) that are probabilities, in rows of positive weight."""
    where = f"block {block.index}"
    if np.isnan(given).any():
        raise DataError(
            f'{name}_init has missing values in {where}. nan_policy="omit" leaves their rows out of the start, '
            "and a sample_weight of 0 out of the fit."
        )
    if name == "labels":
        if given.size and not (given.min() >= 0 and given.max() < k):
            raise DataError(f"labels_init must lie in 0 ... {k - 1}; {where} has others.")
    elif given.shape[1] != k:
        raise DataError(f"responsibilities_init should have {k} columns, got {given.shape[1]}.")
    elif not (np.all(given >= 0) and np.allclose(given.sum(axis=1), 1.0, atol=1e-5)):
        raise DataError(f"responsibilities_init must be >= 0 and sum to 1 in each row; {where} differs.")


@dataclass(frozen=True, eq=False)
class Rate:
    """Maps a block to its `Score`; the entropy is NaN unless asked for."""

    mixture: Mixture
    entropy: bool = False

    def __call__(self, block: Block) -> Score:
        kept = seen(block)
        x, weight, asked = kept.x, kept.weight, facing(self.mixture, kept)
        density, finite = asked.answer(x, "score_samples")
        if not finite:
            refuse(block)
        total = float(len(x)) if weight is None else float(weight.sum())
        log_likelihood = _weighted_sum(density, weight)
        entropy = _weighted_sum(asked.entropies(x), weight) if self.entropy else np.nan
        return Score(log_likelihood, entropy, total, self.mixture.n_parameters)


@dataclass(frozen=True, eq=False)
class Conclude:
    """Maps a block to the `Score` that a fit ends with: a row of a known component counts as in `expectation`."""

    mixture: Mixture

    def __call__(self, block: Block) -> Score:
        found = Expect(self.mixture)(block)
        entropy = self.mixture.entropy(found)
        # Statistics do not tell what noise leaves open, nor how many values the rows of a background have.
        if "noise" in block.columns or (block.partial and self.mixture.background_weight > 0):
            known = block.columns.get("known", np.full(len(block.x), -1))
            weight = np.where(known < 0, 1.0 if block.weight is None else block.weight, 0.0)
            entropy = Rate(self.mixture, entropy=True)(replace(block, weight=weight)).entropy
        return Score(found.log_likelihood, entropy, found.total_weight, self.mixture.n_parameters)


def _weighted_sum(values: Array, weight: Array | None) -> float:
    # Not a dot product: BLAS would make its bits depend on the number of threads.
    return float(values.sum() if weight is None else (values * weight).sum())


@dataclass(frozen=True, eq=False)
class Query:
    """Maps a block to what a mixture answers for each row, such as ``labels`` or ``score_samples``.

    Rows that ``nan_policy="omit"`` leaves out answer ``missing``.
    """

    mixture: Answering
    answer: str
    missing: float
    dtype: Any = None  # of the answers; None leaves it

    def __call__(self, block: Block) -> Array:
        kept = seen(block)
        x = kept.x
        asked: Answering = facing(self.mixture, kept)
        found, finite = asked.answer(x, self.answer)
        if not finite:
            refuse(block)
        if self.dtype is not None:
            found = found.astype(self.dtype, copy=False)
        if len(x) == len(block.x):
            return found
        out = np.full((len(block.x), *found.shape[1:]), self.missing, dtype=found.dtype)
        assert block.weight is not None
        out[block.weight > 0] = found
        return out


@dataclass(frozen=True, eq=False)
class Draw:
    """Maps a block to a sample of its rows, or of their log-densities under a mixture."""

    threshold: Threshold  # of the sample, with its size
    mixture: Mixture | None = None
    seed: int = 0

    def __call__(self, block: Block) -> RowSample:
        kept = seen(block)
        if self.mixture is None:
            finite = all_finite(kept.x, block.partial)
        else:
            found, finite = facing(self.mixture, kept).answer(kept.x, "score_samples")
            density = np.zeros((len(block.x), 1))
            density[... if block.weight is None else block.weight > 0, 0] = found
            block = replace(block, x=density) if finite else block
        if not finite:
            refuse(block)
        return RowSample.of(block, self.seed, self.threshold)


@dataclass(frozen=True, eq=False)
class Impute(Query):
    """Maps a block to its rows with what they miss: its conditional mean, or with a ``seed`` a draw."""

    mixture: Mixture
    seed: int | None = None

    def __call__(self, block: Block) -> Array:
        random = None
        if self.seed is not None:
            random = np.random.Generator(np.random.Philox(key=[self.seed, block.index]))
        asked: Incomplete | Noisy = facing(self.mixture, block)
        found, finite = asked.impute(block.x, random)
        if not finite:
            refuse(replace(block, weight=None))
        return found


@dataclass(frozen=True)
class TakeFirst:
    """Maps a block to its first rows of positive weight, and refuses one that holds NaN or infinity anywhere."""

    size: int
    span: Selection | None = None  # which rows count, where not all do

    def __call__(self, block: Block) -> First:
        if self.span is not None:
            weight = 1.0 if block.weight is None else block.weight
            block = replace(block, weight=np.where(self.span.of(block), weight, 0.0))
        if not all_finite(seen(block).x, block.partial):
            refuse(block)
        return First.of(block, self.size)


@dataclass(frozen=True, eq=False)
class Together:
    """What several runs ask of one block, while it is in memory."""

    tasks: tuple[Any, ...]

    def __call__(self, block: Block) -> Bundle:
        return Bundle(task(block) for task in self.tasks)
