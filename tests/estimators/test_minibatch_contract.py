"""What scikit-learn expects of an estimator, of the one that learns online."""

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from daskgmm import MiniBatchGaussianMixture

# Check name -> why it cannot pass.
EXPECTED_FAILURES: dict[str, str] = {}

X, _ = make_blobs(400, centers=3, n_features=4, random_state=0)
WEIGHT = np.random.default_rng(0).choice([0.5, 1.0, 3.0], len(X))


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [MiniBatchGaussianMixture()], expected_failed_checks=lambda _: EXPECTED_FAILURES
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_interface_that_others_build_on() -> None:
    names = (
        "n_components covariance_type batch_size learning_decay learning_offset half_life init_size max_iter tol "
        "prior reg_covar init_params weights_init means_init precisions_init random_state warm_start block_size "
        "nan_policy missing_chunks decode_cf feature_dim variables storage_options checkpoint verbose "
        "verbose_interval frozen background n_factors"
    )
    defaults = MiniBatchGaussianMixture().get_params()
    assert list(defaults) == sorted(names.split())
    assert (defaults["learning_decay"], defaults["learning_offset"], defaults["half_life"]) == (0.6, 2.0, None)
    assert (defaults["reg_covar"], defaults["block_size"], defaults["checkpoint"]) == (1e-6, "64 MiB", None)
    methods = (
        "fit partial_fit extend fit_predict predict predict_proba score_samples score evaluate sample aic bic icl "
        "save load from_parameters"
    )
    for name in methods.split():
        assert callable(getattr(MiniBatchGaussianMixture, name)), name


def test_clone_and_copies() -> None:
    model = MiniBatchGaussianMixture(3, half_life=500.0, random_state=0).partial_fit(X)
    assert not hasattr(clone(model), "means_")
    assert clone(model).get_params() == model.get_params()
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
        again.partial_fit(X[:50])  # the state travels, and is the copy's own
    assert model.n_samples_seen_ == len(X)


def test_a_copy_learns_on_alike() -> None:
    model = MiniBatchGaussianMixture(3, random_state=0).partial_fit(X[:200])
    again = pickle.loads(pickle.dumps(model))
    for one in (model, again):
        one.partial_fit(X[200:300]).partial_fit(X[300:])
    np.testing.assert_array_equal(again.covariances_, model.covariances_)


def test_a_copy_waits_alike() -> None:
    model = MiniBatchGaussianMixture(3, random_state=0).partial_fit(X[:100])
    again = pickle.loads(pickle.dumps(model))
    for one in (model, again):
        one.partial_fit(X[100:])
    np.testing.assert_array_equal(again.means_, model.means_)


def test_unfitted_until_seeded() -> None:
    model = MiniBatchGaussianMixture(3, random_state=0)
    for part in (X[:60], X[60:149]):
        model.partial_fit(part)
        for name in ("predict", "predict_proba", "score_samples", "score", "aic", "bic", "icl"):
            with pytest.raises(NotFittedError):
                getattr(model, name)(X)
        with pytest.raises(NotFittedError):
            model.sample()
        assert not hasattr(model, "means_")
    assert model.n_features_in_ == 4
    assert model.n_samples_seen_ == 149
    model.partial_fit(X[149:150])
    assert (model.n_samples_seen_, model.n_batches_seen_) == (150, 3)
    assert model.predict(X).shape == (400,)


def test_weights_are_routed() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        model = MiniBatchGaussianMixture(3, random_state=0).set_fit_request(sample_weight=True)
        pipeline = Pipeline([("scale", StandardScaler().set_fit_request(sample_weight=False)), ("gmm", model)])
        pipeline.fit(X, sample_weight=WEIGHT)
        scaled = pipeline[:-1].transform(X)
        routed = MiniBatchGaussianMixture().set_partial_fit_request(sample_weight=True)
        assert routed.get_metadata_routing().partial_fit.requests == {
            "sample_weight": True,
            "noise": None,
            "known": None,
        }
    weighted = MiniBatchGaussianMixture(3, random_state=0).fit(scaled, sample_weight=WEIGHT)
    np.testing.assert_array_equal(pipeline[-1].means_, weighted.means_)
    assert not np.allclose(weighted.means_, MiniBatchGaussianMixture(3, random_state=0).fit(scaled).means_)


def test_feature_names() -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = MiniBatchGaussianMixture(3, random_state=0).partial_fit(frame[:100])
    assert model.feature_names_in_.tolist() == list("abcd")
    for _ in range(2):  # while the model waits for rows, and after
        with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
            model.partial_fit(frame[["b", "a", "c", "d"]])
        with pytest.raises(ValueError, match="X has 3 features, but MiniBatchGaussianMixture is expecting 4"):
            model.partial_fit(X[:, :3])
        model.partial_fit(frame[100:])
    assert model.n_samples_seen_ == 700
    assert model.fit(frame).feature_names_in_.tolist() == list("abcd")
    assert not hasattr(model.fit(X), "feature_names_in_")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_components": 0}, "The 'n_components' parameter"),
        ({"covariance_type": "round"}, "The 'covariance_type' parameter"),
        ({"batch_size": 0}, "The 'batch_size' parameter"),
        ({"learning_decay": 0.4}, "The 'learning_decay' parameter"),
        ({"learning_decay": 1.1}, "The 'learning_decay' parameter"),
        ({"learning_offset": 0.5}, "The 'learning_offset' parameter"),
        ({"half_life": 0.0}, "The 'half_life' parameter"),
        ({"init_size": 0}, "The 'init_size' parameter"),
        ({"max_iter": 0}, "The 'max_iter' parameter"),
        ({"tol": -1.0}, "The 'tol' parameter"),
        ({"reg_covar": -1e-6}, "The 'reg_covar' parameter"),
        ({"block_size": "many"}, "block_size"),
        ({"weights_init": [0.5, 0.6, 0.1]}, "'weights' should be normalized"),
        ({"means_init": np.zeros((3, 3))}, r"'means' should have the shape of \(3, 4\)"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_bad_parameters(settings: dict[str, Any], message: str, method: str) -> None:
    model = MiniBatchGaussianMixture(**({"n_components": 3} | settings))
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(X)
    assert not hasattr(model, "means_")


def test_a_stream_writes_no_checkpoint(tmp_path: Any) -> None:
    model = MiniBatchGaussianMixture(2, random_state=0, checkpoint=tmp_path / "c").partial_fit(X)
    assert model.n_batches_seen_ == 1
    assert not list(tmp_path.iterdir())
