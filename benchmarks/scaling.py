"""Is the cost linear in rows, and shared among workers? What do queries hold? What would a large cluster need?

    python benchmarks/scaling.py                  # all sections
    python benchmarks/scaling.py workers model    # some

linear: time per row of an iteration for ten times the rows. workers: one thread against two, and one process of a
local cluster against two, over the same persisted rows. memory: peak of lazy queries for ten times the rows.
model: the cost model of `costs.py` from measured rates, its predictions beside measured passes. clusters: what it
says of 10 to 1000 workers.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from common import Peer, answered, heading, start, write_rows
from costs import CostModel, Line
from peers import arguments, peak_mib, timed
from rates import cluster_of, model_of, numerics, passes, scheduling, transfers

from daskgmm import GaussianMixture


def threaded(path: Path, n: int, k: int, threads: int, repeats: int) -> float:
    """Seconds of an iteration over the first n rows, in a process of its own."""
    peer = Peer("daskgmm", threads=threads)
    try:
        answer = answered(peer, "iterations", path, n, k, "full", repeats=repeats)
    finally:
        peer.close()
    if "error" in answer:
        raise SystemExit(answer["error"])
    return float(answer["seconds"])


def clustered(n: int, d: int, k: int, workers: int, repeats: int) -> float:
    """Seconds of an iteration on worker processes of one thread each, over rows that lie in their memory."""
    with cluster_of(workers) as client:
        rows = da.random.default_rng(0).normal(size=(n, d), chunks=(-(-n // 16), d)).persist()
        client.rebalance(rows) if workers > 1 else None
        begin, seconds = arguments(start(d, k, "full"), "full"), []

        def fit(iterations: int) -> None:
            GaussianMixture(max_iter=iterations, **begin).fit(rows)

        fit(1)
        for _ in range(repeats):
            seconds.append((timed(lambda: fit(5))[0] - timed(lambda: fit(2))[0]) / 3)
    return sorted(seconds)[len(seconds) // 2]


def query_memory(query: str, n: int, d: int, k: int) -> float:
    """MiB that a lazy query adds to the peak of a process that has answered for one small block."""
    command = [sys.executable, __file__, "--query", query, "--shape", f"{n},{d},{k}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def answer_lazily(query: str, n: int, d: int, k: int) -> float:
    """The body of `query_memory`: rows are made block by block, answers are added up."""
    model = GaussianMixture.from_parameters(*start(d, k, "full").values())

    def peak_after(rows: int) -> float:
        x = da.random.default_rng(0).normal(size=(rows, d), chunks=(50_000, d))
        getattr(model, query)(x).sum().compute(num_workers=2)
        return peak_mib()

    small = peak_after(1000)
    return peak_after(n) - small


def linear(options: argparse.Namespace) -> Iterator[str]:
    """Time per row for ten times the rows, two threads."""
    with tempfile.TemporaryDirectory() as folder:
        for d, k in SMALL:
            n, path = options.rows, write_rows(Path(folder) / "rows.npy", 10 * options.rows, d, k)
            few, many = (threaded(path, m, k, 2, options.repeats) / m * 1e9 for m in (n, 10 * n))
            yield f"d={d} k={k}: {few:.2f} ns a row at {n:,} rows, {many:.2f} at {10 * n:,}: {many / few:.3f}"


def shared(options: argparse.Namespace) -> Iterator[str]:
    """One thread against two, one worker process against two."""
    n = 2 * options.rows
    with tempfile.TemporaryDirectory() as folder:
        for d, k in SMALL:
            path = write_rows(Path(folder) / "rows.npy", n, d, k)
            one, two = (threaded(path, n, k, threads, options.repeats) for threads in (1, 2))
            yield f"d={d} k={k}: {one:.3f} s on one thread, {two:.3f} on two: {one / two:.2f}x"
    one, two = (clustered(n, 16, 16, workers, options.repeats) for workers in (1, 2))
    yield f"d=16 k=16: {one:.3f} s on one worker process, {two:.3f} on two: {one / two:.2f}x"


def memory(options: argparse.Namespace) -> Iterator[str]:
    """Peak memory of lazy queries for ten times the rows."""
    n = options.rows
    for query in ("predict", "score_samples"):
        small, large = (query_memory(query, m, 16, 16) for m in (n, 10 * n))
        yield f"{query}: {small:.0f} MiB above a small answer at {n:,} rows, {large:.0f} at {10 * n:,}"


def stored_rows(folder: Path, n: int, d: int, k: int, chunk_bytes: int) -> zarr.Array[Any]:
    """Rows in a Zarr store of the default codec, each chunk a block; in the page cache."""
    rows = np.load(write_rows(folder / "rows.npy", n, d, k), mmap_mode="r")
    chunks = (chunk_bytes // (8 * d), d)
    return zarr.create_array(folder / f"{n}-{d}-{k}-{chunk_bytes}", data=rows, chunks=chunks)


def measured(store: zarr.Array[Any], k: int, block: int, workers: int, repeats: int) -> tuple[float, float]:
    """Seconds of a pass over a store that is read each time, and the share of it in which a worker has no task."""
    begin = arguments(start(store.shape[1], k, "full"), "full")
    with cluster_of(workers) as client, dask.config.set({"daskgmm.memory-limit": 0}):

        def fit(iterations: int) -> None:
            GaussianMixture(max_iter=iterations, block_size=block, **begin).fit(store)

        fit(1)
        _, *seen = passes(client, lambda: fit(repeats + 1))  # the survey goes before
    walls = [later.begin - one.begin for one, later in itertools.pairwise(seen)]
    idle = [1 - one.busy / workers / wall for one, wall in zip(seen, walls, strict=False)]
    return float(np.median(walls)), float(np.median(idle))


def modelled(options: argparse.Namespace) -> Iterator[str]:
    """The cost model's rates here, and its predictions beside measured passes."""
    with tempfile.TemporaryDirectory() as name:
        folder, repeats = Path(name), options.repeats
        graphs, links = scheduling(folder, repeats), transfers(repeats)
        yield from told_rates(graphs, links)
        yield from checked(folder, repeats, lambda numbers: model_of(numbers, graphs, links))


def clusters(options: argparse.Namespace) -> Iterator[str]:
    """What the cost model says of clusters that are not there, from rates measured here; d=16, k=16, full."""
    with tempfile.TemporaryDirectory() as name:
        folder, repeats = Path(name), options.repeats
        graphs, links = scheduling(folder, repeats), transfers(repeats)
        store = stored_rows(folder, 4 * LARGE // (8 * 16), 16, 16, LARGE)
        model = model_of(numerics(store, 16, LARGE, repeats), graphs, links)
    yield from told_rates(graphs, links)
    yield f"In blocks of 64 MiB a thread reads {1e-6 / model.byte_seconds:.0f} MB/s and takes"
    yield f"{model.row_seconds * 1e9:.0f} ns a row for the E-step; workers have {THREADS} threads."
    yield f"Results have {model.statistics_bytes:,} bytes; two are added in {model.merge_seconds * 1e6:.0f} µs."
    yield f"The M-step takes {model.update_seconds * 1e3:.2f} ms of the driver.\n"
    yield from beyond(model)
    yield from least(model)


def told_rates(graphs: tuple[Line, Line, float, float], links: tuple[float, float]) -> Iterator[str]:
    """The measured rates that no mixture enters into."""
    driver, scheduler, hand, idle = graphs
    for title, line in (("driver builds and sends a graph", driver), ("scheduler takes it in", scheduler)):
        each = f"{line.task * 1e6:.0f} µs a task + {line.block * 1e6:.0f} µs a block"
        yield f"{title}: {line.base * 1e3:.1f} ms + {each}"
    yield f"for each task that runs: scheduler {hand * 1e6:.0f} µs, thread without a task {idle * 1e6:.0f} µs"
    yield f"between workers: a small result {links[0] * 1e3:.1f} ms, {links[1] / 1e9:.1f} GB/s\n"


def checked(folder: Path, repeats: int, model_for: Callable[[dict[str, Any]], CostModel]) -> Iterator[str]:
    """Predicted and measured passes on one and two workers of a thread each."""
    columns = "d, k | rows | block | workers | blocks a task | ms a block | predicted, s | measured, s | ratio"
    yield f"| {columns} | scheduling, predicted | without a task, measured |\n|" + " --- |" * 11
    for d, k, n in CHECKED:
        for block in BLOCKS:
            store = stored_rows(folder, n, d, k, block)
            model = model_for(numerics(store, k, block, repeats))
            for workers in (1, 2):
                told = model.predicted(n, workers, 1, block)
                wall, idle = measured(store, k, block, workers, repeats)
                each = wall * 1e3 / (n * 8 * d / block)
                yield (
                    f"| {d}, {k} | {n:,} | {block >> 20} MiB | {workers} | {told.span} | {each:.2f} "
                    f"| {told.seconds:.3f} | {wall:.3f} | {wall / told.seconds:.2f} "
                    f"| {told.scheduling:.1%} | {idle:.1%} |"
                )


def beyond(model: CostModel) -> Iterator[str]:
    """Pass times on clusters that are not there, and what limits them."""
    rates = " | ".join(f"{rate / 1e9:.0f} GB/s: pass, s | limit | scheduling" for rate in NETWORKS)
    yield f"| rows | workers | blocks a task | tasks | {rates} |\n|" + " --- |" * (4 + 3 * len(NETWORKS))
    for rows in (10**9, 10**10, 10**11, 10**12):
        for workers in CLUSTERS:
            told = [linked(model, rate).predicted(rows, workers, THREADS) for rate in NETWORKS]
            cells = " | ".join(f"{p.seconds:,.3g} | {p.limit} | {p.scheduling:.1%}" for p in told)
            yield f"| {rows:.0e} | {workers} | {told[0].span} | {told[0].tasks:,} | {cells} |"


def least(model: CostModel) -> Iterator[str]:
    """The least work of a worker from which on scheduling takes less than 5 % of a pass."""
    yield "\nScheduling takes less than 5 % of a pass from so many rows a worker on:\n"
    columns = " | ".join(f"{rate / 1e9:.0f} GB/s, blocks of {b >> 20} MiB" for b in LARGER for rate in NETWORKS)
    yield f"| workers | {columns} |\n|" + " --- |" * (1 + len(LARGER) * len(NETWORKS))
    for workers in CLUSTERS:
        cells = []
        for block in LARGER:
            for rate in NETWORKS:
                rows = linked(model, rate).least_rows(workers, THREADS, block)
                each, told = (
                    rows / workers,
                    linked(model, rate).predicted(min(rows, 1e15), workers, THREADS, block),
                )
                size = f"{each:.1e} ({each * model.row_bytes / 1e9:.2g} GB, {told.seconds:.2g} s a pass)"
                cells.append(f"never ({told.scheduling:.0%})" if math.isinf(rows) else size)
        yield f"| {workers} | {' | '.join(cells)} |"


def linked(model: CostModel, rate: float) -> CostModel:
    """The same machines, each with so many bytes a second from the others and from the store."""
    return replace(model, network=rate, store=rate)


SMALL = ((4, 8), (16, 16))
CHECKED = ((4, 8, 2**23), (32, 32, 2**19))  # features, components, rows: a cheap E-step, and a dear one
BLOCKS = (2**20, 2**24)
LARGE = 2**26  # bytes: the default block
LARGER = (LARGE, 2**29)
THREADS = 2
CLUSTERS = (10, 100, 1000)
NETWORKS = (1e9, 1e10)  # bytes a second and worker, between workers and from the store
SECTIONS = {"linear": linear, "workers": shared, "memory": memory, "model": modelled, "clusters": clusters}


def main() -> None:
    """Print the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = f"of {', '.join(SECTIONS)}; all without"
    parser.add_argument("section", nargs="*", choices=[*SECTIONS, []], metavar="section", help=told)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the smaller case")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--query", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.query:
        print(answer_lazily(options.query, *map(int, options.shape.split(","))))
        return
    print(heading(2))
    for name in options.section or SECTIONS:
        print(f"\n{name}: {SECTIONS[name].__doc__}\n")
        for line in SECTIONS[name](options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
