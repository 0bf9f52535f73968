"""What runs a pass: map a function over numbered blocks, and add the results up a fixed tree.

The tree is binary over block numbers, split at the largest power of two. It depends on nothing but the number
of blocks, so the same blocks give the same bits on any number of workers, on threads or processes, and
whatever the span, the number of consecutive blocks that one task works through.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import add
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar
from uuid import uuid4

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cost import Cost, Metered
from daskgmm.compute.rows import Rows

# What the size of a task follows from. A task costs its scheduler some time (0.4 ms on threads, 2 ms on a client,
# with its sum), whoever else works meanwhile, and a thread gets through a block no faster than this.
BLOCK_RATE = 500e6  # bytes a second and thread
SHARE = 0.05  # of a pass that may go to scheduling
TASKS_PER_THREAD = 4  # at least, where there are blocks enough: the last ones leave few threads idle

Report: TypeAlias = Callable[[int, int], None] | None
"""Is told the blocks that are done, and how many there are."""
Spend: TypeAlias = Callable[[Cost], None] | None
"""Is told what a pass cost."""


class Monoid(Protocol):
    """Anything that adds up: ``a + b`` is the result of both sets of rows."""

    def __add__(self, other: Self) -> Self: ...


M = TypeVar("M", bound=Monoid)
T = TypeVar("T")


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
    def n_blocks(self) -> int: ...

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block; 0 where that is not known."""

    @property
    def lazy(self) -> object:
        """True, or not empty, where parts are keys of the graph."""

    @property
    def waits(self) -> bool:
        """Whether the reader may wait for a store."""

    @property
    def held(self) -> bool:
        """Whether the blocks are in memory, so that nothing has to be read."""

    def parts(self, index: int) -> tuple[Any, ...]:
        """What the reader needs for a block beside its number; nothing where it reads a store."""


@dataclass(frozen=True, kw_only=True)
class Engine(ABC):
    """Runs passes: `Threads` or `Cluster`, which hand tasks to a scheduler, or `Plain`.

    ``span`` is the number of blocks per task, a power of two; the blocks of one task are read in turn, never
    together. Without it, they are enough that scheduling costs little, and few enough that every thread has its
    share of the tasks. Rows whose blocks come out of a Dask graph have one block per task all the same: a task's
    inputs are all there before it begins.
    """

    span: int | None = None
    report: Report = None
    spend: Spend = None
    client: ClassVar[Any] = None  # whose workers compute, if this process does not
    task_seconds: ClassVar[float] = 0.4e-3  # of the scheduler, for a task and its sum

    def reduce(self, blocks: Blocks, function: Callable[[Block], M]) -> M:
        """``function`` of every block, added up the tree.

        The dashboard shows the keys without their digits. The function, what works through blocks and what only
        adds have a name each: Dask shares tasks out evenly among workers, and learns how long they take, by the
        name. Names are strings that no other key can equal; function and reader are in the graph once.
        """
        tag = uuid4().hex
        work, total = (f"daskgmm-{name}-{tag}" for name in (type(function).__name__.lower(), "total"))
        names = f"daskgmm-map-{tag}", work, total
        graph: dict[Hashable, Any] = {**blocks.graph, names[0]: Metered(function)}
        span = 1 if blocks.lazy else self.span or self._span(blocks)

        def leaf(first: int, last: int) -> tuple[str, int, int]:
            parts = [list(blocks.parts(index)) for index in range(first, last)]
            # The numbers are no arguments: Dask would take them for keys, of which a user's graph may have such.
            task = (partial(add_up, first, last), names[0], blocks.key, *([parts] if any(parts) else []))
            graph[(work, first, last)] = task
            return work, first, last

        def join(left: tuple[str, int, int], right: tuple[str, int, int]) -> tuple[str, int, int]:
            graph[(total, left[1], right[2])] = (add, left, right)
            return total, left[1], right[2]

        root = tree(0, blocks.n_blocks, span, leaf, join)
        ((found, cost),) = self._evaluate(graph, [root], blocks, names)
        if self.spend:
            self.spend(cost)
        return found  # type: ignore[no-any-return]

    def each(self, rows: Rows, function: Callable[[Block], T], numbers: Sequence[int]) -> list[T]:
        """``function`` of some blocks, each by itself."""
        name = f"daskgmm-each-{uuid4().hex}"
        graph: dict[Hashable, Any] = dict(rows.graph)
        graph |= {(name, index): (function, rows.task(index)) for index in numbers}
        return self._evaluate(graph, [(name, index) for index in numbers], rows, ("", "", ""))

    def answers(self, rows: Rows, function: Callable[[Block], Array], dtype: Any, columns: int | None) -> Array:
        """One answer for each row, of all blocks."""
        values: Array = rows.map(function, dtype=dtype, columns=columns).compute(scheduler=self.get)
        return values

    @property
    @abstractmethod
    def get(self) -> Callable[..., Any]:
        """The scheduler's ``get(graph, keys)``."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many compute at a time."""

    @property
    def threads_each(self) -> int:
        """How many compute at a time in one process, at most."""
        return self.threads

    @abstractmethod
    def hold(self, rows: Rows, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate tasks that may refer to ``rows.graph``; what a graph must hold to refer to their values.

        The values stay where they were computed: in this process, or on a client's workers until the last
        reference to them goes.
        """

    @abstractmethod
    def room(self) -> float:
        """Bytes of rows that may be in memory beside the blocks at work: read ahead, or kept between passes."""

    def ahead(self, blocks: Blocks) -> int:
        """How many more threads than compute read from a store meanwhile."""
        return 0

    @abstractmethod
    def _evaluate(
        self, graph: dict[Hashable, Any], keys: list[Hashable], blocks: Blocks, names: tuple[str, str, str]
    ) -> list[Any]:
        """Values of some keys; the names are those of the function, of the tasks that call it, and of sums."""

    def _span(self, blocks: Blocks) -> int:
        """Blocks per task for blocks that tasks read."""
        threads = self.threads
        wanted = self.task_seconds * threads / (SHARE * max(1, blocks.block_bytes) / BLOCK_RATE)
        most = blocks.n_blocks // (threads if blocks.held else TASKS_PER_THREAD * threads)
        return 1 << int(max(1, min(wanted, most))).bit_length() - 1


def tree(
    first: int, last: int, span: int, leaf: Callable[[int, int], Any], join: Callable[[Any, Any], Any] = add
) -> Any:
    """Leaves of at most ``span`` of the blocks ``first`` to ``last``, joined up the tree from left to right."""
    if last - first <= span:
        return leaf(first, last)
    middle = first + (1 << (last - first - 1).bit_length() - 1)  # after the largest power of two
    left = tree(first, middle, span, leaf, join)
    return join(left, tree(middle, last, span, leaf, join))


def add_up(
    first: int, last: int, function: Callable[[Any], M], read: Callable[..., Any], parts: Sequence[Any] = ()
) -> M:
    """``function`` of blocks ``first`` to ``last``, read in turn and added up as the tree above them is."""

    def leaf(index: int, _: int) -> M:
        return function(read(index, *(parts[index - first] if parts else ())))

    found: M = tree(first, last, 1, leaf)
    return found
