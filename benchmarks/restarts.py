"""What ``n_init`` costs on a slow store: seconds, passes and log-likelihood of default fits with 1 and with more.

    python benchmarks/restarts.py

All chains of moves run on the row sample, and few go on to all rows: what they cost does not grow with the rows.
The store gives so many MB/s in all, and no rows stay in memory between passes. What more chains gain is in
`optima.py --n-init`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import dask
import numpy as np
import zarr
from common import heading, write_rows
from zarr.storage import LocalStore, WrapperStore

from daskgmm import GaussianMixture


class Throttled(WrapperStore[LocalStore]):
    """Stores whose readers share one line of so many bytes per second: to open one may make another."""

    rate = np.inf
    free = 0.0  # when the line is

    async def get(self, *arguments: Any, **how: Any) -> Any:
        """As the store, once the line has brought it."""
        found = await super().get(*arguments, **how)
        if found is not None:
            now = perf_counter()
            Throttled.free = max(self.free, now) + len(found) / self.rate
            await asyncio.sleep(self.free - now)
        return found


def main() -> None:
    """Print a line for each number of starts, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", default="4000000,16,16", help="rows, features, components")
    parser.add_argument("--rate", type=float, default=200, help="MB/s")
    parser.add_argument("--n-init", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    n, d, k = map(int, options.shape.split(","))
    print(heading(options.threads))
    print(f"{n:,} rows, {d} features, {k} components, {options.rate:g} MB/s; median of {options.repeats} seeds")
    found: dict[int, list[float]] = {1: [], options.n_init: []}
    with tempfile.TemporaryDirectory() as folder, dask.config.set({"daskgmm.memory-limit": 0}):
        x = np.load(write_rows(Path(folder) / "rows.npy", n, d, k), mmap_mode="r")
        store = Throttled(LocalStore(Path(folder) / "x.zarr"))
        chunks = (min(n, 2**23 // (8 * d)), d)
        zarr.create_array(store, data=np.asarray(x), chunks=chunks, compressors=None)
        Throttled.rate = options.rate * 1e6
        array = zarr.open_array(store, mode="r")
        for seed in range(options.repeats):
            for count, seconds in found.items():
                begun = perf_counter()
                with dask.config.set(scheduler="threads", num_workers=options.threads):
                    model = GaussianMixture(k, n_init=count, random_state=seed).fit(array)
                seconds.append(perf_counter() - begun)
                told = f"{seconds[-1]:.1f} s, {model.n_passes_} passes, {model.lower_bound_:.6f}"
                print(f"seed {seed}, n_init={count}: {told}", flush=True)
    one, more = (float(np.median(seconds)) for seconds in found.values())
    print(f"n_init={options.n_init} over 1: {more / one:.2f} times the seconds (aim <= 1.5)")


if __name__ == "__main__":
    main()
