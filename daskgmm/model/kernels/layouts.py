"""What kernels are given: parameters and sums, a class for each layout, and memory for one tile.

A layout is a class of parameters, one of sums, and a function each for what it does to a tile. Compiled code takes
the functions by the classes, so that it holds nothing of other layouts or numbers of features.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numba.extending import overload

from daskgmm._typing import Array
from daskgmm.model.kernels.compiling import INLINED, LINE, TILE, TILES
from daskgmm.model.kernels.patterns import Runs

# From here on the rows that matter to a component are listed: as fast where all do, .6 of the time where 16
# components lie 16 standard deviations apart. At twice as many, half the features come first: with 48, 1.2 of the
# time at distances of 8, .66 at 32.
MANY_FEATURES = 24
REAL, COUNT = np.dtype(np.float64), np.dtype(np.int64)


def width(d: int) -> int:
    """Features with the zeros that triangular layouts ask for."""
    return d + -d % 4 if d >= 4 else d


class Triangular(NamedTuple):
    """Parameters of components with triangular factors; ``s`` is k, or 1 where all share one.

    The ``width`` of a feature axis is a multiple of four, or below four: zeros beyond the features of the rows.
    """

    means: Array  # (k, width), what rows are measured from
    factor: Array  # (s, width, width) lower: the transposed Cholesky factor of the precision
    offset: Array  # (k, width) factor times what the true means have beyond ``means``
    log_norm: Array  # (k,) log weight plus log normalising constant, float64


class Wide(Triangular):
    """The same for many features, half of which are looked at first."""


class Shared(NamedTuple):
    """Parameters of near components that share a triangular factor, in four features or more."""

    means: Array  # (k, width)
    factor: Array  # (1, width, width)
    products: Array  # (k, width) factor times what the true means lie from the first of ``means``
    apart: Array  # (width, k) means less the first
    log_norm: Array  # (k,)


class Axes(NamedTuple):
    """Parameters of components with diagonal factors; ``s`` is k, or 1 where all share one."""

    means: Array  # (k, d)
    factor: Array  # (s, d)
    offset: Array  # (k, d)
    log_norm: Array  # (k,)


class Gapped(NamedTuple):
    """The same where rows may miss values, for which NaN stands in a tile."""

    means: Array  # (k, d)
    factor: Array  # (s, d)
    offset: Array  # (k, d)
    norm: Array  # (s, d) twice the log normalising constant of each feature
    log_norm: Array  # (k,) log weight


class Filled(NamedTuple):
    """Parameters of components with triangular factors, where rows may miss values."""

    means: Array  # (k, width) what rows are measured from; the width is a multiple of four
    factor: Array  # (s, width, width)
    offset: Array  # (k, width)
    log_weights: Array  # (k,)
    apart: Array  # (k, d) what the true means have beyond ``means``
    covariance: Array  # (ceil(s / LANES), d·d, LANES) so many next to each other
    half_log_det: Array  # (k,) of the precisions
    own: bool  # whether each component has a covariance of its own


class Blurred(NamedTuple):
    """Parameters of components whose rows have errors of their own: a tile holds these below the features."""

    means: Array  # (k, d)
    covariance: Array  # (s, d, d)
    log_norm: Array  # (k,) log weight, less d halves of log 2π
    errors: int  # numbers that are a row's noise: d variances, or the lower triangle of a covariance


class BlurredAxes(NamedTuple):
    """The same where neither components nor errors are correlated."""

    means: Array  # (k, d)
    covariance: Array  # (s, d) variances
    log_norm: Array  # (k,)
    errors: int


class Points(NamedTuple):
    """Points that sums are taken about, where responsibilities are given."""

    means: Array  # (k, width)


class Triangles(NamedTuple):
    """Sums with scatter matrices, of which lower triangles count; all float64, added to in place."""

    log_likelihood: Array  # (1,)
    weight: Array  # (k,)
    shift: Array  # (k, width) about the means of the parameters
    scatter: Array  # (s, width, width)


class Pooled(NamedTuple):
    """The same for a scatter that all components share, to be completed by `spread`."""

    log_likelihood: Array  # (1,)
    weight: Array  # (k,)
    shift: Array  # (k, width)
    scatter: Array  # (1, width, width)
    both: Array  # (k, k) lower: sums over rows of products of two responsibilities


class Squares(NamedTuple):
    """Sums with the diagonals of scatter matrices."""

    log_likelihood: Array  # (1,)
    weight: Array  # (k,)
    shift: Array  # (k, d)
    scatter: Array  # (s, d)


class Gaps(NamedTuple):
    """The same over the values that are there, and what these weigh."""

    log_likelihood: Array  # (1,)
    weight: Array  # (k,)
    shift: Array  # (k, d)
    scatter: Array  # (s, d)
    there: Array  # (k, d) the weight of the rows that have a feature


class Fills(NamedTuple):
    """Sums of `Triangles`, or `Squares`, over rows that may miss values."""

    log_likelihood: Array  # (1,)
    weight: Array
    shift: Array
    scatter: Array
    unseen: Array  # (1,) what is expected of the log-densities of missing values, given others


Model: TypeAlias = Triangular | Wide | Shared | Axes | Gapped | Filled | Blurred | BlurredAxes
Sums: TypeAlias = Triangles | Pooled | Squares | Gaps | Fills


class Scratch(NamedTuple):
    """Memory for one tile of n columns, in the type of the work unless said; each part has one meaning."""

    tile: Array  # (width, n) rows of the data, features as rows
    centred: Array  # (width, n) those less a mean
    lines: Array  # (4, n) rows of a product that are being added up
    logits: Array  # (k, n) log of weight times density, less a common base
    resp: Array  # (k, n) responsibilities, then times row weights
    peak: Array  # (n,) the largest logit of each column
    total: Array  # (n,) Σ exp(logit - peak)
    rest: Array  # (n,) what later features add to a distance
    unused: Array  # (n,) where the other of two components goes that has none
    density: Array  # (n,) log-densities, float64
    weight: Array  # (n,) row weights, float64
    nearest: Array  # (n,) the likeliest component, int64
    listed: Array  # (n,) columns that matter, int64
    whitened: Array  # (width, n) rows less the first mean times the shared factor; of other layouts (0, n)
    average: Array  # (width, n) the row's average of ``apart``; of other layouts (0, n)
    rho: Array  # (k, n) shares of the row's weight; of other layouts (0, n)

    @staticmethod
    def of(model: Any) -> "Scratch":
        """For parameters of any layout: in one piece of memory, each part at the start of a line of the cache."""
        (k, d), real = model.means.shape, model.means.dtype
        pooled, n = isinstance(model, Shared), TILE * 8 // real.itemsize
        parts: list[tuple[tuple[int, ...], Any]] = [((height, n), real) for height in (d, d, 4, k, k)]
        parts += [((n,), kind) for kind in (real, real, real, real, REAL, REAL, COUNT, COUNT)]
        parts += [((height * pooled, n), real) for height in (d, d, k)]
        narrow = d < 4 and not isinstance(model, Axes | Gapped)
        kind = Narrow if narrow else Scratch if d < MANY_FEATURES else Listing
        return kind(*_allotted(parts))


class Narrow(Scratch):
    """For fewer than four features, which triangular layouts take one by one."""


class Listing(Scratch):
    """For many features: the columns that matter to a component are listed."""


class Blur(NamedTuple):
    """Memory for one tile of rows with errors of their own; all float64, each row of data a column."""

    tile: Array  # (d + errors, n) rows of the data, features as rows, and their noise
    held: Array  # (d + errors, n) those columns that matter to a component
    lower: Array  # (d(d + 1)/2, n) Cholesky factors of component's and row's covariance together
    inverse: Array  # (d, n) of their diagonals
    white: Array  # (d, n) solved for the row less the mean
    gain: Array  # (d·d, n) solved for the component's covariance; of uncorrelated ones (d, n)
    lines: Array  # (6, n)
    logits: Array  # (k, n) as in `Scratch`, and so are those that follow
    resp: Array  # (k, n)
    peak: Array  # (n,)
    total: Array
    density: Array
    weight: Array
    nearest: Array
    listed: Array

    @staticmethod
    def of(model: Any) -> "Blur":
        """For parameters of either blurred layout."""
        (k, d), n, dense = model.means.shape, TILES[Blur], isinstance(model, Blurred)
        heights = [d + model.errors] * 2 + [d * (d + 1) // 2 * dense, d, d, d * d if dense else d, 6, k, k]
        parts: list[tuple[tuple[int, ...], Any]] = [((height, n), REAL) for height in heights]
        return Blur(*_allotted(parts + [((n,), kind) for kind in (*(REAL,) * 4, COUNT, COUNT)]))


class Filling(NamedTuple):
    """Memory for one tile of rows that may miss values, NaN in ``tile``; as in `Scratch`, unless said."""

    tile: Array  # (width, n)
    held: Array  # (k·width, n) those less each mean, filled in
    whitened: Array  # (width, n) what is there of one component's rows, in its standard deviations
    lines: Array  # (4, n)
    logits: Array  # (k, n)
    resp: Array  # (k, n)
    peak: Array  # (n,)
    total: Array  # (n,)
    density: Array  # (n,) float64
    weight: Array  # (n,) float64
    base: Array  # (n,) what log-densities have beyond logits, float64

    @staticmethod
    def of(model: Any) -> "tuple[Filling, Runs]":
        (k, w), real, n = model.means.shape, model.means.dtype, TILES[Filling]
        parts: list[Any] = [((height, n), real) for height in (w, k * w, w, 4, k, k)] + [((n,), real)] * 2
        return Filling(*_allotted(parts + [((n,), REAL)] * 3)), Runs.of(model, n)


TILES[Filling] = 192  # of 16 components in 16 features, .9 of the time of 352, and as much as of 96 of few
TILES[Blur] = 48  # of six features, with what follows from them, they fit in the first-level cache


def _allotted(parts: list[tuple[tuple[int, ...], Any]]) -> list[Array]:
    """Arrays of these shapes and types in one piece of memory, each from the start of a line of the cache on."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in parts]
    room = np.empty(sum(size + -size % LINE for size in sizes) + LINE, np.uint8)
    arrays, place = [], -room.ctypes.data % LINE
    for (shape, dtype), size in zip(parts, sizes, strict=True):
        arrays.append(np.ndarray(shape, dtype, room, place))
        place += size + -size % LINE
    return arrays


_KINDS: dict[Any, Any] = {Blurred: Blur, BlurredAxes: Blur, Filled: Filling}
# Scratches at rest: new memory comes page by page, which takes as long as a few thousand rows.
_IDLE: deque[tuple[tuple[Any, ...], Any]] = deque(maxlen=16)


@contextmanager
def scratch_for(model: Any) -> Iterator[Any]:
    """Memory for one tile, which nobody else uses meanwhile: a `Scratch`, `Blur`, or `Filling` with its `Runs`."""
    key = (type(model), model.means.dtype, *(getattr(part, "shape", part) for part in model))
    found: Any = ()
    with suppress(IndexError):
        found, scratch = _IDLE.pop()
    if found != key:
        scratch = _KINDS.get(type(model), Scratch).of(model)
    yield scratch
    _IDLE.append((key, scratch))


def log_joint(model: Any, scratch: Any) -> float:
    """``logits[j, t] + base = log(weight_j N(tile[:, t]; j))``, or less where that is negligible beside another.

    Returns ``base``. By the classes of ``model`` and ``scratch``.
    """
    raise NotImplementedError


def accumulate(model: Any, scratch: Any, sums: Any) -> None:
    """Add one tile's sums, given ``resp[j, t]`` = weight times responsibility, which get lost.

    By the classes of ``sums`` and ``scratch``.
    """
    raise NotImplementedError


# By the class of parameters or sums, or by that and the class of the scratch.
LOG_JOINT: dict[Any, Callable[..., float]] = {}
ACCUMULATE: dict[Any, Callable[..., None]] = {}


@overload(log_joint, jit_options=INLINED)
def _log_joint_of(model: Any, scratch: Any) -> Callable[..., float]:
    kind = model.instance_class
    return LOG_JOINT.get((kind, scratch.instance_class), LOG_JOINT[kind])


@overload(accumulate, jit_options=INLINED)
def _accumulate_of(model: Any, scratch: Any, sums: Any) -> Callable[..., None]:
    kind = sums.instance_class
    return ACCUMULATE.get((kind, scratch.instance_class), ACCUMULATE[kind])
