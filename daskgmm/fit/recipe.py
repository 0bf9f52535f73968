"""The settings of a fit as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.fit.run import EM, Run
from daskgmm.fit.stepwise import StepRule
from daskgmm.model.background import SHARE, Background, Contaminated
from daskgmm.model.covariance import Covariance
from daskgmm.model.frozen import Frozen
from daskgmm.model.mixture import Mixture
from daskgmm.model.prior import NormalInverseWishart
from daskgmm.model.statistics import Statistics
from daskgmm.model.structure import Structure
from daskgmm.model.update import MAP, Regularised, Steady, Update, maximise

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
    prior: NormalInverseWishart | None = None  # what is known beforehand; what it leaves open, rows have to tell
    known: MAP | None = None  # that prior, once the moments of the rows are known
    frozen: Mapping[str, Array] | None = None  # masks (k,) of `Frozen`: what stays as ``start`` has it
    background: bool = False  # whether there is one beside the components
    box: Array | None = None  # (2, d) in which that is uniform, once the rows have told
    run: Callable[..., Run] = EM  # what passes advance: of a mixture, the update, ``tol`` and ``max_iter``
    # Converged once the mean log-likelihood changes by less, or as "auto" says; online, that of held-out rows.
    tol: float | str = 1e-3
    max_iter: int = 100  # iterations; online, passes

    def m_step(self, update: Update | None = None) -> Update:
        """The M-step of each run, or this one, with what wraps it."""
        update = self.update(self.reg_covar) if update is None else update
        update = Background(update) if self.background else update
        return update if self.frozen is None else Frozen(update, **self.frozen)

    def begun(self, mixture: Mixture) -> Mixture:
        """A start with the given parts in place of its own, beside a background where there is to be one."""
        mixture = self.start.onto(mixture)
        if self.box is None:
            return mixture
        low, high = self.box
        return Contaminated(mixture.weights * (1 - SHARE), mixture.means, mixture.covariance, low, high)

    def on(self, overall: Statistics, start: bool = False, box: Array | None = None) -> Self:
        """The recipe for rows of these moments, in a ``box``: under a prior, with what that takes from them.

        ``start`` says whether a fit may begin where the prior places each component.
        """
        if self.prior is None:
            return replace(self, box=box) if self.background else self
        known = self.prior.on(self.structure, self.k, overall, self.reg_covar)
        begun = self.start
        if self.frozen is not None and begun.means is not None:  # a mean that stays needs no prior
            known = replace(known, means=np.where(self.frozen["means"][:, None], begun.means, known.means))
        if start and self.begins_at_prior:
            mode = known.mode
            begun = Start(mode.weights, mode.means, mode.covariance)
        return replace(self, known=known, start=begun, box=box, update=partial(self._under, known))

    @property
    def begins_at_prior(self) -> bool:
        """Whether a fit begins where the prior places each component, for want of another start."""
        placed = self.prior is not None and self.prior.placed and self.init_params == "auto"
        return placed and all(part is None for part in vars(self.start).values())

    @property
    def fewest_rows(self) -> int:
        """How many rows a fit takes: one for each component that no prior speaks for, or whose start is sought."""
        if self.prior is None or not self.prior.placed:
            return self.k
        return 1 if self.begins_at_prior or self.start.whole else self.k

    @staticmethod
    def _under(known: MAP, reg_covar: float) -> Update:
        return replace(known, reg_covar=reg_covar)

    def estimated(self, statistics: Statistics, means: Array, values: Array) -> Mixture:
        """The M-step of a start; these are means and covariances of components that have no rows."""
        return maximise(statistics, means, values, self.reg_covar, prior=self.known)


@dataclass(frozen=True, eq=False, kw_only=True)
class OnlineRecipe(Recipe):
    """The same for online EM, over stored rows or a stream."""

    rule: StepRule
    update: Callable[[float], Update] = Steady
    init_size: int | None = None  # rows to find the start on; None leaves it to whoever asks
    window_bytes: int = 2**28  # of rows that are in memory at once

    @staticmethod
    def _under(known: MAP, reg_covar: float) -> Update:
        return Steady(reg_covar, prior=known)
