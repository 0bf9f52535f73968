"""The share of the machine's matrix-multiply peak that a fit reaches, full covariances.

    python benchmarks/machine.py

An iteration counts 2·2·n·K·F operations with F = 1 + d + d(d + 1)/2: logits and sums as two matrix products.
The second figure is the same fit with 512-bit code, where the processor has it: Numba is told from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Peer, answered, heading, write_rows
from threadpoolctl import threadpool_limits

CELLS = [(d, k) for d in (16, 32, 64, 128) for k in (16, 32, 64)]


def peak(dtype: Any, threads: int, size: int) -> float:
    """Best GFLOP/s of a square matrix product."""
    a = np.random.default_rng(0).random((size, size)).astype(dtype)
    out, best = np.empty_like(a), np.inf
    with threadpool_limits(threads):
        for _ in range(6):
            begun = time.perf_counter()
            np.matmul(a, a, out=out)
            best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best / 1e9


def operations(n: int, d: int, k: int) -> float:
    """Of one iteration."""
    return 4.0 * n * k * (1 + d + d * (d + 1) / 2)


def wide(cache: str) -> dict[str, str]:
    """Environment in which Numba emits 512-bit code: the processor's own features, without the preference."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten().split(",")
    features = [f for f in features if f.lstrip("+-") != "prefer-256-bit"] + ["-prefer-256-bit"]
    return {
        "NUMBA_CPU_NAME": llvm.get_host_cpu_name(),
        "NUMBA_CPU_FEATURES": ",".join(features),
        "NUMBA_CACHE_DIR": cache,
    }


def main() -> None:
    """Print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", nargs="+", metavar="D,K", help="only these")
    parser.add_argument("--float32", action="store_true", help="rows in float32, against that peak")
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="what an iteration at half the peak should take"
    )
    parser.add_argument("--size", type=int, default=4096, help="of the square matrices")
    parser.add_argument("--json", type=Path, help="append every line to this file")
    options = parser.parse_args()
    name = "daskgmm float32" if options.float32 else "daskgmm"
    top = peak(np.float32 if options.float32 else np.float64, options.threads, options.size)
    print(heading(options.threads))
    print(f"matrix product, {'float32' if options.float32 else 'float64'}: {top:.0f} GFLOP/s")
    print("| d | k | rows | s | of peak | 512-bit, s | of peak |\n|" + " --- |" * 7)
    with tempfile.TemporaryDirectory() as folder:
        environments: list[dict[str, str]] = [{}]
        if Path("/proc/cpuinfo").exists() and "avx512f" in Path("/proc/cpuinfo").read_text():
            environments.append(wide(os.path.join(folder, "cache")))
        peers = [Peer(name, sys.executable, options.threads, env) for env in environments]
        for d, k in CELLS:
            if options.cells and f"{d},{k}" not in options.cells:
                continue
            n = max(1000, int(options.seconds * top * 1e9 / 2 / operations(1, d, k)))
            path = write_rows(Path(folder) / "rows.npy", n, d, k)
            line = f"| {d} | {k} | {n:,} |"
            for peer in peers:
                answer = answered(peer, "iterations", path, n, k, "full")
                if "error" in answer:
                    line += f" {answer['error']} | |"
                    continue
                share = operations(n, d, k) / answer["seconds"] / 1e9 / top
                line += f" {answer['seconds']:.4f} | {share:.0%} |"
                if options.json:
                    record = {"d": d, "k": k, "n": n, "peak": top, "share": share, "wide": bool(peer.environment)}
                    with options.json.open("a") as file:
                        file.write(json.dumps({**record, "peer": name, **answer}) + "\n")
            print(line, flush=True)
        for peer in peers:
            peer.close()


if __name__ == "__main__":
    main()
