"""Pictures: the artists that are expected, their labels and colours; what cannot be drawn is told."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Ellipse
from sklearn.exceptions import NotFittedError

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, display, watching
from daskgmm.display import canvas
from daskgmm.fit.events import Event, Reached
from tests.apart import K, rows_of
from tests.pictures import same_picture
from tests.structures import KINDS, matrices

X = rows_of(0, 3000)
FRAME = pd.DataFrame(X, columns=["salt", "warmth"])
BASELINES = Path(__file__).parent / "baselines"


@pytest.fixture(autouse=True)
def pictures() -> Iterator[None]:
    """Drawn in memory, in the default style, and closed."""
    mpl.use("agg")
    with pyplot.style.context("default"):
        yield
    pyplot.close("all")


def fitted(kind: Any = "full", x: Any = FRAME, **settings: Any) -> GaussianMixture:
    model = GaussianMixture(K, covariance_type=kind, **({"random_state": 0} | settings))
    model.fit(x)
    return model


def ellipses(ax: Any) -> list[Ellipse]:
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


@pytest.mark.parametrize("kind", KINDS)
def test_ellipses_are_those_of_the_covariances(kind: str) -> None:
    model = fitted(kind)
    drawn = display.MixtureDisplay.from_estimator(model, FRAME)
    found = ellipses(drawn.ax_)
    assert len(found) == 2 * K
    dense = matrices(model.covariances_, kind, K, 2)
    for ellipse in found:
        # A point of the ellipse is so many standard deviations away.
        points = ellipse.get_patch_transform().transform(np.array([[1, 0], [0, 1], [0.6, -0.8]]))
        j = int(((model.means_ - ellipse.center) ** 2).sum(axis=1).argmin())
        far = np.sqrt(
            np.einsum("ni,ij,nj->n", points - model.means_[j], np.linalg.inv(dense[j]), points - model.means_[j])
        )
        sigma = round(float(far[0]))
        assert sigma in (1, 2)
        np.testing.assert_allclose(far, sigma)
        assert ellipse.get_edgecolor() == to_rgba(canvas.colour(j))
    assert (drawn.ax_.get_xlabel(), drawn.ax_.get_ylabel()) == ("salt", "warmth")
    for text in drawn.ax_.texts:
        np.testing.assert_allclose(text.xy, model.means_[int(text.get_text())])


def test_rows_are_hexagons_and_few_rows_points() -> None:
    many = display.MixtureDisplay.from_estimator(fitted(), da.from_array(X, chunks=(800, 2)), n_rows=2000)
    (hexagons,) = [found for found in many.ax_.collections if isinstance(found, PolyCollection)]
    counts = hexagons.get_array()
    assert counts is not None
    assert 1900 < counts.sum() <= 2000
    assert "2,000 rows" in many.ax_.get_title()
    few = display.MixtureDisplay.from_estimator(fitted(), X[:500])
    assert len(few.ax_.collections[0].get_offsets()) == 500
    none = display.MixtureDisplay.from_estimator(fitted())
    assert len(none.ax_.collections) == 0


def test_a_grid_of_pairs_with_each_feature_on_the_diagonal() -> None:
    x = np.column_stack([X, X[:, 0] - X[:, 1], np.arange(len(X)) % 7, X[:, 1]])
    x = x + np.random.default_rng(0).normal(size=x.shape)
    drawn = display.MixtureDisplay.from_estimator(fitted(x=x), x)
    assert drawn.ax_.shape == (4, 4)
    assert [[ax.get_visible() for ax in line] for line in drawn.ax_] == np.tri(4, dtype=bool).tolist()
    assert [len(ellipses(drawn.ax_[i, j])) for i in range(4) for j in range(i)] == [2 * K] * 6
    assert [ax.get_xlabel() for ax in drawn.ax_[-1]] == [f"feature {j}" for j in range(4)]
    density = drawn.ax_[2, 2].lines[-1].get_xydata()
    assert np.trapezoid(density[:, 1], density[:, 0]) == pytest.approx(1, abs=0.03)
    three = display.MixtureDisplay.from_estimator(fitted(x=x), features=[4, 0, 2])
    assert [ax.get_xlabel() for ax in three.ax_[-1]] == ["feature 4", "feature 0", "feature 2"]


def test_on_axes_that_are_given() -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    drawn = display.MixtureDisplay.from_estimator(fitted(), ax=left)
    assert (drawn.ax_, drawn.figure_) == (left, figure)
    assert display.MixtureDisplay.from_estimator(fitted(), features="warmth", ax=right).ax_ is right
    assert right.get_xlabel() == "warmth"
    assert len(figure.axes) == 2
    wide = GaussianMixture.from_parameters([1.0], np.zeros((1, 3)), np.ones((1, 3)), "diag")
    with pytest.raises(ValueError, match="room for two features"):
        display.MixtureDisplay.from_estimator(wide, features=[0, 1, 2], ax=left)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(NotFittedError):
        display.MixtureDisplay.from_estimator(GaussianMixture())
    for features in ("depth", ["salt", 7], []):
        with pytest.raises(ValueError, match="They are: salt, warmth"):
            display.MixtureDisplay.from_estimator(fitted(), features=features)
    given = GaussianMixture.from_parameters([1.0], [[0.0]], [1.0], "spherical")
    with pytest.raises(ValueError, match="made no iteration"):
        display.ConvergenceDisplay.from_estimator(given)
    with pytest.raises(ValueError, match="no batch has come"):
        display.StreamDisplay().plot()
    with pytest.raises(ValueError, match="Two features"):
        display.EvolutionDisplay.from_estimator(GaussianMixture(2, random_state=0), X[:50, :1])


def test_the_extra_is_named_where_matplotlib_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    model = fitted()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"daskgmm\[plot\]"):
        display.MixtureDisplay.from_estimator(model)


@pytest.fixture(scope="module")
def slow_fit() -> tuple[GaussianMixture, list[Any]]:
    """A fit from afar, and the states that it went through."""
    states = []

    def listen(event: Event) -> None:
        if isinstance(event, Reached):
            states.append(event.state)

    model = GaussianMixture(K, random_state=3, init_params="random_from_data", n_init=2, tol=1e-4)
    with watching(listen):
        model.fit(X)
    return model, states


def test_convergence(slow_fit: tuple[GaussianMixture, list[Any]]) -> None:
    model, states = slow_fit
    drawn = display.ConvergenceDisplay.from_estimator(model)
    bounds, gains = drawn.ax_
    np.testing.assert_array_equal(bounds.lines[0].get_ydata(), model.lower_bounds_)
    np.testing.assert_allclose(gains.lines[0].get_ydata(), np.diff(model.lower_bounds_))
    assert gains.get_yscale() == "log"
    assert "nats" in bounds.get_ylabel()
    assert [line.get_ydata()[0] for line in gains.lines[1:]] == [model.remaining_, model.tol]
    assert gains.get_xlabel() == "iteration"
    again = display.ConvergenceDisplay.from_estimator(model, states=states)
    # A pass may have been refused.
    assert len(again.passes) == model.n_iter_ < again.passes[-1] < model.n_passes_
    assert np.all(np.diff(again.passes) > 0)
    with pytest.raises(ValueError, match="another fit's"):
        display.ConvergenceDisplay.from_estimator(model, states=states[:-1])
    _, ax = pyplot.subplots()
    assert display.ConvergenceDisplay.from_estimator(model, ax=ax).ax_ is ax


def test_convergence_marks_what_was_extrapolated_refused_and_is_left() -> None:
    marks: dict[str, Any] = {"passes": [1, 2, 4, 5], "extrapolated": [False, False, True, False]}
    drawn = display.ConvergenceDisplay([-4, -3.5, -3.2, -3.1], tol=1e-3, remaining=0.02, **marks).plot()
    bounds, gains = drawn.ax_
    labels = {text.get_text() for text in bounds.get_legend().get_texts()}
    assert labels == {"iteration", "extrapolated", "refused", "estimated end, 2.0e-02 above"}
    extrapolated, refused = (found.get_offsets() for found in bounds.collections)
    np.testing.assert_allclose(extrapolated, [[4, -3.2]])
    np.testing.assert_allclose(refused, [[3, -3.35]])
    assert gains.get_xlabel() == "pass"


def test_a_search() -> None:
    k, kinds = np.tile([1, 2, 3], 2), np.repeat(["full", "diag"], 3)
    table = {"n_components": k, "covariance_type": kinds, "bic": [9.0, 5, 6, 9.5, 7, 6.5]}
    table |= {"held_out": [-4.0, -3, -2, np.nan, -3.5, -3], "dropped": [False] * 5 + [True]}
    drawn = display.SearchDisplay(table).plot()
    full, _, diagonal, early, _ = (line.get_xydata() for line in drawn.ax_.lines)
    np.testing.assert_array_equal(full, [[1, 9], [2, 5], [3, 6]])
    np.testing.assert_array_equal(diagonal, [[1, 9.5], [2, 7], [3, 6.5]])
    np.testing.assert_array_equal(early, [[3, 6.5]])
    np.testing.assert_array_equal(drawn.ax_.collections[0].get_offsets(), [[2, 5]])
    told = [text.get_text() for text in drawn.ax_.get_legend().get_texts()]
    assert told == ["full", "diag", "given up early", "chosen: 2 components, full"]
    assert display.SearchDisplay(table, criterion="held_out").chosen == 2
    with pytest.raises(ValueError, match="criterion must be one of"):
        display.SearchDisplay(table, criterion="best")


def test_what_a_search_saved_has_no_table(slow_fit: tuple[GaussianMixture, list[Any]]) -> None:
    with pytest.raises(TypeError, match="the best model alone") as told:
        display.SearchDisplay.from_estimator(slow_fit[0])
    assert "GaussianMixture " in str(told.value)


def test_evolution_shows_the_fits_own_states(slow_fit: tuple[GaussianMixture, list[Any]]) -> None:
    model, states = slow_fit
    drawn = display.EvolutionDisplay.from_estimator(model, X, iterations=(0, 1, 3, 1000))
    assert list(drawn.mixtures) == [0, 1, 3, model.n_iter_]
    np.testing.assert_array_equal(drawn.mixtures[model.n_iter_].means, model.means_)
    winner = max((0, 1), key=lambda number: states[-1].runs[number].lower_bound)
    start = next(state.runs[winner].mixture for state in states if state.runs)
    np.testing.assert_array_equal(drawn.mixtures[0].means, start.means)
    assert [len(ellipses(ax)) for ax in drawn.ax_] == [2 * K] * 4
    assert drawn.ax_[0].get_title() == f"start: {model.lower_bounds_[0]:.4g} nats"
    points = drawn.ax_[-1].collections[0]
    colours = np.array([to_rgba(canvas.colour(j))[:3] for j in range(K)])
    np.testing.assert_allclose(
        points.get_facecolors()[:, :3], model.predict_proba(drawn.rows) @ colours, atol=1e-9
    )


def test_a_stream() -> None:
    model = MiniBatchGaussianMixture(K, half_life=2000, random_state=0)
    batches = (rows_of(seed, 150) + (seed >= 30) * np.array([0, 1.5]) for seed in itertools.chain(range(32)))
    drawn = display.StreamDisplay.from_estimator(model, batches)
    assert drawn.rows[-1] == model.n_samples_seen_ == 32 * 150
    assert len(drawn.ax_) == 4
    for j, line in enumerate(drawn.ax_[1].lines):
        assert line.get_ydata()[-1] == model.means_[j, 1]
    assert [ax.get_ylabel() for ax in drawn.ax_] == [
        "mean of\nfeature 0",
        "mean of\nfeature 1",
        "weight",
        "log-likelihood\nper row (nats)",
    ]
    marked = drawn.ax_[-1].collections[0].get_offsets()
    assert 31 * 150 in marked[:, 0]
    assert len(marked) <= 3


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_all_inks_stand_out_from_the_background(style: str) -> None:
    def light(colour: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear)) + 0.05

    with pyplot.style.context(style):
        ground = light(pyplot.rcParams["axes.facecolor"])
        for colour in (*canvas.COLOURS[:4], canvas.ink()):
            contrast = max(light(colour), ground) / min(light(colour), ground)
            assert contrast >= 2.9  # 3 : 1 is what WCAG 2.2 asks of graphics
        drawn = display.MixtureDisplay.from_estimator(fitted(), X)
        drawn.figure_.canvas.draw()


def picture(name: str) -> Any:
    """A display of each kind, of given numbers: no fit decides what is drawn."""
    means, x = np.array([[0.0, 0], [4, 3]]), np.arange(-3, 7, 0.25)
    grid = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2)
    covariances = np.array([[[1, 0.5], [0.5, 1]], [[2, 0], [0, 0.3]]])
    model = GaussianMixture.from_parameters([0.7, 0.3], means, covariances)
    match name:
        case "mixture":
            return display.MixtureDisplay.from_estimator(model, grid)
        case "convergence":
            return display.ConvergenceDisplay([-9, -4, -3.5, -3.2, -3.1], remaining=0.02, tol=0.05).plot()
        case "search":
            table = {"n_components": [1, 2, 3, 1, 2, 3], "covariance_type": ["full"] * 3 + ["diag"] * 3}
            return display.SearchDisplay(
                table | {"bic": [9, 5, 6, 9.5, 7, 6.5], "dropped": [False] * 5 + [True]}
            ).plot()
        case "evolution":
            start = GaussianMixture.from_parameters([0.5, 0.5], means[::-1] / 2, covariances)
            mixtures = {0: start.mixture_, 4: model.mixture_}
            return display.EvolutionDisplay(mixtures, names="ab", features=(0, 1), rows=grid[::7]).plot()
    stream = display.StreamDisplay()
    stream.rows, stream.names = [100, 200, 300, 400], ("a", "b")
    stream.means = [means, means + 0.2, means + 0.1, means + 1]
    stream.weights = [np.array([0.6 + step / 20, 0.4 - step / 20]) for step in range(4)]
    stream.log_likelihood, stream.moving, stream.drift = [-4, -3, -3.5, -6], [-4, -3.5, -3.5, -4], [0, 1, 1, 9]
    return stream.plot()


@pytest.mark.parametrize("name", ["mixture", "convergence", "search", "evolution", "stream"])
def test_pictures_are_as_they_were(name: str) -> None:
    same_picture(picture(name).figure_, BASELINES / f"{name}.png")
