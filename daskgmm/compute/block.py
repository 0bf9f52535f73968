"""A block of rows with what goes with them, by name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from daskgmm._typing import Array
from daskgmm.errors import DataError


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of the data, with what belongs to them.

    Attributes
    ----------
    x : ndarray of shape (n, d)
        The rows as stored, of any real dtype. Read only: it may be a view of the user's array.
    index : int
        Number of the block.
    first_row : int or None
        Number of its first row in the whole data; None where chunk sizes are unknown.
    columns : mapping
        What goes with the rows, by the names in `columns.COLUMNS`; what is left out is not there.
    """

    x: Array
    index: int = 0
    first_row: int | None = 0
    columns: Mapping[str, Array] = field(default_factory=dict)

    @property
    def weight(self) -> Array | None:
        """Weights (n,), float64, finite and not negative; None stands for ones."""
        return self.columns.get("weight")

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return int(self.x.nbytes + sum(values.nbytes for values in self.columns.values()))

    def where(self, mask: ArrayLike) -> str:
        """Say which block and rows a mask over the rows picks, for an error message."""
        picked = np.flatnonzero(mask)
        listed = ", ".join(str(row + (self.first_row or 0)) for row in picked[:5].tolist())
        more = f" and {len(picked) - 5} more" if len(picked) > 5 else ""
        counted = " counted from the block's first" if self.first_row is None else ""
        return f"block {self.index}, row(s) {listed}{more}{counted}"

    def without_nan(self) -> Block:
        """The same with weight zero for each row that holds NaN."""
        if self.x.dtype.kind != "f":
            return self
        # The minimum of a row is NaN where any of its values is; no mask of the block's size.
        bad = np.isnan(self.x.min(axis=1))
        if not bad.any():
            return self
        weight = np.where(bad, 0.0, 1.0 if self.weight is None else self.weight)
        return Block(self.x, self.index, self.first_row, {**self.columns, "weight": weight})


def differ(a: float, b: float) -> bool:
    """Whether two numbers of rows are known and differ."""
    return not math.isnan(a + b) and a != b


def check_shape(block: Block, shape: tuple[float, int]) -> None:
    """Raise `DataError` where rows came in another shape than was promised, as those of a Dask array may."""
    if block.x.ndim != 2 or block.x.shape[1] != shape[1] or differ(len(block.x), shape[0]):
        raise DataError(f"Block {block.index} has shape {block.x.shape}, expected {shape}.")


def digest(block: Block) -> str:
    """SHA-256 of a block's values."""
    found = hashlib.sha256()
    for values in (block.x, *(block.columns[name] for name in sorted(block.columns))):
        found.update(array_digest(values).encode())
    return found.hexdigest()


def array_digest(values: Any) -> str:
    """SHA-256 of an array's shape, type and values."""
    values = np.ascontiguousarray(values)
    found = hashlib.sha256(f"{values.shape} {values.dtype.str}".encode())
    found.update(values.data.cast("B") if values.size else b"")
    return found.hexdigest()
