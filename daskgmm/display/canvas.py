"""What all pictures share: axes, colours, ellipses. All of it is legible on light and on dark backgrounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from daskgmm._typing import Array
from daskgmm.estimators.checks import feature_numbers
from daskgmm.model.mixture import Mixture

# Of Okabe & Ito (2008), which colour-blind readers tell apart: those that stand out from white and from black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
NUMBERED = 20  # components that a picture numbers
SIGMAS = {1: 1.8, 2: 1.0}  # of ellipses, with the widths of their lines


def pyplot() -> Any:
    """matplotlib's, which is an extra."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('Pictures need matplotlib: python -m pip install "daskgmm[plot]"') from error
    return pyplot


def axes(ax: Any, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 4.5), **how: Any) -> Any:
    """A figure and its axes (rows, columns): those of ``ax``, where that is given, else new ones."""
    if ax is not None:
        found = np.array(ax, dtype=object).reshape(rows, columns)
        return found[0, 0].figure, found
    return pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **how)


def one_or_all(axes: Any) -> Any:
    """As ``ax_`` has them: one axes, or an array of several."""
    return axes[0, 0] if axes.size == 1 else axes


def ink() -> Any:
    """The colour of text."""
    return pyplot().rcParams["text.color"]


def colour(number: int) -> str:
    """The colour of a component."""
    return COLOURS[number % len(COLOURS)]


def tidy(axes: Any) -> None:
    """Without the frame's upper and right lines."""
    axes.spines[["top", "right"]].set_visible(False)


def names_of(estimator: Any) -> tuple[str, ...]:
    """What the features of a fitted estimator are called."""
    numbered = (f"feature {j}" for j in range(estimator.n_features_in_))
    return tuple(getattr(estimator, "feature_names_in_", numbered))


def chosen(features: Any, names: Sequence[str], most: int) -> tuple[int, ...]:
    """Numbers of the features that are asked for by name or number; the first ones, so many, of None."""
    if features is None:
        return tuple(range(min(most, len(names))))
    if (found := feature_numbers(features, names, len(names))) is None:
        told = ", ".join(names[:10]) + ("" if len(names) <= 10 else f" and {len(names) - 10} more")
        raise ValueError(f"features must be names or numbers of features, got {features!r}. They are: {told}.")
    return tuple(found)


def covariance(mixture: Mixture, component: int, features: Sequence[int]) -> Array:
    """Of some features, (m, m)."""
    root = mixture.covariance.colour(np.eye(mixture.n_features), component)[:, list(features)]
    return root.T @ root


def draw_ellipses(ax: Any, mixture: Mixture, features: tuple[int, int]) -> None:
    """Each component's ellipses of two features, and its number."""
    from matplotlib.patches import Ellipse

    ground = {"boxstyle": "circle,pad=0.1", "facecolor": pyplot().rcParams["axes.facecolor"], "linewidth": 0}
    for place, j in enumerate(np.argsort(-mixture.weights, kind="stable")):
        squares, turns = np.linalg.eigh(covariance(mixture, j, features))
        width, height = 2 * np.sqrt(np.maximum(squares, 0))
        angle = np.degrees(np.arctan2(turns[1, 0], turns[0, 0]))
        centre = float(mixture.means[j, features[0]]), float(mixture.means[j, features[1]])
        for sigma, line in SIGMAS.items():
            how = {"fill": False, "edgecolor": colour(j), "linewidth": line}
            ax.add_patch(Ellipse(centre, sigma * width, sigma * height, angle=angle, zorder=3, **how))
        if place < NUMBERED:
            how = {"color": colour(j), "weight": "bold", "ha": "center", "va": "center", "bbox": ground}
            ax.annotate(str(j), centre, zorder=4, annotation_clip=True, **how)


def limits(mixture: Mixture, feature: int, rows: Array | None) -> tuple[float, float]:
    """Where a feature is drawn: what components reach to, and nearly all rows."""
    alive = mixture.weights > 0
    deviations = np.broadcast_to(mixture.covariance.deviations, mixture.means.shape)[alive, feature]
    low = (mixture.means[alive, feature] - 2.2 * deviations).min()
    high = (mixture.means[alive, feature] + 2.2 * deviations).max()
    if rows is not None and len(rows):
        few, most = np.quantile(rows[:, feature], [0.005, 0.995])
        low, high = min(low, few), max(high, most)
    margin = 0.02 * (high - low)
    return float(low - margin), float(high + margin)
