"""Memory that blocks of rows are read into."""

import math
import mmap
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskgmm._typing import Array

IDLE_BYTES = 32 * 2**20  # that may wait for their next use; two blocks, if these are more

# Pages shared with other processes, Python's default, cost twice as much; not every system has the choice.
PRIVATE: dict[str, Any] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
)


@dataclass(eq=False)
class Spare:
    """Uninitialised arrays, in the memory of those that are gone where there are some.

    New memory comes from the system page by page, which takes as long as to read and decode what it is for. The
    heap is no place for it: the C library keeps a block's worth for every thread that ever held one. Here only so
    much waits as threads in turn need, and none once the owner has gone.
    """

    free: deque[mmap.mmap] = field(default_factory=deque)  # its `pop` and `append` need no lock

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of this shape; whatever was in its memory is still there."""
        size = math.prod(shape)
        n_bytes = max(1, size * dtype.itemsize)
        try:
            memory: mmap.mmap | None = self.free.pop()
        except IndexError:
            memory = None
        if memory is None or len(memory) < n_bytes:
            memory = mmap.mmap(-1, n_bytes, **PRIVATE)
        values = np.frombuffer(memory, dtype=dtype, count=size)
        # Every view of it, whoever made it, keeps this array alive.
        weakref.finalize(values, _give_back, weakref.ref(self), memory).atexit = False
        return values.reshape(shape)

    def __reduce__(self) -> tuple[type["Spare"], tuple[()]]:
        return Spare, ()  # memory stays in its process


def _give_back(owner: weakref.ref[Spare], memory: mmap.mmap) -> None:
    spare = owner()
    if spare is not None and (len(spare.free) < 2 or (len(spare.free) + 1) * len(memory) <= IDLE_BYTES):
        spare.free.append(memory)
