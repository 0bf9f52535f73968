"""What a search for the number of components found."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.display import canvas

# What is drawn, and whether more is better.
CRITERIA = {
    "bic": ("BIC (lower is better)", False),
    "aic": ("AIC (lower is better)", False),
    "icl": ("ICL (lower is better)", False),
    "held_out": ("held-out log-likelihood per row (nats)", True),
    "log_likelihood": ("log-likelihood per row (nats)", True),
}


class SearchDisplay:
    """The criterion by number of components, a line for each covariance type; what was chosen is ringed.

    Parameters
    ----------
    results : dict of arrays
        As ``results_`` of a `GaussianMixtureSearch`: ``n_components``, ``covariance_type`` and the criterion.
    criterion : {"bic", "aic", "icl", "held_out", "log_likelihood"}
    chosen : int, optional
        The place of the candidate that was chosen; None takes the best.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes
    """

    figure_: Any
    ax_: Any

    def __init__(self, results: Mapping[str, Any], *, criterion: str = "bic", chosen: int | None = None) -> None:
        if criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {list(CRITERIA)}, got {criterion!r}.")
        self.results: dict[str, Array] = {name: np.asarray(values) for name, values in results.items()}
        self.criterion = criterion
        values = self.results[criterion].astype(float)
        if not np.isfinite(values).any():
            raise ValueError(f"No candidate has a value of {criterion!r}.")
        best = np.nanargmax(values) if CRITERIA[criterion][1] else np.nanargmin(values)
        self.chosen = int(best) if chosen is None else chosen

    @classmethod
    def from_estimator(cls, estimator: Any, *, criterion: str | None = None, ax: Any = None) -> Self:
        """Draw the table of a fitted search.

        Parameters
        ----------
        estimator : GaussianMixtureSearch
            Fitted.
        criterion : str, optional
            Another than the one that decided.
        ax : matplotlib Axes, optional

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``plot`` brings.
        TypeError
            For anything but a search, such as the model that `GaussianMixtureSearch.save` keeps.
        AttributeError, ValueError
            If there is no ``results_``, or no such criterion in it.
        """
        if not hasattr(estimator, "criterion"):
            raise TypeError(
                f"A {type(estimator).__name__} has no table of candidates: save keeps the best model alone. Keep "
                "results_ of the GaussianMixtureSearch, too: SearchDisplay(results_).plot() draws it."
            )
        by = criterion or estimator.criterion
        return cls(estimator.results_, criterion=by, chosen=getattr(estimator, "best_index_", None)).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw on ``ax``, or in a new figure."""
        self.figure_, axes = canvas.axes(ax)
        ax = axes[0, 0]
        k, kinds, values = (self.results[name] for name in ("n_components", "covariance_type", self.criterion))
        ended = ~self.results.get("dropped", np.zeros(len(k), bool)).astype(bool)
        for number, kind in enumerate(dict.fromkeys(kinds.tolist())):
            own = np.flatnonzero(kinds == kind)
            own = own[np.argsort(k[own])]
            how: dict[str, Any] = {"color": canvas.colour(number), "marker": canvas.MARKERS[number % 6]}
            ax.plot(k[own], values[own], linewidth=1.4, label=str(kind), markersize=5, **how)
            early = own[~ended[own]]
            ground = canvas.pyplot().rcParams["axes.facecolor"]
            ax.plot(k[early], values[early], linestyle="none", markersize=5, markerfacecolor=ground, **how)
        if not ended.all():
            how = {"color": canvas.ink(), "marker": "o", "markersize": 5, "linestyle": "none"}
            ax.plot([], [], markerfacecolor="none", label="given up early", **how)
        told = f"chosen: {k[self.chosen]} components, {kinds[self.chosen]}"
        ring = {"facecolors": "none", "edgecolors": canvas.ink(), "linewidths": 1.6, "s": 150, "zorder": 4}
        ax.scatter(k[[self.chosen]], values[[self.chosen]], label=told, **ring)
        ax.set_xlabel("components")
        ax.set_ylabel(CRITERIA[self.criterion][0])
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, fontsize="small")
        canvas.tidy(ax)
        self.ax_ = ax
        return self
