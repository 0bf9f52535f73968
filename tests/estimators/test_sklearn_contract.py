"""What scikit-learn expects of an estimator."""

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone, is_clusterer
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture as Theirs
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from daskgmm import GaussianMixture
from tests.structures import KINDS

# Check name -> why it cannot pass. None at present.
EXPECTED_FAILURES: dict[str, str] = {}

X, Y = make_blobs(200, centers=3, n_features=4, random_state=0)
WEIGHT = np.random.default_rng(0).choice([0.5, 1.0, 3.0], len(X))


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [GaussianMixture()], expected_failed_checks=lambda _: EXPECTED_FAILURES
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [GaussianMixture(2, covariance_type="diag", init_params="subsample", nan_policy="omit", tol=1e-2)],
    expected_failed_checks=lambda _: {
        "check_estimators_nan_inf": "nan_policy='omit' accepts NaN by intention",
        "check_sample_weight_equivalence_on_dense_data": "a sampled start is not that of repeated rows",
    },
)
def test_scikit_learns_checks_with_other_settings(estimator: Any, check: Any) -> None:
    check(estimator)


def test_constructor_is_a_superset_of_scikit_learns() -> None:
    ours = inspect.signature(GaussianMixture).parameters
    theirs = inspect.signature(Theirs).parameters
    assert set(theirs) <= set(ours)
    for name, parameter in theirs.items():
        if name != "init_params":  # ours chooses by the size of the data
            assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind
    assert ours["init_params"].default == "auto"


def test_the_interface_that_others_build_on() -> None:
    names = (
        "n_components covariance_type tol reg_covar max_iter n_init init_params weights_init means_init "
        "prior precisions_init labels_init responsibilities_init random_state warm_start acceleration block_size "
        "nan_policy missing_chunks decode_cf feature_dim variables storage_options checkpoint verbose "
        "verbose_interval frozen background n_factors"
    )
    assert list(GaussianMixture().get_params()) == sorted(names.split())
    defaults = GaussianMixture().get_params()
    assert (defaults["block_size"], defaults["nan_policy"]) == ("64 MiB", "raise")
    assert (defaults["missing_chunks"], defaults["checkpoint"]) == ("raise", None)
    methods = "fit fit_predict predict predict_proba score_samples score sample aic bic icl evaluate save load"
    for name in f"{methods} to_sklearn from_sklearn from_parameters".split():
        assert callable(getattr(GaussianMixture, name)), name


def test_fitted_attributes_are_scikit_learns() -> None:
    ours = GaussianMixture(3, random_state=0).fit(X)
    theirs = Theirs(3, random_state=0).fit(X)
    public = [name for name in vars(theirs) if name.endswith("_") and not name.startswith("_")]
    assert {"weights_", "precisions_cholesky_", "lower_bounds_"} <= set(public)
    for name in public:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9, err_msg=name)
        assert np.shape(getattr(ours, name)) == np.shape(getattr(theirs, name)), name
    assert isinstance(ours.lower_bounds_, list)
    assert isinstance(ours.converged_, bool)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, ">f8"])
def test_parameters_are_float64(kind: Any, dtype: Any) -> None:
    model = GaussianMixture(2, covariance_type=kind, random_state=0).fit(X.astype(dtype))
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        value = getattr(model, name)
        assert value.dtype == np.float64
        assert value.dtype.isnative


def test_unfitted() -> None:
    model = GaussianMixture()
    for name in ("predict", "predict_proba", "score_samples", "score", "aic", "bic", "icl", "evaluate"):
        with pytest.raises(NotFittedError):
            getattr(model, name)(X)
    with pytest.raises(NotFittedError):
        model.sample()
    for name in ("weights_", "means_", "covariances_", "n_iter_", "n_passes_", "n_features_in_"):
        assert not hasattr(model, name)


def test_clone_drops_the_fit_and_keeps_the_settings() -> None:
    means = X[:2].copy()
    model = GaussianMixture(2, means_init=means, block_size=1000).fit(X)
    again = clone(model)
    assert not hasattr(again, "means_")
    assert again.get_params()["block_size"] == 1000
    np.testing.assert_array_equal(again.means_init, means)


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_copies_answer_alike(copied: Any) -> None:
    model = GaussianMixture(3, random_state=0).fit(X)
    model.predict(X)
    again = copied(model)
    np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
    assert again.lower_bounds_ == model.lower_bounds_
    assert again.n_passes_ == model.n_passes_


def test_in_a_pipeline() -> None:
    pipeline = make_pipeline(StandardScaler(), GaussianMixture(3, random_state=0))
    labels = pipeline.fit_predict(X)
    np.testing.assert_array_equal(labels, pipeline.predict(X))
    scaled = StandardScaler().fit_transform(X)
    expected = GaussianMixture(3, random_state=0).fit(scaled)
    np.testing.assert_array_equal(labels, expected.predict(scaled))
    assert pipeline.score(X) == expected.score(scaled)


def test_in_a_grid_search() -> None:
    search = GridSearchCV(
        GaussianMixture(random_state=0, max_iter=300, tol=1e-4), {"n_components": [1, 3]}, cv=3
    ).fit(X)
    assert search.best_params_ == {"n_components": 3}


def test_weights_are_routed() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        model = GaussianMixture(3, random_state=0).set_fit_request(sample_weight=True)
        pipeline = Pipeline([("scale", StandardScaler().set_fit_request(sample_weight=False)), ("gmm", model)])
        pipeline.fit(X, sample_weight=WEIGHT)
        scaled = pipeline[:-1].transform(X)
    weighted = GaussianMixture(3, random_state=0).fit(scaled, sample_weight=WEIGHT)
    plain = GaussianMixture(3, random_state=0).fit(scaled)
    np.testing.assert_array_equal(pipeline[-1].means_, weighted.means_)
    assert not np.allclose(pipeline[-1].means_, plain.means_)


def test_score_weights_are_routed() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        model = GaussianMixture(3, random_state=0).set_score_request(sample_weight=True)
        model.set_fit_request(sample_weight=True)
        pipeline = Pipeline([("gmm", model)]).fit(X, sample_weight=WEIGHT)
        found = pipeline.score(X, sample_weight=WEIGHT)
    assert found == pipeline[-1].score(X, sample_weight=WEIGHT)
    assert found != pipeline[-1].score(X)


def test_feature_names() -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = GaussianMixture(3, random_state=0).fit(frame)
    assert model.feature_names_in_.tolist() == list("abcd")
    assert model.feature_names_in_.dtype == object
    np.testing.assert_array_equal(model.predict(frame), GaussianMixture(3, random_state=0).fit(X).predict(X))
    with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
        model.predict(frame[["b", "a", "c", "d"]])
    with pytest.raises(ValueError, match="Feature names unseen at fit time"):
        model.score(frame.rename(columns={"a": "z"}))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)
    model.fit(X)
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        model.predict(frame)


def test_html_representation() -> None:
    model = GaussianMixture(3, block_size="1 MiB")
    assert "GaussianMixture" in model._repr_html_()
    assert "block_size" in model._repr_html_()
    assert "block_size" in repr(model)
    assert "GaussianMixture" in model.fit(X)._repr_html_()


def test_fit_returns_itself_and_leaves_settings_alone() -> None:
    model = GaussianMixture(3, random_state=0)
    before = dict(model.get_params())
    x, w = X.copy(), WEIGHT.copy()
    assert model.fit(x, sample_weight=w) is model
    assert model.get_params() == before
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(w, WEIGHT)
    assert not is_clusterer(model)


def test_read_only_and_non_contiguous_rows() -> None:
    frozen = X.copy()
    frozen.flags.writeable = False
    expected = GaussianMixture(3, random_state=0).fit(X)
    for x in (frozen, np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2]):
        found = GaussianMixture(3, random_state=0).fit(x)
        np.testing.assert_allclose(found.means_, expected.means_, rtol=1e-10)


def test_convergence_warning_in_scikit_learns_words() -> None:
    with pytest.warns(ConvergenceWarning, match="Best performing initialization did not converge") as caught:
        GaussianMixture(3, max_iter=1, random_state=0).fit(X)
    assert caught[0].filename == __file__  # points at the caller, not into the package


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "The 'n_components' parameter of GaussianMixture must be an int in the range"),
        ({"covariance_type": "round"}, "The 'covariance_type' parameter of GaussianMixture must be a str among"),
        ({"tol": -1.0}, "The 'tol' parameter"),
        ({"reg_covar": -1e-6}, "The 'reg_covar' parameter"),
        ({"max_iter": -1}, "The 'max_iter' parameter"),
        ({"n_init": 0}, "The 'n_init' parameter"),
        ({"init_params": "bad"}, "The 'init_params' parameter"),
        ({"nan_policy": "bad"}, "The 'nan_policy' parameter"),
        ({"missing_chunks": "bad"}, "The 'missing_chunks' parameter"),
        ({"warm_start": "yes"}, "The 'warm_start' parameter"),
        ({"random_state": "yes"}, "The 'random_state' parameter"),
        ({"acceleration": "no"}, "The 'acceleration' parameter"),
        ({"tol": "low"}, "The 'tol' parameter"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": "many"}, "block_size"),
        ({"weights_init": [0.5, 0.6, 0.1]}, "'weights' should be normalized"),
        ({"weights_init": [1.5, -0.5, 0.0]}, r"'weights' should be in the range \[0, 1\]"),
        ({"weights_init": [0.5, 0.5]}, r"'weights' should have the shape of \(3,\)"),
        ({"means_init": np.zeros((3, 3))}, r"'means' should have the shape of \(3, 4\)"),
        ({"precisions_init": np.zeros((3, 4))}, r"'precisions' should have the shape|'full precisions' should"),
        ({"precisions_init": -np.ones((3, 4, 4))}, "'full precisions' should be symmetric, positive-definite"),
        ({"precisions_init": np.triu(np.ones((3, 4, 4)))}, "symmetric, positive-definite"),
        (
            {"precisions_init": [1.0, -1.0, 1.0], "covariance_type": "spherical"},
            "'spherical precisions' should be",
        ),
        ({"means_init": np.full((3, 4), np.nan)}, "means contains NaN"),
    ],
)
def test_bad_parameters(settings: dict[str, Any], message: str) -> None:
    model = GaussianMixture(**({"n_components": 3} | settings))  # __init__ only assigns
    with pytest.raises(ValueError, match=message):
        model.fit(X)
    assert not hasattr(model, "means_")
