"""Fits under a prior: monotone, without collapse, adapted, streamed, saved and resumed."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings

from daskgmm import (
    CollapseError,
    GaussianMixture,
    GaussianMixtureSearch,
    MiniBatchGaussianMixture,
    NormalInverseWishart,
    load,
)
from daskgmm.cli import main
from daskgmm.errors import CheckpointError, DataError
from tests.fit.problems import Problem, problems
from tests.structures import KINDS

every_kind = pytest.mark.parametrize("kind", KINDS)
ESTIMATORS = (GaussianMixture, MiniBatchGaussianMixture)


@pytest.mark.filterwarnings("ignore:Best performing")
@given(problem=problems)
@settings(max_examples=10)
def test_what_is_watched_never_falls(problem: Problem) -> None:
    for prior in ("weak", NormalInverseWishart(problem.x[0], 3.0, weight_concentration=5.0)):
        run = problem.fitted(prior=prior)
        assert run.failure is None
        assert len(run.trace) == 10
        steps = np.diff(run.trace)
        assert steps.min() >= -1e-10 * max(1, np.abs(run.trace).max())
    assert run.trace != problem.fitted().trace


@pytest.mark.filterwarnings("ignore:Best performing")
def test_no_component_collapses_on_fifty_problems_where_maximum_likelihood_does() -> None:
    collapsed = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        how: dict[str, Any] = {"reg_covar": 0.0, "random_state": seed, "max_iter": 60}
        # Clusters of few rows, and of copies of one row, have no covariance.
        x = np.concatenate([random.normal(size=(60, 3)), np.repeat(3 * random.normal(size=(2, 3)), 3, axis=0)])
        if seed % 2:
            x = np.repeat(random.normal(size=(12, 3)), random.integers(1, 4, size=12), axis=0)
        how["covariance_type"] = ("full", "diag", "spherical")[seed % 3]
        how["init_params"] = ("kmeans", "k-means++", "random", "auto")[seed % 4]
        try:
            GaussianMixture(5, **how).fit(x)
            continue
        except CollapseError:
            collapsed += 1
        model = GaussianMixture(5, prior="weak", **how).fit(x)
        assert np.isfinite(model.lower_bound_)
        smallest = min(np.linalg.eigvalsh(c).min() for c in _dense(model))
        assert smallest > 5e-3 * np.var(x, axis=0).min()
    assert collapsed >= 50


def _dense(model: Any) -> Any:
    k, d = model.means_.shape
    return KINDS[model.covariance_type].matrices(model.covariances_, k, d)


def test_a_background_model_is_adapted_where_there_are_rows() -> None:
    random = np.random.default_rng(0)
    means = np.array([[-6.0, 0], [0, 6], [6, 0]])
    background = GaussianMixture(3, random_state=0).fit(
        np.concatenate([mean + random.normal(size=(500, 2)) for mean in means])
    )
    speaker = background.means_[0] + 1 + random.normal(size=(64, 2))
    prior = NormalInverseWishart.from_mixture(background, relevance=16)
    whole = np.linalg.norm(speaker.mean(axis=0) - background.means_[0])
    for kind, n in zip(ESTIMATORS, (64, 128), strict=True):  # the sample and the pass see each row once
        own = kind(3, prior=prior, random_state=0).fit(speaker)
        moved = np.linalg.norm(own.means_ - background.means_, axis=1)
        np.testing.assert_allclose(moved[0], n / (n + 16) * whole, rtol=0.05)
        assert moved[1:].max() < 1e-6  # no row, no move
    with pytest.raises(ValueError, match="mean of the prior has shape"):
        GaussianMixture(2, prior=prior).fit(speaker)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@every_kind
def test_rows_may_be_fewer_than_components_that_a_prior_speaks_for(kind: Any, estimator: Any) -> None:
    means = np.array([[-8.0, 0.0], [0.0, 8.0], [8.0, 0.0], [0.0, -8.0]])
    near = means[np.arange(400) % 4] + np.random.default_rng(0).normal(size=(400, 2))
    background = GaussianMixture(4, covariance_type=kind, means_init=means).fit(near)
    start: dict[str, Any] = {
        "weights_init": background.weights_,
        "means_init": background.means_,
        "precisions_init": background.precisions_,
    }
    prior = NormalInverseWishart.from_mixture(background)
    for more in ({}, start, {**start, "frozen": ("weights", "covariances")}):
        own = estimator(4, covariance_type=kind, prior=prior, random_state=0, **more)
        own.fit(background.means_[[1, 1]] + [[0.5, 0.0], [0.5, 0.1]])
        moved = own.means_ - background.means_
        assert np.linalg.norm(moved, axis=1).argmax() == 1
        assert 0.03 < moved[1, 0] < 0.15  # 2 rows of 18 move it by 0.5 / 9 in batch
        assert np.abs(moved[[0, 2, 3]]).max() < 1e-3
    others: tuple[dict[str, Any], ...] = ({"init_params": "kmeans"}, {"means_init": background.means_})
    for more in others:
        with pytest.raises(DataError, match="n_samples >= n_components"):
            estimator(4, covariance_type=kind, prior=prior, random_state=0, **more).fit(np.zeros((2, 2)))


def test_a_search_that_holds_rows_out_takes_as_few() -> None:
    random = np.random.default_rng(0)
    prior = NormalInverseWishart.from_mixture(GaussianMixture(4, random_state=0).fit(random.normal(size=(400, 2))))
    how: dict[str, Any] = {"criterion": "held_out", "prior": prior, "random_state": 1}
    found = GaussianMixtureSearch([4], held_out=0.3, **how).fit(random.normal(size=(3, 2)))  # of which it learns 2
    assert np.isfinite(found.results_["held_out"]).all()


def test_a_component_that_a_prior_speaks_for_is_not_placed_anew() -> None:
    random = np.random.default_rng(0)
    x = np.array([0.0, 10, 20])[random.integers(3, size=4000), None] + random.normal(size=(4000, 1))
    background = GaussianMixture.from_parameters([0.4, 0.4, 0.2], [[0.0], [10.0], [99.0]], np.ones((3, 1, 1)))
    model = MiniBatchGaussianMixture(3, prior=NormalInverseWishart.from_mixture(background), random_state=0)
    for part in np.array_split(x, 40):
        model.partial_fit(part)
    assert model.means_.max() > 90


@every_kind
def test_streams_take_the_prior_in_place_of_their_own(kind: Any) -> None:
    equal = np.ones((40, 2))
    model = MiniBatchGaussianMixture(2, covariance_type=kind, prior="weak", reg_covar=0.0, init_size=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.partial_fit(np.random.default_rng(0).normal(size=(40, 2)))
        first = model.online_.steady.prior
        for _ in range(20):
            model.partial_fit(equal)
    assert first is not None
    assert model.online_.steady.prior is first
    model.mixture_.check()
    again = model.set_params(prior=None).partial_fit(equal)
    assert again.online_.steady.prior is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("given", [False, True])
def test_a_prior_is_saved_and_loaded(estimator: Any, given: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 2))
    prior = NormalInverseWishart(mean=[0.5, 0.0], degrees_of_freedom=7) if given else "weak"
    model = estimator(2, prior=prior, random_state=0).fit(x)
    model.save(tmp_path / "model.npz")
    again = load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.means_, model.means_)
    if given:
        np.testing.assert_array_equal(again.prior.mean, [0.5, 0.0])
        assert (again.prior.degrees_of_freedom, again.prior.scale) == (7.0, None)
    else:
        assert again.prior == "weak"
    for one in (model, again):
        one.set_params(warm_start=True).fit(x)
    np.testing.assert_array_equal(again.means_, model.means_)


def test_a_fit_goes_on_under_the_prior_that_it_began_with(tmp_path: Path) -> None:
    x, place = np.random.default_rng(0).normal(size=(300, 2)), tmp_path / "fit.npz"
    how: dict[str, Any] = {"random_state": 0, "tol": 0.0, "prior": NormalInverseWishart(mean_precision=2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        GaussianMixture(2, max_iter=3, checkpoint=place, **how).fit(x)
        on = GaussianMixture(2, max_iter=6, checkpoint=place, **how).fit(x)
        whole = GaussianMixture(2, max_iter=6, **how).fit(x)
    np.testing.assert_array_equal(on.means_, whole.means_)
    for other in (None, "weak", NormalInverseWishart(mean_precision=3)):
        with pytest.raises(CheckpointError, match="prior"):
            GaussianMixture(2, max_iter=6, checkpoint=place, **{**how, "prior": other}).fit(x)


def test_the_command_line_takes_the_weak_prior(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 2))
    np.save(tmp_path / "x.npy", x)
    words = ["fit", str(tmp_path / "x.npy"), "-k", "2", "--prior", "weak", "--seed", "0"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "model.npz")])
    assert done.exit_code == 0, done.output
    model = load(tmp_path / "model.npz")
    np.testing.assert_array_equal(model.means_, GaussianMixture(2, prior="weak", random_state=0).fit(x).means_)
