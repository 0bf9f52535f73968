"""How an online model followed a stream."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.display import canvas

DRIFT = 4.0  # standard errors, from which on a batch is marked


class StreamDisplay:
    """Means, weights and log-likelihood of an online model over the rows that it has learnt.

    It keeps what `record` sees after each batch; `from_estimator` does so for batches at hand.

    Attributes
    ----------
    rows : list of int
        Rows that were learnt, after each batch; and so below.
    means, weights : list of (k, d), (k,)
    log_likelihood, moving, drift : list of float
        Of the batch before it was learnt; the moving mean of those; ``drift_``.
    names : tuple of str
        Of the features.
    figure_ : matplotlib Figure
    ax_ : array of matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import MiniBatchGaussianMixture
    >>> from daskgmm.display import StreamDisplay
    >>> model, history = MiniBatchGaussianMixture(2, random_state=0), StreamDisplay()
    >>> for batch in np.random.default_rng(0).normal(size=(10, 50, 1)):
    ...     history.record(model.partial_fit(batch))
    >>> history.rows[-1], len(history.means)
    (500, 9)
    """

    figure_: Any
    ax_: Any

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.means: list[Array] = []
        self.weights: list[Array] = []
        self.log_likelihood: list[float] = []
        self.moving: list[float] = []
        self.drift: list[float] = []
        self.names: tuple[str, ...] = ()

    @classmethod
    def from_estimator(
        cls, estimator: Any, batches: Iterable[Any], *, features: Any = None, ax: Any = None
    ) -> Self:
        """Learn from batches, and draw what became of the model.

        Parameters
        ----------
        estimator : MiniBatchGaussianMixture
            It learns: ``partial_fit`` gets each of the batches.
        batches : iterable of (b, d)
        features : str, int, or a sequence of these, optional
            Whose means are drawn: the first two, if None.
        ax : array of matplotlib Axes, optional
            One for each feature, and two more.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``plot`` brings.
        ValueError
            If the rows were too few for a start. What `partial_fit` raises.
        """
        canvas.pyplot()  # raises before anything is learnt
        history = cls()
        for batch in batches:
            history.record(estimator.partial_fit(batch))
        return history.plot(ax, features=features)

    def record(self, estimator: Any) -> None:
        """Take note of where an online model stands; of one that waits for its start, nothing."""
        if not hasattr(estimator, "mixture_"):
            return
        mixture = estimator.mixture_
        self.names = canvas.names_of(estimator)
        self.rows.append(estimator.n_samples_seen_)
        self.means.append(mixture.means)
        self.weights.append(mixture.weights)
        self.log_likelihood.append(estimator.lower_bound_)
        self.moving.append(estimator.moving_log_likelihood_)
        self.drift.append(estimator.drift_)

    def plot(self, ax: Any = None, *, features: Any = None) -> Self:
        """Draw on as many axes as there are features, and two more; or in a new figure."""
        if not self.rows:
            raise ValueError("There is nothing to draw: no batch has come since the model has a start.")
        asked = canvas.chosen(features, self.names, 2)
        n = len(asked) + 2
        self.figure_, axes = canvas.axes(
            ax, n, 1, (6, 1.5 * n + 0.5), **({} if ax is not None else {"sharex": True})
        )
        for panel, feature in zip(axes[:, 0], asked, strict=False):
            self._lines(panel, np.array(self.means)[:, :, feature], f"mean of\n{self.names[feature]}")
        self._lines(axes[-2, 0], np.array(self.weights), "weight")
        axes[-2, 0].set_ylim(0, None)
        self._likelihood(axes[-1, 0])
        axes[-1, 0].set_xlabel("rows learnt")
        axes[-1, 0].xaxis.set_major_formatter("{x:,.0f}")
        self.ax_ = axes[:, 0]
        return self

    def _lines(self, ax: Any, values: Array, label: str) -> None:
        """A line for each component, with its number at the end."""
        for j, line in enumerate(values.T):
            ax.plot(self.rows, line, color=canvas.colour(j), linewidth=1.5)
            if j < canvas.NUMBERED:
                end = {"color": canvas.colour(j), "weight": "bold", "va": "center", "textcoords": "offset points"}
                ax.annotate(str(j), (self.rows[-1], line[-1]), (6, 0), **end)
        ax.set_ylabel(label)
        canvas.tidy(ax)

    def _likelihood(self, ax: Any) -> None:
        rows, values = np.array(self.rows), np.array(self.log_likelihood)
        ax.plot(rows, values, color=canvas.ink(), alpha=0.45, linewidth=0.8, label="batch")
        ax.plot(rows, self.moving, color=canvas.colour(0), linewidth=1.6, label="moving mean")
        if (odd := np.array(self.drift) > DRIFT).any():
            how = {"color": canvas.colour(1), "marker": "v", "zorder": 3}
            ax.scatter(rows[odd], values[odd], label=f"drift above {DRIFT:g}", **how)
        ax.set_ylabel("log-likelihood\nper row (nats)")
        ax.legend(frameon=False, fontsize="small", ncols=3)
        canvas.tidy(ax)
