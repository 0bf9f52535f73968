"""Log-likelihoods that default fits end with, beside restarts as scikit-learn makes them, and their passes.

    python benchmarks/optima.py --processes 16                   # 28 problems, 200,000 rows each
    python benchmarks/optima.py --json fits.jsonl --processes 0  # the table of fits that the file has

Peers are plain EM of this library from the starts of scikit-learn's `KMeans` and `kmeans_plusplus` on all rows:
scikit-learn's own EM to rounding, and quicker. EM from the truth is there where rows were drawn from a mixture.
The best known log-likelihood is the highest that any of all these fits has reached; what a fit has less is its
loss, in nats a row. A file adds to what is known, and fits that it has are not made again: another checkout, asked
for `--methods default --label before` with the same file, stands beside in the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import dask
import numpy as np
from problems import FITTED, N_TEST, N_TRAIN, Problem, load
from sklearn.cluster import KMeans, kmeans_plusplus

from daskgmm import GaussianMixture

PEERS = ("kmeans", "k-means++")
METHODS = ("default", *PEERS, "truth")
held = lru_cache(1)(load)


class Task(NamedTuple):
    """A fit to make."""

    problem: str
    method: str
    seed: int
    n: int
    n_init: int = 1  # of default fits


@dataclass(frozen=True)
class Fit:
    """What became of it."""

    problem: str
    method: str
    seed: int
    train: float | None  # mean log-likelihood of its rows; none where a component collapsed
    test: float | None  # of others
    n_passes: int
    smallest: float  # rows' weight of the smallest component
    d: int
    seconds: float


def start(problem: Problem, task: Task) -> dict[str, Any]:
    """Settings of a method: those of its start."""
    k, d = problem.k, problem.train.shape[1]
    method, seed = task.method, task.seed
    plain: dict[str, Any] = {"acceleration": None, "tol": 1e-3}
    if method == "default":
        return {"random_state": seed, "n_init": task.n_init}
    if method == "kmeans":
        return {"labels_init": KMeans(k, n_init=1, random_state=seed).fit(problem.train).labels_, **plain}
    if method == "k-means++":
        means, _ = kmeans_plusplus(problem.train, k, random_state=seed)
        weights, precisions = np.full(k, 1 / k), np.tile(1e6 * np.eye(d), (k, 1, 1))  # 1 / reg_covar
    else:
        assert problem.truth is not None
        weights, means, covariances = problem.truth
        inverse = np.linalg.inv(covariances)
        precisions = (inverse + inverse.transpose(0, 2, 1)) / 2
    return {"weights_init": weights, "means_init": means, "precisions_init": precisions, "max_iter": 300, **plain}


def fitted(task: Task) -> Fit:
    """One fit, in a process of its own."""
    warnings.simplefilter("ignore")
    problem = held(task.problem, task.n, min(N_TEST, task.n))
    began, (n, d) = perf_counter(), problem.train.shape
    with dask.config.set(scheduler="synchronous"):
        try:
            model = GaussianMixture(problem.k, **start(problem, task)).fit(problem.train)
        except ValueError:  # a component collapsed
            return Fit(*task[:3], None, None, 0, 0.0, d, perf_counter() - began)
        seconds, smallest = perf_counter() - began, float(model.weights_.min()) * n
        scores = model.score(problem.train), model.score(problem.test)
    return Fit(*task[:3], *scores, model.n_passes_, smallest, d, seconds)


def made(tasks: Sequence[Task], processes: int) -> Iterator[Fit]:
    """Fits as they end, each in one thread."""
    if not tasks or not processes:
        return
    os.environ.update({f"{pool}_NUM_THREADS": "1" for pool in ("OMP", "OPENBLAS", "MKL", "NUMBA")})
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(fitted, task) for task in tasks]):
            yield done.result()


def asked(args: argparse.Namespace) -> list[Task]:
    """The fits of a comparison."""
    counts = {"default": args.seeds, "truth": 1, **dict.fromkeys(PEERS, args.restarts)}
    tasks = [
        Task(name, method, seed, args.rows, args.n_init)
        for name, method in product(args.problems, args.methods)
        for seed in range(counts[method])
    ]
    return [task for task in tasks if task.method != "truth" or task.problem.startswith("g")]


def stored(path: Path | None) -> list[Fit]:
    """Fits that a file has, one in a line."""
    if path is None or not path.exists():
        return []
    names = [field.name for field in fields(Fit)]
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Fit(**{name: line[name] for name in names}) for line in lines]


class Row:
    """The fits of one problem, compared."""

    def __init__(self, fits: Iterable[Fit]) -> None:
        self.fits = [fit for fit in fits if fit.train is not None]
        self.best = max(float(fit.train or 0) for fit in self.fits)

    def of(self, *methods: str) -> list[Fit]:
        return [fit for fit in self.fits if fit.method in methods]

    def losses(self, *methods: str) -> Any:
        """Of fits of these methods; of none, infinite."""
        return np.array([self.best - float(fit.train or 0) for fit in self.of(*methods)] or [np.inf])

    def first(self, method: str, seeds: int) -> list[Fit]:
        return [fit for fit in self.of(method) if fit.seed < seeds]

    def sklearn(self, seeds: int) -> tuple[float, float]:
        """The loss of a default start of scikit-learn, the median; and held-out log-likelihood, the mean."""
        fits = self.first("kmeans", seeds)
        losses = [self.best - float(fit.train or 0) for fit in fits]
        return (float(np.median(losses)), mean(fit.test for fit in fits)) if fits else (np.inf, np.nan)

    def cells(self, labels: Sequence[str], seeds: int) -> list[str]:
        """Its line of the table."""
        start, held_out = self.sklearn(seeds)
        found = [f"{self.best:.4f}"]
        for label in labels:
            fits, losses = self.of(label), self.losses(label)
            passes = np.median([fit.n_passes for fit in fits]) if fits else np.nan
            gain = mean(fit.test for fit in fits) - held_out
            found += [f"{np.median(losses):.4f}", f"{losses.max():.4f}", f"{passes:.0f}", f"{gain:+.4f}"]
        restart, truth = self.losses(*PEERS).min(), self.losses("truth").min()
        last = f"{truth:.4f}" if truth < np.inf else ""
        return [*found, f"{start:.4f}", f"{restart:.4f}", last]


def mean(values: Iterable[float | None]) -> float:
    """Of those there are."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else np.nan


def table(rows: dict[str, Row], labels: Sequence[str], seeds: int) -> Iterator[str]:
    """A line for each problem; and what they add up to."""
    columns = ["problem", "best known"]
    for label in labels:
        columns += [f"{label}: loss", "worst", "passes", "held out"]
    columns += ["kmeans: loss", "best restart", "truth"]
    yield f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"
    for name, row in rows.items():
        yield f"| {' | '.join([name, *row.cells(labels, seeds)])} |"
    yield ""
    for label in labels:
        those = {name: row for name, row in rows.items() if row.of(label)}
        fits = [fit for row in those.values() for fit in row.of(label)]
        medians = {name: float(np.median(row.losses(label))) for name, row in those.items()}
        above = sum(medians[name] < row.sklearn(seeds)[0] for name, row in those.items())
        most = sum(medians[name] < row.losses(*PEERS).min() for name, row in those.items())
        passes = np.median([np.median([fit.n_passes for fit in row.of(label)]) for row in those.values()])
        loss = np.mean(np.concatenate([row.losses(label) for row in those.values()]))
        tiny = sum(fit.smallest < fit.d + 1 for fit in fits)
        yield (
            f"{label}: mean loss {loss:.4f}; better than scikit-learn's default start on {above} of {len(those)},"
            f" than its best restart on {most}; passes {passes:.0f} (median);"
            f" {tiny} of {len(fits)} with a component of fewer than d + 1 rows;"
            f" {np.mean([fit.seconds for fit in fits]):.1f} s (mean)"
        )


def main() -> None:
    """Make the fits that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", metavar="NAME", default=FITTED)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rows", type=int, default=N_TRAIN)
    parser.add_argument("--seeds", type=int, default=3, help="of default fits")
    parser.add_argument("--restarts", type=int, default=10, help="from either start of scikit-learn")
    parser.add_argument("--n-init", type=int, default=1, help="of default fits")
    parser.add_argument("--label", default="default", help="what default fits are called")
    parser.add_argument("--json", type=Path, metavar="FILE", help="fits that are there; new ones are appended")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each; 0: no new fits")
    args = parser.parse_args()
    fits = stored(args.json)
    there = {(fit.problem, fit.method, fit.seed) for fit in fits}
    names = {"default": args.label}
    tasks = [t for t in asked(args) if (t.problem, names.get(t.method, t.method), t.seed) not in there]
    for found in made(tasks, args.processes):
        fit = Fit(**asdict(found) | {"method": names.get(found.method, found.method)})
        fits.append(fit)
        if args.json is not None:
            with args.json.open("a", encoding="utf-8") as file:
                print(json.dumps(asdict(fit)), file=file)
    rows = {name: Row(fit for fit in fits if fit.problem == name) for name in args.problems}
    labels = list(dict.fromkeys(fit.method for fit in fits if fit.method not in METHODS[1:]))
    for line in table(rows, labels, args.seeds):
        print(line)


if __name__ == "__main__":
    main()
