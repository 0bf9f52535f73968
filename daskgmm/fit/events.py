"""What a fit tells whoever listens: a stream of events. Nothing is printed by default."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite, nan
from typing import TypeAlias

from daskgmm.fit.accounting import Ledger, Spent
from daskgmm.fit.run import Run
from daskgmm.fit.state import State

logger = logging.getLogger("daskgmm")


@dataclass(frozen=True)
class Message:
    """A sentence about how the fit begins: where it goes on from, what it waits for."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Stage:
    """What is being waited for: "survey", "seeding", "pass 3", "compiling"."""

    name: str

    def __str__(self) -> str:
        return f"waiting for: {self.name}"


@dataclass(frozen=True)
class Progress:
    """So many blocks of the pass under way are finished."""

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Reached:
    """The fit stands here now; `State.stage` comes next."""

    state: State

    def __str__(self) -> str:
        bound, change = standing(self.state)
        told = "" if bound != bound else f": {self.state.runs[0].watched} {bound:.8g}"
        changed = "" if change != change else f", change {change:.2e}"
        return f"iteration {self.state.n_iter}{told}{changed}"


Event: TypeAlias = Message | Stage | Progress | Reached | Spent
Listener: TypeAlias = Callable[[Event], None]

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("daskgmm-listeners", default=())


@contextmanager
def watching(*listeners: Listener) -> Iterator[None]:
    """Have fits within the block tell these listeners what they do.

    Parameters
    ----------
    *listeners : callables
        Each is called with every `Message`, `Stage`, `Progress`, `Reached` and `Spent`, in turn: mostly in the
        thread of the fit, with a `Stage` "compiling" in any that compiles meanwhile, for whatever fit or query.
        What a listener raises ends the work of that thread.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture, watching
    >>> from daskgmm.fit.events import Reached
    >>> bounds = []
    >>> def listen(event):
    ...     if isinstance(event, Reached) and event.state.runs:
    ...         bounds.append(event.state.runs[0].lower_bound)
    >>> with watching(listen):
    ...     model = GaussianMixture(random_state=0).fit(np.arange(12.0).reshape(6, 2))
    >>> bounds[-1] == model.lower_bound_
    True
    """
    token = _listeners.set((*_listeners.get(), *listeners))
    try:
        yield
    finally:
        _listeners.reset(token)


def teller(*more: Listener) -> Listener:
    """What tells an event to the log and to everybody who listens now, from any thread."""
    logs = (log,) if logger.isEnabledFor(logging.INFO) else ()
    listeners = (*logs, *_listeners.get(), *more)
    stage = None

    def tell(event: Event) -> None:
        nonlocal stage
        if event == stage:  # it goes on
            return
        if isinstance(event, Stage):
            stage = event
        for listener in listeners:
            listener(event)

    return tell


def log(event: Event) -> None:
    """One line for each stage and iteration, at level INFO, under the name "daskgmm"."""
    match event:
        case Stage("done") | Progress() | Spent():
            return
        case Reached(state) if state.mid_pass or not state.n_iter:
            return
    logger.info("%s", event)


class Verbose:
    """Prints the stages, and a line for each run every ``interval`` iterations."""

    def __init__(self, interval: int) -> None:
        self.interval, self.ledger = interval, Ledger()
        self.last: State | None = None  # that was told

    def __call__(self, event: Event) -> None:
        self.ledger(event)
        match event:
            case Message(text):
                print(text)
            case Stage("done"):
                print(self.ledger.total)
            case Stage("survey" | "seeding" | "compiling" as name):
                print(name)
            case Reached(state) if not state.mid_pass or self.last is None:
                if state.runs and self.last is not None and self.last.n_passes < state.n_passes:
                    self._runs(state.runs)
                    for line in outcomes(self.last, state):
                        print(f"  {line}")
                self.last = state

    def _runs(self, runs: tuple[Run, ...]) -> None:
        before = {} if self.last is None else {i: run.n_iter for i, run in enumerate(self.last.runs)}
        for number, run in enumerate(runs):
            went_on = run.n_iter % self.interval == 0 and run.n_iter > before.get(number, 0)
            if run.outcome is None and run.trace and (went_on or run.done):
                outcome = " converged" if run.converged else " collapsed" if run.failure else ""
                left = f", left to gain {run.remaining:.1e}" if run.done and isfinite(run.remaining) else ""
                bound = f"{run.watched} {run.trace[-1]:.6f}"
                print(f"  run {number}, iteration {run.n_iter}: {bound}{outcome}{left}")


def leader(state: State) -> Run | None:
    """The best run so far; None where all have failed, or there is none."""
    sound = [run for run in state.runs if run.trace and run.failure is None]
    return max(sound, key=lambda run: run.lower_bound, default=None)


def outcomes(before: State, state: State) -> list[str]:
    """What the runs have come to, of those that are compared, that have ended since."""
    ended = {number for number, run in enumerate(before.runs) if run.done}
    return [run.outcome for number, run in enumerate(state.runs) if run.outcome and number not in ended]


def standing(state: State) -> tuple[float, float]:
    """Bound of the best run so far, and its last change; NaN where there is none."""
    if (run := leader(state)) is None:
        return nan, nan
    if run.n_iter < state.n_iter:  # it has come to rest
        return run.lower_bound, nan
    before = run.trace[-2] if run.n_iter > 1 else getattr(run, "previous", nan)
    return run.lower_bound, run.lower_bound - before if isfinite(before) else nan
