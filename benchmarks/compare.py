"""Time one EM iteration against scikit-learn and oneDAL: same arrays, start and threads, a process for each.

    python -m pip install ".[bench]" && python benchmarks/compare.py

The cost of an iteration is the difference between two iteration counts, so that start-up, seeding and the survey
do not count; the median of several. The log-likelihood after the longer run stands beside each time, so that
nobody wins by being wrong. Ratios above 1 mean that daskgmm is faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PEERS = ("daskgmm", "daskgmm float32", "oneDAL", "scikit-learn")
SHORT, LONG = 2, 6


def rows_and_start(n: int, d: int, k: int) -> dict[str, Any]:
    """Overlapping clusters, and a start that is the same for every peer."""
    random = np.random.default_rng([n, d, k])
    centres = random.normal(scale=2, size=(k, d))
    x = random.normal(size=(n, d)) + centres[random.integers(k, size=n)]
    return {"x": x, "means": centres + random.normal(scale=0.3, size=(k, d))}


def same_start(means: Any, kind: str) -> dict[str, Any]:
    """Constructor arguments, alike in scikit-learn and here: equal weights, unit covariances, no tolerance."""
    k, d = means.shape
    return {
        "n_components": k,
        "covariance_type": kind,
        "tol": 0,
        "weights_init": np.full(k, 1 / k),
        "means_init": means,
        "precisions_init": np.stack([np.eye(d)] * k) if kind == "full" else np.ones((k, d)),
    }


def daskgmm(x: Any, means: Any, kind: str) -> Callable[[int], float]:
    """Through the public ``fit``, on a Dask array in memory."""
    import dask.array as da

    from daskgmm import GaussianMixture

    rows = da.from_array(x, chunks=(-(-len(x) // 16), x.shape[1]))
    start = same_start(means, kind)

    def fit(iterations: int) -> float:
        return GaussianMixture(max_iter=iterations, **start).fit(rows).lower_bound_

    return fit


def scikit_learn(x: Any, means: Any, kind: str) -> Callable[[int], float]:
    """From given parameters, without the library's own start."""
    from sklearn.mixture import GaussianMixture

    start = same_start(means, kind)

    def fit(iterations: int) -> float:
        model = GaussianMixture(max_iter=iterations, init_params="random_from_data", random_state=0, **start)
        return float(model.fit(x).lower_bound_)

    return fit


def one_dal(x: Any, means: Any, kind: str) -> Callable[[int], float]:
    """oneDAL's em_gmm through daal4py."""
    import daal4py

    daal4py.daalinit(2)
    k, d = means.shape
    storage = kind if kind == "full" else "diagonal"
    unit = [np.eye(d)] * k if kind == "full" else [np.ones((1, d))] * k

    def fit(iterations: int) -> float:
        algorithm = daal4py.em_gmm(
            nComponents=k, maxIterations=iterations, accuracyThreshold=0.0, covarianceStorage=storage
        )
        result = algorithm.compute(x, np.full((1, k), 1 / k), means, unit)
        return float(result.goalFunction[0, 0]) / len(x)

    return fit


def measure(peer: str, cell: Path, kind: str, repeats: int) -> dict[str, Any]:
    """Seconds for one iteration, and the mean log-likelihood that the longer run found."""
    arrays = np.load(cell)
    x, means = arrays["x"], arrays["means"]
    if peer.endswith("float32"):
        x = x.astype(np.float32)
    make = {"oneDAL": one_dal, "scikit-learn": scikit_learn}.get(peer, daskgmm)
    fit = make(x, means, kind)
    fit(SHORT)  # compile and warm up
    seconds = []
    for _ in range(repeats):
        marks = [time.perf_counter()]
        for iterations in (SHORT, LONG):
            bound = fit(iterations)
            marks.append(time.perf_counter())
        seconds.append((marks[2] - 2 * marks[1] + marks[0]) / (LONG - SHORT))
    return {"seconds": float(np.median(seconds)), "bound": bound}


def in_process(peer: str, cell: Path, kind: str, repeats: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--peer", peer, "--cell", str(cell)]
    command += ["--covariance-type", kind, "--repeats", str(repeats)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if ran.returncode:
        return {"seconds": float("nan"), "bound": float("nan"), "error": ran.stderr.strip()[-200:]}
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer")
    parser.add_argument("--cell", type=Path)
    parser.add_argument("--covariance-type", default="full", choices=["full", "diag"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cells", default="1000000,4,8 1000000,16,16 200000,64,32", help="n,d,k n,d,k ...")
    parser.add_argument("--peers", default=",".join(PEERS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.peer:
        found = measure(options.peer, options.cell, options.covariance_type, options.repeats)
        print(json.dumps(found))
        return
    print(f"{'rows':>9}{'d':>5}{'k':>4}  {'peer':<16}{'s/iteration':>12}{'ratio':>8}{'mean log-lik.':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for n, d, k in (tuple(map(int, cell.split(","))) for cell in options.cells.split()):
            cell = Path(folder) / "cell.npz"
            np.savez(cell, **rows_and_start(n, d, k))
            own = float("nan")
            for peer in options.peers.split(","):
                found = in_process(peer, cell, options.covariance_type, options.repeats)
                own = found["seconds"] if peer == "daskgmm" else own
                print(
                    f"{n:>9}{d:>5}{k:>4}  {peer:<16}{found['seconds']:>12.4f}"
                    f"{found['seconds'] / own:>8.2f}{found['bound']:>16.6f}  {found.get('error', '')}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
