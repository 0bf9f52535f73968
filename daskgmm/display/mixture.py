"""A mixture over the density of its rows."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from daskgmm._typing import Array
from daskgmm.display import canvas
from daskgmm.model.mixture import Mixture

POINTS = 1000  # rows that are drawn one by one
PANELS = 4  # features of a grid, where none are asked for


class MixtureDisplay:
    """Ellipses of the components, at 1 and 2 standard deviations, over the density of a row sample.

    Components are numbered as in the summary, and as `predict` answers: the 20 heaviest of them. For two features
    that are drawn, 39 % of a component's rows lie within its inner ellipse, and 86 % within the outer one. Make it
    with `from_estimator`.

    Parameters
    ----------
    mixture : Mixture
        As ``mixture_`` of an estimator.
    names : sequence of str
        Of its features.
    features : sequence of int
        Numbers of the features to draw: one, two, or more for a grid of all pairs.
    rows, weights : (m, d), (m,), optional
        A sample of rows.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes, or an array (n_features, n_features) of them
    """

    figure_: Any
    ax_: Any

    def __init__(
        self,
        mixture: Mixture,
        *,
        names: Sequence[str],
        features: Sequence[int],
        rows: Array | None = None,
        weights: Array | None = None,
    ) -> None:
        self.mixture, self.names, self.features = mixture, tuple(names), tuple(features)
        self.rows, self.weights = rows, weights

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        features: Any = None,
        n_rows: int = 20_000,
        sample_weight: Any = None,
        ax: Any = None,
    ) -> Self:
        """Draw a fitted estimator.

        Parameters
        ----------
        estimator : GaussianMixture or MiniBatchGaussianMixture
            Fitted.
        X : any input of ``fit``, of shape (n, d), optional
            Rows whose density is shown; one pass draws a sample of them.
        features : str, int, or a sequence of these, optional
            Names or numbers of the features to draw: two, or more for a grid of all pairs, or one. None takes the
            first four, or with ``ax`` the first two.
        n_rows : int
            Of the sample.
        sample_weight : (n,), optional
        ax : matplotlib Axes, optional
            To draw one panel on.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``plot`` brings.
        NotFittedError, ValueError
            If there is no mixture yet, or no such feature.
        """
        estimator.summary()  # raises where there is no mixture yet
        names = canvas.names_of(estimator)
        asked = canvas.chosen(features, names, PANELS if ax is None else 2)
        rows, weights = None, None
        if X is not None:
            rows, weights = estimator.sample_rows(X, n_rows, sample_weight=sample_weight)
        return cls(estimator.mixture_, names=names, features=asked, rows=rows, weights=weights).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw; on ``ax``, where that is given, for no more than two features."""
        m = len(self.features)
        if ax is not None and m > 2:
            raise ValueError(f"One ax has room for two features, not for {m}: leave ax out, or name two.")
        if m <= 2:
            self.figure_, axes = canvas.axes(ax)
            self._panel(axes[0, 0], *self.features)
            title, where = self._title(), axes[0, 0]
            where.set_title(title, fontsize="medium")
        else:
            self.figure_, axes = canvas.axes(None, m, m, (max(6, 1.9 * m),) * 2, sharex="col")
            self._grid(axes)
            self.figure_.suptitle(self._title(), fontsize="medium")
        self.ax_ = canvas.one_or_all(axes)
        return self

    def _title(self) -> str:
        shown = "" if self.rows is None else f"; {len(self.rows):,} rows"
        ellipses = "" if len(self.features) == 1 else ", ellipses at 1σ and 2σ"
        k = self.mixture.n_components
        return f"{k} component{'s' * (k > 1)}{ellipses}{shown}"

    def _grid(self, axes: Any) -> None:
        for line, i in enumerate(self.features):
            for column, j in enumerate(self.features):
                ax = axes[line, column]
                if column > line:
                    ax.set_visible(False)
                    continue
                self._panel(ax, *((j,) if line == column else (j, i)))
                if line < len(self.features) - 1:
                    ax.set_xlabel("")
                if column > 0:
                    ax.set_ylabel("")
                    ax.tick_params(labelleft=column == line)
                ax.tick_params(labelsize="small")
                ax.locator_params(nbins=4)

    def _panel(self, ax: Any, *features: int) -> None:
        """One feature, or two."""
        canvas.tidy(ax)
        ax.set_xlabel(self.names[features[0]])
        ax.set_xlim(canvas.limits(self.mixture, features[0], self.rows))
        if len(features) == 1:
            self._curves(ax, features[0])
            return
        ax.set_ylabel(self.names[features[1]])
        ax.set_ylim(canvas.limits(self.mixture, features[1], self.rows))
        if self.rows is not None:
            self._density(ax, *features)
        canvas.draw_ellipses(ax, self.mixture, (features[0], features[1]))

    def _density(self, ax: Any, i: int, j: int) -> None:
        """Rows by hexagons, the more the darker on white and the lighter on black; few rows as points."""
        from matplotlib.colors import ListedColormap, to_rgb

        assert self.rows is not None
        shades = ListedColormap([(*to_rgb(canvas.ink()), alpha) for alpha in np.linspace(0.07, 0.65, 64)])
        inside = (*ax.get_xlim(), *ax.get_ylim())
        x, y = self.rows[:, i], self.rows[:, j]
        kept = (x >= inside[0]) & (x <= inside[1]) & (y >= inside[2]) & (y <= inside[3])
        if len(x) <= POINTS:
            ax.scatter(x, y, s=8, color=canvas.ink(), alpha=0.35, linewidths=0, zorder=1)
            return
        weights = np.ones(len(x)) if self.weights is None else self.weights
        how = {"gridsize": 45, "extent": inside, "cmap": shades, "bins": "log", "linewidths": 0, "mincnt": 1}
        ax.hexbin(x[kept], y[kept], C=weights[kept], reduce_C_function=np.sum, zorder=1, **how)

    def _curves(self, ax: Any, feature: int) -> None:
        """The density of one feature, by rows and by components."""
        low, high = ax.get_xlim()
        x = np.linspace(low, high, 400)
        if self.rows is not None:
            how = {"bins": 60, "range": ax.get_xlim(), "density": True, "color": canvas.ink(), "alpha": 0.25}
            ax.hist(self.rows[:, feature], weights=self.weights, **how)
        deviations = np.broadcast_to(self.mixture.covariance.deviations, self.mixture.means.shape)[:, feature]
        z = (x[:, None] - self.mixture.means[:, feature]) / deviations
        each = self.mixture.weights * np.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * deviations)
        for j, values in enumerate(each.T):
            ax.plot(x, values, color=canvas.colour(j), linewidth=1.4)
        ax.plot(x, each.sum(axis=1), color=canvas.ink(), linewidth=1)
        for j in np.argsort(-self.mixture.weights, kind="stable")[: canvas.NUMBERED]:
            top = int(each[:, j].argmax())
            ax.annotate(
                str(j), (x[top], each[top, j]), color=canvas.colour(j), weight="bold", ha="center", va="bottom"
            )
        ax.set_ylabel("density")
