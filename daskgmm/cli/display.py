"""What a long command tells on standard error while it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from time import perf_counter
from typing import Any

import click
from dask.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from daskgmm.fit.progress import Progress, Silent
from daskgmm.fit.run import Run

HEADER = f"{'stage':<16}{'mean log-likelihood':>21}{'change':>12}{'seconds':>11}"


class Quiet(Silent):
    """Only how the fit begins, where that is not as usual."""

    def tell(self, line: str) -> None:
        click.echo(line, err=True)


class Log:
    """A line for each stage, and one for every ``interval`` EM iterations."""

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval
        self.iterations = 0
        self.name = ""
        self.began = perf_counter()

    def say(self, line: str) -> None:
        """Write one line."""
        click.echo(line, err=True)

    def tell(self, line: str) -> None:
        self.say(line)

    def stage(self, name: str, done: int = 0) -> None:
        if not self.name:
            self.say(HEADER)
        elif self.name != "em":
            self._line(self.name)
        self.name = name
        self.iterations = done
        self.began = perf_counter()

    def blocks(self, done: int, total: int) -> None: ...

    def iteration(self, runs: Sequence[Run]) -> None:
        self.iterations += 1
        if self.iterations % self.interval == 0 or all(run.done for run in runs):
            self._line(f"iteration {self.iterations}", *_standing(runs, self.iterations))
        self.began = perf_counter()

    def _line(self, name: str, bound: str = "", change: str = "", note: str = "") -> None:
        seconds = perf_counter() - self.began
        self.say(f"{name:<16}{bound:>21}{change:>12}{seconds:>11.2f}{note}")


class Terminal(Log):
    """The same lines above a bar that fills with the blocks of the pass."""

    def __init__(self, bars: Bars, interval: int = 1) -> None:
        super().__init__(interval)
        self.bars = bars
        self.bar = bars.add_task("", total=None, count="")

    def say(self, line: str) -> None:
        self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, done: int = 0) -> None:
        super().stage(name, done)
        self._restart()

    def blocks(self, done: int, total: int) -> None:
        self.bars.update(self.bar, completed=done, total=total, count=f"block {done:,} of {total:,}")

    def iteration(self, runs: Sequence[Run]) -> None:
        super().iteration(runs)
        self._restart()

    def _restart(self) -> None:
        title = f"iteration {self.iterations + 1}" if self.name == "em" else self.name
        self.bars.remove_task(self.bar)  # a reset would keep the number of blocks
        self.bar = self.bars.add_task(title, total=None, count="")


class Tasks(Callback):
    """Fills a bar with the tasks of whatever Dask's local schedulers run meanwhile."""

    def __init__(self, bars: Bars, title: str) -> None:
        self.bars = bars
        self.bar = bars.add_task(title, total=None, count="")
        super().__init__(posttask=self._finished)  # type: ignore[no-untyped-call]

    def _finished(self, key: Any, result: Any, graph: Any, state: Any, worker: Any) -> None:
        done = len(state["finished"])
        total = done + sum(len(state[name]) for name in ("ready", "waiting", "running"))
        self.bars.update(self.bar, completed=done, total=total, count=f"{done / total:.0%}")


@contextmanager
def fitting(verbose: bool, interval: int) -> Iterator[Progress]:
    """What a fit tells: a bar and lines on a terminal, lines if asked for, else hardly anything."""
    if _live():
        with _bars() as bars:
            yield Terminal(bars, interval)
    else:
        yield Log(interval) if verbose else Quiet()


@contextmanager
def one_pass(title: str) -> Iterator[None]:
    """What one pass over the rows tells: a bar on a terminal."""
    if _live():
        with _bars() as bars, Tasks(bars, title):
            yield
    else:
        yield


def _live() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _bars() -> Bars:
    return Bars(
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,  # gone at the end: the lines stay
    )


def _standing(runs: Sequence[Run], iteration: int) -> tuple[str, str, str]:
    """Likelihood of the best run so far, its last change, and how many runs go on."""
    live = sum(not run.done for run in runs)
    note = f"  {live}/{len(runs)} runs go on" if len(runs) > 1 else ""
    sound = [run for run in runs if run.trace and run.failure is None]
    if not sound:
        return "collapsed", "", note
    leader = max(sound, key=lambda run: run.lower_bound)
    before = leader.trace[-2] if leader.n_iter > 1 else leader.previous
    # The first step of a fresh start has nothing to be compared with; a finished run stands still.
    moved = leader.n_iter == iteration and isfinite(before)
    change = f"{leader.lower_bound - before:.2e}" if moved else ""
    return f"{leader.lower_bound:#.8g}", change, note
