"""The first rows of a stream, which seed its model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block


@dataclass(frozen=True, eq=False)
class First:
    """The first rows of positive weight. ``a + b`` equals the first of the concatenated rows.

    Attributes
    ----------
    size : rows wanted.
    x : (m, d) float64.
    weight : (m,)
    places : (m, 2) block of each row, and its place there.
    """

    size: int
    x: Array
    weight: Array
    places: Array

    @classmethod
    def of(cls, block: Block, size: int) -> First:
        """Those of one block."""
        weight = np.ones(len(block.x)) if block.weight is None else block.weight
        first = np.flatnonzero(weight)[:size]
        places = np.column_stack([np.full(len(first), block.index), first])
        return cls(size, np.asarray(block.x[first], np.float64), weight[first], places)

    def __add__(self, other: First) -> First:
        room = max(0, self.size - len(self.x))
        return First(
            self.size,
            np.concatenate([self.x, other.x[:room]]),
            np.concatenate([self.weight, other.weight[:room]]),
            np.concatenate([self.places, other.places[:room]]),
        )
