"""Accelerated EM: points to look at are extrapolated from the last ones, and each costs one pass."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.errors import CollapseError, DataError
from daskgmm.fit.run import EM, ROUNDING, rest
from daskgmm.fit.tasks import Expect
from daskgmm.model import local
from daskgmm.model.blas import one_thread
from daskgmm.model.checks import at_least, holds, positive, require
from daskgmm.model.mixture import Mixture
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import TINY
from daskgmm.store.values import storable

# Over ten overlapping problems, passes to within 1e-4 nats of the optimum added up to 617 with these. With 3 or 10
# pairs there were 5 or 2 % more; with one trial in a row 2 % more, with four 1 % fewer; with a limit of 4 or 8 on
# what is felt 1 or 10 % more.
PAIRS = 5  # that are remembered
TRIALS = 2  # in a row that are worse, before the EM step itself
REACH, MOST = 8.0, 1e3  # of a trial, in lengths of the EM step: at first, and at most
FELT = 2.0  # by rows of one component, of a trial, in standard deviations
CURVED = 1e-6  # the cosine between the parts of a pair, at least


@storable
@dataclass(frozen=True, eq=False)
class Memory:
    """The last moves from the best point to others, and by how much the EM step was shorter there."""

    moves: Array  # (m, p)
    turns: Array  # (m, p)

    def check(self) -> None:
        """Raise `ValueError` unless these are pairs."""
        shape = self.moves.shape
        require(len(shape) == 2 and 0 < shape[0] <= PAIRS, "There are no moves.")
        require(holds(self.moves, shape) and holds(self.turns, shape), "Moves and turns are no pairs.")

    def and_then(self, move: Array, turn: Array) -> "Memory":
        """With one more pair, and without the first of too many."""
        return Memory(np.vstack([self.moves, move])[-PAIRS:], np.vstack([self.turns, turn])[-PAIRS:])


# From inner products (2m + 1, 2m + 1) of moves, turns and the EM step to the multiples of these that add up to the
# change to try.
Method = Callable[[Array], Array]


def lbfgs(products: Array) -> Array:
    """Limited-memory BFGS with the EM step as the gradient.

    Nocedal (1980), by inner products alone (Chen, Wang & Zhou 2014); EM as a preconditioner: Jamshidian & Jennrich
    (1997).
    """
    m = len(products) // 2
    curved = [
        i for i in range(m) if products[i, m + i] > CURVED * np.sqrt(products[i, i] * products[m + i, m + i])
    ]
    direction: Array = np.eye(2 * m + 1)[-1]
    along = np.zeros(m)
    for i in reversed(curved):
        along[i] = direction @ products[i] / products[i, m + i]
        direction[m + i] -= along[i]
    for i in curved[-1:]:  # the EM step is never too long
        direction *= max(1.0, products[i, m + i] / products[m + i, m + i])
    for i in curved:
        direction[i] += along[i] - direction @ products[m + i] / products[i, m + i]
    return direction


def squarem(products: Array) -> Array:
    """After an EM step two more, of the length that the last pair tells; else the EM step.

    Varadhan & Roland (2008), scheme S3.
    """
    m = len(products) // 2
    unit: Array = np.eye(2 * m + 1)
    move, turn, step = unit[m - 1], unit[2 * m - 1], unit[-1]
    other = move - turn - step  # nothing, if the move was the EM step: the next is what the turn has left of it
    moved, turned, otherwise = (float(change @ products @ change) for change in (move, turn, other))
    if m == 0 or turned <= 0 or otherwise > 1e-8 * moved:
        return np.asarray(step)
    length = max(1.0, (moved / turned) ** 0.5)
    extrapolated: Array = (2 * length - 1) * move - length**2 * turn
    return extrapolated


METHODS: dict[str, Method] = {"lbfgs": lbfgs, "squarem": squarem}
BEST = "lbfgs"


@storable
@dataclass(frozen=True, eq=False)
class Accelerated(EM):
    """Batch EM that looks further than its step; ``mixture`` is the EM step of the best point so far.

    The trace has a point for each iteration, and never falls, but for what ``reg_covar`` does. A trial that is
    worse costs a pass, and is remembered all the same. After `TRIALS` of them in a row comes the EM step itself.
    """

    method: str = BEST
    point: Mixture | None = None  # the best so far
    trial: Mixture | None = None  # what the next pass looks at, unless that is ``mixture``
    memory: Memory | None = None
    reach: float = REACH
    refused: int = 0  # trials in a row
    foreseen: float = nan  # gain, by the quadratic model that makes the trial

    def check(self) -> None:
        super().check()
        require(self.method in METHODS, "There is no such method.")
        require(positive(self.reach) and at_least(0, self.refused), "The reach or a count is too small.")
        structure, shape = self.mixture.covariance.structure, self.mixture.means.shape
        for other in (self.point, self.trial):
            same = other is None or (other.covariance.structure is structure and other.means.shape == shape)
            require(same, "The points have other components.")
        p = self.mixture.weights.size + self.mixture.means.size + self.mixture.covariance.coordinates.size
        require(self.memory is None or self.memory.moves.shape[1] == p, "The moves are those of other points.")
        require(self.point is not None or (self.trial is None and self.memory is None), "There is no point yet.")

    @property
    def remaining(self) -> float:
        # The model knows few directions, and sees too little at first; single changes are now large, now small.
        to_come = [found for m in (1, 2, 3) if not isnan(found := rest(self.trace, m))]
        return max(*to_come, self.foreseen) if to_come else nan

    @property
    def task(self) -> Expect:
        return Expect(self.trial or self.mixture)

    def advance(self, found: Statistics) -> Self:
        looked = self.trial or self.mixture
        try:
            bound, mixture = self.step(looked, found)
        except DataError as failure:
            if self.trial is None:
                return replace(self, failure=failure)
            return self._refusing(self.memory)
        memory = self._remembering(looked, mixture)
        if self.trial is not None and bound < self.lower_bound:
            return self._refusing(memory)
        reach = self.reach if self.trial is None else min(2 * self.reach, MOST)
        run = replace(self, mixture=mixture, point=looked, memory=memory, reach=reach, refused=0)
        return run._aiming().reached(mixture, bound, found)

    def _refusing(self, memory: Memory | None) -> Self:
        """After a trial that was worse, or had no EM step."""
        return replace(self, memory=memory, reach=max(self.reach / 4, 1.0), refused=self.refused + 1)._aiming()

    def _remembering(self, looked: Mixture, mixture: Mixture) -> Memory | None:
        """The memory with the pair of the best point and this one, whose EM step is ``mixture``."""
        if self.point is None:
            return None
        best, here = local.coordinates(self.point), local.coordinates(looked)
        move = here - best
        turn = local.coordinates(self.mixture) - best - (local.coordinates(mixture) - here)
        return Memory(move[None], turn[None]) if self.memory is None else self.memory.and_then(move, turn)

    def _aiming(self) -> Self:
        """With the trial that comes next, and what it is to gain."""
        assert self.point is not None
        best = local.coordinates(self.point)
        step = (local.coordinates(self.mixture) - best)[None]
        changes = step if self.memory is None else np.vstack([self.memory.moves, self.memory.turns, step])
        with one_thread():  # bits depend on it
            products = local.products(changes, self.point)
            multiples = METHODS[self.method](products)
            change, (along, square) = multiples @ changes, (products[-1] @ multiples, products[-1, -1])
            longer = multiples @ products @ multiples / max(square, TINY)  # than the EM step, squared
            trial, foreseen = None, float(max(along, square)) / 2
            worth = foreseen > ROUNDING * max(1.0, abs(self.lower_bound)) or not self.trace
            if self.memory is not None and worth and min(along, longer) > 0 and self.refused < TRIALS:
                share = min(1.0, self.reach / np.sqrt(longer), FELT / local.largest(change, self.point))
                with suppress(CollapseError):
                    trial = local.at(best + share * change, self.point)
        # To second order: half of gradient times change. The EM step alone gains at least as much.
        return replace(self, trial=trial, foreseen=foreseen)
