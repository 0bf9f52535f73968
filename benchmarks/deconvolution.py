"""EM on rows with errors of their own, beside plain EM on the same rows, and beside astroML's XDGMM.

    python benchmarks/deconvolution.py [--rows 1000000] [--theirs 5000]

Each number is the processor's time of an iteration over a million rows, of all threads: the median of some that
take turns, after one that compiles. astroML (VanderPlas et al. 2012) makes arrays (n, k, d, d, d): its iterations
are over fewer rows, ``--theirs``, and their time is scaled. It takes part if it is installed. The aim is a
twentieth of its time, for 6 features and 20 components.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from common import centres, heading, start

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import as_rows
from daskgmm.fit.run import EM
from daskgmm.fit.sweep import sweep
from daskgmm.model.update import Regularised

SHAPES = ((6, 20, "full"), (6, 20, "diag"), (2, 10, "full"), (8, 20, "full"))
ROUNDS = 3


def rows(n: int, d: int, k: int) -> tuple[Array, Array]:
    """Rows of k unit clusters with errors of half a standard deviation or so, and the variances of these."""
    random = np.random.default_rng([n, d, k])
    noise = random.gamma(2.0, 0.125, size=(n, d))
    x = centres(d, k)[random.integers(k, size=n)] + np.sqrt(1 + noise) * random.normal(size=(n, d))
    return x, noise


def ours(x: Array, noise: Array | None, k: int, kind: str) -> Callable[[], None]:
    """An iteration on these rows."""
    begun = GaussianMixture.from_parameters(**start(x.shape[1], k, kind), covariance_type=kind).mixture_
    held, state = as_rows(x, noise=noise), [EM(begun, Regularised(1e-6), 0.0, 10**6)]
    engine = engine_for(held)

    def iterate() -> None:
        state[:] = sweep(engine, held, state)

    return iterate


def theirs(x: Array, noise: Array, k: int) -> Callable[[], None] | None:
    """The same of astroML; None where that is not installed."""
    try:
        model = import_module("astroML.density_estimation").XDGMM(k)
    except ImportError:
        return None
    begun = start(x.shape[1], k, "full")
    model.alpha, model.mu, model.V = begun["weights"], begun["means"], begun["covariances"]
    return partial(model._EMstep, x, noise[:, :, None] * np.eye(x.shape[1]))


def measured(tasks: dict[str, tuple[Callable[[], None], int]]) -> dict[str, float]:
    """Seconds of a million rows of each task, which is over so many; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(ROUNDS + 1):
        for name, (task, n) in tasks.items():
            began = process_time()
            task()
            if turn:
                seconds[name].append((process_time() - began) * 1e6 / n)
    return {name: median(times) for name, times in seconds.items()}


def compared(n: int, few: int, d: int, k: int, kind: str) -> dict[str, float]:
    """Seconds of plain EM, of variances, of covariances, and of astroML where it is there."""
    x, noise = rows(n, d, k)
    tasks: dict[str, tuple[Any, int]] = {
        "plain": (ours(x, None, k, kind), n),
        "variances": (ours(x, noise, k, kind), n),
        "covariances": (ours(x, noise[:, :, None] * np.eye(d), k, kind), n),
    }
    if kind == "full" and (other := theirs(x[:few], noise[:few], k)) is not None:
        tasks["astroML"] = other, few
    return measured(tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--theirs", type=int, default=5_000, help="rows of an iteration of astroML")
    asked = parser.parse_args()
    print(heading(1))
    print("  d   k  kind     plain s  variances s  covariances s  astroML s  times ours")
    for d, k, kind in SHAPES:
        found = compared(asked.rows, min(asked.theirs, asked.rows), d, k, kind)
        line = f"{d:3} {k:3}  {kind:5}{found['plain']:11.2f}{found['variances']:13.2f}{found['covariances']:15.2f}"
        if "astroML" in found:
            line += f"{found['astroML']:11.0f}{found['astroML'] / found['covariances']:12.0f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
