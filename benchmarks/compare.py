"""Time daskgmm against its peers: same rows, start and threads, a process for each, one cell after the other.

    python benchmarks/compare.py --grid onedal          # and sklearn, spark, fit, query; all without --grid
    python benchmarks/compare.py --before PYTHON        # against another daskgmm, that of this interpreter

The cost of an iteration is the difference between two iteration counts, so that start-up, seeding and the survey
do not count; the median of several. Beside each time stands the mean log-likelihood under the parameters found,
by one judge for all, so that nobody wins by being wrong. Ratios above 1 mean that daskgmm is faster.

With ``--before``, say of an editable installation of an earlier checkout, both take their turn in several rounds,
and a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from common import Peer, answered, geometric_mean, hardware, heading, in_turn, origins, slower, write_rows

OURS, SINGLE = "daskgmm", "daskgmm float32"
BEFORE, BEFORE_SINGLE = "daskgmm-before", "daskgmm-before float32"
KINDS = ("full", "tied", "diag", "spherical")
LARGEST = 1.5e9  # bytes of an array


@dataclass(frozen=True)
class Grid:
    """Cells, who runs them, and for how long."""

    task: str
    peers: tuple[str, ...]  # the second one, after ours, chooses the number of rows where n is None
    cells: tuple[tuple[int, int], ...]  # d, k
    kinds: tuple[str, ...] = ("full",)
    n: tuple[int, ...] | None = None  # rows of each cell
    seconds: float = 0.45  # what an iteration of that peer should take
    counts: tuple[int, int] = (2, 5)
    repeats: int = 5
    query: str | None = None
    rounds: int = 1  # in which all peers take their turn


def product(ds: tuple[int, ...], ks: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Every d with every k."""
    return tuple((d, k) for d in ds for k in ks)


QUERIES = {
    f"query-{query}": Grid("query", (OURS, "scikit-learn"), ((16, 16),), KINDS, (1_000_000,), query=query)
    for query in ("predict", "score_samples")
}
GRIDS = {
    "onedal": Grid(
        "iterations",
        (OURS, "oneDAL", SINGLE),
        product((2, 4, 16, 32, 64, 128), (2, 8, 16, 64)),
        ("full", "diag"),
    ),
    "sklearn": Grid(
        "iterations",
        (OURS, "scikit-learn"),
        product((4, 16, 64), (4, 16)),
        KINDS,
        n=(1_000_000,) * 6,
        counts=(1, 3),
        repeats=3,
    ),
    "spark": Grid(
        "iterations",
        (OURS, "Spark ML"),
        ((4, 8), (16, 16), (64, 32)),
        n=(1_000_000, 1_000_000, 200_000),
        repeats=3,
    ),
    "pomegranate": Grid("iterations", (OURS, "pomegranate"), ((16, 16),), n=(1_000_000,), repeats=3),
    "fit": Grid("default_fit", (OURS, "scikit-learn"), ((16, 16),), n=(1_000_000,), repeats=1),
    **QUERIES,
}


class Results:
    """Records, one for each grid, cell and peer; those of earlier runs where a file holds them."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path, self.found = path, {}
        if path and resume and path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.found[self._key(record)] = record

    @staticmethod
    def _key(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in ("grid", "kind", "d", "k", "peer"))

    def get(self, **cell: Any) -> dict[str, Any] | None:
        """The record of a cell and peer, if there is one."""
        return self.found.get(self._key(cell))

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, and append it to the file."""
        self.found[self._key(record)] = record
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    def rows_of(self, **cell: Any) -> int | None:
        """Number of rows that an earlier run chose for a cell."""
        cell_key = self._key({**cell, "peer": None})[:4]
        return next((record["n"] for key, record in self.found.items() if key[:4] == cell_key), None)


def calibrate(grid: Grid, peers: dict[str, Peer], folder: Path, d: int, k: int, kind: str) -> int:
    """Rows for which an iteration of the peer to beat takes the wanted time; ours, were it to fail."""
    n, largest = max(20_000, int(1e7 / (d * k))), int(LARGEST / (8 * d))
    for share in (0.25, 1):  # small arrays, in the processor's cache, mislead: come close first
        path = write_rows(folder / "calibration.npy", n, d, k)
        for name in (grid.peers[1], OURS):
            answer = answered(peers[name], "iterations", path, n, k, kind, counts=grid.counts, repeats=3)
            if "error" not in answer:
                n = min(max(int(n * share * grid.seconds / answer["seconds"]), 10_000), largest)
                break
    return n


def fill(name: str, grid: Grid, peers: dict[str, Peer], results: Results, scale: float) -> None:
    """Measure the cells of a grid that have no result yet, all peers in turn in each."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for index, (d, k) in enumerate(grid.cells):
            todo = {}
            for kind in grid.kinds:
                cell = {"grid": name, "kind": kind, "d": d, "k": k}
                if missing := [peer for peer in grid.peers if not results.get(**cell, peer=peer)]:
                    n = results.rows_of(**cell) or (
                        int(scale * grid.n[index])
                        if grid.n
                        else max(int(scale * calibrate(grid, peers, folder, d, k, kind)), 1000)
                    )
                    todo[kind] = (cell, n, missing)
            if todo:
                path = write_rows(folder / "rows.npy", max(n for _, n, _ in todo.values()), d, k)
            for kind, (cell, n, missing) in todo.items():
                more: dict[str, Any] = {"counts": grid.counts, "repeats": grid.repeats, "query": grid.query}
                ask = partial(answered, task=grid.task, path=path, n=n, k=k, kind=kind, **more)
                for group in [missing] if grid.rounds > 1 else [[peer] for peer in missing]:
                    answers = in_turn([peers[peer] for peer in group], grid.rounds, ask)
                    for peer, answer in zip(group, answers, strict=True):
                        stamp = {"n": n, "threads": peers[peer].threads, "date": str(date.today())}
                        results.add({**cell, "peer": peer, **stamp, "hardware": hardware(), **answer})
                        print(f"  {kind} d={d} k={k} n={n} {peer}: {brief(answer)}", file=sys.stderr, flush=True)


def brief(answer: dict[str, Any]) -> str:
    """One answer in a few words."""
    return answer.get("error") or f"{answer['seconds']:.4f} s"


def value(record: dict[str, Any]) -> float:
    """What shows that a peer did the same work."""
    return float(record.get("log_likelihood", record.get("mean", math.nan)))


def table(name: str, grid: Grid, results: Results) -> Iterator[str]:
    """Lines of a Markdown table: times, how many times slower than ours, and difference in log-likelihood."""
    what = "mean answer" if grid.task == "query" else "log-lik."
    heads = "".join(f" {peer}, s | ratio | Δ {what} |" for peer in grid.peers[1:])
    yield f"\n### {name}: {grid.query or grid.task.replace('_', ' ')}\n"
    yield f"| type | d | k | rows | daskgmm, s | {what} |{heads}"
    yield "|" + " --- |" * (6 + 3 * (len(grid.peers) - 1))
    ratios: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for kind in grid.kinds:
        for d, k in grid.cells:
            cell = {"grid": name, "kind": kind, "d": d, "k": k}
            ours = results.get(**cell, peer=OURS)
            if ours is None:
                continue
            line = f"| {kind} | {d} | {k} | {ours['n']:,} |"
            line += f" {brief(ours)} |  |" if "error" in ours else f" {ours['seconds']:.4f} | {value(ours):.6f} |"
            for peer in grid.peers[1:]:
                theirs = results.get(**cell, peer=peer) or {"error": "not run"}
                base = results.get(**cell, peer=SINGLE) if peer == BEFORE_SINGLE else ours
                if base is None or "error" in theirs or "error" in base:
                    line += f" {theirs.get('error', '')} | | |"
                    continue
                ratio = slower(theirs, base)
                ratios.setdefault((peer, kind), []).append((ratio, f"d={d} k={k}"))
                line += f" {theirs['seconds']:.4f} | {ratio:.2f} | {value(theirs) - value(base):+.1e} |"
            yield line
    yield ""
    for (peer, kind), found in ratios.items():
        yield summary(peer, kind, found)


def summary(peer: str, kind: str, found: list[tuple[float, str]]) -> str:
    """Geometric mean and least of the ratios to one peer."""
    if peer == SINGLE:
        found = [(1 / ratio, cell) for ratio, cell in found]
    worst, cell = min(found)
    mean = geometric_mean(ratio for ratio, _ in found)
    label = {SINGLE: "float32 faster than float64", BEFORE_SINGLE: "float32 faster than before"}.get(
        peer, f"faster than {peer}"
    )
    return f"{kind}: {label} by {mean:.2f}x (geometric mean of {len(found)}); least {worst:.2f}x at {cell}"


def selected(grid: Grid, options: argparse.Namespace) -> Grid:
    """The cells, types and peers asked for."""
    keep = [i for i, cell in enumerate(grid.cells) if not options.cells or f"{cell[0]},{cell[1]}" in options.cells]
    wanted, repeats = options.peers or (() if options.before else grid.peers), options.repeats or grid.repeats
    others = tuple(peer for peer in grid.peers[1:] if peer in wanted)
    if options.before:
        others = (BEFORE, *others, *([BEFORE_SINGLE] if SINGLE in others else []))
    return replace(
        grid,
        peers=(OURS, *others),
        cells=tuple(grid.cells[i] for i in keep),
        kinds=tuple(kind for kind in grid.kinds if not options.kinds or kind in options.kinds),
        n=tuple(grid.n[i] for i in keep) if grid.n else None,
        # One repeat in each of several rounds, or all at once.
        repeats=1 if options.before else repeats,
        rounds=repeats if options.before else 1,
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--cells", nargs="+", metavar="D,K", help="only these cells of the grids")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="only these covariance types")
    parser.add_argument("--peers", nargs="+", help="only these beside daskgmm; none, with --before")
    parser.add_argument("--before", metavar="PYTHON", help="compare with the daskgmm of this interpreter")
    parser.add_argument("--python", nargs="+", default=[], metavar="PEER=PATH", help="interpreter of a peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, help="instead of the grid's own")
    parser.add_argument("--scale", type=float, default=1, help="times the number of rows, for a quick look")
    parser.add_argument("--json", type=Path, help="append every result to this file, as a line of JSON")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds already")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that one answer may take")
    return parser.parse_args()


def main() -> None:
    """Print a table for each grid."""
    options = arguments()
    pythons = dict(entry.split("=", 1) for entry in options.python)
    if options.before:
        pythons |= dict.fromkeys((BEFORE, BEFORE_SINGLE), options.before)
    results = Results(options.json, options.resume)
    print(heading(options.threads))
    for name in options.grid:
        grid = selected(GRIDS[name], options)
        peers = {
            peer: Peer(peer, pythons.get(peer, sys.executable), options.threads, timeout=options.timeout)
            for peer in grid.peers
        }
        try:
            if options.before:
                print(f"\n{origins([peers[OURS], peers[BEFORE]])}")
            fill(name, grid, peers, results, options.scale)
        finally:
            for peer in peers.values():
                peer.close()
        print("\n".join(table(name, grid, results)), flush=True)


if __name__ == "__main__":
    main()
