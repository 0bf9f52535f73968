"""scikit-learn's callbacks: an iteration is a task, with a fitted copy; a hook that returns True ends a fit."""

from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from sklearn.callback import ProgressBar

from daskgmm import GaussianMixture, MiniBatchGaussianMixture

X = np.random.default_rng(0).normal(size=(300, 2)) + 5.0 * (np.arange(300)[:, None] >= 150)
SETTINGS: dict[str, Any] = {"n_components": 2, "random_state": 0, "tol": 0.0, "max_iter": 4}

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")


class Note:
    """Notes every hook with the task that it is called for; ends the fit after the task of a name."""

    def __init__(self, last: str = "") -> None:
        self.told: list[tuple[str, str]] = []
        self.last = last

    def setup(self, estimator: Any, context: Any) -> None:
        self.told.append(("setup", context.task_name))

    def teardown(self, estimator: Any, context: Any) -> None:
        self.told.append(("teardown", context.task_name))

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.told.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator: Any, context: Any) -> bool:
        self.told.append(("end", context.task_name))
        return bool(context.task_name == self.last)


class Bound(Note):
    """Notes the rows, and how likely they are to a copy that is fitted so far."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[float] = []
        self.rows: list[Any] = []

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, X: Any = None, fitted_estimator: Any = None
    ) -> bool:
        assert type(fitted_estimator) is type(estimator)
        assert fitted_estimator is not estimator
        self.scores.append(fitted_estimator.score(X))
        self.rows.append(X)
        return False


def fit(callback: Any, kind: type[Any] = GaussianMixture, x: Any = X, **settings: Any) -> Any:
    return kind(**(SETTINGS | settings)).set_callbacks(callback).fit(x)


def iterations(count: int) -> list[tuple[str, str]]:
    return [(what, f"iteration {n}") for n in range(1, count + 1) for what in ("begin", "end")]


def test_each_iteration_is_a_task() -> None:
    note = Note()
    model = fit(note)
    first, *inner, last = note.told
    assert (first[0], last[0]) == ("setup", "teardown")
    root = first[1]
    assert inner == [("begin", root), *iterations(4), ("end", root)]
    assert model.n_iter_ == 4


@pytest.mark.parametrize("kind", [GaussianMixture, MiniBatchGaussianMixture])
def test_a_callback_changes_no_bit(kind: type[Any]) -> None:
    model, alone = fit(Note(), kind), kind(**SETTINGS).fit(X)
    assert model.means_.tobytes() == alone.means_.tobytes()
    assert (model.n_iter_, model.n_passes_) == (alone.n_iter_, alone.n_passes_)


def test_a_callback_that_returns_true_ends_the_fit() -> None:
    note = Note(last="iteration 2")
    model, two = fit(note), GaussianMixture(**(SETTINGS | {"max_iter": 2})).fit(X)
    assert [told for told in note.told if told[1].startswith("iteration")] == iterations(2)
    assert note.told[-2][0] == "end"  # of the whole
    assert model.n_iter_ == 2
    assert model.means_.tobytes() == two.means_.tobytes()


def test_a_hook_gets_the_rows_and_a_copy_that_is_fitted_so_far() -> None:
    x, note = da.from_array(X, chunks=(100, 2)), Bound()
    model = fit(note, x=x)
    assert all(rows is x for rows in note.rows)
    # The trace has the bound of the parameters before each step.
    np.testing.assert_allclose(note.scores[:3], model.lower_bounds_[1:], rtol=1e-13)
    np.testing.assert_allclose(note.scores[3:], [model.score(X)] * 2, rtol=1e-13)


@pytest.mark.parametrize("kind", [GaussianMixture, MiniBatchGaussianMixture])
def test_the_copy_knows_what_the_model_will(kind: type[Any]) -> None:
    class Names(Note):
        def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any = None) -> bool:
            attributes = {name for name in dir(fitted_estimator) if name.endswith("_") and name[0] != "_"}
            seen.append((attributes, list(fitted_estimator.feature_names_in_)))
            return False

    seen: list[tuple[set[str], list[str]]] = []
    model = fit(Names(), kind, pd.DataFrame(X, columns=["a", "b"]))
    assert seen[-1][1] == ["a", "b"]
    for found, _ in seen:
        assert found == {name for name in dir(model) if name.endswith("_") and name[0] != "_"}


def test_more_rows_are_no_fit_to_be_told() -> None:
    note = Note()
    model = fit(note, MiniBatchGaussianMixture)
    before = list(note.told)
    model.extend(np.concatenate([X, X]))
    assert note.told == before
    assert model.n_samples_seen_ > len(X)


def test_a_hook_that_raises_ends_the_fit_and_its_callback_is_torn_down() -> None:
    class Raising(Note):
        def on_fit_task_end(self, estimator: Any, context: Any) -> bool:
            raise ZeroDivisionError

    note = Raising()
    model = GaussianMixture(**SETTINGS).set_callbacks(note)
    with pytest.raises(ZeroDivisionError):
        model.fit(X)
    assert not hasattr(model, "means_")
    assert note.told[-1][0] == "teardown"


@pytest.mark.parametrize("kind", [GaussianMixture, MiniBatchGaussianMixture])
def test_scikit_learns_progress_bar_goes_along(kind: type[Any]) -> None:
    assert fit(ProgressBar(), kind).n_passes_ > 1
