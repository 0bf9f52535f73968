"""Listeners that fits tell what they do. States count from 0: begun, surveyed, seeded, and one after each pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from daskgmm.fit.events import Event, Reached
from daskgmm.fit.state import State

SEEDED = 2  # number of the state after the seeding: iteration i ends with state SEEDED + i


@dataclass
class Heard:
    """Keeps all that it is told."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def states(self) -> list[State]:
        return [event.state for event in self.events if isinstance(event, Reached)]


@dataclass
class At:
    """Calls something once, when a fit has reached its state of this number."""

    number: int
    what: Callable[[], Any]

    def __call__(self, event: Event) -> None:
        if isinstance(event, Reached):
            self.number -= 1
            if self.number == -1:
                self.what()


def stop(number: int, error: type[BaseException] = KeyboardInterrupt) -> At:
    """What ends a fit with an exception there."""

    def throw() -> NoReturn:
        raise error

    return At(number, throw)
