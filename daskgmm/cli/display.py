"""What a long command tells on standard error while it runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import isfinite, isnan
from time import perf_counter
from typing import Any

from dask.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from daskgmm.cli.failure import plain, say, wrapped
from daskgmm.display.progress import Course
from daskgmm.fit.accounting import Ledger
from daskgmm.fit.events import Event, Message, Progress, Reached, Stage, leader, outcomes, standing, watching
from daskgmm.fit.run import Run
from daskgmm.fit.state import State

HEADER = f"{'stage':<16}{Run.watched:>21}{'change':>12}{'seconds':>11}"


def quiet(event: Event) -> None:
    """Only how the fit begins, where that is not as usual."""
    if isinstance(event, Message):
        say(event.text)


class Log:
    """A line for each stage, and one for every ``interval`` EM iterations."""

    def __init__(self, interval: int = 1) -> None:
        self.interval, self.ledger = interval, Ledger()
        self.last: State | None = None
        self.began, self.told = perf_counter(), -1

    def __call__(self, event: Event) -> None:
        self.ledger(event)
        match event:
            case Message(text):
                self.say(text)
            case Stage("done"):
                self.say(str(self.ledger.total))
            case Reached(state) if not state.mid_pass or self.last is None:
                self.reached(state)

    def say(self, line: str) -> None:
        """Write one line."""
        say(line)

    def reached(self, state: State) -> None:
        """Tell of the stage that has just ended."""
        last, self.last = self.last, state
        if last is None:
            self.say(HEADER)
        elif last.runs:
            went_on = state.n_iter % self.interval == 0 and state.n_iter > last.n_iter
            if state.n_passes > last.n_passes and (went_on or (state.done and state.n_iter != self.told)):
                self.told = state.n_iter
                self._line(f"iteration {state.n_iter}", *_standing(state))
            for line in outcomes(last, state):
                self.say(line)
        else:
            self._line(last.stage)
        begins = state.runs and not (last and last.runs)
        if begins and (watched := state.runs[0].watched) != Run.watched:
            self.say(f"{'':<16}{watched:>21}")
        self.began = perf_counter()

    def _line(self, name: str, bound: str = "", change: str = "", note: str = "") -> None:
        seconds = perf_counter() - self.began
        self.say(f"{name:<16}{bound:>21}{change:>12}{seconds:>11.2f}{note}")


class Terminal(Log):
    """The same lines above a bar that fills with the blocks of all passes that the fit may make."""

    def __init__(self, bars: Bars, interval: int = 1) -> None:
        super().__init__(interval)
        self.bars, self.course = bars, Course()
        self.bar = bars.add_task("", total=None, count="")

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self.course(event)
        if isinstance(event, (Stage, Progress)):
            now = self.course
            self.bars.update(self.bar, description=now.name, count=now.count, completed=now.done, total=now.total)

    def say(self, line: str) -> None:
        line = wrapped(plain(line))
        self.bars.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


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
def fitting(verbose: bool, interval: int) -> Iterator[Ledger]:
    """What fits tell meanwhile: a bar and lines on a terminal, lines if asked for, else hardly anything.

    Gives what adds up their cost.
    """
    ledger = Ledger()
    if _live():
        with _bars() as bars, watching(Terminal(bars, interval), ledger):
            yield ledger
    else:
        with watching(Log(interval) if verbose else quiet, ledger):
            yield ledger


@contextmanager
def one_pass(title: str) -> Iterator[Ledger]:
    """What one pass over the rows tells: a bar on a terminal. Gives what adds up its cost."""
    ledger = Ledger()
    with watching(ledger), ExitStack() as held:
        if _live():
            held.enter_context(Tasks(held.enter_context(_bars(TimeElapsedColumn())), title))
        yield ledger


def _live() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def _bars(*more: ProgressColumn) -> Bars:
    return Bars(
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[count]}"),
        *more,
        console=Console(stderr=True),
        transient=True,  # gone at the end: the lines stay
    )


def _standing(state: State) -> tuple[str, str, str]:
    """Likelihood of the best run so far, its last change, and what is left to gain, or how many runs go on."""
    runs, lead = state.runs, leader(state)
    live = sum(not run.done for run in runs)
    left = f"  left {lead.remaining:.1e}" if lead and isfinite(lead.remaining) else ""
    note = f"  {live}/{len(runs)} runs go on" if len(runs) > 1 else left
    bound, change = standing(state)
    if isnan(bound):  # or an online pass over rows that weigh nothing
        return "collapsed" if any(run.failure for run in runs) else "", "", note
    # The first step of a fresh start has nothing to be compared with.
    return f"{bound:#.8g}".rstrip("."), f"{change:.2e}" if isfinite(change) else "", note
