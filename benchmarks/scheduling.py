"""What does a pass cost the scheduler of a cluster, beside an empty Dask graph of the same tasks and edges?

    python benchmarks/scheduling.py

Blocks that take no time, of a store that is not read, on one worker process of two threads. Also the memory of
this process after 10 passes and after 100; the scheduler is elsewhere.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import heading
from dask.core import get_dependencies
from dask.highlevelgraph import HighLevelGraph
from distributed import Client
from peers import timed
from rates import Blank

from daskgmm.compute.cluster import Cluster
from daskgmm.compute.cost import FREE, Bundle
from daskgmm.compute.rows import as_rows


def nothing(*_: Any) -> int:
    """An empty task."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Taken(Cluster):
    """Keeps the graph of a pass, in place of evaluating it."""

    passes: list[Any] = field(default_factory=list)

    def _evaluate(self, graph: Any, keys: Any, blocks: Any, names: tuple[str, str, str]) -> list[Any]:
        self.passes.append((graph, keys, names))
        return [Bundle((0, FREE)) for _ in keys]


def empty(client: Client, span: int | None, rows: Any) -> tuple[dict[Any, Any], Hashable, int]:
    """The tasks and edges of a pass, with nothing in them, the last key, and how many blocks a task has."""
    engine = Taken(client=client, span=span)
    engine.reduce(rows, nothing)
    ((graph, (root,), (_, work, _)),) = engine.passes
    found = {key: sorted(get_dependencies(graph, key), key=str) for key in graph}
    sizes = [key[2] - key[1] for key in graph if isinstance(key, tuple) and key[0] == work]
    return {key: (nothing, *on) if on else 0 for key, on in found.items()}, root, max(sizes)


def resident() -> float:
    """MiB of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def measure(client: Client, rows: Any, span: int | None, repeats: int) -> str:
    """A line: both in turn, so that a machine that drifts hits both alike; medians."""
    engine = Cluster(client=client, span=span)
    ours, theirs = [], []
    for number in range(repeats + 1):
        graph, root, size = empty(client, span, rows)
        layered = HighLevelGraph.from_collections(f"empty-{number}", graph)
        theirs.append(timed(partial(client.get, layered, root))[0])
        ours.append(timed(lambda: engine.reduce(rows, nothing))[0])
    per_block = [float(np.median(t[1:])) / rows.n_blocks * 1e3 for t in (ours, theirs)]
    return (
        f"span {size}: {per_block[0]:.3f} ms a block, an empty graph of {len(graph)} tasks "
        f"{per_block[1]:.3f}: {per_block[0] / per_block[1]:.2f}x"
    )


def report(options: argparse.Namespace, client: Client, folder: str) -> None:
    """Print a line for each question."""
    array = zarr.create_array(f"{folder}/x.zarr", shape=(options.blocks, 1), chunks=(1, 1), dtype="f8")
    rows = as_rows(Blank(array.async_array), block_size=8, missing_chunks="fill")
    client.wait_for_workers(1, timeout=60)
    print(heading(2))
    for span in (1, 16, None):
        print(measure(client, rows, span, options.repeats), flush=True)
    engine, held = Cluster(client=client, span=1), []
    for _ in range(100):
        engine.reduce(rows, nothing)
        held.append(resident())
    print(f"memory of the driver: {held[9]:.0f} MiB after 10 passes, {held[99]:.0f} after 100")


def main() -> None:
    """Start a scheduler and a worker in processes of their own, which get their limits from the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/scheduler.json"
        dask, place = [sys.executable, "-m", "dask"], ["--scheduler-file", file, "--no-dashboard"]
        commands = [[*dask, "scheduler", *place, "--port", "0"], [*dask, "worker", *place, "--nthreads", "2"]]
        # The worker imports `Blank` from beside this file.
        path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH"))))
        how: Any = {"cwd": folder, "stderr": subprocess.DEVNULL, "env": {**os.environ, "PYTHONPATH": path}}
        running = [subprocess.Popen(command, **how) for command in commands]
        try:
            with Client(scheduler_file=file, timeout=60) as client:
                report(options, client, folder)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(timeout=30)


if __name__ == "__main__":
    main()
