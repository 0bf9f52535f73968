"""What runs a pass: map a function over numbered blocks, and add the results up a fixed tree.

The tree is binary over block numbers, split at the largest power of two. It depends on nothing but the number
of blocks, so the same blocks give the same bits on any number of workers, on threads or processes, and
whatever the span, the number of consecutive blocks that one task works through.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import add
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar
from uuid import uuid4

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.rows import Rows

# What the size of a task follows from. A task costs its scheduler some time (0.4 ms on threads, 2 ms on a client,
# with its sum), whoever else works meanwhile, and a thread gets through a block no faster than this.
BLOCK_RATE = 500e6  # bytes a second and thread
SHARE = 0.05  # of a pass that may go to scheduling
TASKS_PER_THREAD = 4  # at least, where there are blocks enough: the last ones leave few threads idle

Report: TypeAlias = Callable[[int, int], None] | None
"""Is told the blocks that are done, and how many there are."""


class Monoid(Protocol):
    """Anything that adds up: ``a + b`` is the result of both sets of rows."""

    def __add__(self, other: Self) -> Self:
        """Merge with the result of later rows."""
        ...


M = TypeVar("M", bound=Monoid)
T = TypeVar("T")


class Bundle(tuple[Any, ...]):
    """Several monoids side by side, added in pairs: what several runs want from one block."""

    def __add__(self, other: tuple[Any, ...]) -> Bundle:
        return Bundle(a + b for a, b in zip(self, other, strict=True))


class Blocks(Protocol):
    """Numbered blocks: `Rows`, or a mini-batch of them."""

    @property
    def graph(self) -> Mapping[Any, Any]:
        """What the tasks refer to: the reader under `key`, and whatever `parts` names."""

    @property
    def key(self) -> str:
        """Where the graph holds the reader."""

    @property
    def reader(self) -> Callable[..., Any]:
        """A function of the number of a block and its parts."""

    @property
    def lazy(self) -> bool:
        """Whether parts are keys of the graph."""

    @property
    def waits(self) -> bool:
        """Whether the reader may wait for a store."""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""

    @property
    def held(self) -> bool:
        """Whether they are in memory, so that nothing has to be read."""

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block; 0 where that is not known."""

    def parts(self, index: int) -> tuple[Any, ...]:
        """What the reader needs for a block beside its number; nothing where it reads a store."""

    def check_unchanged(self) -> None:
        """Raise `DataError` where what the blocks are read from has changed."""


class Engine(Protocol):
    """Who runs the passes of a fit: `Plain`, `Threads` or `Cluster`."""

    @property
    def threads(self) -> int:
        """How many compute at a time."""

    @property
    def client(self) -> Any:
        """Whose workers compute; None where this process does."""

    @property
    def report(self) -> Report:
        """What is told of the blocks that are done."""

    def reduce(self, blocks: Blocks, function: Callable[[Block], M]) -> M:
        """``function`` of every block, added up the tree."""

    def each(self, rows: Rows, function: Callable[[Block], T], numbers: Sequence[int]) -> list[T]:
        """``function`` of some blocks, each by itself."""

    def answers(self, rows: Rows, function: Callable[[Block], Array], dtype: Any, columns: int | None) -> Array:
        """One answer for each row, of all blocks."""

    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate tasks that may refer to ``rows.graph``; what a graph must hold to refer to their values.

        The values stay where they were computed: in this process, or on a client's workers until the last
        reference to them goes.
        """

    def room(self) -> float:
        """Bytes of rows that may be in memory beside the blocks at work: read ahead, or kept between passes."""

    def ahead(self, blocks: Blocks) -> int:
        """How many more threads than compute read from a store meanwhile."""

    def watched(self, report: Report) -> Engine:
        """The same, which tells of the blocks that are done."""


def add_up(
    first: int, last: int, function: Callable[[Any], M], read: Callable[..., Any], parts: Sequence[Any] = ()
) -> M:
    """``function`` of blocks ``first`` to ``last``, read in turn and added up as the tree above them is."""
    if last - first == 1:
        return function(read(first, *(parts[0] if parts else ())))
    middle = _middle(first, last)
    left = add_up(first, middle, function, read, parts[: middle - first])
    return left + add_up(middle, last, function, read, parts[middle - first :])


def _middle(first: int, last: int) -> int:
    """Where the tree splits: after the largest power of two."""
    return first + (1 << (last - first - 1).bit_length() - 1)


@dataclass(frozen=True)
class _Names:
    """Fresh names for the keys of a pass, which the dashboard shows without their digits.

    A name each for the function, what works through blocks and what only adds: Dask shares tasks out evenly among
    workers, and learns how long they take, by the name.
    """

    function: str
    work: str
    total: str

    @classmethod
    def of(cls, function: Any) -> _Names:
        kind = getattr(function, "__name__", type(function).__name__).strip("<>").lower()
        tag = uuid4().hex
        return cls(f"daskgmm-map-{tag}", f"daskgmm-{kind}-{tag}", f"daskgmm-total-{tag}")


@dataclass(frozen=True)
class Scheduled(ABC):
    """An engine that hands its tasks to one of Dask's schedulers.

    Parameters
    ----------
    span : int, optional
        Blocks per task, a power of two; the blocks of one task are read in turn, never together. Without it,
        enough that scheduling costs little, and few enough that every thread has its share of the tasks. Rows
        whose blocks come out of a Dask graph have one block per task all the same: a task's inputs are all there
        before it begins.
    report : callable, optional
    """

    span: int | None = None
    report: Report = None
    task_seconds: ClassVar[float]  # of the scheduler, for a task and its sum

    def reduce(self, blocks: Blocks, function: Callable[[Block], M]) -> M:
        """``function`` of every block, added up the tree."""
        names = _Names.of(function)
        span = 1 if blocks.lazy else self.span or self._span(blocks)
        # Names are strings that no other key can equal; the function is in the graph once, and so is the reader.
        graph: dict[Hashable, Any] = {**blocks.graph, names.function: self._shared(function, blocks)}
        root = _subtree(graph, blocks, names, span, 0, blocks.n_blocks)
        (result,) = self._evaluate(graph, [root], blocks, names.work)
        return result  # type: ignore[no-any-return]

    def each(self, rows: Rows, function: Callable[[Block], T], numbers: Sequence[int]) -> list[T]:
        """``function`` of some blocks, each by itself."""
        names = _Names.of(function)
        graph: dict[Hashable, Any] = {**rows.graph, names.function: function}
        graph |= {(names.work, index): _work(rows, names, index, index + 1) for index in numbers}
        return self._evaluate(graph, [(names.work, index) for index in numbers], rows, "")

    def _shared(self, function: Callable[[Block], M], blocks: Blocks) -> Callable[[Block], M]:
        """The function as tasks call it."""
        return function

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many compute at a time."""

    @abstractmethod
    def _evaluate(
        self, graph: Mapping[Hashable, Any], keys: list[Hashable], blocks: Blocks, work: str
    ) -> list[Any]:
        """Values of some keys; ``work`` names the tasks that go through ``blocks``."""

    def _span(self, blocks: Blocks) -> int:
        """Blocks per task for blocks that tasks read."""
        threads = self.threads
        if blocks.held:  # a task for each thread
            return 1 << max(1, blocks.n_blocks // threads).bit_length() - 1
        block_seconds = max(1, blocks.block_bytes) / BLOCK_RATE
        wanted = self.task_seconds * threads / (SHARE * block_seconds)
        most = blocks.n_blocks // (TASKS_PER_THREAD * threads)
        return 1 << int(max(1, min(wanted, most))).bit_length() - 1


def _subtree(
    graph: dict[Hashable, Any], blocks: Blocks, names: _Names, span: int, first: int, last: int
) -> tuple[str, int, int]:
    """Put the task that adds up blocks ``first`` to ``last`` into ``graph``, with what it refers to; its key.

    A function, not a closure: one that calls itself would keep every pass's graph alive until the next
    collection of cycles.
    """
    if last - first <= max(span, 1):
        key = (names.work, first, last)
        graph[key] = _work(blocks, names, first, last)
    else:
        key, middle = (names.total, first, last), _middle(first, last)
        halves = ((first, middle), (middle, last))
        graph[key] = (add, *(_subtree(graph, blocks, names, span, lo, hi) for lo, hi in halves))
    return key


def _work(blocks: Blocks, names: _Names, first: int, last: int) -> tuple[Any, ...]:
    """The task that works through blocks ``first`` to ``last`` in turn."""
    parts = [list(blocks.parts(index)) for index in range(first, last)]
    # The numbers are no arguments: Dask would take them for keys, of which a user's graph may have such.
    return (partial(add_up, first, last), names.function, blocks.key, *([parts] if any(parts) else []))
