"""How far a fit is, as a bar in a notebook or on a terminal: for whoever asks, with `watching`."""

import sys
import uuid
from datetime import timedelta
from html import escape
from math import isfinite
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.filesize import pick_unit_and_suffix

from daskgmm.fit.events import Event, Progress, Reached, Stage, standing
from daskgmm.fit.state import State

WIDTH, EVERY = 8, 0.2  # of the bar, in characters; seconds from one picture to the next


class Course:
    """A listener that knows what a fit does, how far it is and how fast: a bar of all passes that it may make."""

    def __init__(self) -> None:
        self.stage = ""
        self.last: State | None = None
        self.rows = 0.0  # of a pass; 0 as long as that is unknown
        self.origin: tuple[float, float] | None = None  # seconds and passes, from which on speed is measured
        self.name, self.count = "", ""
        self.done = 0.0
        self.total: float | None = None  # of what is done; None where that is unknown

    def __call__(self, event: Event) -> None:
        match event:
            case Stage("compiling"):
                self.name, self.count = "compiling the E-step (once)", ""
            case Stage(name) if name != "done":
                self.stage = self.name = name
                self.count = ""
                if self.origin is None:  # the bar of the survey is another
                    self.done, self.total = 0.0, None
            case Progress(done, total):
                self._progressed(done, total)
            case Reached(state):
                if self.last is not None and (self.last.done or not state.runs):  # another fit begins
                    self.last = self.origin = None
                if not state.mid_pass or self.last is None:
                    self.last = state
                    surveyed = 0 if state.survey is None else state.survey.overall.n_rows
                    self.rows = max([run.n_rows for run in state.runs], default=surveyed) or self.rows

    def _progressed(self, done: int, total: int) -> None:
        """So many blocks of this pass are done."""
        self.count, state = f"block {done:,}/{total:,}", self.last
        if state is None or not state.runs:  # the survey, which is a bar by itself
            self.name, self.done, self.total = self.stage, done / total, 1.0
            return
        most = state.n_passes + max((run.max_iter - run.n_iter for run in state.runs if not run.done), default=0)
        passes = state.n_passes + done / total
        told, (_, change) = [self.count, *self._pace(passes, most)], standing(state)
        told += [f"change {change:.1e}"] if isfinite(change) else []
        self.name, self.count = f"{self.stage} of {most}", "  ".join(told)
        self.done, self.total = passes, float(most)

    def _pace(self, passes: float, most: float) -> list[str]:
        """Rows a second, and the time left where all passes are made; nothing before the second block."""
        now = perf_counter()
        if self.origin is None:
            self.origin = now, passes
        seconds, behind = now - self.origin[0], passes - self.origin[1]
        if not (seconds > 0 and behind > 0):
            return []
        speed = self.rows * behind / seconds
        unit, letter = pick_unit_and_suffix(int(speed), ["", "k", "M", "G"], 1000)
        left = str(timedelta(seconds=int((most - passes) * seconds / behind))).removeprefix("0:")
        told = [f"{speed / unit:.1f}{letter} rows/s"] if self.rows else []
        return [*told, f"<{left} left"]


class ProgressBar:
    """A bar that says what a fit does: a listener for `watching`, in a notebook or on a terminal.

    It fills with the passes that the fit may make, and says the block of the pass, rows a second, the most time
    that is left, and the last change of the log-likelihood. In a notebook it is HTML, which needs no widgets;
    elsewhere one line on standard error, if that is a terminal.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture, watching
    >>> from daskgmm.display import ProgressBar
    >>> with watching(ProgressBar()):
    ...     model = GaussianMixture(random_state=0).fit(np.arange(12.0).reshape(6, 2))
    """

    def __init__(self) -> None:
        self._course, self._ended, self._drawn = Course(), False, 0.0
        self._handle: Any = None  # of what a notebook shows

    def __call__(self, event: Event) -> None:
        """Take note of an event; draw, if it is time."""
        self._course(event)
        match event:
            case Stage(name):
                self._ended = name == "done"
                self._draw()
            case Progress() if perf_counter() - self._drawn >= EVERY:
                self._draw()

    def __repr__(self) -> str:
        course = self._course
        share = course.done / course.total if course.total else 0.0
        bar = ("━" * round(share * WIDTH)).ljust(WIDTH)
        return f"{course.name:<13} {bar} {course.count}" if not self._ended else f"done: {self._passes()}"

    def _repr_html_(self) -> str:
        course = self._course
        if self._ended:
            return f"<span>done: {escape(self._passes())}</span>"
        value = f' value="{course.done / course.total:.4f}"' if course.total else ""
        bar = f'<progress max="1"{value} style="vertical-align:middle"></progress>'
        return f"<span>{escape(course.name)} {bar} {escape(course.count)}</span>"

    def _passes(self) -> str:
        state = self._course.last
        passes, iterations = (0, 0) if state is None else (state.n_passes, state.n_iter)
        return f"{iterations} iteration{'s' * (iterations != 1)}, {passes} pass{'es' * (passes != 1)}"

    def _draw(self) -> None:
        """Show where the fit is in place of what was shown before."""
        self._drawn = perf_counter()
        if (display := _notebook()) is not None:
            if self._handle is None:
                self._handle = display(self, display_id=uuid.uuid4().hex)
            else:
                self._handle.update(self)
        elif sys.stderr.isatty():
            shown = repr(self)[: Console(stderr=True).width - 1]  # no escape goes back over a second line
            print(f"\r\x1b[K{shown}", end="\n" if self._ended else "", file=sys.stderr, flush=True)
        if self._ended:
            self._handle = None


def _notebook() -> Any:
    """IPython's ``display``, where a kernel shows it."""
    ipython, display = map(sys.modules.get, ("IPython", "IPython.display"))
    if ipython is None or display is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return None
    return display.display
