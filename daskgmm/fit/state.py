"""Where a fit stands, as a frozen value: what an iterator of states gives, and what a checkpoint holds."""

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import numpy as np

from daskgmm.fit.run import Run
from daskgmm.fit.survey import Survey
from daskgmm.model.checks import at_least, require
from daskgmm.store.values import digest, storable

# Of random numbers, by the name that a state of theirs has.
GENERATORS = {name: getattr(np.random, name) for name in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")}


@storable
@dataclass(frozen=True, eq=False)
class State:
    """Where a fit stands. Nothing in it grows with the number of rows."""

    random: dict[str, Any] = field(repr=False)  # state of the random numbers before the stage that comes next
    n_passes: int = 0  # how often the rows were read
    survey: Survey | None = None  # what the first pass found, until the runs have begun
    runs: tuple[Run, ...] = ()  # what passes advance; empty until seeded
    mid_pass: bool = False  # whether a pass is under way, so that the next states are not far

    def check(self) -> None:
        """Raise `ValueError` unless a fit may stand so."""
        _check_random(self.random)
        require(at_least(0, self.n_passes), "The passes are fewer than none.")
        require(self.survey is None or not self.runs, "There are both a survey and runs.")
        kinds = {(type(run), run.mixture.n_features) for run in self.runs}
        require(len(kinds) <= 1, "The runs differ in kind.")

    @property
    def done(self) -> bool:
        """Whether no pass is left."""
        return bool(self.runs) and all(run.done for run in self.runs)

    @property
    def n_iter(self) -> int:
        """Iterations of the run that made most."""
        return max((run.n_iter for run in self.runs), default=0)

    @property
    def stage(self) -> str:
        """What comes next, for whoever waits for it."""
        if self.done:
            return "done"
        if self.runs:
            return f"pass {self.n_passes + 1}"
        return "survey" if self.survey is None else "seeding"

    def under(self, **settings: Any) -> "State":
        """The same with another ``tol`` or ``max_iter`` of its runs."""
        return replace(self, runs=tuple(run.under(**settings) for run in self.runs))


def _check_random(told: dict[str, Any]) -> None:
    """Raise unless this is a state of random numbers; NumPy takes others, and then reads beyond its memory."""
    random = np.random.RandomState(GENERATORS[told["bit_generator"]]())
    random.set_state(told)
    require(digest(random.get_state(legacy=False)) == digest(told), "The random numbers have another state.")
    inner = told["state"]
    require(0 <= inner.get("pos", 0) <= 624 and 0 <= told.get("buffer_pos", 0) <= 4, "There is no such number.")
    require(told["has_gauss"] in (0, 1) and isfinite(told["gauss"]), "There is no such number.")
