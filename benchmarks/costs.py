"""What a pass over a cluster costs: counts that follow from the rows, times seconds that were measured.

The measured seconds are those of one thread, one scheduler and one driver; `rates.py` takes them. Beyond the
machine that they were taken on the model assumes that workers do not disturb each other, that the scheduler needs
as long for a task whatever the number of workers, and the bandwidths that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from daskgmm.compute.cluster import Cluster
from daskgmm.compute.engine import SHARE


@dataclass(frozen=True)
class Line:
    """Seconds for a graph: base + task · tasks + block · blocks."""

    base: float
    task: float
    block: float

    def __call__(self, tasks: float, blocks: float) -> float:
        return self.base + self.task * tasks + self.block * blocks

    @classmethod
    def through(cls, samples: Sequence[tuple[float, float, float]]) -> Line:
        """Least squares of the relative errors, no coefficient below 0; a sample is tasks, blocks, seconds."""
        tasks, blocks, seconds = np.array(samples).T
        counts = np.stack([np.ones_like(tasks), tasks, blocks], axis=1)
        return cls(*nnls(counts / seconds[:, None], np.ones_like(seconds))[0])


@dataclass(frozen=True)
class Cut:
    """Equal blocks, as `Engine` looks at them to choose the size of a task."""

    n_blocks: int
    block_bytes: int
    held: bool = False


@dataclass(frozen=True, kw_only=True)
class Planned(Cluster):
    """The library's rule for the size of a task, on a cluster that is not there."""

    client: Any = None  # type: ignore[misc]  # as in the library, of each engine its own
    cluster_threads: int

    @property
    def threads(self) -> int:
        """Of all workers."""
        return self.cluster_threads

    def blocks_per_task(self, cut: Any) -> int:
        """As `Engine.reduce` would choose it for a `Cut`."""
        return self._span(cut)


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass; the parts follow each other and add up.

    Attributes
    ----------
    reading, computing : the workers' own work, evenly shared.
    uneven : while the last tasks run and other threads have none.
    driver : the graph is built and sent, and parameters are updated.
    scheduler : it takes the graph in, and hands out and collects tasks while workers wait for it.
    network : parameters on their way to the workers, statistics up the tree.
    """

    span: int
    tasks: int
    reading: float
    computing: float
    uneven: float
    driver: float
    scheduler: float
    network: float

    PARTS = ("reading", "computing", "uneven", "driver", "scheduler", "network")

    @property
    def seconds(self) -> float:
        """Of the whole pass."""
        return float(sum(getattr(self, part) for part in self.PARTS))

    @property
    def limit(self) -> str:
        """The part that takes longest."""
        return max(self.PARTS, key=lambda part: float(getattr(self, part)))

    @property
    def scheduling(self) -> float:
        """Share of the pass in which no worker reads or computes because work is being handed out or collected."""
        return (self.driver + self.scheduler + self.network) / self.seconds


@dataclass(frozen=True)
class CostModel:
    """Seconds of a pass over any number of rows, on any number of workers.

    Attributes
    ----------
    row_bytes, statistics_bytes : of a row as stored; of a task's result, as it is sent.
    byte_seconds : a thread reads and decodes a byte.
    row_seconds : a thread's E-step of a row.
    merge_seconds : a thread adds two results.
    update_seconds : the driver's M-step.
    driver : seconds of the driver until a graph is sent, by its tasks and blocks.
    scheduler : seconds of the scheduler until the first task runs, likewise.
    hand_seconds : scheduler's work for a task while workers compute.
    idle_seconds : a worker's thread waits between two tasks.
    hop_seconds : a small result reaches another worker, and the task that waits for it runs.
    network, store : bytes a second that a worker gets from others, and from the store; by default that is local.
    """

    row_bytes: int
    statistics_bytes: int
    byte_seconds: float
    row_seconds: float
    merge_seconds: float
    update_seconds: float
    driver: Line
    scheduler: Line
    hand_seconds: float
    idle_seconds: float
    hop_seconds: float
    network: float
    store: float = math.inf

    def predicted(self, rows: float, workers: int, threads: int = 1, block_bytes: int = 2**26) -> Pass:
        """The parts of a pass over rows in blocks of ``block_bytes``, on workers of some threads each.

        With B blocks in L = ⌈B / span⌉ tasks and the L − 1 tasks that add their results up,

        - reading = B · block_bytes · (byte_seconds + threads / store) / (workers · threads),
        - computing = B · (rows of a block · row_seconds + merge_seconds) / (workers · threads),
        - uneven = what a thread that has ⌈L / (workers · threads)⌉ of the tasks needs beyond that,
        - driver and scheduler: their lines at 2L − 1 tasks and B blocks; the M-step; idle_seconds between the
          tasks of a thread or, where that is more, what (2L − 1) · hand_seconds exceeds the work of a thread by,
        - network = (⌈log₂ L⌉ + ⌈log₂ workers⌉) · (hop_seconds + statistics_bytes / network)
          + ⌈log₂ L⌉ · merge_seconds: each sum waits for its slower half; parameters are as large as statistics.
        """
        block_rows = min(rows, max(1, block_bytes // self.row_bytes))
        blocks, n_threads = math.ceil(rows / block_rows), workers * threads
        cut = Cut(blocks, int(block_rows * self.row_bytes))
        span = Planned(cluster_threads=n_threads).blocks_per_task(cut)
        leaves = math.ceil(blocks / span)
        tasks, levels = 2 * leaves - 1, (leaves - 1).bit_length()
        read = block_rows * self.row_bytes * (self.byte_seconds + threads / self.store)
        compute = block_rows * self.row_seconds + self.merge_seconds
        share = rows / block_rows / n_threads  # blocks for each thread; the last one is short
        longest = max(share, min(math.ceil(leaves / n_threads) * span, blocks))
        work = longest * (read + compute)
        rounds = tasks / n_threads
        hops = levels + (workers - 1).bit_length()
        return Pass(
            span=span,
            tasks=tasks,
            reading=share * read,
            computing=share * compute,
            uneven=(longest - share) * (read + compute),
            driver=self.driver(tasks, blocks) + self.update_seconds,
            scheduler=self.scheduler(tasks, blocks)
            + max(rounds * self.idle_seconds, tasks * self.hand_seconds - work),
            network=hops * (self.hop_seconds + self.statistics_bytes / self.network) + levels * self.merge_seconds,
        )

    def least_rows(self, workers: int, threads: int = 1, block_bytes: int = 2**26, share: float = SHARE) -> float:
        """Rows, a block for each thread at least, from which on scheduling stays below a share; maybe infinity."""
        sizes = np.geomspace(workers * threads * block_bytes // self.row_bytes, 1e15, 400)
        above = [self.predicted(n, workers, threads, block_bytes).scheduling > share for n in sizes]
        last = max((i for i, is_above in enumerate(above) if is_above), default=-1)
        return float(sizes[last + 1]) if last + 1 < len(sizes) else math.inf
