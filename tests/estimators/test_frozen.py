"""Parameters that a fit leaves as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings

from daskgmm import CollapseError, GaussianMixture, MiniBatchGaussianMixture, NormalInverseWishart, load
from daskgmm.cli import main
from tests import structures
from tests.estimators.test_known import rows
from tests.estimators.test_missing import from_start
from tests.fit.problems import Problem, problems
from tests.structures import KINDS

pytestmark = pytest.mark.filterwarnings("ignore:Best performing initialization")
every_kind = pytest.mark.parametrize("kind", KINDS)
EITHER = (GaussianMixture, MiniBatchGaussianMixture)
K = 3
FITTED = {"weights": "weights_", "means": "means_", "covariances": "covariances_"}


def begun(kind: Any, estimator: Any = GaussianMixture, **settings: Any) -> Any:
    """An estimator that is given its start, whose values are no round numbers."""
    x, _, _ = rows(150)
    (model, _), how = from_start(kind, K, 2, x), {"nan_policy": "raise", "max_iter": 5}
    given = model.get_params() | how | {"weights_init": np.array([0.2, 0.3, 0.5])} | settings
    return x, estimator(**{name: v for name, v in given.items() if name in estimator().get_params()})


def started(model: Any) -> Any:
    """The parameters that it is given."""
    given = ("n_components", "covariance_type", "weights_init", "means_init", "precisions_init")
    own = GaussianMixture(**{name: getattr(model, name) for name in given}, max_iter=0)
    return own.fit(np.random.default_rng(0).normal(size=(20, 2)))


@every_kind
@pytest.mark.parametrize("frozen", ["weights", "means", "covariances", ("means", "covariances")])
@pytest.mark.parametrize("prior", [None, "weak"])
def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(kind: Any, frozen: Any, prior: Any) -> None:
    x, model = begun(kind, frozen=frozen, prior=prior, block_size=400)
    model.fit(x)
    for name, attribute in FITTED.items():
        same = np.array_equal(getattr(model, attribute), getattr(started(model), attribute))
        assert same == (name in frozen), name
    if "covariances" in frozen:
        assert np.array_equal(model.precisions_cholesky_, started(model).precisions_cholesky_)
    assert model.weights_.sum() == pytest.approx(1, abs=1e-15)


@every_kind
def test_a_covariance_is_that_about_the_mean_that_stays(kind: Any) -> None:
    x, model = begun(kind, frozen={"means": [1], "weights": [0, 2]}, max_iter=1)
    model.fit(x)
    _, (weights, means, values) = from_start(kind, K, 2, x)
    weights = np.array([0.2, 0.3, 0.5])
    _, resp = structures.expectation(x, weights, means, values, kind)
    total = resp.sum(axis=0)
    expected = resp.T @ x / total[:, None]
    expected[1] = means[1]
    scatter = structures.sums(x, resp, expected)[2]
    np.testing.assert_allclose(model.means_, np.asarray(expected, float), rtol=1e-12)
    found = np.asarray(structures.covariances(scatter, total, kind), float)
    np.testing.assert_allclose(model.covariances_, found, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(model.weights_, [0.2, 0.3, 0.5], rtol=1e-15)  # the one left gets what is left


def test_other_weights_share_what_is_left() -> None:
    x, model = begun("full", frozen={"weights": (1,)}, max_iter=1)
    free = begun("full", max_iter=1)[1].fit(x)
    model.fit(x)
    assert model.weights_[1] == 0.3
    ratio = model.weights_[[0, 2]] / free.weights_[[0, 2]]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-14)
    assert model.weights_.sum() == pytest.approx(1, abs=1e-15)


@given(problem=problems)
@settings(max_examples=5)
def test_what_is_watched_never_falls(problem: Problem) -> None:
    k, kind = problem.settings["n_components"], problem.settings["covariance_type"]
    for prior in (None, NormalInverseWishart(problem.x[0], 3.0, weight_concentration=5.0)):
        numbers = [n for n in range(k) if problem.random.random() < 0.5]
        for name in FITTED:
            if name == "covariances" and KINDS[kind].shared:
                continue
            for frozen in ({name: numbers}, {name: numbers, "means": [0]}):
                run = problem.fitted(frozen=frozen, prior=prior)
                steps = np.diff(run.trace)
                assert steps.min(initial=0.0) >= -1e-10 * max(1, np.abs(run.trace).max(initial=0.0)), frozen


@every_kind
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_streams_keep_what_is_frozen(kind: Any, share: float, tmp_path: Path) -> None:
    x, model = begun(kind, MiniBatchGaussianMixture, frozen=["means", "covariances"], prior="weak", max_iter=1)
    known = rows(150, share)[2]
    kept = started(model)
    model.fit(x, known=known).partial_fit(x, known=known)
    model.save(tmp_path / "m.npz")
    again = load(tmp_path / "m.npz").partial_fit(x)
    model.partial_fit(x)
    for one in (model, again):
        assert np.array_equal(one.means_, kept.means_)
        assert np.array_equal(one.covariances_, kept.covariances_)
        assert not np.array_equal(one.weights_, kept.weights_)
    assert np.array_equal(again.weights_, model.weights_)


@every_kind
def test_a_covariance_that_stays_cannot_collapse(kind: Any) -> None:
    x = np.concatenate([rows(100)[0], np.full((30, 2), 50.0)])
    how: dict[str, Any] = {"covariance_type": kind, "reg_covar": 0.0, "means_init": [[0, 0], [50, 50]], "tol": 0.0}
    how["precisions_init"] = structures.covariances(np.tile(np.eye(2), (2, 1, 1)), np.ones(2), kind)
    model = GaussianMixture(2, frozen="covariances", max_iter=3, **how).fit(x)
    assert np.array_equal(model.precisions_, how["precisions_init"])
    if not KINDS[kind].shared:
        with pytest.raises(CollapseError):
            GaussianMixture(2, frozen="weights", weights_init=[0.5, 0.5], max_iter=3, **how).fit(x)


@pytest.mark.parametrize("estimator", EITHER)
def test_a_start_on_a_sample_keeps_what_is_frozen(estimator: Any) -> None:
    x, _, _ = rows(3000)
    weights, precisions = np.array([0.2, 0.3, 0.5]), np.tile(np.eye(2), (K, 1, 1))
    for init in ("subsample", "random"):
        model = estimator(
            K, frozen=("weights", "covariances"), weights_init=weights, precisions_init=precisions, random_state=0
        )
        model.set_params(init_params=init, tol=1e-9, max_iter=1).fit(x)
        assert np.array_equal(model.weights_, weights)
        assert np.array_equal(model.precisions_, precisions)


def test_a_stopped_fit_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    x, model = begun("full", frozen={"means": np.array([0])}, block_size=400, tol=0.0)
    whole = model.set_params(max_iter=6).fit(x).means_
    model.set_params(checkpoint=tmp_path / "c", max_iter=2).fit(x)
    assert np.array_equal(model.set_params(max_iter=6).fit(x).means_, whole)
    with pytest.raises(ValueError, match="frozen"):
        model.set_params(frozen=None, max_iter=8).fit(x)


def test_a_warm_start_puts_in_what_is_frozen() -> None:
    x, model = begun("full", frozen="means")
    other = begun("full")[1].set_params(warm_start=True).fit(x)
    other.set_params(frozen="means").fit(x)
    assert np.array_equal(other.means_, model.fit(x).means_)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"frozen": ["mean"]}, "frozen names parameters out of weights, means, covariances, got 'mean'"),
        ({"frozen": {"means": [3]}}, r"frozen names components 0 ... 2, got \[3\] of means"),
        ({"frozen": {"means": [-1]}}, "frozen names components"),
        ({"frozen": "means"}, "frozen names means, and means_init is None: give the values that are to stay"),
        (
            {"frozen": {"covariances": [0]}, "precisions_init": np.eye(2), "covariance_type": "tied"},
            "frozen names covariances of some components, and these have something in common",
        ),
    ],
)
@pytest.mark.parametrize("estimator", EITHER)
def test_what_cannot_be_frozen_is_refused(estimator: Any, how: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        estimator(K, **how).fit(rows()[0])


def test_the_command_line_freezes(tmp_path: Path) -> None:
    x, _, _ = rows()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", [0.2, 0.3, 0.5])
    how = ["fit", str(tmp_path / "x.npy"), "-k", "3", "--out", str(tmp_path / "m.npz"), "--frozen", "weights"]
    result = CliRunner().invoke(main, [*how, "--weights-init", str(tmp_path / "w.npy")])
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "m.npz").weights_.tolist() == [0.2, 0.3, 0.5]
    assert load(tmp_path / "m.npz").frozen == {"weights": (0, 1, 2), "means": (), "covariances": ()}
