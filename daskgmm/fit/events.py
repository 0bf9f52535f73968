"""What a fit tells whoever listens: a stream of events. Nothing is printed by default."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import TypeAlias

from daskgmm.fit.run import Run
from daskgmm.fit.state import State

logger = logging.getLogger("daskgmm")


@dataclass(frozen=True)
class Message:
    """A sentence about how the fit begins: where it goes on from, what it waits for."""

    text: str


@dataclass(frozen=True)
class Stage:
    """What is being waited for: "survey", "seeding", "pass 3", "compiling"."""

    name: str


@dataclass(frozen=True)
class Blocks:
    """So many blocks of the pass under way are finished."""

    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Reached:
    """The fit stands here now; `State.stage` comes next."""

    state: State


Event: TypeAlias = Message | Stage | Blocks | Reached
Listener: TypeAlias = Callable[[Event], None]

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("daskgmm-listeners", default=())


@contextmanager
def watching(*listeners: Listener) -> Iterator[None]:
    """Have fits within the block tell these listeners what they do.

    Parameters
    ----------
    *listeners : callables
        Each is called with every `Message`, `Stage`, `Blocks` and `Reached`, in turn: mostly in the thread of the
        fit, with a `Stage` also in one that compiles. What a listener raises ends the fit.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture
    >>> from daskgmm.fit.events import Reached, watching
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


def teller() -> Listener:
    """What tells an event to the log and to everybody who listens now, from any thread."""
    listeners = (Log(), *_listeners.get())

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


class Log:
    """One line for each stage and iteration, at level INFO, under the name "daskgmm"."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.iterations = -1

    def __call__(self, event: Event) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        match event:
            case Message(text):
                logger.info(text)
            case Stage(name):
                logger.info("waiting for: %s", name)
            case Reached(state) if not state.mid_pass:
                self._state(state)

    def _state(self, state: State) -> None:
        seconds, self.began = perf_counter() - self.began, perf_counter()
        if self.iterations >= 0 and state.n_iter > self.iterations:
            bound, change = standing(state.runs)
            logger.info(
                "iteration %d: mean log-likelihood %.8g, change %.2e, %.2f s", state.n_iter, bound, change, seconds
            )
        self.iterations = state.n_iter


class Verbose:
    """Prints the stages, and a line for each run every ``interval`` iterations, as scikit-learn's ``verbose`` does."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.iterations = -1

    def __call__(self, event: Event) -> None:
        match event:
            case Message(text):
                print(text)
            case Stage("survey" | "seeding" | "compiling" as name):
                print(name)
            case Reached(state) if not state.mid_pass:
                if self.iterations >= 0 and state.n_iter > self.iterations:
                    self._runs(state.runs)
                self.iterations = state.n_iter

    def _runs(self, runs: tuple[Run, ...]) -> None:
        for number, run in enumerate(runs):
            if run.trace and (run.n_iter % self.interval == 0 or run.done):
                outcome = "converged" if run.converged else "collapsed" if run.failure else ""
                print(
                    f"  run {number}, iteration {run.n_iter}: mean log-likelihood "
                    f"{run.trace[-1]:.6f} {outcome}".rstrip()
                )


def standing(runs: tuple[Run, ...]) -> tuple[float, float]:
    """Bound of the best run so far, and its last change; NaN where all have failed, or there is none."""
    sound = [run for run in runs if run.trace and run.failure is None]
    if not sound:
        return float("nan"), float("nan")
    leader = max(sound, key=lambda run: run.lower_bound)
    before = leader.trace[-2] if leader.n_iter > 1 else getattr(leader, "previous", float("nan"))
    return leader.lower_bound, leader.lower_bound - before if isfinite(before) else float("nan")
