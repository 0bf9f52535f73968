"""Several blocks in memory at once, their rows dealt out at random: mini-batches of data stored in any order."""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from typing import Any, ClassVar

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.block import Block
from daskgmm.compute.cost import FREE
from daskgmm.compute.engine import Engine
from daskgmm.compute.rows import Rows
from daskgmm.compute.sources.base import MOST_BLOCKS

PART_BYTES = 16 * 2**20  # of rows, for each task of a mini-batch
PARTS = 4  # tasks of a mini-batch, where there are blocks enough
PIECES = 256  # blocks from all over the data in a window that does not hold all, where its chunks allow
GROUP = 32  # consecutive rows of which every round deals one


@dataclass(frozen=True)
class Selection:
    """Which rows to visit: those from ``first`` on and before ``last``, without those numbered ``out``.

    Numbers as in a row sample: of the row, or of its block and its place there where sizes are unknown.
    """

    first: int = 0
    last: float = math.inf
    out: tuple[int, ...] = ()

    def blocks(self, rows: Rows) -> list[int]:
        """Numbers of the blocks that hold such rows; all where their sizes are unknown."""
        if rows.n_rows is None:
            return list(range(rows.n_blocks))
        spans = enumerate(zip(rows.x.offsets, rows.x.chunks, strict=True))
        return [i for i, (start, size) in spans if start < self.last and start + size > self.first]

    def of(self, block: Block) -> Array:
        """Which rows of the block to visit: those of positive weight."""
        start = block.first_number
        visited: Array = np.ones(len(block.x), bool) if block.weight is None else block.weight > 0
        if block.first_row is not None:
            visited[: max(0, self.first - start)] = False
            visited[int(min(len(visited), max(0, self.last - start))) :] = False
        out = np.asarray(self.out, dtype=np.int64) - start
        visited[out[(out >= 0) & (out < len(visited))]] = False
        return visited


@dataclass(frozen=True, eq=False)
class Hand:
    """Rows of some blocks in random order, as one block: what one task of a mini-batch draws from."""

    block: Block

    def __sizeof__(self) -> int:
        """Bytes of the rows: what Dask weighs before it moves a hand to another worker."""
        return int(self.block.nbytes)


@dataclass(frozen=True, eq=False)
class MiniBatch:
    """Blocks of one mini-batch: of every hand a share, which the reader cuts out."""

    hands: tuple[Any, ...]  # those in this process, or the keys of others
    lazy: Mapping[str, Any]  # where hands lie that are not in this process, by their keys
    reader: Callable[[int, Hand], Block]

    n_blocks: int = field(init=False)
    held: bool = field(init=False)
    graph: Mapping[str, Any] = field(init=False)
    key: str = field(init=False)
    waits: ClassVar[bool] = False
    block_bytes: ClassVar[int] = 0

    def __post_init__(self) -> None:
        key = f"daskgmm-hands-{uuid.uuid4().hex}"
        graph = {**self.lazy, key: self.reader}
        vars(self).update(n_blocks=len(self.hands), held=not self.lazy, graph=graph, key=key)

    def parts(self, index: int) -> tuple[Any, ...]:
        """One hand: one that is here goes along with its task; a key of its own would cost as much as a task."""
        return (self.hands[index],)


@dataclass(frozen=True, eq=False)
class Window:
    """Blocks that are held in memory, here or on a cluster's workers, dealt into hands as in `MiniBatch`."""

    hands: tuple[Any, ...]
    lazy: Mapping[str, Any]
    n_rows: int  # in all of them

    @classmethod
    def load(cls, engine: Engine, rows: Rows, blocks: Sequence[int], chosen: Selection, seed: int) -> "Window":
        """Read blocks, each once, and deal the chosen rows; ``seed`` fixes their order."""
        name = f"daskgmm-{uuid.uuid4().hex}"
        # How many tasks share the blocks follows from the data, never from the workers.
        wanted = PARTS if rows.n_rows is None else max(PARTS, int(len(blocks) * rows.mean_bytes // PART_BYTES))
        wanted = 1 << wanted.bit_length() - 1  # a power of two falls into equal subtrees
        tasks = {
            f"{name}-{i}": (partial(_deal, chosen, seed), *(rows.task(block) for block in part))
            for i, part in enumerate(np.array_split(np.asarray(blocks), min(len(blocks), wanted)))
        }
        held = engine.hold(rows, tasks)
        lazy = {key: hand for key, hand in held.items() if not isinstance(hand, Hand)}
        hands = tuple(key if key in lazy else hand for key, hand in held.items())
        whole = MiniBatch(hands, lazy, _whole)
        return cls(hands, lazy, engine.reduce(whole, _count))

    def batch(self, first: int, last: int) -> MiniBatch:
        """The rows ``first`` to ``last`` of the window, in the order in which they were dealt."""
        return MiniBatch(self.hands, self.lazy, partial(_share, first, last, self.n_rows))


def finer(rows: Rows, window_bytes: int) -> Rows:
    """The same rows in blocks of which many fit in a window, where one does not hold all and they can be cut."""
    if not rows.total_bytes > window_bytes:  # also of an unknown size
        return rows
    # Half of what can be planned: whole chunks fill a block to half of its size at least.
    chunks = rows.x.plan(max(window_bytes // PIECES, int(rows.total_bytes * 2 // MOST_BLOCKS)))
    if len(chunks) <= rows.n_blocks:
        return rows
    return rows.cut(chunks)


def windows(rows: Rows, chosen: Selection, window_bytes: int, seed: int) -> list[list[int]]:
    """Cut the blocks, in random order, into windows that fit in ``window_bytes``; one block at least in each.

    Half of the windows hold one of every two neighbouring blocks, a quarter one of every four, and so on: data
    that is sorted, or that changes from block to block, looks alike in any part of the pass.
    """
    blocks = chosen.blocks(rows)
    if not blocks:
        return []
    # Without known sizes, whatever made the blocks made them to be held by a worker.
    fit = PARTS if rows.n_rows is None else max(1, int(window_bytes // max(rows.mean_bytes, 1)))
    count = -(-len(blocks) // fit)
    order = _spread(np.array(blocks), np.random.Generator(np.random.Philox(key=[seed, 0])))
    return [sorted(part.tolist()) for part in np.array_split(order, count)]


def _spread(blocks: Array, random: np.random.Generator) -> Array:
    """Blocks in a random order in which every half, quarter, ... takes evenly from their range."""
    if len(blocks) < 2:
        return blocks
    pairs = len(blocks) // 2
    coin = random.integers(2, size=pairs)
    places = 2 * np.arange(pairs)
    first, second = blocks[places + coin], blocks[places + 1 - coin]
    odd = blocks[2 * pairs :]
    return np.concatenate([_spread(first, random), _spread(np.concatenate([second, odd]), random)])


def _deal(chosen: Selection, seed: int, *blocks: Block) -> Hand:
    """The chosen rows of some blocks in the order of `_shuffled`."""
    x = np.concatenate([block.x for block in blocks]) if len(blocks) > 1 else blocks[0].x
    visited = np.concatenate([chosen.of(block) for block in blocks])
    order = _shuffled(int(visited.sum()), np.random.Generator(np.random.Philox(key=[seed, 1 + blocks[0].index])))
    if len(order) < len(visited):
        order = np.flatnonzero(visited)[order]
    weight = None
    if any(block.weight is not None for block in blocks):
        weights = [np.ones(len(block.x)) if block.weight is None else block.weight for block in blocks]
        weight = np.concatenate(weights)[order]
    columns = {name: np.concatenate([b.columns[name] for b in blocks])[order] for name in blocks[0].columns}
    cost = reduce(add, (block.cost for block in blocks))
    return Hand(Block(x.take(order, axis=0), 0, None, weight, columns, blocks[0].partial, cost=cost))


def _shuffled(n: int, random: np.random.Generator) -> Array:
    """Row numbers below ``n`` in random order, for a fraction of what a full shuffle costs.

    Every round visits all groups of consecutive rows, in one random order, and takes one row of each, beginning at
    a random one.
    """
    groups = -(-n // GROUP)
    at = random.permutation(groups)
    offset = random.integers(GROUP, size=groups)
    order = at * GROUP + (offset + np.arange(GROUP)[:, None]) % GROUP
    order = order.ravel()
    return order[order < n] if n % GROUP else order


def _whole(index: int, hand: Hand) -> Block:
    """A hand as one block, at what the blocks cost that it is of."""
    return replace(hand.block, index=index)


def _share(first: int, last: int, total: int, index: int, hand: Hand) -> Block:
    """A hand's share of rows ``first`` to ``last`` of ``total`` in all hands, as one block."""
    n = len(hand.block.x)
    return replace(hand.block.take(slice(n * first // total, n * last // total)), index=index, cost=FREE)


def _count(block: Block) -> int:
    return len(block.x)
