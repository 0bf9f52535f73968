"""A mixture beside a uniform background: rows that belong to no component."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import entr, expit

from daskgmm._typing import Array
from daskgmm.model.checks import holds, require
from daskgmm.model.covariance import Covariance
from daskgmm.model.mixture import ANSWERS, Mixture, pieces
from daskgmm.model.noisy import Noisy
from daskgmm.model.statistics import Statistics
from daskgmm.model.update import Around

SHARE = 0.05  # that a start leaves to the background


def against(density: Array, level: Any) -> tuple[Array, Array]:
    """What a background leaves of rows with these log-densities in components, and log-densities with it."""
    with np.errstate(invalid="ignore"):  # of rows that are no numbers
        return expit(density - level), np.logaddexp(density, level)


@dataclass(frozen=True, eq=False)
class Contaminated(Mixture):
    """A mixture of Gaussians and of a uniform density in a box, which has what ``weights`` leave of 1.

    The density of the background is the same wherever a row lies: one far outside of the box belongs to it, not to
    the nearest component. Statistics leave the background's share out of all sums but the total weight.
    """

    low: Array  # (d,) of the box
    high: Array  # (d,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for values in (self.low, self.high):
            values.setflags(write=False)

    def check(self) -> None:
        k, d = self.means.shape
        require(holds(self.low, (d,)) and holds(self.high, (d,)), "The box has no corners.")
        require(bool((self.high > self.low).all()), "The box is empty.")
        require(
            holds(self.weights, (k,), 0.0) and 0 < self.weights.sum() < 1 + 1e-6, "Weights are no proportions."
        )
        self.members.check()

    @property
    def members(self) -> Mixture:
        members: dict[str, Mixture] = vars(self).setdefault("_members", {})
        if not members:
            members["of"] = Mixture(self.weights / self.weights.sum(), self.means, self.covariance)
        return members["of"]

    @property
    def background_weight(self) -> float:
        return max(0.0, 1.0 - float(self.weights.sum()))

    @property
    def level(self) -> float:
        """log(weight·density) of the background."""
        with np.errstate(divide="ignore"):
            return float(np.log(self.background_weight) - np.log(self.high - self.low).sum())

    def levels(self, x: Array) -> Array:
        """That for each row that may miss values, (n,): of those that it has."""
        widths = np.zeros(len(x))
        for column, width in zip(x.T, np.log(self.high - self.low), strict=True):
            widths += np.where(np.isnan(column), 0.0, width)
        with np.errstate(divide="ignore"):
            levels: Array = np.log(self.background_weight) - widths
        return levels

    @property
    def n_parameters(self) -> int:
        return super().n_parameters + 1

    def seen(self, features: Array, covariance: Covariance) -> "Contaminated":
        means, low, high = self.means[:, features], self.low[features], self.high[features]
        return Contaminated(self.weights, means, covariance, low, high)

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step: a row counts for the components with what the background leaves of it."""
        density, sound = super().answer(x, "score_samples")
        if not sound:  # what is infinite is no background
            density = np.where(np.isfinite(x).all(axis=1), density, np.nan)
        return self.left_to_components(super().expectation, x, weight, density, self.level)

    def left_to_components(
        self, expectation: Callable[..., Statistics], x: Array, weight: Array | None, density: Array, level: Any
    ) -> Statistics:
        """The E-step of the components over what a background of this level leaves them of rows."""
        weight = np.ones(len(x)) if weight is None else weight
        counted = weight > 0
        shares, logs = against(density, level)
        found = expectation(x, np.where(counted, weight * shares, 0.0))
        log_likelihood = np.where(counted, weight * logs, 0.0).sum()
        totals = float(log_likelihood), float(weight.sum()), int(np.count_nonzero(weight))
        return replace(found, log_likelihood=totals[0], total_weight=totals[1], n_rows=totals[2])

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """Labels are −1 where the background is likelier than each component; responsibilities leave its share."""
        if question not in ANSWERS:
            return super().answer(x, question)
        return self.with_background(x, question, lambda part: (self, self.level))

    def posterior(self, x: Array) -> tuple[Array, Array]:
        density, resp = super().posterior(x)
        shares, logs = against(density, self.level)
        return logs, resp * shares[:, None]

    def with_background(
        self, x: Array, question: str, seen: Callable[[slice], tuple[Mixture | Noisy, Any]]
    ) -> tuple[Array, bool]:
        """One of `ANSWERS` for each row, a part at a time, as responsibilities of all rows take much memory.

        ``seen`` says for a part of the rows what answers for the components, and the level of the background.
        """
        shape = (len(x), self.n_components) if question == "responsibilities" else (len(x),)
        found, sound = np.empty(shape, np.int64 if question == "labels" else np.float64), True
        several = question != "score_samples"
        for part in pieces(len(x)):
            components, level = seen(part)
            (labels, density, resp), finite = components._answers(x[part], [question == "labels", True, several])
            shares, logs = against(density, level)
            if several:
                resp *= shares[:, None]
            if question == "labels":
                labels = np.where(1 - shares > resp.max(axis=1), -1, labels)
            found[part] = (labels, logs, resp)[ANSWERS.index(question)]
            sound &= finite
        return found, sound

    @staticmethod
    def uncertainty(resp: Array) -> Array:
        found: Array = Mixture.uncertainty(resp) + entr(np.clip(1 - resp.sum(axis=1), 0.0, 1.0))
        return found

    def joint(self, found: Statistics) -> float:
        """With the background's, of rows that have all values."""
        outside = found.total_weight - found.weight.sum()
        return super().joint(found) + (outside * self.level if outside > 0 else 0.0)

    def sample(self, n: int, random: np.random.RandomState | np.random.Generator) -> tuple[Array, Array]:
        """As of a mixture; rows of the background come last, as −1."""
        outside = int(random.binomial(n, self.background_weight))
        rows, labels = self.members.sample(n - outside, random)
        box = random.uniform(self.low, self.high, size=(outside, self.n_features))
        return np.concatenate([rows, box]), np.concatenate([labels, np.full(outside, -1)])


@dataclass(frozen=True, eq=False)
class Hazy(Noisy):
    """A mixture beside a background as rows with errors see it: a density that is the same everywhere stays so."""

    mixture: Contaminated

    def levels(self, x: Array) -> Array:
        """log(weight·density) of the background for each row, (n,)."""
        return self.mixture.levels(x) if self.partial else np.full(len(x), self.mixture.level)

    def expectation(self, x: Array, weight: Array | None = None) -> Statistics:
        """E-step, as that of the mixture."""
        density, _ = super().answer(x, "score_samples")
        density = np.where(np.isinf(x).any(axis=1), np.nan, density)
        return self.mixture.left_to_components(super().expectation, x, weight, density, self.levels(x))

    def answer(self, x: Array, question: str) -> tuple[Array, bool]:
        """As the mixture's."""
        if question not in ANSWERS:
            return super().answer(x, question)
        return self.mixture.with_background(x, question, lambda part: (self.of(part), self.levels(x[part])))


@dataclass(frozen=True, eq=False)
class Background(Around):
    """Another M-step, of a mixture beside a background, whose weight is the share of the rows that it has."""

    def fits(self, mixture: Mixture) -> bool:
        return isinstance(mixture, Contaminated) and self.update.fits(mixture)

    def counted(self, statistics: Statistics) -> float:
        return self.update.counted(statistics)

    def __call__(self, mixture: Mixture, statistics: Statistics) -> Mixture:
        assert isinstance(mixture, Contaminated)
        if not statistics.weight.any():  # the background has all rows
            return mixture
        found, within = self.update(mixture, statistics), self.counted(statistics)
        outside = max(0.0, statistics.total_weight - statistics.weight.sum())
        weights = found.weights / found.weights.sum() * (within / (within + outside))
        return Contaminated(weights, found.means, found.covariance, mixture.low, mixture.high)
