"""NumPy arrays, and whatever scikit-learn makes into one: lists, data frames; one number for all rows."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_array

from daskgmm._typing import Array
from daskgmm.compute.sources.base import SMALL, Asked, Chunks, Facts, Source, check_layout, even_chunks
from daskgmm.compute.sources.plain import joined, plain
from daskgmm.compute.sources.refusals import refuse_others


def opened(value: Any, asked: Asked) -> Source:
    """Anything: a view, or a copy where it is no NumPy array; what cannot be an array is told by scikit-learn."""
    refuse_others(value, asked)
    if isinstance(value, (list, tuple)) and any(isinstance(part, np.ma.MaskedArray) for part in value):
        value = np.ma.array(value)  # an array would have no masks
    array, dtype = value, None
    if not isinstance(value, np.ma.MaskedArray):
        array = check_array(
            value,
            ensure_all_finite=False,
            ensure_2d=asked.ensure_2d,
            allow_nd=not asked.ensure_2d,
            ensure_min_samples=int(asked.ensure_2d),
            ensure_min_features=int(asked.ensure_2d),
            input_name=asked.name,
        )
    elif asked.ensure_2d and value.dtype.kind in "biu":
        dtype = np.dtype(float)  # what the reader, which looks at the mask, makes of them: blocks have room for it
    check_layout(array, asked.ensure_2d)
    dtype = array.dtype if dtype is None else dtype
    return InMemory(shape=array.shape, dtype=dtype, chunks=(len(array),), array=array)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class InMemory(Source):
    """A NumPy array. A part is a view, so that a pickled task carries its own rows only."""

    array: Array
    local: ClassVar[bool] = True

    def plan(self, block_bytes: int) -> Chunks:
        n, size = len(self.array), self.row_bytes
        # 64 blocks keep the threads busy to the end of a pass; fewer are of equal length, for threads to share.
        rows = min(max(math.ceil(n / 64), SMALL // size), block_bytes // size)
        blocks = math.ceil(n / max(rows, 1))
        return even_chunks(n, math.ceil(n / max(blocks, 1)))

    def part(self, index: int) -> Array:
        return self.array[self.bounds(index)]

    reader: ClassVar[Any] = staticmethod(joined)

    def facts(self) -> Facts:
        masked = "what is masked" if isinstance(self.array, np.ma.MaskedArray) else ""
        return Facts("array in memory", masked=masked)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Constant(Source):
    """One number for every row; it goes along with the reader."""

    value: Array  # of shape ()
    read_bytes: ClassVar[float] = 0.0

    @classmethod
    def of(cls, value: Any, chunks: Chunks) -> "Constant":
        """For rows in these chunks."""
        value = plain(value)
        return cls(shape=(sum(chunks),), dtype=value.dtype, chunks=chunks, value=value)

    def plan(self, block_bytes: int) -> Chunks:
        return self.chunks

    def reader(self, index: int, part: Any) -> Any:
        return self.value
