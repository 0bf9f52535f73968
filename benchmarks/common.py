"""What the benchmark scripts share: rows, starts, the judge, and peers that answer from processes of their own."""

from __future__ import annotations

import json
import math
import os
import platform
import select
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

JUDGED_ROWS = 20_000
PIECE = 2**18  # rows drawn at a time


def centres(d: int, k: int) -> Any:
    """Cluster centres about four standard deviations from each other: they overlap, and can be told apart."""
    return np.random.default_rng([d, k]).normal(scale=4 / math.sqrt(2 * d), size=(k, d))


def write_rows(path: Path, n: int, d: int, k: int) -> Path:
    """Rows of k unit clusters in random order, (n, d) float64, as a ``.npy`` file."""
    random, middle = np.random.default_rng([n, d, k]), centres(d, k)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(n, d))
    for first in range(0, n, PIECE):
        part = rows[first : first + PIECE]
        part[:] = random.standard_normal(part.shape)
        part += middle[random.integers(k, size=len(part))]
    rows.flush()
    return path


def unit_covariances(d: int, k: int, kind: str) -> Any:
    """Unit covariances, which are unit precisions too, in the shape of a covariance type."""
    shapes = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
    return np.broadcast_to(np.eye(d) if kind in ("full", "tied") else 1.0, shapes[kind]).copy()


def start(d: int, k: int, kind: str) -> dict[str, Any]:
    """Parameters to start from: equal weights, means off the centres, unit covariances."""
    off = np.random.default_rng([d, k, 1]).normal(scale=0.3, size=(k, d))
    means = centres(d, k) * (1 + off)
    return {"weights": np.full(k, 1 / k), "means": means, "covariances": unit_covariances(d, k, kind)}


def full_covariances(covariances: Any, d: int, k: int, kind: str) -> Any:
    """Covariances of any type as (k, d, d)."""
    if kind == "full":
        return covariances
    if kind == "tied":
        return np.broadcast_to(covariances, (k, d, d))
    variances = covariances if kind == "diag" else np.repeat(covariances[:, None], d, axis=1)
    return variances[:, :, None] * np.eye(d)


def judge(x: Any, found: dict[str, Any], kind: str) -> float:
    """Mean log-likelihood of the first rows under the parameters that a peer found; the same code for all."""
    x = np.asarray(x[:JUDGED_ROWS], dtype=np.float64)
    k, d = found["means"].shape
    log_density = np.empty((len(x), k))
    for j, covariance in enumerate(full_covariances(found["covariances"], d, k, kind)):
        factor = np.linalg.cholesky(covariance)
        z = solve_triangular(factor, (x - found["means"][j]).T, lower=True)
        log_density[:, j] = -0.5 * (z**2).sum(axis=0) - np.log(np.diag(factor)).sum()
    log_density += np.log(found["weights"]) - 0.5 * d * math.log(2 * math.pi)
    return float(logsumexp(log_density, axis=1).mean())


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def hardware() -> str:
    """Processor and number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores"


def heading(threads: int) -> str:
    """Hardware, threads, date and versions: what figures are worth nothing without."""
    names = ("daskgmm", "dask", "numba", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{hardware()}; {threads} threads; {date.today()}; Python {platform.python_version()}, {versions}"


@dataclass
class Peer:
    """A library in a process of its own, which answers one question after the other.

    Question and answer are a line of JSON each, so that starting the interpreter is paid once. A process that
    dies or is too slow is an answer too; the next question starts another.
    """

    name: str
    python: str = sys.executable
    threads: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    timeout: float = 3600
    process: Any = None

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer, or what went wrong, under "error"."""
        if self.process is None or self.process.poll() is not None:
            self._begin()
        try:
            self.process.stdin.write(json.dumps(question, default=str) + "\n")
            self.process.stdin.flush()
            ready = select.select([self.process.stdout], [], [], self.timeout)[0]
            line = self.process.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, line = [self.process], ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.close()
        return {"error": "process died" if ready else f"no answer in {self.timeout:.0f} s"}

    def _begin(self) -> None:
        pools = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        limits = {f"{pool}_NUM_THREADS": str(self.threads) for pool in pools}
        self.process = subprocess.Popen(
            [self.python, str(Path(__file__).with_name("peers.py")), self.name, str(self.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **limits, **self.environment},
        )

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def answered(peer: Peer, task: str, path: Path, n: int, k: int, kind: str, **more: Any) -> dict[str, Any]:
    """A peer's answer about the first n rows of a file, with the judge's verdict in place of parameters."""
    rows: Any = np.load(path, mmap_mode="r") if path.suffix == ".npy" else None
    d = more.pop("d", None) or rows.shape[1]
    begin = path.with_suffix(f".{kind}.npz")
    np.savez(begin, **start(d, k, kind))
    answer = peer.ask(task=task, path=path, start=begin, n=n, k=k, kind=kind, **more)
    return judged(answer, rows, kind)


def judged(answer: dict[str, Any], rows: Any, kind: str) -> dict[str, Any]:
    """An answer with the judge's verdict in place of parameters; without one where there are no rows."""
    if "parameters" in answer:
        with np.load(answer.pop("parameters")) as found:
            answer["log_likelihood"] = None if rows is None else judge(rows, dict(found), kind)
    return answer


def in_turn(peers: Sequence[Peer], rounds: int, ask: Callable[[Peer], dict[str, Any]]) -> list[dict[str, Any]]:
    """An answer of each peer: of so many rounds, in which all take their turn, forwards and backwards.

    Times are medians over the rounds, in which they stand in "rounds", to be compared in pairs. A peer that fails
    once is not asked again.
    """
    found: list[list[dict[str, Any]]] = [[] for _ in peers]
    for number in range(rounds):
        order = range(len(peers)) if number % 2 == 0 else reversed(range(len(peers)))
        for i in order:
            if not any("error" in answer for answer in found[i]):
                found[i].append(ask(peers[i]))
    return [_over_rounds(answers) for answers in found]


def _over_rounds(answers: list[dict[str, Any]]) -> dict[str, Any]:
    last = answers[-1]
    if "error" in last or len(answers) == 1:
        return last
    seconds = [answer["seconds"] for answer in answers]
    if not np.median(seconds) > 0:
        return {"error": "fails: an iteration is too short to time: more rows, please"}
    return {**last, "seconds": float(np.median(seconds)), "rounds": seconds}


def slower(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """Their time over ours: the median over rounds, where both made them together."""
    pairs = [theirs.get("rounds", []), ours.get("rounds", [])]
    if len(pairs[0]) != len(pairs[1]) or not pairs[0]:
        return float(theirs["seconds"] / ours["seconds"])
    return float(np.median(np.divide(*pairs)))


def origins(peers: Iterable[Peer]) -> str:
    """Where each peer's daskgmm comes from, in a line; ends the program where two are the same files."""
    places: dict[str, str] = {}
    for peer in peers:
        answer = peer.ask(task="where")
        if "error" in answer:
            raise SystemExit(f"{peer.name}: {answer['error']}")
        if (place := answer["where"]) in places.values():
            raise SystemExit(f"{peer.name} is the daskgmm of {place}, as another is: nothing to compare.")
        places[peer.name] = place
    return "; ".join(f"{name}: {place}" for name, place in places.items())
