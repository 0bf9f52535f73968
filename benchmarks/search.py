"""Print what a search for the number of components reads, takes and finds, beside fits one by one.

    python benchmarks/search.py              # all sections
    python benchmarks/search.py curve        # the figure's data in docs/choosing-k.md, as CSV

- cost: K = 1..10 x {full, diag} on a Zarr store: passes, bytes read and seconds of the search and of fits one by
  one, with nothing kept in memory between passes; how far their tables differ; scikit-learn's loop beside.
- truth: problems of 2 to 6 components, 2 to 6 standard deviations apart: how often the truth is picked, by the
  search; and what scikit-learn's loop over the same K picks where the search picks another.
- curve: BIC, ICL and held-out log-likelihood of each K for overlapping components.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import dask
import numpy as np
import zarr
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Sklearn

from daskgmm import GaussianMixture, GaussianMixtureSearch

KINDS = ("full", "diag")


def bytes_read() -> int:
    """By this process so far, through system calls (Linux)."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"])


class Meter:
    """Seconds and bytes of what runs within."""

    def __enter__(self) -> Meter:
        self.began, self.before = perf_counter(), bytes_read()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds, self.bytes = perf_counter() - self.began, bytes_read() - self.before


def mixture(seed: int, k: int, d: int, distance: float) -> Any:
    """Means whose nearest others are so many standard deviations away, and covariances of unit determinant."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(k, d))
    gaps = np.linalg.norm(means[:, None] - means[None], axis=2)[~np.eye(k, dtype=bool)]
    axes = np.stack([np.linalg.qr(random.normal(size=(d, d)))[0] for _ in range(k)])
    scales = np.exp(random.uniform(-0.4, 0.4, size=(k, d)))
    scales /= np.exp(np.log(scales).mean(axis=1, keepdims=True))
    return random.dirichlet(np.full(k, 10.0)), means * distance / gaps.min(), axes * scales[:, None, :]


def rows(seed: int, n: int, k: int, d: int, distance: float) -> Any:
    """Rows (n, d) of such a mixture."""
    weights, means, roots = mixture(seed, k, d, distance)
    random = np.random.default_rng([seed, n])
    z, labels = random.normal(size=(n, d)), random.choice(k, size=n, p=weights)
    for j in range(k):
        z[labels == j] = z[labels == j] @ roots[j].T + means[j]
    return z


def search(x: Any, sizes: Any, options: argparse.Namespace, **more: Any) -> GaussianMixtureSearch:
    """A search of both covariance types."""
    settings = {"covariance_types": KINDS, "tol": options.tol, "max_iter": options.max_iter, "random_state": 0}
    model = GaussianMixtureSearch(sizes, **(settings | more))
    model.fit(x)
    return model


def loop(x: Any, sizes: Any, options: argparse.Namespace) -> dict[tuple[str, int], float]:
    """Scikit-learn's BIC of each candidate, run to convergence."""
    return {
        (kind, k): Sklearn(k, covariance_type=kind, tol=1e-5, max_iter=options.max_iter, random_state=0)
        .fit(x)
        .bic(x)
        for kind in KINDS
        for k in sizes
    }


def cost(options: argparse.Namespace) -> Iterator[str]:
    """What a search reads and takes."""
    sizes, x = range(1, options.most + 1), rows(0, options.rows, 6, 8, 3.0)
    with tempfile.TemporaryDirectory() as folder, dask.config.set({"daskgmm.memory-limit": 0}):
        path = f"{folder}/x.zarr"
        zarr.create_array(path, data=x, chunks=(max(1000, options.rows // 40), x.shape[1]))
        search(path, [1, 2], options, max_iter=2)  # all is compiled
        with Meter() as together:
            found = search(path, sizes, options)
        each, off = [], 0.0
        for row, (kind, k) in enumerate((kind, k) for kind in KINDS for k in sizes):
            settings: dict[str, Any] = {"covariance_type": kind, "tol": options.tol, "max_iter": options.max_iter}
            with Meter() as meter:
                model = GaussianMixture(k, random_state=0, **settings).fit(path)
                mean = model.score(path)
            each.append((meter.seconds, meter.bytes, model.n_passes_ + 1))
            if not found.results_["dropped"][row]:
                off = max(off, abs(mean - found.results_["log_likelihood"][row]))
    seconds, read, passes = (np.array(column) for column in zip(*each, strict=True))
    yield f"n = {options.rows}, d = 8, six components; K = 1..{options.most} x {KINDS}; tol={options.tol}"
    yield f"search      {together.seconds:8.1f} s, {together.bytes / 1e6:9.0f} MB, {found.n_passes_} passes"
    yield f"one by one  {seconds.sum():8.1f} s, {read.sum() / 1e6:9.0f} MB, {passes.sum()} passes"
    yield f"slowest one {seconds.max():8.1f} s, {read.max() / 1e6:9.0f} MB, {passes.max()} passes"
    yield f"bytes of the search / of the slowest: {together.bytes / read.max():.2f} (aim <= 1.3)"
    yield f"seconds of the search / one by one: {together.seconds / seconds.sum():.2f} (aim <= 0.25)"
    dropped = int(found.results_["dropped"].sum())
    yield f"table: off by at most {off:.1e} nats a row (aim 1e-6); dropped: {dropped} of {len(each)}"
    yield f"chosen: {found.best_params_}"
    with Meter() as theirs:
        bic = loop(x[: options.theirs], sizes, options)
    few, best = min(options.theirs, options.rows), min(bic, key=bic.__getitem__)
    yield f"scikit-learn's loop on {few} rows: {theirs.seconds:.1f} s, {best}"


def truth(options: argparse.Namespace) -> Iterator[str]:
    """How often the truth is picked."""
    picked, missed = 0, []
    for seed in range(options.first, options.first + options.seeds):
        random = np.random.default_rng([seed, 5])
        k, d, distance = int(random.integers(2, 7)), int(random.integers(2, 9)), float(random.uniform(2.0, 6.0))
        x = rows(seed, options.problem_rows, k, d, distance)
        sizes = range(1, k + 4)
        ours = search(x, sizes, options).best_params_
        if ours == {"n_components": k, "covariance_type": "full"}:
            picked += 1
            continue
        bic = loop(x[: options.theirs], sizes, options)
        theirs = min(bic, key=bic.__getitem__)
        problem = f"K = {k}, d = {d}, {distance:.1f} apart"
        missed.append(f"  seed {seed}: {problem}: {tuple(ours.values())}; scikit-learn {theirs[::-1]}")
    yield f"truth picked in {picked} of {options.seeds} problems of {options.problem_rows} rows; missed:"
    yield from missed


def curve(options: argparse.Namespace) -> Iterator[str]:
    """Criteria over K, as CSV."""
    x = rows(7, options.curve_rows, 6, 2, 2.5)
    sizes = range(1, options.most + 1)
    found = search(x, sizes, options, refine=99).results_
    held = search(x, sizes, options, criterion="held_out", refine=99).results_["held_out"]
    yield "covariance_type,n_components,log_likelihood,bic,icl,held_out"
    for row in range(len(held)):
        values = [f"{found[name][row]:.6f}" for name in ("log_likelihood", "bic", "icl")]
        yield ",".join(
            [found["covariance_type"][row], str(found["n_components"][row]), *values, f"{held[row]:.6f}"]
        )


SECTIONS = {"cost": cost, "truth": truth, "curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--rows", type=int, default=2_000_000, help="of cost")
    parser.add_argument("--most", type=int, default=10, help="components that cost and curve go up to")
    parser.add_argument("--theirs", type=int, default=200_000, help="rows for scikit-learn's loop, at most")
    parser.add_argument("--problem-rows", type=int, default=200_000, help="of each problem of truth")
    parser.add_argument("--curve-rows", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=40, help="problems of truth")
    parser.add_argument("--first", type=int, default=0, help="first problem of truth")
    parser.add_argument("--tol", type=float, default=1e-5)
    parser.add_argument("--max-iter", type=int, default=1000)
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"no such section: {', '.join(unknown)}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in options.sections or SECTIONS:
        if name != "curve":
            print(f"\n{name}")
        for line in SECTIONS[name](options):
            print(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
