"""Is the cost linear in rows, and shared among workers? And does the memory of queries depend on the rows?

    python benchmarks/scaling.py

Time per row of an iteration for ten times the rows; one thread against two, and one process of a local cluster
against two, over the same persisted rows; peak memory of lazy queries for ten times the rows.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
from common import Peer, answered, heading, start, write_rows
from distributed import Client, LocalCluster
from peers import arguments, timed

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
    local = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
    with local as cluster, Client(cluster) as client:
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
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    small = peak_after(1000)
    return peak_after(n) - small


def report(options: argparse.Namespace) -> None:
    """Print a line for each question."""
    n = options.rows
    print(heading(2))
    with tempfile.TemporaryDirectory() as folder:
        for d, k in ((4, 8), (16, 16)):
            path = write_rows(Path(folder) / "rows.npy", 10 * n, d, k)
            few, many = (threaded(path, m, k, 2, options.repeats) / m * 1e9 for m in (n, 10 * n))
            print(f"d={d} k={k}: {few:.2f} ns a row at {n:,} rows, {many:.2f} at {10 * n:,}: {many / few:.3f}")
            one, two = (threaded(path, 2 * n, k, threads, options.repeats) for threads in (1, 2))
            print(f"d={d} k={k}: {one:.3f} s on one thread, {two:.3f} on two: {one / two:.2f}x", flush=True)
    one, two = (clustered(2 * n, 16, 16, workers, options.repeats) for workers in (1, 2))
    print(f"d=16 k=16: {one:.3f} s on one worker process, {two:.3f} on two: {one / two:.2f}x", flush=True)
    for query in ("predict", "score_samples"):
        small, large = (query_memory(query, m, 16, 16) for m in (n, 10 * n))
        print(
            f"{query}: {small:.0f} MiB above a small answer at {n:,} rows, {large:.0f} at {10 * n:,}", flush=True
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the smaller case")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--query", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.query:
        print(answer_lazily(options.query, *map(int, options.shape.split(","))))
    else:
        report(options)


if __name__ == "__main__":
    main()
