"""What the E-step of a model finds on some rows, as a value that is kept, added and taken away."""

from dataclasses import dataclass, replace
from typing import Self

from daskgmm._typing import Array
from daskgmm.errors import DataError
from daskgmm.model.checks import require
from daskgmm.model.statistics import Statistics
from daskgmm.store import files
from daskgmm.store.places import Place
from daskgmm.store.values import storable


@storable
@dataclass(frozen=True, eq=False)
class Expectation:
    """Sufficient statistics of some rows under the responsibilities that a model gave them.

    ``a + b`` are those of the rows of both, and ``a - b`` those of the rows of ``a`` without those of ``b``, which
    have to be among them. Its size is that of the model's parameters, however many the rows. It comes from
    `GaussianMixture.expectation`, and goes to `GaussianMixture.maximise`.

    Attributes
    ----------
    statistics : Statistics
        Sums for each component: ``weight`` (k,), ``shift`` (k, d) and ``scatter`` about ``reference`` (k, d).
    feature_names : tuple of str, optional
    """

    statistics: Statistics
    feature_names: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raise `ValueError` unless the parts belong together."""
        names = self.feature_names
        require(names is None or len(names) == self.statistics.reference.shape[1], "Each feature has one name.")

    @property
    def n_rows(self) -> int:
        """Rows of positive weight."""
        return int(self.statistics.n_rows)

    @property
    def total_weight(self) -> float:
        """Sum of the weights of the rows."""
        return self.statistics.total_weight

    @property
    def weight(self) -> Array:
        """What each component has of them, (k,)."""
        return self.statistics.weight

    @property
    def score(self) -> float:
        """Mean log-likelihood per unit of weight, of each row under the model that saw it."""
        return self.statistics.log_likelihood / self.statistics.total_weight

    def __repr__(self) -> str:
        k, d = self.statistics.reference.shape
        return f"Expectation({self.n_rows} rows, {k} components, {d} features)"

    def __add__(self, other: "Expectation") -> Self:
        return replace(self, statistics=self.statistics + self._alike(other).statistics)

    def __sub__(self, other: "Expectation") -> Self:
        return replace(self, statistics=self.statistics - self._alike(other).statistics)

    def _alike(self, other: "Expectation") -> "Expectation":
        """The other one, if it is of a model with the same components and features; else a `DataError`."""
        s = self.statistics
        if not other.statistics.matches(s.reference, s.structure) or self.feature_names != other.feature_names:
            raise DataError("The expectations are of models with other components, covariances or features.")
        return other

    def save(self, path: Place) -> None:
        """Write it to one ``.npz`` file, whole or not at all; `daskgmm.load` reads it, bit for bit."""
        header = {"format": files.MODEL, "version": files.MODEL_VERSION, "estimator": type(self).__name__}
        files.save(path, header, {"settings": {}, "fitted": self})
