"""What a long fit tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from daskgmm.fit.run import Run


class Progress(Protocol):
    """Called on the driver: by stage, by block and after each pass."""

    def tell(self, line: str) -> None:
        """A sentence about how the fit begins: where it goes on from, what it waits for."""

    def stage(self, name: str, done: int = 0) -> None:
        """``"survey"``, ``"seeding"`` or ``"em"`` begins, the last of these after so many iterations."""

    def blocks(self, done: int, total: int) -> None:
        """So many blocks of the current pass are finished."""

    def iteration(self, runs: Sequence[Run]) -> None:
        """A pass over the rows has advanced these runs."""


class Silent:
    """The progress that nobody watches."""

    def tell(self, line: str) -> None: ...

    def stage(self, name: str, done: int = 0) -> None: ...

    def blocks(self, done: int, total: int) -> None: ...

    def iteration(self, runs: Sequence[Run]) -> None: ...


class Verbose:
    """Prints a line every ``interval`` iterations, as scikit-learn's ``verbose`` does."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def tell(self, line: str) -> None:
        print(line)

    def stage(self, name: str, done: int = 0) -> None:
        print(name)

    def blocks(self, done: int, total: int) -> None: ...

    def iteration(self, runs: Sequence[Run]) -> None:
        for number, run in enumerate(runs):
            if run.trace and (run.n_iter % self.interval == 0 or run.done):
                state = "converged" if run.converged else "collapsed" if run.failure else ""
                print(
                    f"  run {number}, iteration {run.n_iter}: mean log-likelihood "
                    f"{run.trace[-1]:.6f} {state}".rstrip()
                )
