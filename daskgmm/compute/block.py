"""A block of rows with what goes with them, and where blocks stay between passes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from daskgmm._typing import Array
from daskgmm.compute.cost import FREE, Cost


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of the data, with what belongs to them."""

    x: Array  # (n, d) as stored, of any real dtype; read only, as it may be a view of the user's array
    index: int = 0  # number of the block
    first_row: int | None = 0  # number of its first row in the whole data; None where chunk sizes are unknown
    weight: Array | None = None  # (n,) float64, finite and not negative; None stands for ones
    columns: Mapping[str, Array] = field(default_factory=dict)  # what else there is, by the names in `COLUMNS`
    partial: bool = False  # whether NaN in its rows stands for a value that is missing, at random
    decoded: str = ""  # how its values follow from what is stored, where they are not that
    cost: Cost = FREE  # of having it here

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, with what goes with them."""
        arrays = (self.x, self.weight, *self.columns.values())
        return sum(values.nbytes for values in arrays if values is not None)

    @property
    def first_number(self) -> int:
        """The number of its first row; where chunk sizes are unknown, numbers of the block's own begin there."""
        return self.index << 40 if self.first_row is None else self.first_row

    def take(self, rows: Any) -> "Block":
        """Some of its rows, with what goes with them; the numbers that rows have are then unknown."""
        weight = None if self.weight is None else self.weight[rows]
        columns = {name: values[rows] for name, values in self.columns.items()}
        return replace(self, x=self.x[rows], first_row=None, weight=weight, columns=columns)

    def where(self, mask: ArrayLike) -> str:
        """Say which block and rows a mask over the rows picks, for an error message."""
        picked = np.flatnonzero(mask)
        listed = ", ".join(str(row + (self.first_row or 0)) for row in picked[:5].tolist())
        more = f" and {len(picked) - 5} more" if len(picked) > 5 else ""
        counted = " counted from the block's first" if self.first_row is None else ""
        return f"block {self.index}, row(s) {listed}{more}{counted}"

    def without_nan(self) -> "Block":
        """The same with weight zero for each row that holds NaN, or weighs that."""
        weight = self.weight
        if weight is not None and np.isnan(weight).any():
            weight = np.nan_to_num(weight)
        if self.x.dtype.kind == "f":
            # The minimum of a row is NaN where any of its values is; no mask of the block's size.
            bad = np.isnan(self.x.min(axis=1))
            if bad.any():
                weight = np.where(bad, 0.0, 1.0 if weight is None else weight)
        return replace(self, weight=weight, partial=False) if weight is not self.weight or self.partial else self

    def with_gaps(self) -> "Block":
        """The same where NaN is a missing value; with weight zero for each row that has no value."""
        block = replace(self, partial=True)
        if self.x.dtype.kind != "f":
            return block
        empty = np.flatnonzero(np.isnan(self.x[:, 0]))
        for column in self.x.T[1:]:
            empty = empty[np.isnan(column[empty])]  # ever fewer: the minimum of each row takes ten times as long
        if not len(empty):
            return block
        weight = np.ones(len(self.x)) if self.weight is None else self.weight.copy()
        weight[empty] = 0.0
        return replace(block, weight=weight)


@dataclass(eq=False)
class Shelf:
    """The first blocks that there is room for; any thread may put one there."""

    room: float  # bytes left; with 0, a task that an interrupt left running puts nothing there any more
    blocks: dict[int, Block] = field(default_factory=dict)  # by their number
    lock: Lock = field(default_factory=Lock)

    def put(self, block: Block) -> None:
        """Keep the block, if it fits."""
        size = block.nbytes
        with self.lock:
            fits = size <= self.room
            self.room -= size * fits
        if fits:
            self.blocks[block.index] = replace(block, cost=Cost(seen=size, kept=size))


def digest(block: Block) -> str:
    """SHA-256 of a block's values."""
    found = hashlib.sha256()
    for values in (block.x, block.weight, *(block.columns[name] for name in sorted(block.columns))):
        if values is not None:
            found.update(array_digest(values).encode())
    return found.hexdigest()


def array_digest(values: Any) -> str:
    """SHA-256 of an array's shape, type and values."""
    values = np.ascontiguousarray(values)
    found = hashlib.sha256(f"{values.shape} {values.dtype.str}".encode())
    found.update(values.data.cast("B") if values.size else b"")
    return found.hexdigest()
