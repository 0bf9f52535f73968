"""A block of rows with its weights and starting values, put together and checked."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from daskgmm._typing import Array
from daskgmm.errors import DataError


class Block(NamedTuple):
    """Consecutive rows of the data, with what belongs to them.

    Attributes
    ----------
    x : ndarray of shape (n, d)
        The rows as stored, of any real dtype. Read only: it may be a view of the user's array.
    weight : ndarray of shape (n,), or None
        Weights, float64, finite and not negative; None stands for ones.
    start : ndarray of shape (n,) or (n, k), or None
        Starting labels (integers) or responsibilities.
    index : int
        Number of the block.
    first_row : int or None
        Number of its first row in the whole data; None where chunk sizes are unknown.
    """

    x: Array
    weight: Array | None
    start: Array | None
    index: int  # type: ignore[assignment]  # hides tuple.index, which no one needs here
    first_row: int | None

    def where(self, mask: ArrayLike) -> str:
        """Say which block and rows a mask over the rows picks, for an error message."""
        picked = np.flatnonzero(mask)
        listed = ", ".join(str(row + (self.first_row or 0)) for row in picked[:5].tolist())
        more = f" and {len(picked) - 5} more" if len(picked) > 5 else ""
        counted = " counted from the block's first" if self.first_row is None else ""
        return f"block {self.index}, row(s) {listed}{more}{counted}"


def assemble(
    x: Any,
    weight: Any,
    start: Any,
    *,
    index: int,
    first_row: int | None,
    shape: tuple[float, int],
    omit_nan: bool,
) -> Block:
    """Put a block together and check it, in the task that reads it."""
    block = Block(np.asarray(x), None, None, index, first_row)
    # A Dask array only promises its shape and chunks.
    if block.x.ndim != 2 or block.x.shape[1] != shape[1] or differ(len(block.x), shape[0]):
        raise DataError(f"Block {index} has shape {block.x.shape}, expected {shape}.")
    if weight is not None:
        weight = np.asarray(weight, dtype=np.float64)
        if weight.ndim == 0:
            weight = np.full(len(block.x), weight)
        _check_length(weight, block, "sample_weight")
        _check_weight(weight, block)
    if start is not None:
        start = np.asarray(start)
        _check_length(start, block, "The starting values")
    if omit_nan:
        weight = _without_nan(block.x, weight)
    return block._replace(weight=weight, start=start)


def differ(a: float, b: float) -> bool:
    """Whether two numbers of rows are known and differ."""
    return not math.isnan(a + b) and a != b


def _check_length(values: Array, block: Block, title: str) -> None:
    if len(values) != len(block.x):
        raise DataError(
            f"{title} and the rows differ in length in block {block.index}: {len(values)} and {len(block.x)}."
        )


def _check_weight(weight: Array, block: Block) -> None:
    faults = (
        ("Input sample_weight contains NaN", np.isnan),
        ("Input sample_weight contains infinity", np.isinf),
        ("Negative values in data passed to sample_weight", lambda w: w < 0),
    )
    for message, fault in faults:
        bad = fault(weight)
        if bad.any():
            raise DataError(f"{message}: {block.where(bad)}.")


def _without_nan(x: Array, weight: Array | None) -> Array | None:
    """Set the weight of each row that holds NaN to zero."""
    if x.dtype.kind != "f":
        return weight
    # The minimum of a row is NaN where any of its values is; no mask of the block's size.
    bad = np.isnan(x.min(axis=1))
    if not bad.any():
        return weight
    return np.where(bad, 0.0, 1.0 if weight is None else weight)
