"""What a fit has cost, stage by stage: passes, bytes and seconds."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from dask.utils import format_bytes, format_time

from daskgmm.compute.cost import FREE, Cost
from daskgmm.fit.state import State


@dataclass(frozen=True)
class Spent:
    """What has just been paid for something: a stage of a fit, or a query. ``a + b`` adds both."""

    purpose: str  # "survey", "seeding", "iterations", "score"
    passes: int  # over the rows
    cost: Cost
    seconds: float  # on the clock

    def __str__(self) -> str:
        cost, n = self.cost, self.passes
        kept = f", {format_bytes(int(cost.kept))} of it from memory" if cost.kept else ""
        return (
            f"{self.purpose}: {n} pass{'es' * (n != 1)} over {format_bytes(int(cost.seen))}{kept}, "
            f"{format_bytes(int(cost.read))} read; {format_time(self.seconds)}; threads were reading for "
            f"{format_time(cost.reading)}, computing for {format_time(cost.computing)}"
        )

    def __add__(self, other: "Spent") -> "Spent":
        seconds = self.seconds + other.seconds
        return Spent(self.purpose, self.passes + other.passes, self.cost + other.cost, seconds)


@dataclass(eq=False)
class Ledger:
    """A listener that adds up what has been spent, by purpose."""

    entries: dict[str, Spent] = field(default_factory=dict)
    total: Spent = Spent("total", 0, FREE, 0.0)  # of all entries

    def __call__(self, event: Any) -> None:
        if isinstance(event, Spent):
            before = self.entries.get(event.purpose)
            self.entries[event.purpose] = event if before is None else before + event
            self.total += event

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Passes, bytes and seconds of the entries, and in total."""
        return {
            purpose: {
                "passes": spent.passes,
                "bytes": int(spent.cost.seen),
                "bytes_read": int(spent.cost.read),
                "bytes_kept": int(spent.cost.kept),
                "seconds": spent.seconds,
                "seconds_reading": spent.cost.reading,
                "seconds_computing": spent.cost.computing,
            }
            for purpose, spent in {**self.entries, "total": self.total}.items()
        }


@dataclass(eq=False)
class Meter:
    """Adds up what an engine spends, until somebody asks."""

    cost: Cost = FREE
    began: float = field(default_factory=perf_counter)
    last: State | None = None  # of a fit

    def add(self, cost: Cost) -> None:
        """Once more."""
        self.cost += cost

    def spent(self, purpose: str, passes: int) -> Spent:
        """What was spent since somebody asked last."""
        cost, began = self.cost, self.began
        self.cost, self.began = FREE, perf_counter()
        return Spent(purpose, passes, cost, self.began - began)

    def reached(self, state: State) -> list[Spent]:
        """What a fit that stands here now has spent on the stage that has ended, if one has."""
        last = self.last
        if last is not None and state.mid_pass:
            return []
        self.last = state
        if last is None:
            self.spent("", 0)
            return []
        return [self.spent("iterations" if last.runs else last.stage, state.n_passes - last.n_passes)]
