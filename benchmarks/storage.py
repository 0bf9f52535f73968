"""What reading costs a pass over Zarr: against a pass that only reads, and one over the same rows in memory.

    python benchmarks/storage.py

Two stores: zstd chunks in the page cache, where decoding and the E-step share the cores, to be compared with the
sum of the two; uncompressed chunks behind the latency of a remote store, to be compared with the larger one. The
latency is such that reading alone takes as long as computing alone: the hardest case. The library has memory to
read ahead, and none to keep rows between passes (``daskgmm.memory-limit``), so that each pass reads; the last
lines say what it gains where it may.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr
from common import heading, start, write_rows
from peers import daskgmm
from zarr.storage import LocalStore
from zarr.testing.store import LatencyStore

from daskgmm.compute.rows import as_rows
from daskgmm.compute.threads import AHEAD, READING

COUNTS = (2, 5)


def median_seconds(action: Callable[[], Any], repeats: int) -> float:
    """Of several runs."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


def fitted_pass(x: Any, begin: dict[str, Any], threads: int, repeats: int) -> float:
    """Seconds of one EM pass, from the difference of two iteration counts."""
    fit, seconds = daskgmm(x, begin, "full", threads), []
    fit(1)
    for _ in range(repeats):
        short, long = (median_seconds(partial(fit, count), 1) for count in COUNTS)
        seconds.append((long - short) / (COUNTS[1] - COUNTS[0]))
    return float(np.median(seconds))


def reading_pass(array: Any, threads: int, repeats: int) -> float:
    """Seconds to read and decode every chunk once, on plain threads, without the library."""
    firsts = range(0, array.shape[0], array.chunks[0])
    with ThreadPoolExecutor(threads) as pool:
        return median_seconds(lambda: [*pool.map(lambda i: array[i : i + array.chunks[0]].shape, firsts)], repeats)


def main() -> None:
    """Print a line for each store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", default="2000000,16,16", help="rows, features, components")
    parser.add_argument("--chunk-mib", type=float, default=8)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    n, d, k = map(int, options.shape.split(","))
    begin = start(d, k, "full")
    print(heading(options.threads))
    print(f"{n:,} rows, {d} features, {k} components, chunks of {options.chunk_mib:g} MiB; seconds of a pass")
    print("| store | read | in memory | both | to compare with | ratio |\n|" + " --- |" * 6)
    gains: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        x = np.array(np.load(write_rows(Path(folder) / "rows.npy", n, d, k)))
        memory = fitted_pass(x, begin, options.threads, options.repeats)
        chunks = (int(options.chunk_mib * 2**20 / (8 * d)), d)
        for name in ("zstd", "latency"):
            store: Any = LocalStore(Path(folder) / name)
            compressors: Any = "auto" if name == "zstd" else None
            zarr.create_array(store, data=x, chunks=chunks, compressors=compressors)
            if name == "latency":
                wait = memory * options.threads / -(-n // chunks[0])
                store, name = LatencyStore(store, get_latency=wait), f"latency {1000 * wait:.0f} ms"
            array = zarr.open_array(store, mode="r")
            read = reading_pass(array, options.threads, options.repeats)
            ahead = READING * AHEAD * options.threads * as_rows(array).block_bytes
            dask.config.set({"daskgmm.memory-limit": ahead})
            both = fitted_pass(array, begin, options.threads, options.repeats)
            with dask.config.set({"daskgmm.memory-limit": None}):
                once = fitted_pass(array, begin, options.threads, options.repeats)
            bound = read + memory if name == "zstd" else max(read, memory)
            print(
                f"| {name} | {read:.3f} | {memory:.3f} | {both:.3f} | {bound:.3f} | {both / bound:.2f} |",
                flush=True,
            )
            gains.append(f"{name}: {once:.3f} s a pass where rows stay in memory, {both / once:.2f} times as fast")
    print("\n" + "\n".join(gains))


if __name__ == "__main__":
    main()
