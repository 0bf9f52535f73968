"""Follow time, peak memory and Dask tasks of a few fixed cases over versions.

    python benchmarks/track.py

Appends one line of JSON to ``benchmarks/history.jsonl`` and prints the ratios to the last line that the same
hardware, threads and scale left there: above 1, it has become dearer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import Peer, answered, hardware, heading, write_rows

CASES = {  # n, d, k, covariance type, where the rows are
    "full": (1_000_000, 16, 16, "full", "memory"),
    "full, wide": (100_000, 64, 32, "full", "memory"),
    "tied": (1_000_000, 16, 16, "tied", "memory"),
    "diag": (1_000_000, 16, 16, "diag", "memory"),
    "spherical": (1_000_000, 16, 16, "spherical", "memory"),
    "full, Zarr": (1_000_000, 16, 16, "full", "zarr"),
}


def measure(case: str, threads: int, scale: float) -> dict[str, Any]:
    """Seconds and tasks of an iteration, and the peak memory of the process, in MiB, its rows included."""
    n, d, k, kind, place = CASES[case]
    n = int(n * scale)
    peer = Peer("daskgmm", threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "rows.npy", n, d, k)
        if place == "zarr":
            rows, path = np.load(path, mmap_mode="r"), Path(folder) / "rows.zarr"
            zarr.create_array(path, data=np.asarray(rows), chunks=(65_536, d))
        try:
            answer = answered(peer, "iterations", path, n, k, kind, d=d, count_tasks=True)
        finally:
            peer.close()
    if "error" in answer:
        raise SystemExit(f"{case}: {answer['error']}")
    return {name: answer[name] for name in ("seconds", "peak_mib", "tasks")}


def main() -> None:
    """Measure, compare and append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1, help="times the number of rows, for a quick look")
    parser.add_argument("--history", type=Path, default=Path(__file__).with_name("history.jsonl"))
    options = parser.parse_args()
    where = {"hardware": hardware(), "threads": options.threads, "scale": options.scale}
    lines = options.history.read_text().splitlines() if options.history.exists() else []
    alike = [entry for entry in map(json.loads, lines) if where.items() <= entry.items()]
    last = alike[-1] if alike else {"cases": {}}
    print(heading(options.threads))
    if alike:
        print(f"in brackets: ratio to {last['version']} of {last['date']}")
    cases = {}
    for case in CASES:
        cases[case] = measure(case, options.threads, options.scale)
        before, line = last["cases"].get(case, {}), f"{case:<14}"
        for name, unit in (("seconds", "s"), ("peak_mib", "MiB"), ("tasks", "tasks")):
            now = cases[case][name]
            line += f"{now:>12.4g} {unit}" + (f" ({now / before[name]:.2f})" if before.get(name) else "")
        print(line, flush=True)
    entry = {"version": version("daskgmm"), "date": str(date.today()), **where, "cases": cases}
    with options.history.open("a") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
