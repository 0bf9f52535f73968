"""When a fit ends: what remains to be gained, a tolerance that follows from it, and criteria that ask for it."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from daskgmm import GaussianMixture, MiniBatchGaussianMixture
from daskgmm.fit.run import EM, rest
from daskgmm.fit.score import ENOUGH, Score, enough
from daskgmm.model.update import Regularised
from tests.structures import draw_mixture

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")

TRUTH = draw_mixture("full", 3, 2, seed=2)
X, _ = TRUTH.sample(2000, np.random.RandomState(0))
SETTINGS: dict[str, Any] = {"n_components": 3, "random_state": 1, "init_params": "k-means++", "max_iter": 3000}
ALL = ("aic", "bic", "icl")


def told(model: Any, criterion: str, x: Any = X) -> list[str]:
    """Warnings of a criterion."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(model, criterion)(x)
    assert all(issubclass(w.category, ConvergenceWarning) and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("acceleration", [None, "auto", "squarem"])
def test_a_fit_goes_on_until_criteria_may_be_compared(acceleration: Any) -> None:
    settings = SETTINGS | {"acceleration": acceleration}
    early, late = GaussianMixture(**settings).fit(X), GaussianMixture(tol="auto", **settings).fit(X)
    end = GaussianMixture(**SETTINGS | {"tol": 1e-13}).fit(X).lower_bound_
    assert late.converged_
    assert late.remaining_ < ENOUGH * 0.5 * np.log(len(X)) / len(X)
    assert end - late.lower_bound_ < 2 * enough(len(X))
    assert early.n_iter_ < late.n_iter_
    for criterion in ALL:
        assert told(late, criterion) == []


@pytest.mark.parametrize("criterion", ALL)
def test_criteria_of_a_fit_that_stopped_early_warn(criterion: str) -> None:
    for acceleration in (None, "auto"):
        early = GaussianMixture(**SETTINGS | {"acceleration": acceleration}).fit(X)
        assert early.converged_
        assert early.remaining_ > enough(len(X))
        (message,) = told(early, criterion)
        assert "tol='auto'" in message
        assert "one parameter costs 3.8" in message


def test_a_series_that_shrinks_evenly_has_a_known_rest() -> None:
    trace = tuple(-(0.5**i) for i in range(6))
    run = EM(TRUTH, Regularised(), 0.0, 99, trace)
    np.testing.assert_allclose(run.remaining, 0.5**5, rtol=1e-12)
    np.testing.assert_allclose(rest(trace, 2), 0.5**5, rtol=1e-12)
    assert np.isnan(EM(TRUTH, Regularised(), 0.0, 99, trace[:2]).remaining)
    assert EM(TRUTH, Regularised(), 0.0, 99, (-1.0, -1.0, -1.0)).remaining == 0
    assert np.isnan(EM(TRUTH, Regularised(), 0.0, 99, (-4.0, -3.0, -1.0)).remaining)  # it has only begun


@pytest.mark.parametrize(("remaining", "warns"), [(1e-6, True), (5e-7, False), (np.nan, False)])
def test_what_is_too_early(remaining: float, warns: bool) -> None:
    assert (Score(-1.0, np.nan, 1e6).unfinished(remaining) is not None) == warns


def test_who_cannot_tell_does_not_warn() -> None:
    given = GaussianMixture.from_parameters(TRUTH.weights, TRUTH.means, TRUTH.covariance.values)
    online = MiniBatchGaussianMixture(3, random_state=0).fit(X)
    for model in (given, online):
        assert np.isnan(model.remaining_)
        assert told(model, "bic") == []


def test_what_remains_is_saved(tmp_path: Any) -> None:
    model = GaussianMixture(tol="auto", **SETTINGS).fit(X)
    model.save(tmp_path / "m.npz")
    again = GaussianMixture.load(tmp_path / "m.npz")
    assert (again.tol, again.remaining_) == ("auto", model.remaining_)
    assert model.to_sklearn().tol == 1e-3
