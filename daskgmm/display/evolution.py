"""The classic panels of EM: where components were after some iterations."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import clone

from daskgmm._typing import Array
from daskgmm.display import canvas
from daskgmm.fit.events import Event, Reached, watching
from daskgmm.fit.run import Run
from daskgmm.model.mixture import Mixture

ITERATIONS = (0, 1, 2, 5, 20)
COLUMNS = 3


class EvolutionDisplay:
    """Rows coloured by their responsibilities, and the ellipses of components, after some iterations of EM.

    Parameters
    ----------
    mixtures : dict of int to Mixture
        By the number of iterations; 0 is the start.
    names : sequence of str
        Of the features.
    features : two ints
        Which are drawn.
    rows : (m, d)
        A sample of rows.
    lower_bounds : sequence of float
        Mean log-likelihood that each iteration found, of the mixture before its update.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : array of matplotlib Axes
    """

    figure_: Any
    ax_: Any

    def __init__(
        self,
        mixtures: Mapping[int, Mixture],
        *,
        names: Sequence[str],
        features: Sequence[int],
        rows: Array,
        lower_bounds: Sequence[float] = (),
    ) -> None:
        self.mixtures, self.names, self.features = dict(mixtures), tuple(names), tuple(features)
        self.rows, self.lower_bounds = rows, tuple(lower_bounds)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        iterations: Sequence[int] = ITERATIONS,
        features: Any = None,
        n_rows: int = 2000,
        ax: Any = None,
    ) -> Self:
        """Fit a copy of the estimator to X, and draw where it stood; the estimator itself stays as it is.

        Parameters
        ----------
        estimator : GaussianMixture
            Fitted or not. Of several starts the one that is best in the end is drawn. A start such as
            ``init_params="random_from_data"`` shows more of the way than the default, which is near its end.
        X : any input of ``fit``, of shape (n, d)
        iterations : sequence of int
            After which the mixture is drawn; the last one stands for those that were not made.
        features : two of str or int, optional
            Which are drawn: the first two, if None.
        n_rows : int
            Rows that are drawn.
        ax : array of matplotlib Axes, optional
            One for each of ``iterations``.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``plot`` brings.
        ValueError
            If there are not two such features. What `fit` raises.
        """
        runs: list[tuple[Run, ...]] = []

        def listen(event: Event) -> None:
            if isinstance(event, Reached) and event.state.runs and not event.state.mid_pass:
                runs.append(event.state.runs)

        model = clone(estimator)
        with watching(listen):
            model.fit(X)
        names = canvas.names_of(model)
        asked = canvas.chosen(features, names, 2)
        if len(asked) != 2:
            raise ValueError(f"Two features are drawn, and {len(asked)} were named or are there.")
        sound = [number for number, run in enumerate(runs[-1]) if run.failure is None]
        winner = max(sound, key=lambda number: runs[-1][number].lower_bound)
        course = {each[winner].n_iter: each[winner].mixture for each in runs}
        shown = {min(n, max(course)): course[min(n, max(course))] for n in sorted(set(iterations))}
        rows, _ = model.sample_rows(X, n_rows)
        return cls(shown, names=names, features=asked, rows=rows, lower_bounds=model.lower_bounds_).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw on as many axes as there are mixtures, or in a new figure."""
        n = len(self.mixtures)
        columns = min(COLUMNS, n)
        lines = -(-n // columns)
        size = (2.6 * columns + 0.4, 2.4 * lines + 0.3)
        if ax is None:
            self.figure_, axes = canvas.axes(None, lines, columns, size, sharex=True, sharey=True)
        else:
            self.figure_, axes = canvas.axes(ax, 1, n)
        last = list(self.mixtures.values())[-1]
        for panel, (number, mixture) in zip(axes.flat, self.mixtures.items(), strict=False):
            self._panel(panel, mixture)
            panel.set_title(self._title(number), fontsize="small")
            panel.set_xlim(canvas.limits(last, self.features[0], self.rows))
            panel.set_ylim(canvas.limits(last, self.features[1], self.rows))
        for panel in axes.flat[n:]:
            panel.set_visible(False)
        for place in range(n):
            panel = axes.flat[place]
            if place + columns >= n:
                panel.set_xlabel(self.names[self.features[0]])
                panel.tick_params(labelbottom=True)
            if place % columns == 0:
                panel.set_ylabel(self.names[self.features[1]])
        self.ax_ = axes.ravel()[:n]
        return self

    def _title(self, number: int) -> str:
        told = "start" if number == 0 else f"iteration {number}"
        return told if number >= len(self.lower_bounds) else f"{told}: {self.lower_bounds[number]:.4g} nats"

    def _panel(self, ax: Any, mixture: Mixture) -> None:
        from matplotlib.colors import to_rgb

        colours = np.array([to_rgb(canvas.colour(j)) for j in range(mixture.n_components)])
        mixed = np.clip(mixture.responsibilities(self.rows) @ colours, 0, 1)
        x, y = self.rows[:, list(self.features)].T
        ax.scatter(x, y, c=mixed, s=7, linewidths=0, alpha=0.75, zorder=1)
        canvas.draw_ellipses(ax, mixture, (self.features[0], self.features[1]))
        canvas.tidy(ax)
