"""When a fit stops: at the first gain that is below ``tol``, and no other."""

from typing import Any

import numpy as np
import pytest

from daskgmm import GaussianMixture, MiniBatchGaussianMixture, watching
from tests.listeners import Heard
from tests.structures import KINDS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

K, D, ITERATIONS = 2, 2, 12
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(300, D)) + 2 * (np.arange(300)[:, None] % K)
WEIGHT = RANDOM.choice([0.0, 1.0, 3.0], len(X))


def started(kind: Any, tol: float, **settings: Any) -> GaussianMixture:
    """From means alone: the same start for every ``tol``."""
    how: dict[str, Any] = {
        "means_init": X[:K],
        "max_iter": ITERATIONS,
        "tol": tol,
        "acceleration": None,
    } | settings
    return GaussianMixture(K, covariance_type=kind, **how)


def first_below(gains: Any, tol: float) -> int | None:
    """Iterations of a fit whose first gain below ``tol`` is its last; None where none is."""
    below = np.flatnonzero(np.abs(gains) < tol)
    return int(below[0]) + 1 if len(below) else None


def just_above(value: float) -> float:
    return float(np.nextafter(value, np.inf))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["no weights", "weights"])
def test_batch_stops_at_the_first_gain_below_tol(kind: str, weight: Any) -> None:
    whole = started(kind, tol=0).fit(X, sample_weight=weight).lower_bounds_
    assert len(whole) == ITERATIONS  # a gain is never below 0
    gains = np.diff(whole)
    for gain in np.abs(gains[[0, 3, 7]]):
        for tol in (float(gain), just_above(gain)):
            model = started(kind, tol).fit(X, sample_weight=weight)
            stop = first_below(gains, tol)
            assert model.converged_ == (stop is not None)
            assert model.n_iter_ == (ITERATIONS if stop is None else stop + 1)
            assert model.lower_bounds_ == whole[: model.n_iter_]


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_compares_its_first_bound_with_the_last_fits(kind: str) -> None:
    settings: dict[str, Any] = {"max_iter": 3, "warm_start": True}
    before, after = started(kind, 0, **settings).fit(X), started(kind, 0, **settings).fit(X).fit(X)
    gain = abs(after.lower_bounds_[0] - before.lower_bound_)
    for tol, stops in ((float(gain), False), (just_above(gain), True)):
        model = started(kind, 0, **settings).fit(X).set_params(tol=tol).fit(X)
        assert (model.n_iter_ == 1) == stops
        assert model.converged_ or not stops


@pytest.mark.parametrize("kind", KINDS)
def test_online_passes_stop_at_the_first_gain_on_held_out_rows_below_tol(kind: str) -> None:
    passes, n = 6, 4000
    rows = np.random.default_rng(1).normal(size=(n, D)) + 2 * (np.arange(n)[:, None] % K)
    # A start on few rows, which the passes improve.
    settings: dict[str, Any] = {"covariance_type": kind, "max_iter": passes, "random_state": 0, "init_size": 120}
    heard = Heard()
    with watching(heard):
        whole = MiniBatchGaussianMixture(K, tol=0, **settings).fit(rows)
    # Where the first pass ends that gains nothing; the scores before it are those of its mixtures.
    ends = [state.runs[0] for state in heard.states if state.runs and not state.mid_pass]
    x, weight = ends[0].held_out.points()  # type: ignore[attr-defined]
    scores = [np.average(run.mixture.score_samples(x), weights=weight) for run in ends]
    gains = np.diff(scores)
    assert len(gains) == whole.n_iter_
    assert gains[0] > 0
    assert np.all(gains[:-1] > 0)
    for tol in (0.99 * gains[0], 1.01 * gains[0]):  # two sums of the same terms differ in their last places
        model = MiniBatchGaussianMixture(K, tol=tol, **settings).fit(rows)
        below = [number for number, gain in enumerate(gains, 1) if gain < tol]
        assert model.converged_ == bool(below)
        assert model.n_iter_ == (below[0] if below else passes)
        assert model.lower_bounds_ == whole.lower_bounds_[: model.n_iter_]
