"""What it costs to go through rows: bytes, and seconds of threads, added up with what tasks find."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Bytes of rows with what goes with them, and seconds, of all threads together.

    Law: ``a + b`` is the cost of both.
    """

    seen: float = 0.0  # bytes that tasks got
    read: float = 0.0  # bytes that were read for that: as they are stored, but decompressed
    kept: float = 0.0  # bytes, of those that tasks got, that had stayed in memory since an earlier pass
    reading: float = 0.0  # seconds
    computing: float = 0.0  # seconds

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.seen + other.seen,
            self.read + other.read,
            self.kept + other.kept,
            self.reading + other.reading,
            self.computing + other.computing,
        )


FREE, ANYONE = Cost(), nullcontext()


class Bundle(tuple[Any, ...]):
    """Several monoids side by side, added in pairs: what several runs want from one block."""

    def __add__(self, other: tuple[Any, ...]) -> "Bundle":
        return Bundle(a + b for a, b in zip(self, other, strict=True))


@dataclass(frozen=True)
class Metered:
    """A function of a block: what it finds, and what that costs."""

    function: Callable[[Any], Any]
    permits: AbstractContextManager[Any] = ANYONE  # to compute, where others read meanwhile

    def __call__(self, block: Any) -> Bundle:
        with self.permits:
            began = perf_counter()
            found = self.function(block)
            return Bundle((found, block.cost + Cost(computing=perf_counter() - began)))
