"""EM on rows that miss values, beside the same rows complete: how much a pattern costs.

    python benchmarks/missing.py [--short]

Each number is the median of passes that take turns with those over complete rows, after one that compiles. It is
the processor's time, of all threads, so that other work on the machine counts less. The aims on a million rows: 20
patterns cost at most twice a complete pass, 1,000 at most six times. Of fewer rows, a pattern's fill no tile.
"""

import argparse
from statistics import median
from time import process_time
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import as_rows
from daskgmm.fit.run import EM
from daskgmm.fit.sweep import sweep
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import STRUCTURES
from daskgmm.model.update import Regularised

SHAPES = ((1_000_000, 16, 16), (1_000_000, 12, 4))  # rows, features, components
PATTERNS = (1, 20, 1000)
SHORT = (1, 2, 100)


def rows(n: int, d: int, patterns: int, share: float, seed: int = 0) -> Array:
    """Normal rows in so many patterns of what is there, the first of which misses nothing."""
    random = np.random.default_rng(seed)
    there = np.unique(random.random((20 * patterns, d)) > share, axis=0)
    there = there[there.any(axis=1) & ~there.all(axis=1)]
    there = np.concatenate([np.ones((1, d), bool), random.permutation(there)[: patterns - 1]])
    x = random.normal(size=(n, d)) + 3 * random.integers(3, size=(n, 1))
    return np.where(there[random.integers(len(there), size=n)], x, np.nan)


def start(x: Array, kind: str, k: int) -> Mixture:
    """A mixture about some of the rows."""
    structure, d = STRUCTURES[kind], x.shape[1]
    values = np.broadcast_to(2 * structure.form.unit(structure.held(k, d)[-1]), structure.held(k, d)).copy()
    return Mixture(np.full(k, 1 / k), np.nan_to_num(x[:k]), structure.form.of(structure, values))


def measure(
    n: int, d: int, k: int, kind: str, share: float, passes: int, numbers: tuple[int, ...]
) -> dict[int, float]:
    """The processor's seconds of a pass for each number of patterns, and of the update that follows it."""
    running: dict[int, Any] = {}
    for patterns in numbers:
        held = as_rows(rows(n, d, patterns, share), nan_policy="missing")
        running[patterns] = held, EM(start(held.read(0).x, kind, k), Regularised(1e-6), 0.0, passes + 1)
    seconds: dict[int, list[float]] = {patterns: [] for patterns in numbers}
    for _ in range(passes + 1):
        for patterns, (held, run) in running.items():
            began = process_time()
            (after,) = sweep(engine_for(held), held, [run])
            seconds[patterns].append(process_time() - began)
            running[patterns] = held, after
    return {patterns: median(times[1:]) for patterns, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="a tenth of the rows and of the patterns, full covariances alone"
    )
    short = parser.parse_args().short
    numbers = SHORT if short else PATTERNS
    print(f"     n   d   k  kind   missing  complete s  {numbers[1]} patterns  {numbers[2]:,} patterns")
    for n, d, k in SHAPES:
        n = n // 10 if short else n
        for kind in ("full",) if short else ("full", "diag"):
            found = measure(n, d, k, kind, 0.3, 3, numbers)
            base = found[1]
            ratios = "".join(f"{found[patterns] / base:13.2f}" for patterns in numbers[1:])
            print(f"{n:9,} {d:3} {k:3}  {kind:5} {0.3:8.0%} {base:11.3f}{ratios}", flush=True)


if __name__ == "__main__":
    main()
