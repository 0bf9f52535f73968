"""EM on rows that miss values: how much a pattern costs, and whether the truth comes out.

    python benchmarks/missing.py [speed] [recovery] [--short]

speed: passes beside those over the same rows complete. Each number is the median of passes that take turns with
those, after one that compiles. It is the processor's time, of all threads, so that other work on the machine
counts less. The aims on a million rows: 20 patterns cost at most twice a complete pass, 1,000 at most six times.
Of fewer rows, a pattern's fill no tile.

recovery: a million rows of 3 components in 8 features lose values, completely at random (a fifth of all), or at
random: each of the last four features is the likelier to be missing, the larger one of the first four is. EM over
all rows is beside EM over the complete rows, and over rows with a feature's mean for each value that they miss.
All begin at the truth, and end when a pass gains less than 1e-10 nats a row.

Standard errors are asymptotic: of the information of a row, which is the mean outer product of scores at the
truth, over a fifth of the rows of the first seed. Fits of the two other kinds are given the standard errors of as
many complete rows, as which they take theirs. "together" counts the seeds whose parameters are within 3 standard
errors all together: their squared distance from the truth, by the information, is below the .9973 quantile of
chi-squared. "least" and "mean" count the seeds in which one parameter is: of the parameter that has the fewest,
and of all. "distance" is the mean squared distance over the number of parameters: 1 for a fit that is efficient
and has converged.
"""

import argparse
from statistics import median
from time import process_time
from typing import Any

import dask.array as da
import numpy as np
from common import centres
from scipy.special import expit, logsumexp
from scipy.stats import chi2, multivariate_normal

from daskgmm import GaussianMixture
from daskgmm._typing import Array
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import as_rows
from daskgmm.fit.run import EM
from daskgmm.fit.sweep import sweep
from daskgmm.model.missing import grouped
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


def speed(short: bool) -> None:
    """What patterns cost a pass."""
    numbers = SHORT if short else PATTERNS
    print(f"     n   d   k  kind   missing  complete s  {numbers[1]} patterns  {numbers[2]:,} patterns")
    for n, d, k in SHAPES:
        n = n // 10 if short else n
        for kind in ("full",) if short else ("full", "tied", "diag"):
            found = measure(n, d, k, kind, 0.3, 3, numbers)
            base = found[1]
            ratios = "".join(f"{found[patterns] / base:13.2f}" for patterns in numbers[1:])
            print(f"{n:9,} {d:3} {k:3}  {kind:5} {0.3:8.0%} {base:11.3f}{ratios}", flush=True)


def truth(d: int = 8, k: int = 3) -> Any:
    """Three components that overlap, of correlated features."""
    loadings = np.random.default_rng([d, k]).normal(size=(k, d, 2)) / 2
    covariances = loadings @ loadings.transpose(0, 2, 1) + 0.5 * np.eye(d)
    return GaussianMixture.from_parameters(np.array([0.5, 0.3, 0.2]), centres(d, k), covariances)


def without(x: Array, mechanism: str, random: np.random.Generator) -> Array:
    """The rows with NaN for what they lose."""
    share, half = np.full(x.shape, 0.2), x.shape[1] // 2
    if mechanism == "MAR":
        share[:, :half], share[:, half:] = 0.0, expit(x[:, :half] - 1)
    return np.where(random.random(x.shape) < share, np.nan, x)


def parameters(model: Any) -> Array:
    """Those that are free, (p,): weights, means and covariances."""
    a, b = np.tril_indices(model.n_features_in_)
    return np.concatenate([model.weights_[:-1], model.means_.ravel(), model.covariances_[:, a, b].ravel()])


def scores(model: Any, x: Array) -> Array:
    """Derivatives by the parameters of the log-density of what rows have, (n, p)."""
    k, d = model.means_.shape
    lower = np.tril_indices(d)
    by_weight, by_mean, by_covariance = (np.zeros((len(x), m)) for m in (k - 1, k * d, k * len(lower[0])))
    for rows, seen in grouped(x):
        apart = x[np.ix_(rows, seen)] - model.means_[:, None, seen]  # (k, rows, seen)
        covariances = model.covariances_[:, seen[:, None], seen]
        logs = [multivariate_normal(cov=c).logpdf(z).reshape(-1) for c, z in zip(covariances, apart, strict=True)]
        logs = np.log(model.weights_)[:, None] + logs
        resp = np.exp(logs - logsumexp(logs, axis=0))
        by_weight[rows] = (resp[:-1] / model.weights_[:-1, None] - resp[-1] / model.weights_[-1]).T
        inside = np.flatnonzero(np.isin(lower, seen).all(axis=0))
        a, b = (np.searchsorted(seen, index[inside]) for index in lower)
        for j, precision in enumerate(np.linalg.inv(covariances)):
            u = apart[j] @ precision
            by_mean[np.ix_(rows, j * d + seen)] = resp[j, :, None] * u
            slope = np.where(a == b, 0.5, 1.0) * (u[:, a] * u[:, b] - precision[a, b])
            by_covariance[np.ix_(rows, j * len(lower[0]) + inside)] = resp[j, :, None] * slope
    return np.concatenate([by_weight, by_mean, by_covariance], axis=1)


def information(model: Any, x: Array) -> Array:
    """What rows like these say of the parameters, each, (p, p)."""
    found = np.zeros(())
    for first in range(0, len(x), 50_000):
        part = scores(model, x[first : first + 50_000])
        found = found + part.T @ part
    return found / len(x)


def fitted(known: Any, x: Array) -> Array:
    """The parameters that EM finds from the truth on."""
    start: dict[str, Any] = {
        f"{name}_init": getattr(known, f"{name}_") for name in ("weights", "means", "precisions")
    }
    asked: dict[str, Any] = {"tol": 1e-10, "max_iter": 2000, "reg_covar": 0.0, "nan_policy": "missing"}
    chunked = da.from_array(x, chunks=(max(len(x) // 8, 1), -1))  # a block has rows enough of each pattern
    model = GaussianMixture(len(known.weights_), **asked, **start).fit(chunked)
    if not model.converged_:
        raise SystemExit("EM has not converged.")
    return parameters(model)


def recovery(short: bool) -> None:
    """How far from the truth fits are to rows that miss values, in standard errors."""
    n, seeds, known = (20_000, 2, truth()) if short else (1_000_000, 20, truth())
    print(f"{n:,} rows, {seeds} seeds, {len(parameters(known))} parameters; seeds within 3 standard errors")
    print("missing  values  rows               together  least   mean  distance")
    for mechanism in ("MCAR", "MAR"):
        offs: dict[str, list[tuple[Array, int]]] = {"all": [], "complete": [], "mean imputed": []}
        for seed in range(seeds):
            random = np.random.default_rng([seed, len(mechanism)])
            complete = known.mixture_.sample(n, random)[0]
            x = without(complete, mechanism, random)
            if not seed:
                own, whole = information(known, x[::5]), information(known, complete[::5])
            lost = np.isnan(x)
            kinds = (x, x[~lost.any(axis=1)], np.where(lost, np.nanmean(x, axis=0), x))
            for found, rows in zip(offs.values(), kinds, strict=True):
                found.append((fitted(known, rows) - parameters(known), len(rows)))
        for kind, found in offs.items():
            report = told(found, own if kind == "all" else whole)
            print(f"{mechanism:7} {lost.mean():7.0%}  {kind:17} {report}", flush=True)


def told(found: list[tuple[Array, int]], each: Array) -> str:
    """Of so many seeds, how many are within 3 standard errors; how far they are."""
    off, n = (np.array(values) for values in zip(*found, strict=True))
    within = (np.abs(off) < 3 * np.sqrt(np.diag(np.linalg.inv(each)) / n[:, None])).sum(axis=0)
    distance = n * np.einsum("si,ij,sj->s", off, each, off)
    together = (distance < chi2.ppf(0.9973, len(each))).sum()
    return f"{together:9} {within.min():6} {within.mean():6.2f} {distance.mean() / len(each):9.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"speed": speed, "recovery": recovery}
    parser.add_argument("section", nargs="*", choices=[*sections, []], metavar="section", help="speed, recovery")
    parser.add_argument(
        "--short",
        action="store_true",
        help="a tenth of the rows and of the patterns, full covariances alone; 20,000 rows and 2 seeds",
    )
    asked = parser.parse_args()
    for name in asked.section or sections:
        sections[name](asked.short)


if __name__ == "__main__":
    main()
