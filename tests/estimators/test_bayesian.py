"""BayesianGaussianMixture: laws, scikit-learn's numbers from the same start, and what its own tests ask."""

import copy
import pickle
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture as Theirs
from sklearn.utils.estimator_checks import parametrize_with_checks

from daskgmm import BayesianGaussianMixture, DataError, GaussianMixture, load, watching
from daskgmm.errors import CheckpointError, ModelFileError
from tests.drivers import bits
from tests.listeners import stop
from tests.strategies import chunkings, kinds, seeds
from tests.structures import KINDS

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PRIORS: Any = ("dirichlet_process", "dirichlet_distribution")
EACH = pytest.mark.parametrize("kind", KINDS)
EITHER = pytest.mark.parametrize("prior", PRIORS)
K, D = 5, 3
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(400, D)) + 4 * RANDOM.integers(3, size=(400, 1))
LABELS = RANDOM.integers(K, size=len(X))
WEIGHT = RANDOM.choice([0.0, 0.5, 1.0, 3.0], size=len(X))
NAMES = (
    "weights_ means_ covariances_ precisions_ precisions_cholesky_ mean_precision_ degrees_of_freedom_ "
    "weight_concentration_ mean_prior_ covariance_prior_ mean_precision_prior_ degrees_of_freedom_prior_ "
    "weight_concentration_prior_ n_features_in_ n_iter_ converged_"
)
ATTRIBUTES = NAMES.split()


def fit(x: Any = X, weight: Any = None, **settings_: Any) -> BayesianGaussianMixture:
    begun: dict[str, Any] = {
        "n_components": K,
        "labels_init": LABELS,
        "max_iter": 20,
        "tol": 0.0,
        "random_state": 0,
    }
    return BayesianGaussianMixture(**(begun | settings_)).fit(x, sample_weight=weight)


class Labelled(Theirs):  # type: ignore[misc]
    """scikit-learn's, from the responsibilities of our labels."""

    def _initialize_parameters(self, X: Any, random_state: Any, xp: Any = None) -> None:
        self._initialize(X, np.eye(self.n_components)[LABELS[: len(X)]])


# Laws


@settings(max_examples=12)
@given(kind=kinds, prior=st.sampled_from(PRIORS), seed=seeds, weighted=st.booleans(), missing=st.booleans())
def test_the_lower_bound_never_falls(kind: Any, prior: Any, seed: int, weighted: bool, missing: bool) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(120, 2)) * random.uniform(0.1, 5, size=2) + 3 * random.integers(4, size=(120, 1))
    if missing:
        x[random.random(x.shape) < 0.2] = np.nan
    model = fit(
        x,
        random.uniform(0.1, 4, size=len(x)) if weighted else None,
        covariance_type=kind,
        weight_concentration_prior_type=prior,
        labels_init=random.integers(K, size=len(x)),
        reg_covar=0.0,
        max_iter=30,
        nan_policy="missing",
    )
    bounds = np.array(model.lower_bounds_)
    assert np.diff(bounds).min() >= -1e-11 * np.abs(bounds).max()


@EITHER
def test_superfluous_components_lose_their_rows(prior: Any) -> None:
    more: dict[str, Any] = {"weight_concentration_prior_type": prior, "weight_concentration_prior": 1e-2}
    model = fit(n_components=8, labels_init=None, max_iter=1000, tol=1e-4, **more)
    kept = model.weights_ > 0.01
    assert model.converged_
    assert kept.sum() == 3
    assert model.weights_[~kept].sum() < 1e-2
    assert adjusted_rand_score((X[:, 0] > 2) * 1 + (X[:, 0] > 6), model.predict(X)) > 0.9


@EACH
def test_a_row_of_weight_two_counts_as_two(kind: Any) -> None:
    weight = np.where(np.arange(len(X)) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(X)), weight.astype(int))
    a = fit(weight=weight, covariance_type=kind)
    b = fit(X[twice], labels_init=LABELS[twice], covariance_type=kind)
    for name in ("means_", "covariances_", "weight_concentration_", "degrees_of_freedom_", "lower_bounds_"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, err_msg=name)


def test_rows_of_no_weight_are_never_looked_at() -> None:
    x = np.where((WEIGHT > 0)[:, None], X, np.nan)
    kept = WEIGHT > 0
    a, b = fit(x, WEIGHT), fit(X[kept], WEIGHT[kept], labels_init=LABELS[kept])
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-9)
    np.testing.assert_allclose(a.lower_bounds_, b.lower_bounds_, rtol=1e-11)


@settings(max_examples=8)
@given(kind=kinds, chunks=chunkings(len(X), min_chunks=2), seed=seeds)
def test_blocks_and_order_do_not_matter(kind: Any, chunks: tuple[int, ...], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(X))
    lengths = tuple(length for length in chunks if length)
    a = fit(covariance_type=kind)
    b = fit(da.from_array(X[order], chunks=(lengths, D)), labels_init=LABELS[order], covariance_type=kind)
    np.testing.assert_allclose(a.lower_bounds_, b.lower_bounds_, rtol=1e-10)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(a.weight_concentration_, b.weight_concentration_, rtol=1e-6)


def test_input_of_any_kind(tmp_path: Path) -> None:
    stored = zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(100, D))
    a, b = fit(str(tmp_path / "x.zarr")), fit(da.from_zarr(stored))
    for model in (a, b):
        np.testing.assert_allclose(model.lower_bounds_, fit().lower_bounds_, rtol=1e-11)
    assert bits(fit(str(tmp_path / "x.zarr"))) == bits(a)
    lazy = b.predict_proba(da.from_zarr(stored))
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), b.predict_proba(X), rtol=1e-12)
    single = X.astype("f4")
    np.testing.assert_allclose(fit(single).lower_bounds_, fit(single.astype("f8")).lower_bounds_, rtol=1e-6)


# Parity


@EACH
@EITHER
@pytest.mark.parametrize("given_prior", [False, True])
def test_scikit_learns_numbers_from_the_same_start(kind: Any, prior: Any, given_prior: bool) -> None:
    scale = {"full": np.eye(D) + 0.5, "tied": np.eye(D) + 0.5, "diag": np.arange(1.0, D + 1), "spherical": 2.0}
    own: dict[str, Any] = {
        "weight_concentration_prior": 0.7,
        "mean_precision_prior": 0.3,
        "mean_prior": [1.0, 2.0, 3.0],
        "degrees_of_freedom_prior": 4.5,
        "covariance_prior": scale[kind],
    }
    asked: dict[str, Any] = {
        "covariance_type": kind,
        "weight_concentration_prior_type": prior,
        **(own if given_prior else {}),
    }
    theirs = Labelled(n_components=K, max_iter=20, tol=0.0, **asked).fit(X)
    ours = fit(**asked)
    assert ours.n_passes_ == 21
    # Total over the rows, and of tied covariances an array of one in theirs.
    np.testing.assert_allclose(ours.lower_bound_, np.squeeze(theirs.lower_bound_), rtol=1e-11)
    np.testing.assert_allclose(ours.lower_bounds_, np.squeeze(theirs.lower_bounds_), rtol=1e-11)
    for name in ATTRIBUTES:
        mine, yours = getattr(ours, name), getattr(theirs, name)
        np.testing.assert_allclose(mine, yours, rtol=1e-8, atol=1e-10, err_msg=name)
        assert np.shape(mine) == np.shape(yours), name
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-10)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-10)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-12)


@pytest.mark.parametrize("init", ["kmeans", "random"])
@EACH
def test_scikit_learns_own_start(kind: Any, init: Any) -> None:
    asked: dict[str, Any] = {
        "n_components": K,
        "covariance_type": kind,
        "init_params": init,
        "random_state": 3,
        "max_iter": 15,
    }
    theirs = Theirs(**asked).fit(X)
    ours = BayesianGaussianMixture(**asked).fit(X)
    np.testing.assert_allclose(ours.lower_bounds_, np.squeeze(theirs.lower_bounds_), rtol=1e-10)
    np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-7)


def test_of_several_starts_the_highest_bound_wins() -> None:
    asked: dict[str, Any] = {"n_components": K, "init_params": "random", "random_state": 0, "max_iter": 5}
    theirs = Theirs(n_init=4, **asked).fit(X)
    ours = BayesianGaussianMixture(n_init=4, **asked).fit(X)
    assert ours.lower_bound_ == pytest.approx(theirs.lower_bound_, rel=1e-10)
    assert ours.n_passes_ == 6


# Stopping and going on


@pytest.mark.parametrize("settings_", [{}, {"labels_init": None, "init_params": "subsample", "n_init": 2}])
def test_a_stopped_fit_goes_on_to_the_same_bits(settings_: dict[str, Any], tmp_path: Path) -> None:
    for after in (1, 4):
        with pytest.raises(KeyboardInterrupt), watching(stop(after)):
            fit(checkpoint=tmp_path / "c", **settings_)
    again, whole = fit(checkpoint=tmp_path / "c", **settings_), fit(**settings_)
    assert bits(again) == bits(whole)
    np.testing.assert_array_equal(again.weight_concentration_, whole.weight_concentration_)
    further = fit(checkpoint=tmp_path / "c", **settings_, max_iter=25)
    assert bits(further) == bits(fit(**settings_, max_iter=25))


def test_a_checkpoint_is_of_one_estimator_and_one_prior(tmp_path: Path) -> None:
    fit(checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match="mean_prior: None there"):
        fit(checkpoint=tmp_path / "c", mean_prior=np.zeros(D))
    with pytest.raises(CheckpointError, match="estimator: 'BayesianGaussianMixture' there"):
        GaussianMixture(K, checkpoint=tmp_path / "c").fit(X)


@EACH
@EITHER
def test_a_file_holds_the_posterior(kind: Any, prior: Any, tmp_path: Path) -> None:
    scale = {"full": np.eye(D), "tied": np.eye(D), "diag": np.ones(D), "spherical": 1.0}[kind]
    model = fit(
        covariance_type=kind,
        weight_concentration_prior_type=prior,
        covariance_prior=scale,
        mean_prior=np.ones(D),
        max_iter=3,
    )
    model.save(tmp_path / "m.npz")
    for again in (load(tmp_path / "m.npz"), BayesianGaussianMixture.load(tmp_path / "m.npz")):
        assert isinstance(again, BayesianGaussianMixture)
        for name in (*ATTRIBUTES, "lower_bounds_"):
            np.testing.assert_array_equal(getattr(again, name), getattr(model, name), err_msg=name)
        np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
        np.testing.assert_array_equal(again.covariance_prior, scale)
        again.set_params(warm_start=True, max_iter=2).fit(X)
    with pytest.raises(ModelFileError, match="holds a BayesianGaussianMixture"):
        GaussianMixture.load(tmp_path / "m.npz")


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_copies_answer_alike(copied: Any) -> None:
    model = fit(max_iter=3)
    again = copied(model)
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(again.weight_concentration_, model.weight_concentration_)
    assert clone(model).get_params()["n_components"] == K


@EACH
def test_a_warm_start_goes_on_under_the_same_prior(kind: Any) -> None:
    whole = fit(covariance_type=kind, max_iter=6)
    model = fit(covariance_type=kind, max_iter=3).set_params(warm_start=True)
    bounds = [*model.lower_bounds_, *model.fit(X).lower_bounds_]
    assert bounds == whole.lower_bounds_
    np.testing.assert_array_equal(model.covariance_prior_, whole.covariance_prior_)
    np.testing.assert_array_equal(model.means_, whole.means_)


def test_no_iteration_keeps_the_start() -> None:
    model = fit(max_iter=0)
    assert model.n_iter_ == 0
    np.testing.assert_allclose(model.degrees_of_freedom_, D + np.bincount(LABELS, minlength=K))


# Starts


def test_more_rows_than_a_sample_start_where_inference_on_that_leads() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(30_000, 2)) + 7 * random.integers(3, size=(30_000, 1))
    model = BayesianGaussianMixture(n_components=6, tol="auto", max_iter=200, random_state=0).fit(x)
    assert model.converged_
    assert (model.weights_ > 1e-3).sum() == 3
    assert model.total_weight_ == len(x)
    assert model.n_iter_ < 10
    again = BayesianGaussianMixture(n_components=6, max_iter=20, random_state=0, init_params="kmeans").fit(x)
    assert model.lower_bound_ > again.lower_bound_ + 50  # two share a cluster for thousands of iterations
    few = BayesianGaussianMixture(n_components=6, random_state=0, init_params="subsample").fit(x[:600])
    assert (few.weights_ > 1e-2).sum() == 3


def test_parameters_to_start_from() -> None:
    first = fit(max_iter=5)
    start: dict[str, Any] = {
        "weights_init": first.weights_,
        "means_init": first.means_,
        "precisions_init": first.precisions_,
    }
    model = fit(labels_init=None, **start, max_iter=5)
    np.testing.assert_allclose(model.means_, first.means_, atol=0.5)
    assert model.lower_bound_ > first.lower_bound_ - 20
    some = fit(means_init=first.means_, labels_init=None, max_iter=5)
    assert np.isfinite(some.lower_bound_)


# What else there is


def test_parts_are_those_of_the_expected_parameters() -> None:
    model = fit()
    part: Any = model.marginal([2, 0])
    assert isinstance(part, GaussianMixture)
    np.testing.assert_array_equal(part.means_, model.means_[:, [2, 0]])
    plain = GaussianMixture.from_parameters(model.weights_, model.means_, model.covariances_)
    np.testing.assert_allclose(model.mixture_.score_samples(X), plain.score_samples(X), rtol=1e-12)
    assert (model.score_samples(X) < plain.score_samples(X)).all()
    assert model.kl_divergence(plain, 1000).value == pytest.approx(0.0, abs=1e-9)


@EACH
def test_scikit_learn_takes_it_over(kind: Any) -> None:
    model = fit(covariance_type=kind, init_params="subsample", tol="auto", labels_init=None)
    theirs = model.to_sklearn()
    np.testing.assert_allclose(theirs.score_samples(X), model.score_samples(X), rtol=1e-10)
    np.testing.assert_array_equal(theirs.predict(X), model.predict(X))
    assert np.isfinite(clone(theirs).fit(X).lower_bound_).all()


def test_there_is_no_likelihood_to_judge_by() -> None:
    model = fit()
    for name in ("aic", "bic", "icl", "from_parameters"):
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match="BayesianGaussianMixture has no bic: the lower bound"):
        model.bic(X)


def test_what_rows_miss_is_expected_too() -> None:
    x = X.copy()
    x[:, 1:][RANDOM.random((len(X), D - 1)) < 0.3] = np.nan
    model = fit(x, nan_policy="missing", labels_init=LABELS)
    assert np.abs(model.predict_proba(x).sum(axis=1) - 1).max() < 1e-12
    assert np.isfinite(model.impute(x)).all()
    with pytest.raises(DataError, match="contains NaN"):
        fit(x)


def test_events_name_the_bound(capsys: Any) -> None:
    fit(verbose=1, verbose_interval=1, max_iter=2)
    told = capsys.readouterr().out
    assert "lower bound" in told
    assert "log-likelihood" not in told


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (
            {"degrees_of_freedom_prior": D - 1.0},
            r"'degrees_of_freedom_prior' should be greater than 2, but got 2.000",
        ),
        ({"mean_prior": [0.0, 1.0]}, r"'means' should have the shape of \(3,\)"),
        ({"covariance_prior": np.ones((2, 2))}, r"'full covariance_prior' should have the shape of \(3, 3\)"),
        ({"covariance_prior": -np.eye(3)}, "'full covariance_prior' should be symmetric, positive-definite"),
        (
            {"covariance_prior": np.zeros(3), "covariance_type": "diag"},
            "'diag covariance_prior' should be positive",
        ),
        ({"covariance_prior": [1.0, 1.0], "covariance_type": "spherical"}, "should have the shape of"),
        ({"covariance_prior": -1.0, "covariance_type": "spherical"}, "The 'covariance_prior' parameter"),
        ({"weight_concentration_prior": 0.0}, "The 'weight_concentration_prior' parameter"),
        ({"weight_concentration_prior_type": "none"}, "The 'weight_concentration_prior_type' parameter"),
        ({"mean_precision_prior": -1.0}, "The 'mean_precision_prior' parameter"),
    ],
)
def test_bad_parameters(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**settings_)


def test_the_interface_is_scikit_learns_and_more() -> None:
    theirs, ours = Theirs().get_params(), BayesianGaussianMixture().get_params()
    assert set(theirs) <= set(ours)
    assert {name: ours[name] for name in theirs} == theirs | {"init_params": "auto"}
    assert "prior" not in ours


@parametrize_with_checks([BayesianGaussianMixture()])  # type: ignore[untyped-decorator]
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# scikit-learn's tests of its class, by their public names


class Blobs:
    """Rows of three clusters, one of them twice as wide, for each covariance type."""

    def __init__(self, seed: int, n: int = 300, scale: float = 50.0) -> None:
        random = np.random.RandomState(seed)
        self.k, d = 2, 2
        weights = random.rand(self.k)
        weights /= weights.sum()
        means = random.rand(self.k, d) * scale
        full = np.stack([(a := random.rand(d, d + 3) - 0.5) @ a.T + 0.1 * np.eye(d) for _ in range(self.k)])
        shapes = {
            "full": full,
            "tied": full[[0] * self.k],
            "diag": full * np.eye(d),
            "spherical": random.rand(self.k)[:, None, None] * np.eye(d) + 0.1 * np.eye(d),
        }
        self.y = np.repeat(np.arange(self.k), np.maximum(2, (weights * n).astype(int)))
        self.x = {
            kind: np.stack([random.multivariate_normal(means[j], values[j]) for j in self.y])
            for kind, values in shapes.items()
        }


def test_priors_that_rows_leave_behind() -> None:
    x = np.random.RandomState(0).rand(10, 2)
    model = BayesianGaussianMixture(n_components=3, random_state=0).fit(x)
    assert model.weight_concentration_prior_ == pytest.approx(1 / 3)
    assert model.mean_precision_prior_ == 1
    assert model.degrees_of_freedom_prior_ == 2
    np.testing.assert_allclose(model.mean_prior_, x.mean(axis=0))
    expected = {
        "full": np.cov(x.T),
        "tied": np.cov(x.T),
        "diag": np.var(x, axis=0, ddof=1),
        "spherical": np.var(x, axis=0, ddof=1).mean(),
    }
    for kind, covariance in expected.items():
        model.set_params(covariance_type=kind).fit(x)
        np.testing.assert_allclose(model.covariance_prior_, covariance)


@EITHER
@EACH
def test_one_iteration_at_a_time_the_bound_rises_to_its_end(kind: Any, prior: Any) -> None:
    blobs = Blobs(0, scale=20.0)
    model = BayesianGaussianMixture(
        n_components=2 * blobs.k,
        covariance_type=kind,
        weight_concentration_prior_type=prior,
        warm_start=True,
        max_iter=1,
        random_state=0,
    )
    before = -np.inf
    for _ in range(600):
        bound = model.fit(blobs.x[kind]).lower_bound_
        assert bound >= before
        before = bound
        if model.converged_:
            break
    assert model.converged_


@EITHER
def test_types_compare_after_one_step(prior: Any) -> None:
    scatter = {}
    for kind in KINDS:
        model = fit(covariance_type=kind, weight_concentration_prior_type=prior, max_iter=0)
        nu = np.asarray(model.degrees_of_freedom_)
        scatter[kind] = model.covariances_ * nu.reshape(nu.shape + (1,) * (model.covariances_.ndim - nu.ndim))
    full = scatter["full"]
    np.testing.assert_allclose(scatter["tied"], full.mean(axis=0))
    np.testing.assert_allclose(scatter["diag"], np.diagonal(full, axis1=1, axis2=2))
    np.testing.assert_allclose(scatter["spherical"], scatter["diag"].mean(axis=1))


@EACH
def test_precisions_are_inverses(kind: Any) -> None:
    blobs = Blobs(0, scale=7.0)
    model = BayesianGaussianMixture(n_components=4, covariance_type=kind, random_state=0, reg_covar=0)
    model.fit(blobs.x[kind])
    if kind in ("full", "tied"):
        product = model.covariances_ @ model.precisions_
        np.testing.assert_allclose(product, np.broadcast_to(np.eye(2), product.shape), atol=1e-9)
    else:
        np.testing.assert_allclose(model.covariances_ * model.precisions_, 1.0)


@EITHER
@EACH
def test_rows_elsewhere_give_the_same_elsewhere(kind: Any, prior: Any) -> None:
    blobs = Blobs(0, scale=100.0)
    asked: dict[str, Any] = {"n_components": 4, "covariance_type": kind, "weight_concentration_prior_type": prior}
    here, there = (
        BayesianGaussianMixture(**asked, random_state=0, reg_covar=0).fit(blobs.x[kind] + shift)
        for shift in (0, 100)
    )
    np.testing.assert_allclose(here.means_, there.means_ - 100, atol=1e-7)
    np.testing.assert_allclose(here.weights_, there.weights_, atol=1e-7)
    np.testing.assert_allclose(here.covariances_, there.covariances_, atol=1e-7)


@pytest.mark.parametrize(("seed", "max_iter", "tol"), [(0, 2, 1e-7), (1, 2, 1e-1), (3, 300, 1e-7), (4, 300, 1e-1)])
@EACH
def test_fit_predict_is_fit_and_predict(kind: Any, seed: int, max_iter: int, tol: float) -> None:
    x = Blobs(seed, n=50, scale=7.0).x[kind]
    asked: dict[str, Any] = {"n_components": 4, "max_iter": max_iter, "tol": tol, "reg_covar": 0, "n_init": 2}
    model = BayesianGaussianMixture(covariance_type=kind, random_state=0, **asked)
    labels = clone(model).fit_predict(x)
    np.testing.assert_array_equal(model.fit(x).predict(x), labels)


@EITHER
@EACH
def test_labels_are_the_likeliest(kind: Any, prior: Any) -> None:
    blobs = Blobs(0)
    asked: dict[str, Any] = {"covariance_type": kind, "weight_concentration_prior_type": prior}
    model = BayesianGaussianMixture(n_components=blobs.k, random_state=0, **asked)
    with pytest.raises(NotFittedError, match="This BayesianGaussianMixture instance is not fitted yet"):
        model.predict(blobs.x[kind])
    labels = model.fit(blobs.x[kind]).predict(blobs.x[kind])
    np.testing.assert_array_equal(labels, model.predict_proba(blobs.x[kind]).argmax(axis=1))
    assert adjusted_rand_score(blobs.y, labels) >= 0.95
