"""Passes of EM, accelerated and not, from the same start to within 1e-3 and 1e-4 nats a row of its optimum.

    python benchmarks/passes.py                      # overlapping problems, then separated ones
    python benchmarks/passes.py --problems g8-d4-H --kinds full diag --float32

The start is one of k-means++ on the rows' sample. A run's own optimum is where it comes to rest; that of plain EM
is where an accelerated run goes on to from its end. Where plain EM does not come so far in as many passes as are
allowed (">"), these are counted. Passes that were refused count, too.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from problems import OVERLAPPING, SEPARATED, load

from daskgmm import GaussianMixture
from daskgmm.compute.engines import engine_for
from daskgmm.compute.rows import Rows, as_rows
from daskgmm.fit.accelerated import METHODS, Accelerated
from daskgmm.fit.run import EM
from daskgmm.fit.sweep import sweep
from daskgmm.model.structure import STRUCTURES
from daskgmm.model.update import Regularised

WITHIN = (1e-3, 1e-4)
LOOK, REST = 20, 2e-7  # a run has come to rest where so many passes add less


@dataclass(frozen=True)
class Walked:
    """A run after some passes, and what its bound was after each."""

    run: EM
    bounds: tuple[float, ...]

    def and_then(self, more: Walked) -> Walked:
        """With what came next."""
        return Walked(more.run, self.bounds + more.bounds)

    def passes(self, goal: float) -> int:
        """Until the bound has reached a goal; as many as there were where it has not."""
        reached = np.flatnonzero(np.array(self.bounds) >= goal)
        return int(reached[0]) + 1 if len(reached) else len(self.bounds)


def walk(run: EM, rows: Rows, most: int, goal: float = np.inf) -> Walked:
    """Passes until the run comes to rest, or as far as a goal."""
    engine, bounds = engine_for(rows), list[float]()
    while len(bounds) < most and run.failure is None:
        (run,) = sweep(engine, rows, [run])
        bounds.append(run.lower_bound)
        if bounds[-1] >= goal or (len(bounds) > LOOK and bounds[-1] - bounds[-1 - LOOK] < REST):
            break
    return Walked(run, tuple(bounds))


@dataclass(frozen=True)
class Compared:
    """Passes of plain EM and of a method on one problem."""

    plain: tuple[int, ...]  # for each of `WITHIN`
    passes: tuple[int, ...]
    level: tuple[int, ...]  # of the method, to as near the lower of both optima
    above: float  # the method's optimum over that of plain EM
    refused: float  # share of passes


def compare(name: str, kind: Any, args: argparse.Namespace) -> dict[str, Compared]:
    """All methods on one problem, against plain EM; prints their line of the table."""
    problem = load(name, args.rows, 1)
    x = problem.train.astype("f4") if args.float32 else problem.train
    model = GaussianMixture(problem.k, covariance_type=kind, init_params="k-means++", max_iter=0, random_state=1)
    start, rows, update = model.fit(x).mixture_, as_rows(x), Regularised(1e-6)
    walked = {m: walk(Accelerated(start, update, 0.0, 10**9, method=m), rows, args.most) for m in args.methods}
    goal = min(found.run.lower_bound for found in walked.values())
    plain = walk(EM(start, update, 0.0, 10**9), rows, args.most, goal - WITHIN[-1] / 2)
    onward = walk(Accelerated(plain.run.mixture, update, 0.0, 10**9), rows, args.most)
    optimum = max(onward.run.lower_bound, plain.run.lower_bound)
    plain = plain.and_then(walk(plain.run, rows, args.most - len(plain.bounds), optimum - WITHIN[-1]))
    counts = tuple(plain.passes(optimum - eps) for eps in WITHIN)
    far = [">" if plain.run.lower_bound < optimum - eps else "" for eps in WITHIN]
    cells = [name, kind, *(f"{mark}{count}" for mark, count in zip(far, counts, strict=True))]
    compared = {}
    for method, found in walked.items():
        best, n = found.run.lower_bound, len(found.bounds)
        refused = (n - found.run.n_iter) / n
        passes = tuple(found.passes(best - eps) for eps in WITHIN)
        level = tuple(found.passes(min(best, optimum) - eps) for eps in WITHIN)
        compared[method] = Compared(counts, passes, level, best - optimum, refused)
        cells += [*map(str, compared[method].passes), f"{best - optimum:+.4f}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return compared


def summarise(method: str, compared: Sequence[Compared]) -> None:
    """Geometric means and the worst of the ratios (the worst to the lower optimum), and how optima differ."""
    told = []
    for i, eps in enumerate(WITHIN):
        ratios = [found.passes[i] / found.plain[i] for found in compared]
        level = max(found.level[i] / found.plain[i] for found in compared)
        told.append(f"{eps:g}: {np.exp(np.mean(np.log(ratios))):.3f}, worst {max(ratios):.2f} ({level:.2f})")
    higher, lower = (sum(sign * found.above > 1e-4 for found in compared) for sign in (1, -1))
    refused = np.mean([found.refused for found in compared])
    optima = f"{refused:.0%} of passes refused; {higher} optima higher, {lower} lower"
    print(f"{method} / plain, to within {'; '.join(told)}; {optima}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="instead of all, as one table")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--kinds", nargs="+", default=["full"], choices=STRUCTURES)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--most", type=int, default=2000, help="passes of a run")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = {"": args.problems} if args.problems else {"Overlapping": OVERLAPPING, "Separated": SEPARATED}
    for title, names in tables.items():
        print(f"\n{title}\n\n| problem | type | plain, 1e-3 | 1e-4 |", end="")
        print("".join(f" {method}, 1e-3 | 1e-4 | optimum |" for method in args.methods))
        print("|" + " --- |" * (4 + 3 * len(args.methods)))
        compared = [compare(name, kind, args) for kind in args.kinds for name in names]
        print()
        for method in args.methods:
            summarise(method, [found[method] for found in compared])


if __name__ == "__main__":
    main()
