"""The settings of a fit as one value."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from daskgmm._typing import Array
from daskgmm.fit.run import EM, Run
from daskgmm.fit.stepwise import StepRule
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import Mixture
from daskgmm.model.structure import Structure
from daskgmm.model.update import Regularised, Steady, Update

START_ROWS, SAMPLE_BYTES = 20_000, 256 * 2**20


def sample_size(k: int, d: int, few: int = START_ROWS) -> int:
    """Rows that a start is found on: ``few``, or 20 for each mean and axis of each component, within 256 MiB."""
    return max(2 * k, min(max(few, 20 * k * (d + 1)), SAMPLE_BYTES // (8 * d)))


@dataclass(frozen=True, eq=False)
class Start:
    """The parts of a start that the user gives; None leaves them to ``init_params``."""

    weights: Array | None = None
    means: Array | None = None
    covariance: Covariance | None = None

    @property
    def whole(self) -> Mixture | None:
        """The mixture, where all parts are given."""
        if self.weights is None or self.means is None or self.covariance is None:
            return None
        return Mixture(self.weights, self.means, self.covariance)

    def onto(self, mixture: Mixture) -> Mixture:
        """``mixture`` with the given parts in place of its own."""
        return replace(mixture, **{name: part for name, part in vars(self).items() if part is not None})


@dataclass(frozen=True, eq=False, kw_only=True)
class Recipe:
    """What a fit is to find, and how."""

    structure: Structure
    k: int  # components
    init_params: str = "auto"  # how to start: a name in `starts.STARTS`, "subsample" or "auto"
    start: Start = field(default_factory=Start)  # what the user gave of it
    n_init: int = 1  # starts, of which the best wins
    reg_covar: float = 1e-6  # added to the diagonal of every covariance
    update: Callable[[float], Update] = Regularised  # the M-step, on samples too, made of ``reg_covar``
    run: Callable[..., Run] = EM  # what passes advance: of a mixture, the update, ``tol`` and ``max_iter``
    # Converged once the mean log-likelihood changes by less, or as "auto" says; online, that of held-out rows.
    tol: float | str = 1e-3
    max_iter: int = 100  # iterations; online, passes


@dataclass(frozen=True, eq=False, kw_only=True)
class OnlineRecipe(Recipe):
    """The same for online EM, over stored rows or a stream."""

    rule: StepRule
    update: Callable[[float], Update] = Steady
    init_size: int | None = None  # rows to find the start on; None leaves it to whoever asks
    window_bytes: int = 2**28  # of rows that are in memory at once
