"""How a fit came to rest."""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite, nan
from typing import Any, Self

import numpy as np

from daskgmm.display import canvas

SHOWN = 2.0  # nats below the end, up to which the log-likelihood is drawn


class ConvergenceDisplay:
    """The mean log-likelihood of each iteration, and what each gained. Make it with `from_estimator`.

    Parameters
    ----------
    lower_bounds : sequence of float
        Mean log-likelihood per unit of weight that each iteration found, as ``lower_bounds_``.
    tol : float, optional
        Of the fit.
    remaining : float, optional
        What is estimated to be left to gain, as ``remaining_``.
    passes : sequence of int, optional
        The number of the pass of each iteration, where some passes were refused.
    extrapolated : sequence of bool, optional
        Which iterations stand at a point that was extrapolated.

    Attributes
    ----------
    figure_ : matplotlib Figure
    ax_ : matplotlib Axes, or an array of two
    """

    figure_: Any
    ax_: Any

    def __init__(
        self,
        lower_bounds: Sequence[float],
        *,
        tol: float = nan,
        remaining: float = nan,
        passes: Sequence[int] | None = None,
        extrapolated: Sequence[bool] | None = None,
    ) -> None:
        self.lower_bounds, self.tol, self.remaining = np.asarray(lower_bounds, float), tol, remaining
        n = len(self.lower_bounds)
        self.passes = np.arange(1, n + 1) if passes is None else np.asarray(passes)
        self.extrapolated = np.zeros(n, bool) if extrapolated is None else np.asarray(extrapolated, bool)

    @classmethod
    def from_estimator(cls, estimator: Any, *, states: Sequence[Any] | None = None, ax: Any = None) -> Self:
        """Draw the fit of an estimator.

        Parameters
        ----------
        estimator : GaussianMixture or MiniBatchGaussianMixture
            Fitted to stored rows.
        states : sequence of State, optional
            What `watching` told of the same fit, in turn: to mark what was extrapolated, and refused passes.
        ax : matplotlib Axes, optional
            To draw the log-likelihood alone on.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``plot`` brings.
        NotFittedError, ValueError
            If there was no fit, or one without iterations.
        """
        estimator.summary()
        bounds, tol = estimator.lower_bounds_, getattr(estimator, "tol", nan)
        if not bounds:
            raise ValueError("There is nothing to draw: the estimator made no iteration over stored rows.")
        more: dict[str, Any] = {} if states is None else _marks(states, len(bounds))
        more |= {"remaining": getattr(estimator, "remaining_", nan)}
        return cls(bounds, tol=tol if isinstance(tol, (int, float)) else nan, **more).plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw the log-likelihood on ``ax``; without one, in a new figure, what each iteration gained, too."""
        self.figure_, axes = canvas.axes(
            ax, 1 if ax is not None else 2, 1, (6, 5.2), **({} if ax else {"sharex": True})
        )
        self._bounds(axes[0, 0])
        if ax is None:
            self._gains(axes[1, 0])
        axes[-1, 0].set_xlabel("pass" if self._refused().size else "iteration")
        axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        self.ax_ = axes[0, 0] if ax is not None else axes[:, 0]
        return self

    def _refused(self) -> Any:
        """Numbers of the passes between iterations."""
        return np.setdiff1d(np.arange(1, self.passes[-1] + 1), self.passes)

    def _bounds(self, ax: Any) -> None:
        bounds, passes, end = self.lower_bounds, self.passes, self.lower_bounds[-1]
        ax.plot(passes, bounds, color=canvas.colour(0), marker="o", markersize=4, linewidth=1.6, label="iteration")
        if self.extrapolated.any():
            x, y = passes[self.extrapolated], bounds[self.extrapolated]
            how = {"color": canvas.colour(1), "marker": "D", "s": 28, "zorder": 3}
            ax.scatter(x, y, label="extrapolated", **how)
        if (refused := self._refused()).size:
            low = np.interp(refused, passes, bounds)
            ax.scatter(refused, low, color=canvas.colour(3), marker="x", zorder=3, label="refused")
        if isfinite(self.remaining):
            told = f"estimated end, {self.remaining:.1e} above"
            ax.axhline(end + self.remaining, color=canvas.ink(), linewidth=1, linestyle=(0, (4, 3)), label=told)
        # The first steps are so large that the others would look flat beside them.
        first = int(np.argmax(bounds >= end - SHOWN))
        reach = (
            max(bounds[first:].max(), end + (self.remaining if isfinite(self.remaining) else 0))
            - bounds[first:].min()
        )
        if first and reach > 0:
            ax.set_ylim(bounds[first:].min() - 0.06 * reach, bounds[first:].min() + 1.08 * reach)
            below = "the first iteration lies" if first == 1 else f"the first {first} iterations lie"
            ax.set_title(f"{below} below", fontsize="small")
        ax.set_ylabel("log-likelihood\nper row (nats)")
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.legend(loc="lower right", frameon=False, fontsize="small")
        canvas.tidy(ax)

    def _gains(self, ax: Any) -> None:
        gains = np.diff(self.lower_bounds)
        up, down = gains > 0, gains < 0
        how = {"marker": "o", "linestyle": "none", "markersize": 4}
        ax.plot(self.passes[1:][up], gains[up], color=canvas.colour(0), label="gain", **how)
        if down.any():
            ax.plot(self.passes[1:][down], -gains[down], color=canvas.colour(1), label="loss", **how)
        if isfinite(self.remaining) and self.remaining > 0:
            ax.axhline(
                self.remaining, color=canvas.ink(), linewidth=1, linestyle=(0, (4, 3)), label="left, estimated"
            )
        if isfinite(self.tol) and self.tol > 0:
            ax.axhline(self.tol, color=canvas.ink(), linewidth=1, linestyle=":", label=f"tol {self.tol:g}")
        ax.set_yscale("log")
        ax.set_ylabel("change\nper row (nats)")
        ax.legend(loc="upper right", frameon=False, fontsize="small")
        canvas.tidy(ax)


def _marks(states: Sequence[Any], n: int) -> dict[str, Any]:
    """The pass of each of n iterations, and which were extrapolated, of the run that won."""
    followed = [state for state in states if state.runs]
    winner = max(range(len(followed[-1].runs)), key=lambda number: followed[-1].runs[number].lower_bound)
    passes, extrapolated, number = [], [], 0
    for before, after in pairwise(followed):
        number += after.n_passes > before.n_passes
        if after.runs[winner].n_iter > before.runs[winner].n_iter:
            passes.append(number)
            extrapolated.append(getattr(before.runs[winner], "trial", None) is not None)
    if len(passes) != n:
        raise ValueError(
            f"The states tell of {len(passes)} iterations, and the estimator made {n}: they are another fit's."
        )
    return {"passes": passes, "extrapolated": extrapolated}
